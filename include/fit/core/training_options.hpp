#pragma once

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What differs between training and inference; rates are probabilities in [0, 1).
struct TrainingOptions {
  /// Residual branches of local and global blocks, per sequence. Huang et al., arXiv 1603.09382.
  float drop_path = 0;
  /// Hidden units of their MLPs, after the GELU.
  float drop_units = 0;
  /// Their attention weights.
  float drop_attention = 0;
  /// Keep only what enters each stage and compute the rest again on the way back. Chen et al., arXiv 1604.06174.
  bool recompute = false;
};

}  // namespace FIT_ABI
}  // namespace fit
