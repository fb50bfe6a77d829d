#pragma once

#include <fit/training/pieces.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

inline void check_average_decay(double decay) {
  require(decay >= 0 && decay <= 1, "the decay of an average must be in [0, 1], not ", decay);
}

template <class T>
void average_elements(T* average, const T* model, T share, Index size) {
  for (Index i = 0; i < size; ++i) average[i] += share * (model[i] - average[i]);
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
      [&](const Piece& piece, Index) { detail::average_elements(piece.average, piece.model, share, piece.size); },
      workspace, average, model);
}

}  // namespace FIT_ABI
}  // namespace fit
