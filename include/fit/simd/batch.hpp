#pragma once

#include <fit/core/memory.hpp>

#include <xsimd/xsimd.hpp>

namespace fit::inline FIT_ABI::simd {

/// A vector register of T, float or double, under the flags of this translation unit.
template <class T>
using Batch = xsimd::batch<T>;

/// Elements in a register.
template <class T>
inline constexpr Index width = static_cast<Index>(Batch<T>::size);

/// Vector registers of the architecture.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int registers = 32;
#else
inline constexpr int registers = 16;
#endif

template <class T>
inline Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}

template <class T>
inline void store(T* to, const Batch<T>& value) {
  value.store_unaligned(to);
}

/// The first `count` elements at `from`, zeros after them; reads nothing beyond. 0 <= count <= width.
template <class T>
inline Batch<T> load_part(const T* from, Index count) {
  if (count >= width<T>) return load(from);
  alignas(alignment) T whole[static_cast<std::size_t>(width<T>)] = {};
  for (Index i = 0; i < count; ++i) whole[i] = from[i];
  return Batch<T>::load_aligned(whole);
}

/// Writes the first `count` elements and nothing beyond. 0 <= count <= width.
template <class T>
inline void store_part(T* to, const Batch<T>& value, Index count) {
  if (count >= width<T>) return store(to, value);
  alignas(alignment) T whole[static_cast<std::size_t>(width<T>)];
  value.store_aligned(whole);
  for (Index i = 0; i < count; ++i) to[i] = whole[i];
}

/// a * b + c, rounded once where the hardware can.
template <class T>
inline Batch<T> fma(const Batch<T>& a, const Batch<T>& b, const Batch<T>& c) {
#if defined(__AVX512F__)  // xsimd before 9 multiplies and adds here
  if constexpr (std::is_same_v<T, float> && sizeof(Batch<T>) == 64) {
    return Batch<T>(_mm512_fmadd_ps(a, b, c));
  } else if constexpr (std::is_same_v<T, double> && sizeof(Batch<T>) == 64) {
    return Batch<T>(_mm512_fmadd_pd(a, b, c));
  }
#endif
  return xsimd::fma(a, b, c);
}

/// Sum over the elements, in a fixed order.
template <class T>
inline T sum(const Batch<T>& value) {
  alignas(alignment) T part[static_cast<std::size_t>(width<T>)];
  value.store_aligned(part);
  for (Index step = width<T> / 2; step > 0; step /= 2) {
    for (Index i = 0; i < step; ++i) part[i] += part[i + step];
  }
  return part[0];
}

/// The largest element that is not NaN; NaN when all are.
template <class T>
inline T maximum(const Batch<T>& value) {
  alignas(alignment) T part[static_cast<std::size_t>(width<T>)];
  value.store_aligned(part);
  for (Index step = width<T> / 2; step > 0; step /= 2) {
    for (Index i = 0; i < step; ++i) {
      if (part[i + step] > part[i] || part[i] != part[i]) part[i] = part[i + step];
    }
  }
  return part[0];
}

}  // namespace fit::inline FIT_ABI::simd
