#pragma once

#include <cstddef>
#include <cstring>

#include <fit/core/tensor.hpp>

#include <fit/grouping/boxes.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Targets [B, T, n] -> the autoregressive decoder's inputs [B, T, n]: each flat sequence moved by one, with 0 in
/// front, so that the input at a place is the id before it. The output may be the targets themselves. Throws Error when
/// it has another shape.
template <detail::TensorOf<3> Ids>
void shift_right(const Ids& ids, TensorView<detail::ScalarOf<Ids>, 3> shifted) {
  detail::require_shape(ids, detail::shape_of(ids), "shift_right: the input");
  detail::require_shape(shifted, detail::shape_of(ids), "shift_right: the output");
  const Index batch = ids.dimension(0), length = ids.dimension(1) * ids.dimension(2);
  if (length == 0) return;
  for (Index b = 0; b < batch; ++b) {
    auto* const to = shifted.data() + b * length;
    std::memmove(to + 1, ids.data() + b * length, static_cast<std::size_t>(length - 1) * sizeof(*to));
    *to = 0;
  }
}

template <detail::TensorOf<3> Ids>
Tensor<detail::ScalarOf<Ids>, 3> shift_right(const Ids& ids) {
  Tensor<detail::ScalarOf<Ids>, 3> shifted(ids.dimension(0), ids.dimension(1), ids.dimension(2));
  shift_right(ids, shifted);
  return shifted;
}

}  // namespace FIT_ABI
}  // namespace fit
