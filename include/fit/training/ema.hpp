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

template <class T>
void average_parameters(const Parameters<T>& average, const Parameters<const T>& model, double decay,
                        Workspace& workspace) {
  check_average_decay(decay);
  for_each_piece(
      workspace,
      [share = static_cast<T>(1 - decay)](const Piece& piece, T* values, const T* newest) {
        average_elements(values, newest, share, piece.size);
      },
      average, model);
}

}  // namespace detail

/// average += (1 - decay) * (model - average), the exponential moving average of a model's parameters.
/// Throws Error unless decay is in [0, 1].
template <class Model>
void update_average(Model& average, const Model& model, double decay, Workspace& workspace) {
  detail::average_parameters(detail::Parameters(average), detail::Parameters(model), decay, workspace);
}

}  // namespace FIT_ABI
}  // namespace fit
