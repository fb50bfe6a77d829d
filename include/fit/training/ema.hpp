#pragma once

#include <fit/training/pieces.hpp>

namespace fit::inline FIT_ABI {

/// average += (1 - decay) * (model - average), the exponential moving average of a model's parameters.
/// Throws Error unless decay is in [0, 1].
template <class Model>
void update_average(Model& average, const Model& model, double decay, Workspace& workspace) {
  using T = typename Model::T;
  require(decay >= 0 && decay <= 1, "the decay of an average must be in [0, 1], not ", decay);
  const T share = static_cast<T>(1 - decay);
  for_each_piece(
      [&](const auto& piece, Index) {
        for (Index i = 0; i < piece.size; ++i) piece.data[0][i] += share * (piece.data[1][i] - piece.data[0][i]);
      },
      workspace, average, model);
}

}  // namespace fit::inline FIT_ABI
