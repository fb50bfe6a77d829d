#pragma once

#include <algorithm>
#include <optional>

#include <fit/core/error.hpp>
#include <fit/core/memory.hpp>
#include <fit/diffusion/noise_schedule.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What the network predicts: the noise, the clean signal, v = sqrt(gamma) eps - sqrt(1 - gamma) x0 (Salimans and Ho,
/// arXiv 2202.00512), or the velocity eps - x0 of rectified flow (Liu et al., arXiv 2209.03003).
enum class Prediction { eps, x0, v, velocity };

/// Bounds that estimates of x0 are cut to.
struct Range {
  double low = -1, high = 1;
};

namespace detail {

inline void check_range(const std::optional<Range>& range) {
  require(!range || range->low < range->high, "an x0 clip needs low < high, not ", range ? range->low : 0, " and ",
          range ? range->high : 0);
}

inline void check_prediction(const NoiseSchedule& schedule, Prediction prediction) {
  noise_level(schedule, 0.5);  // refuses a wrong schedule
  require(!is_flow(schedule) || prediction != Prediction::v,
          "rectified flow goes with Prediction::velocity, x0 or eps, not with v");
}

/// The least share that estimates divide by: where nothing is left of the signal, or of the noise, they stay finite.
inline constexpr double least_share = 1e-5;

/// x0 = x0_of_x x + x0_of_p p and eps = eps_of_x x + eps_of_p p, for what the network predicts, p, at x.
struct Estimates {
  double x0_of_x, x0_of_p, eps_of_x, eps_of_p;
};

inline Estimates estimates_of(Prediction kind, const NoiseShares& s) {
  const double keep = std::max(s.keep, least_share), lose = std::max(s.lose, least_share), sum = s.keep + s.lose;
  switch (kind) {
    case Prediction::eps:
      return {1 / keep, -s.lose / keep, 0, 1};
    case Prediction::x0:
      return {0, 1, 1 / lose, -s.keep / lose};
    case Prediction::v:
      return {s.keep, -s.lose, s.lose, s.keep};
    case Prediction::velocity:
      break;
  }
  return {1 / sum, -s.lose / sum, 1 / sum, s.keep / sum};
}

/// Estimates of x0, cut to a range, and of eps from what the network predicts at x, `count` elements of one example.
/// With a range, eps follows from the x0 that was cut if `consistent` or if the network predicts x0.
template <class T>
void estimate(const T* prediction, const T* x, T* x0, T* eps, Index count, Prediction kind, const NoiseShares& shares,
              const std::optional<Range>& clip, bool consistent) {
  const Estimates e = estimates_of(kind, shares);
  const T x0_of_x = static_cast<T>(e.x0_of_x), x0_of_p = static_cast<T>(e.x0_of_p);
  const T eps_of_x = static_cast<T>(e.eps_of_x), eps_of_p = static_cast<T>(e.eps_of_p);
  const T keep = static_cast<T>(shares.keep);
  const T lose = static_cast<T>(std::max(shares.lose, least_share));
  const bool derived = clip && (consistent || kind == Prediction::x0);
  for (Index i = 0; i < count; ++i) {
    x0[i] = x0_of_x * x[i] + x0_of_p * prediction[i];
    if (clip) x0[i] = std::clamp(x0[i], static_cast<T>(clip->low), static_cast<T>(clip->high));
    eps[i] = derived ? (x[i] - keep * x0[i]) / lose : eps_of_x * x[i] + eps_of_p * prediction[i];
  }
}

}  // namespace detail

}  // namespace FIT_ABI
}  // namespace fit
