#pragma once

#include <utility>

#include <fit/core/abi.hpp>
#include <fit/core/error.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What a training pass keeps for the way back, and what it computes again there. Chen et al., arXiv 1604.06174.
enum class Recompute {
  none,   ///< all records
  stage,  ///< data tokens and latents at the start of every stage: one more forward pass
  stream  ///< latents alone, at every stage and global block: what leads a group to a stage runs again for each stage
};

/// What differs between training and inference; rates are probabilities in [0, 1).
struct TrainingOptions {
  /// Residual branches of local and global blocks, per sequence. Huang et al., arXiv 1603.09382.
  float drop_path = 0;
  /// Hidden units of their MLPs, after the GELU.
  float drop_units = 0;
  /// Their attention weights.
  float drop_attention = 0;
  Recompute recompute = Recompute::none;
  /// Streaming also keeps the data tokens at the start of every so many stages, to begin there; 0 for none.
  int keep_data_every = 0;
};

namespace detail {

/// Throws Error for a rate outside [0, 1), or a negative keep_data_every.
constexpr void check(const TrainingOptions& options) {
  for (const auto& [name, rate] : {std::pair{"drop_path", options.drop_path},
                                   {"drop_units", options.drop_units},
                                   {"drop_attention", options.drop_attention}}) {
    require(rate >= 0 && rate < 1, name, " must be in [0, 1), not ", rate);
  }
  require(options.keep_data_every >= 0, "keep_data_every must not be negative, but is ", options.keep_data_every);
}

}  // namespace detail

}  // namespace FIT_ABI
}  // namespace fit
