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

/// output = gelu(x), in other memory, and x = its slope d gelu(x) / dx = Phi(x) + x phi(x).
template <class T>
void gelu_and_slope(T* x, T* output, Index count) {
  FIT_ASSERT(count == 0 || (count > 0 && x && output && x != output));
  for (Index i = 0; i < count; i += simd::width<T>) {
    const simd::Batch<T> value = simd::load_part(x + i, count - i);
    const simd::Normal<T> normal = simd::normal(value);
    simd::store_part(output + i, value * normal.distribution, count - i);
    simd::store_part(x + i, simd::fma(value, normal.density, normal.distribution), count - i);
  }
}

/// gradient *= slope, `count` elements.
template <class T>
void times_slope(const T* slope, T* gradient, Index count) {
  FIT_ASSERT(count == 0 || (count > 0 && slope && gradient));
  for (Index i = 0; i < count; i += simd::width<T>) {
    const simd::Batch<T> value = simd::load_part(gradient + i, count - i) * simd::load_part(slope + i, count - i);
    simd::store_part(gradient + i, value, count - i);
  }
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
