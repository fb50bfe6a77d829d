#pragma once

#include <fit/core/assert.hpp>
#include <fit/simd/math.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// output = x Phi(x) with Phi the standard normal distribution, `count` elements; output may be x.
/// Hendrycks and Gimpel, arXiv 1606.08415: the exact form, not the one with tanh.
template <class T>
void gelu(const T* x, T* output, Index count) {
  FIT_ASSERT(count == 0 || (count > 0 && x && output));
  for (Index i = 0; i < count; i += simd::width<T>) {
    const simd::Batch<T> value = simd::load_part(x + i, count - i);
    simd::store_part(output + i, value * simd::normal(value).distribution, count - i);
  }
}

/// gradient *= d gelu(x) / dx = Phi(x) + x phi(x), `count` elements.
template <class T>
void gelu_backward(const T* x, T* gradient, Index count) {
  FIT_ASSERT(count == 0 || (count > 0 && x && gradient));
  for (Index i = 0; i < count; i += simd::width<T>) {
    const simd::Batch<T> value = simd::load_part(x + i, count - i);
    const simd::Normal<T> normal = simd::normal(value);
    const simd::Batch<T> slope = simd::fma(value, normal.density, normal.distribution);
    simd::store_part(gradient + i, simd::load_part(gradient + i, count - i) * slope, count - i);
  }
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
