#pragma once

#include <fit/simd/width.hpp>

#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include <xsimd/xsimd.hpp>

#if defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__)) && !defined(FIT_ALLOW_BASELINE)
#if defined(__clang__)  // a warning, but no error where warnings are
#pragma clang diagnostic push
#pragma clang diagnostic warning "-W#pragma-messages"
#endif
#pragma message( \
    "fit: without AVX2 and FMA its kernels are slow: compile with -march=native or -march=x86-64-v3, or define FIT_ALLOW_BASELINE")
#if defined(__clang__)
#pragma clang diagnostic pop
#endif
#endif

namespace fit {
inline namespace FIT_ABI {
namespace simd {

/// A vector register of T, float or double, under the flags of this translation unit.
template <class T>
using Batch = xsimd::batch<T>;

static_assert(width<float> == static_cast<Index>(Batch<float>::size),
              "fit: xsimd's vectors are not as wide as the compiler's flags say");

template <class T>
inline Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}

template <class T>
inline void store(T* to, const Batch<T>& value) {
  value.store_unaligned(to);
}

namespace detail {

#if defined(__AVX512F__)
template <class T>
inline constexpr bool has_masks = sizeof(Batch<T>) == 64;
#else
template <class T>
inline constexpr bool has_masks = false;
#endif

/// Element by element, and out of line: only edges come here.
template <class T>
[[gnu::noinline]] Batch<T> load_elements(const T* from, Index count) {
  alignas(alignment) T whole[static_cast<std::size_t>(width<T>)] = {};
  for (Index i = 0; i < count; ++i) whole[i] = from[i];
  return Batch<T>::load_aligned(whole);
}
template <class T>
[[gnu::noinline]] void store_elements(T* to, Batch<T> value, Index count) {
  alignas(alignment) T whole[static_cast<std::size_t>(width<T>)];
  value.store_aligned(whole);
  for (Index i = 0; i < count; ++i) to[i] = whole[i];
}

}  // namespace detail

/// The first `count` elements at `from`, zeros after them; reads nothing beyond. 0 <= count; more than a whole register
/// is one.
template <class T>
inline Batch<T> load_part(const T* from, Index count) {
  if (count >= width<T>) return load(from);
#if defined(__AVX512F__)
  if constexpr (detail::has_masks<T> && sizeof(T) == 4) {
    return Batch<T>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
  } else if constexpr (detail::has_masks<T>) {
    return Batch<T>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from));
  }
#endif
  return detail::load_elements(from, count);
}

/// Writes the first `count` elements and nothing beyond, `count` as above.
template <class T>
inline void store_part(T* to, const Batch<T>& value, Index count) {
  if (count >= width<T>) return store(to, value);
#if defined(__AVX512F__)
  if constexpr (detail::has_masks<T> && sizeof(T) == 4) {
    return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value);
  } else if constexpr (detail::has_masks<T>) {
    return _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), value);
  }
#endif
  detail::store_elements(to, value, count);
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

/// The larger of each pair of elements, for numbers: what comes of NaN is the hardware's.
template <class T>
inline Batch<T> max(const Batch<T>& a, const Batch<T>& b) {
#if defined(__AVX512F__)  // GCC 12 warns of its own unmasked intrinsic (GCC bug 105593) where it was precompiled
  if constexpr (std::is_same_v<T, float> && sizeof(Batch<T>) == 64) {
    return Batch<T>(_mm512_maskz_max_ps(static_cast<__mmask16>(-1), a, b));
  } else if constexpr (std::is_same_v<T, double> && sizeof(Batch<T>) == 64) {
    return Batch<T>(_mm512_maskz_max_pd(static_cast<__mmask8>(-1), a, b));
  }
#endif
  return xsimd::max(a, b);
}

namespace detail {

/// The register with its elements moved down by `Step` places, the lowest ones coming back at the top.
template <int Step, class T, std::size_t... Lane>
inline Batch<T> rotate(const Batch<T>& value, std::index_sequence<Lane...>) {
  using Register = typename Batch<T>::register_type;
  typedef T Lanes __attribute__((vector_size(sizeof(Register))));
  const Lanes x = reinterpret_cast<Lanes>(static_cast<Register>(value));
  return Batch<T>(
      reinterpret_cast<Register>(__builtin_shufflevector(x, x, static_cast<int>((Lane + Step) % sizeof...(Lane))...)));
}

/// combine over all elements, as a tree of halves.
template <class T, class Combine, int Step = static_cast<int>(Batch<T>::size) / 2>
inline T reduce(const Batch<T>& value, Combine combine) {
  if constexpr (Step == 0) {
    typedef T Lanes __attribute__((vector_size(sizeof(Batch<T>))));
    return reinterpret_cast<Lanes>(static_cast<typename Batch<T>::register_type>(value))[0];
  } else {
    const auto turned = rotate<Step>(value, std::make_index_sequence<Batch<T>::size>{});
    return reduce<T, Combine, Step / 2>(combine(value, turned), combine);
  }
}

}  // namespace detail

/// Sum over the elements, in a fixed order.
template <class T>
inline T sum(const Batch<T>& value) {
  return detail::reduce(value, [](const Batch<T>& a, const Batch<T>& b) { return a + b; });
}

/// The largest element that is not NaN; minus infinity when all are.
template <class T>
inline T maximum(const Batch<T>& value) {
  const Batch<T> numbers = xsimd::select(value == value, value, Batch<T>(-std::numeric_limits<T>::infinity()));
  return detail::reduce(numbers, [](const Batch<T>& a, const Batch<T>& b) { return max(a, b); });
}

}  // namespace simd
}  // namespace FIT_ABI
}  // namespace fit
