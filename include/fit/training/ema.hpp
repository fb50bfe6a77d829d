#pragma once

#include <fit/training/pieces.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

inline void check_average_decay(double decay) {
  require(decay >= 0 && decay <= 1, "the decay of an average must be in [0, 1], not ", decay);
}

}  // namespace detail

/// average += (1 - decay) * (model - average), the exponential moving average of a model's parameters.
/// Throws Error unless decay is in [0, 1].
template <class Model>
void update_average(Model& average, const Model& model, double decay, Workspace& workspace) {
  using T = typename Model::Scalar;
  detail::check_average_decay(decay);
  const T share = static_cast<T>(1 - decay);
  struct Piece {
    T* average;
    const T* model;
    Index size, parameter;
  };
  detail::for_each_piece<Piece>(
      [&](const Piece& piece, Index) {
        for (Index i = 0; i < piece.size; ++i) piece.average[i] += share * (piece.model[i] - piece.average[i]);
      },
      workspace, average, model);
}

}  // namespace FIT_ABI
}  // namespace fit
