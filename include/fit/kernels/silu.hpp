#pragma once

#include <numbers>

#include <fit/core/assert.hpp>
#include <fit/simd/math.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

namespace detail {

/// 1 / (1 + exp(-x)), from the exponential of -|x|, which cannot overflow.
template <class T>
inline simd::Batch<T> sigmoid(const simd::Batch<T>& x) {
  using Batch = simd::Batch<T>;
  const Batch decay = simd::exp2(xsimd::abs(x) * Batch(T(-std::numbers::log2e)));
  return xsimd::select(x < Batch(T(0)), decay, Batch(T(1))) / (Batch(T(1)) + decay);
}

}  // namespace detail

/// output = x / (1 + exp(-x)), `count` elements; output may be x. Elfwing et al., arXiv 1702.03118.
template <class T>
void silu(const T* x, T* output, Index count) {
  FIT_ASSERT(count == 0 || (count > 0 && x && output));
  for (Index i = 0; i < count; i += simd::width<T>) {
    const simd::Batch<T> value = simd::load_part(x + i, count - i);
    simd::store_part(output + i, value * detail::sigmoid(value), count - i);
  }
}

/// gradient *= d silu(x) / dx = s (1 + x (1 - s)) with s the sigmoid of x, `count` elements.
template <class T>
void silu_backward(const T* x, T* gradient, Index count) {
  FIT_ASSERT(count == 0 || (count > 0 && x && gradient));
  using Batch = simd::Batch<T>;
  for (Index i = 0; i < count; i += simd::width<T>) {
    const Batch value = simd::load_part(x + i, count - i), s = detail::sigmoid(value);
    const Batch slope = s * simd::fma(value, Batch(T(1)) - s, Batch(T(1)));
    simd::store_part(gradient + i, simd::load_part(gradient + i, count - i) * slope, count - i);
  }
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
