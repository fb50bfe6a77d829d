#pragma once

#include <cmath>

#include <fit/training/pieces.hpp>

namespace fit::inline FIT_ABI {

/// The Euclidean norm of a gradient over all its parameters, which is scaled down to `largest` where it is longer.
/// Pascanu et al., arXiv 1211.5063. A norm that is not finite leaves the gradient as it is.
template <class Model>
double clip_gradient(Model& gradient, double largest, Workspace& workspace) {
  using T = typename Model::T;
  require(largest > 0, "the largest gradient norm must be positive, not ", largest);
  const Arena::Scope scope(workspace.arena());
  double* squares = workspace.arena().template allocate<double>(count_pieces(gradient));
  for_each_piece(
      [&](const auto& piece, Index number) {
        double sum = 0;
        for (Index i = 0; i < piece.size; ++i) sum += static_cast<double>(piece.data[0][i]) * piece.data[0][i];
        squares[number] = sum;
      },
      workspace, gradient);
  double total = 0;
  for (Index i = 0; i < count_pieces(gradient); ++i) total += squares[i];
  const double norm = std::sqrt(total);
  if (norm > largest && std::isfinite(norm)) {
    const T factor = static_cast<T>(largest / norm);
    for_each_piece(
        [&](const auto& piece, Index) {
          for (Index i = 0; i < piece.size; ++i) piece.data[0][i] *= factor;
        },
        workspace, gradient);
  }
  return norm;
}

}  // namespace fit::inline FIT_ABI
