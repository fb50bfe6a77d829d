#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <limits>

#include <fit/core/tensor.hpp>

#include <fit/grouping/boxes.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

template <class X>
inline constexpr int grouped_rank = static_cast<int>(rank_of<X>) + 1;
template <class X>
inline constexpr int ungrouped_rank = static_cast<int>(rank_of<X>) - 1;

template <class From, class To>
void copy_elements(const From& from, To& to) {
  if (to.size() > 0) std::memcpy(to.data(), from.data(), static_cast<std::size_t>(to.size()) * sizeof(*to.data()));
}

template <class X>
auto grouped_shape(const X& x, Index tokens) {
  require_shape(x, shape_of(x), "group_sequence: the input");
  require(tokens > 0, "group_sequence: the tokens of a group must be positive, not ", tokens);
  require(x.dimension(1) % tokens == 0, "group_sequence: the sequence's length, ", x.dimension(1),
          ", must be a multiple of the tokens of a group, ", tokens);
  std::array<Index, rank_of<X> + 1> shape{x.dimension(0), x.dimension(1) / tokens, tokens};
  for (std::size_t i = 2; i < rank_of<X>; ++i) shape[i + 1] = x.dimensions()[i];
  return shape;
}

template <class X>
auto ungrouped_shape(const X& x) {
  require_shape(x, shape_of(x), "ungroup_sequence: the input");
  require(x.dimension(1) == 0 || x.dimension(2) <= std::numeric_limits<Index>::max() / x.dimension(1),
          "ungroup_sequence: ", x.dimension(1), " groups of ", x.dimension(2), " tokens cannot be counted");
  std::array<Index, rank_of<X> - 1> shape{x.dimension(0), x.dimension(1) * x.dimension(2)};
  for (std::size_t i = 3; i < rank_of<X>; ++i) shape[i - 1] = x.dimensions()[i];
  return shape;
}

}  // namespace detail

/// x [B, L, ...] -> [B, L / tokens, tokens, ...]: consecutive runs as groups; x may be a Tensor, a TensorView or a
/// row-major Eigen tensor. The elements keep their order in memory, so a TensorView of the new shape over x does the
/// same without a copy. Throws Error when the runs do not divide the sequence or the output has another shape.
template <detail::TensorFrom<2> X>
void group_sequence(const X& x, Index tokens, TensorView<detail::ScalarOf<X>, detail::grouped_rank<X>> groups) {
  detail::require_shape(groups, detail::grouped_shape(x, tokens), "group_sequence: the output");
  detail::copy_elements(x, groups);
}

template <detail::TensorFrom<2> X>
Tensor<detail::ScalarOf<X>, detail::grouped_rank<X>> group_sequence(const X& x, Index tokens) {
  const Eigen::DSizes<Index, detail::grouped_rank<X>> shape(detail::grouped_shape(x, tokens));
  Tensor<detail::ScalarOf<X>, detail::grouped_rank<X>> groups(shape);
  detail::copy_elements(x, groups);
  return groups;
}

/// The inverse: groups [B, T, n, ...] -> [B, T * n, ...]. Throws Error when the output has another shape.
template <detail::TensorFrom<3> X>
void ungroup_sequence(const X& groups, TensorView<detail::ScalarOf<X>, detail::ungrouped_rank<X>> x) {
  detail::require_shape(x, detail::ungrouped_shape(groups), "ungroup_sequence: the output");
  detail::copy_elements(groups, x);
}

template <detail::TensorFrom<3> X>
Tensor<detail::ScalarOf<X>, detail::ungrouped_rank<X>> ungroup_sequence(const X& groups) {
  const Eigen::DSizes<Index, detail::ungrouped_rank<X>> shape(detail::ungrouped_shape(groups));
  Tensor<detail::ScalarOf<X>, detail::ungrouped_rank<X>> x(shape);
  detail::copy_elements(groups, x);
  return x;
}

}  // namespace FIT_ABI
}  // namespace fit
