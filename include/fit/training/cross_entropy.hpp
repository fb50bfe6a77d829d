#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>

#include <fit/core/tensor.hpp>
#include <fit/core/workspace.hpp>
#include <fit/kernels/cross_entropy.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Mean of -ln softmax(logits)[target] over the rows, in nats; logits [rows, classes], a tensor or view of float or
/// double, targets [rows]. Writes the gradient of the mean to a tensor or view shaped like logits. Without rows the
/// mean is 0. Throws Error for shapes that differ or a target outside 0 .. classes-1.
template <class Logits>
double cross_entropy(const Logits& logits, TensorView<const std::int32_t, 1> targets,
                     std::optional<TensorView<detail::ScalarOf<Logits>, 2>> gradient, Workspace& workspace) {
  using T = detail::ScalarOf<Logits>;
  const TensorView<const T, 2> from(logits);
  const Index rows = from.dimension(0), classes = from.dimension(1);
  require(targets.dimension(0) == rows, "cross entropy needs a target for each of ", rows, " rows, not ",
          targets.dimension(0));
  if (gradient) detail::require_shape(*gradient, {rows, classes}, "the gradient of a cross entropy");
  require(rows == 0 || (targets.data() && (classes == 0 || from.data())), "a cross entropy is given a view of null");
  for (Index i = 0; i < rows; ++i) {
    require(targets(i) >= 0 && targets(i) < classes, "target ", i, " must be in 0 .. ", classes - 1, ", not ",
            targets(i));
  }
  if (rows == 0) return 0;
  const Arena::Scope scope(workspace.arena());
  T* losses = workspace.arena().allocate<T>(rows);
  kernels::cross_entropy<T>({from.data(), targets.data(), losses, gradient ? gradient->data() : nullptr},
                            T(1) / static_cast<T>(rows), rows, classes, workspace.executor());
  double total = 0;
  for (Index i = 0; i < rows; ++i) total += static_cast<double>(losses[i]);
  return total / static_cast<double>(rows);
}

/// The same without a gradient.
template <class Logits>
double cross_entropy(const Logits& logits, TensorView<const std::int32_t, 1> targets, Workspace& workspace) {
  return cross_entropy(logits, targets, {}, workspace);
}

}  // namespace FIT_ABI
}  // namespace fit
