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
template <class T>
void scale_pieces(const Parameters<T>& gradient, double factor, const IndexRange& own, Workspace& workspace) {
  for_each_piece(
      own, workspace,
      [by = static_cast<T>(factor)](const Piece& piece, T* slopes) {
        for (Index i = 0; i < piece.size; ++i) slopes[i] *= by;
      },
      gradient);
}
template <class Model>
void scale_gradient(Model& gradient, double factor, Workspace& workspace) {
  const Parameters parameters(gradient);
  scale_pieces(parameters, factor, {0, count_pieces(parameters)}, workspace);
}

/// clip_gradient() of a gradient of which this member of a team has the pieces `own`; gather(squares) adds to them, of
/// all pieces, those of the others.
template <class T, class Gather>
double clip_pieces(const Parameters<T>& gradient, double largest, const IndexRange& own, Gather&& gather,
                   Workspace& workspace) {
  check_largest_norm(largest);
  const Arena::Scope scope(workspace.arena());
  const Index count = count_pieces(gradient);
  double* squares = workspace.arena().allocate<double>(count);
  const auto norm_of_scaled = [&](double scale) {
    for_each_piece(
        own, workspace,
        [&](const Piece& piece, const T* slopes) {
          double sum = 0;
          for (Index i = 0; i < piece.size; ++i) {
            const double slope = scale * static_cast<double>(slopes[i]);
            sum += slope * slope;
          }
          squares[piece.number] = sum;
        },
        gradient);
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
template <class T>
double clip_parameters(const Parameters<T>& gradient, double largest, Workspace& workspace) {
  return clip_pieces(
      gradient, largest, {0, count_pieces(gradient)}, [](double*) {}, workspace);
}

}  // namespace detail

/// The Euclidean norm of a gradient over all its parameters, which is scaled down to `largest` where it is longer;
/// infinity measures alone. Pascanu et al., arXiv 1211.5063. A norm that is not finite leaves the gradient as it is.
/// Throws Error unless `largest` is positive.
template <class Model>
double clip_gradient(Model& gradient, double largest, Workspace& workspace) {
  return detail::clip_parameters(detail::Parameters(gradient), largest, workspace);
}

}  // namespace FIT_ABI
}  // namespace fit
