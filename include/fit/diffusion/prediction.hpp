#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include <fit/core/error.hpp>
#include <fit/core/memory.hpp>

namespace fit::inline FIT_ABI {

/// What the network predicts: the noise, the clean signal, or v = sqrt(gamma) eps - sqrt(1 - gamma) x0 (Salimans and
/// Ho, arXiv 2202.00512).
enum class Prediction { eps, x0, v };

/// Bounds that estimates of x0 are cut to.
struct Range {
  double low = -1, high = 1;
};

/// x_t = keep x0 + lose eps for a noise level gamma: keep = sqrt(gamma), lose = sqrt(1 - gamma), computed in double.
struct NoiseShares {
  double keep, lose;

  explicit NoiseShares(double gamma) : keep(std::sqrt(gamma)), lose(std::sqrt(1 - gamma)) {}
};

namespace detail {

inline void check_range(const std::optional<Range>& range) {
  require(!range || range->low < range->high, "an x0 clip needs low < high, not ", range ? range->low : 0, " and ",
          range ? range->high : 0);
}

}  // namespace detail

/// Estimates of x0, cut to a range, and of eps from what the network predicts at x, `count` elements of one example.
/// With `consistent`, eps is the one that makes x of the x0 that was cut; else only where the network predicts x0.
template <class T>
void interpret(const T* prediction, const T* x, T* x0, T* eps, Index count, Prediction kind, const NoiseShares& shares,
               const std::optional<Range>& clip, bool consistent) {
  const T keep = static_cast<T>(shares.keep), lose = static_cast<T>(shares.lose);
  const bool derived = consistent || kind == Prediction::x0;
  for (Index i = 0; i < count; ++i) {
    const T p = prediction[i];
    T clean = kind == Prediction::eps ? (x[i] - lose * p) / keep : kind == Prediction::x0 ? p : keep * x[i] - lose * p;
    const T noise = kind == Prediction::eps ? p : lose * x[i] + keep * p;
    if (clip) clean = std::clamp(clean, static_cast<T>(clip->low), static_cast<T>(clip->high));
    x0[i] = clean;
    eps[i] = derived ? (x[i] - keep * clean) / lose : noise;
  }
}

}  // namespace fit::inline FIT_ABI
