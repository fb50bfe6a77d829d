#pragma once

#include <cmath>

#include <fit/training/pieces.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

inline void check_largest_norm(double largest) {
  require(largest > 0, "the largest gradient norm must be positive, not ", largest);
}

/// gradient *= factor, of some pieces.
template <class Model>
void scale_pieces(Model& gradient, double factor, const IndexRange& pieces, Workspace& workspace) {
  using T = typename Model::Scalar;
  struct Piece {
    T* slopes;
    Index size, parameter;
  };
  for_each_piece_in<Piece>(
      pieces,
      [by = static_cast<T>(factor)](const Piece& piece, Index) {
        for (Index i = 0; i < piece.size; ++i) piece.slopes[i] *= by;
      },
      workspace, gradient);
}
template <class Model>
void scale_gradient(Model& gradient, double factor, Workspace& workspace) {
  scale_pieces(gradient, factor, {0, count_pieces(gradient)}, workspace);
}

/// clip_gradient() of a gradient of which this member of a team has the pieces `own`; gather(squares) adds to them, of
/// all pieces, those of the others.
template <class Model, class Gather>
double clip_pieces(Model& gradient, double largest, const IndexRange& own, Gather&& gather, Workspace& workspace) {
  using T = typename Model::Scalar;
  check_largest_norm(largest);
  struct Piece {
    T* slopes;
    Index size, parameter;
  };
  const Arena::Scope scope(workspace.arena());
  const Index count = count_pieces(gradient);
  double* squares = workspace.arena().allocate<double>(count);
  const auto norm_of_scaled = [&](double scale) {
    for_each_piece_in<Piece>(
        own,
        [&](const Piece& piece, Index place) {
          double sum = 0;
          for (Index i = 0; i < piece.size; ++i) {
            const double slope = scale * static_cast<double>(piece.slopes[i]);
            sum += slope * slope;
          }
          squares[place] = sum;
        },
        workspace, gradient);
    gather(squares);
    double total = 0;
    for (Index i = 0; i < count; ++i) total += squares[i];
    return std::sqrt(total);
  };
  double norm = norm_of_scaled(1);
  // Squares of doubles overflow where the norm need not.
  if (std::isinf(norm)) norm = norm_of_scaled(0x1p-600) * 0x1p600;
  if (norm > largest && std::isfinite(norm)) scale_pieces(gradient, largest / norm, own, workspace);
  return norm;
}

}  // namespace detail

/// The Euclidean norm of a gradient over all its parameters, which is scaled down to `largest` where it is longer;
/// infinity measures alone. Pascanu et al., arXiv 1211.5063. A norm that is not finite leaves the gradient as it is.
/// Throws Error unless `largest` is positive.
template <class Model>
double clip_gradient(Model& gradient, double largest, Workspace& workspace) {
  return detail::clip_pieces(
      gradient, largest, {0, detail::count_pieces(gradient)}, [](double*) {}, workspace);
}

}  // namespace FIT_ABI
}  // namespace fit
