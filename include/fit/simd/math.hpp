#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numbers>
#include <type_traits>

#include <fit/simd/batch.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace simd {

namespace detail {

template <class T, std::size_t N>
inline Batch<T> polynomial(const Batch<T>& x, const T (&coefficients)[N]) {
  Batch<T> result(coefficients[N - 1]);
  for (std::size_t i = N - 1; i-- > 0;) result = fma(result, x, Batch<T>(coefficients[i]));
  return result;
}

/// 2^r on [-1/2, 1/2], relative error of the polynomial below 2e-9 (float), 4e-18 (double).
template <class T>
inline constexpr T exp2_coefficients[1] = {};
template <>
inline constexpr float exp2_coefficients<float>[7] = {1.0f,
                                                      0.6931472057370607f,
                                                      0.24022646890518937f,
                                                      0.05550328777262208f,
                                                      0.009618488970324399f,
                                                      0.0013399931144666847f,
                                                      0.00015345808491568132f};
template <>
inline constexpr double exp2_coefficients<double>[12] = {1.0,
                                                         0.6931471805599453,
                                                         0.24022650695910155,
                                                         0.055504108664819925,
                                                         0.009618129107588339,
                                                         0.0013333558146789925,
                                                         0.00015403530462511074,
                                                         1.5252733489976358e-05,
                                                         1.3215433091311964e-06,
                                                         1.0178198029683782e-07,
                                                         7.074105341011781e-09,
                                                         4.43528115480366e-10};

/// Phi(-x) / (exp(-x^2 / 2) t) as a polynomial in t = 1 / (1 + 0.35 x) for x in [0, 14], relative error below 4e-8.
inline constexpr float normal_tail_coefficients[9] = {
    0.13962140419137362f, 0.1398618718788777f,   0.11983284884644564f, 0.10550809032698452f,  -0.02311006878537994f,
    0.15917454385069746f, -0.25571462849797666f, 0.14397189709945943f, -0.029145974855328226f};

}  // namespace detail

/// 2^x for x <= 0 or not far above: zero from x = -126.5 (float), -1022.5 (double) down, so that a masked score of
/// minus infinity weighs nothing; not meant for x beyond the largest exponent. NaN stays NaN.
template <class T>
inline Batch<T> exp2(const Batch<T>& x) {
  // Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits, where the exponent is made.
  constexpr bool is_float = std::is_same_v<T, float>;
  using Integer = std::conditional_t<is_float, std::int32_t, std::int64_t>;
  constexpr int mantissa = is_float ? 23 : 52;
  constexpr T bias = is_float ? T(127) : T(1023);
  constexpr T magic = (is_float ? T(12582912) : T(6755399441055744)) + bias;
  const Batch<T> clamped = max(Batch<T>(-bias), x);
  const Batch<T> shifted = clamped + Batch<T>(magic);
  const Batch<T> fraction = clamped - (shifted - Batch<T>(magic));
  const auto exponent = std::bit_cast<Batch<Integer>>(shifted) << mantissa;
  return detail::polynomial(fraction, detail::exp2_coefficients<T>) * std::bit_cast<Batch<T>>(exponent);
}

namespace detail {

/// log2(m) = 2 / ln 2 (s + s^3 / 3 + s^5 / 5 + ...), s = (m - 1) / (m + 1), for m in [sqrt(1/2), sqrt(2)].
template <class T>
struct Log2Coefficients {
  T of[std::is_same_v<T, float> ? 5 : 11];

  constexpr Log2Coefficients() {
    for (std::size_t i = 0; i < std::size(of); ++i) of[i] = T(2 * std::numbers::log2e / static_cast<double>(2 * i + 1));
  }
};
template <class T>
inline constexpr Log2Coefficients<T> log2_coefficients;

}  // namespace detail

/// log2(x) of positive finite x that are no denormals, to some units in the last place of 1. NaN stays NaN.
template <class T>
inline Batch<T> log2(const Batch<T>& x) {
  using Register = typename Batch<T>::register_type;
  using Integer = std::conditional_t<std::is_same_v<T, float>, std::int32_t, std::int64_t>;
  typedef Integer Integers __attribute__((vector_size(sizeof(Register))));
  typedef T Lanes __attribute__((vector_size(sizeof(Register))));
  constexpr int mantissa = std::is_same_v<T, float> ? 23 : 52;
  constexpr auto root = std::bit_cast<Integer>(T(std::numbers::sqrt2 / 2));
  const Integers bits = reinterpret_cast<Integers>(static_cast<Register>(x));
  const Integers exponent = (bits - root) >> mantissa;
  const Batch<T> m(reinterpret_cast<Register>(bits - (exponent << mantissa)));
  const Batch<T> whole(reinterpret_cast<Register>(__builtin_convertvector(exponent, Lanes)));
  const Batch<T> s = (m - Batch<T>(1)) / (m + Batch<T>(1));
  return fma(s, detail::polynomial(s * s, detail::log2_coefficients<T>.of), whole) + (x - x);
}

/// The standard normal distribution and its density at x.
template <class T>
struct Normal {
  Batch<T> distribution, density;
};

/// Phi(x) = (1 + erf(x / sqrt 2)) / 2 and phi(x) = exp(-x^2 / 2) / sqrt(2 pi). In float from one exponential, with a
/// relative error below 4e-7 down to x = -2 and, as x^2 is rounded, of some 4e-8 x^2 below; in double element by
/// element from the C library.
template <class T>
inline Normal<T> normal(const Batch<T>& x) {
  constexpr T inverse_root = T(0.3989422804014327);  // 1 / sqrt(2 pi)
  if constexpr (std::is_same_v<T, float>) {
    const Batch<T> t = Batch<T>(1) / fma(xsimd::abs(x), Batch<T>(0.35f), Batch<T>(1));
    const Batch<T> gauss = exp2(x * x * Batch<T>(T(-std::numbers::log2e / 2)));
    const Batch<T> tail = gauss * t * detail::polynomial(t, detail::normal_tail_coefficients);
    return {xsimd::select(x > Batch<T>(0), Batch<T>(1) - tail, tail), gauss * Batch<T>(inverse_root)};
  } else {
    alignas(alignment) T at[static_cast<std::size_t>(width<T>)], distribution[static_cast<std::size_t>(width<T>)];
    alignas(alignment) T density[static_cast<std::size_t>(width<T>)];
    x.store_aligned(at);
    for (Index i = 0; i < width<T>; ++i) {
      distribution[i] = std::erfc(at[i] * T(-std::numbers::sqrt2 / 2)) / 2;
      density[i] = std::exp(at[i] * at[i] / -2) * inverse_root;
    }
    return {Batch<T>::load_aligned(distribution), Batch<T>::load_aligned(density)};
  }
}

}  // namespace simd
}  // namespace FIT_ABI
}  // namespace fit
