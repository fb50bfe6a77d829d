#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <variant>

#include <fit/core/error.hpp>

namespace fit {
inline namespace FIT_ABI {

/// gamma(t), the share of the signal's power that is left at time t: 1 at t = 0, next to nothing or nothing at t = 1.
/// Computed in double.

/// cos^2(((t + 0.0002) / 1.00025) pi / 2)
struct CosineSimpleSchedule {};

/// A piece start..end of cos(t pi / 2)^(2 tau), stretched to [0, 1]. Chen, arXiv 2301.10972, section 2.2.
struct CosineSchedule {
  double start = 0, end = 1, tau = 1;
};

/// A piece start..end of a sigmoid of steepness 1 / tau, stretched to [0, 1]. Jabri et al., arXiv 2212.11972.
struct SigmoidSchedule {
  double start = -3, end = 3, tau = 0.9;
};

/// 1 - t
struct LinearSchedule {};

/// (ln end - ln(t (end - start) + start)) / (ln end - ln start), start and end swapped when reversed.
struct LogSchedule {
  double start = 1, end = 100;
  bool reverse = false;
};

/// The straight path x_t = (1 - t) x0 + t eps of rectified flow, whose gamma is told to the network as 1 - t. Liu et
/// al., arXiv 2209.03003.
struct RectifiedFlow {};

using NoiseSchedule =
    std::variant<CosineSchedule, CosineSimpleSchedule, SigmoidSchedule, LinearSchedule, LogSchedule, RectifiedFlow>;

/// x_t = keep x0 + lose eps, and the gamma that the network is told.
struct NoiseShares {
  double keep = 1, lose = 0, gamma = 1;
};

namespace detail {

inline constexpr double least_noise_level = 1e-9;

inline double level(const CosineSimpleSchedule&, double t) {
  const double root = std::cos((t + 0.0002) / 1.00025 * (std::numbers::pi / 2));
  return root * root;
}

inline double level(const CosineSchedule& s, double t) {
  require(s.start >= 0 && s.start < s.end && s.end <= 1 && s.tau > 0 && std::isfinite(s.tau),
          "a cosine schedule needs 0 <= start < end <= 1 and tau > 0, not start ", s.start, ", end ", s.end, ", tau ",
          s.tau);
  // The cosine of a right angle comes out a little below zero, which no broken power takes.
  const auto power = [&](double x) { return std::pow(std::max(0.0, std::cos(x * (std::numbers::pi / 2))), 2 * s.tau); };
  const double high = power(s.start), low = power(s.end);
  require(high > low, "a cosine schedule from ", s.start, " to ", s.end, " with tau ", s.tau, " does not fall");
  return std::clamp((power(t * (s.end - s.start) + s.start) - low) / (high - low), least_noise_level, 1.0);
}

inline double level(const SigmoidSchedule& s, double t) {
  require(s.start < s.end && std::isfinite(s.end - s.start) && s.tau > 0 && std::isfinite(s.tau),
          "a sigmoid schedule needs start < end and tau > 0, not start ", s.start, ", end ", s.end, ", tau ", s.tau);
  const auto sigmoid = [&](double x) { return 1 / (1 + std::exp(-x / s.tau)); };
  const double first = sigmoid(s.start), last = sigmoid(s.end);
  require(last > first, "a sigmoid schedule from ", s.start, " to ", s.end, " with tau ", s.tau, " does not fall");
  return std::clamp((last - sigmoid(t * (s.end - s.start) + s.start)) / (last - first), least_noise_level, 1.0);
}

inline double level(const LinearSchedule&, double t) { return std::clamp(1 - t, least_noise_level, 1.0); }

inline double level(const LogSchedule& s, double t) {
  require(s.start > 0 && s.end > 0 && s.start != s.end && std::isfinite(s.start) && std::isfinite(s.end),
          "a log schedule needs two different positive ends, not start ", s.start, ", end ", s.end);
  const double start = s.reverse ? s.end : s.start, end = s.reverse ? s.start : s.end;
  const double top = std::log(end) - std::log(t * (end - start) + start);
  return std::clamp(top / (std::log(end) - std::log(start)), 0.0, 1.0);
}

inline double level(const RectifiedFlow&, double t) { return 1 - t; }

}  // namespace detail

/// gamma(t) of a schedule. Throws Error unless t is in [0, 1] and the schedule's numbers make one.
inline double noise_level(const NoiseSchedule& schedule, double t) {
  require(t >= 0 && t <= 1, "the time of a noise schedule must be in [0, 1], not ", t);
  return std::visit([&](const auto& s) { return detail::level(s, t); }, schedule);
}

inline bool is_flow(const NoiseSchedule& schedule) { return std::holds_alternative<RectifiedFlow>(schedule); }

/// sqrt(gamma) and sqrt(1 - gamma), or 1 - t and t of rectified flow, in double. Throws Error as noise_level().
inline NoiseShares noise_shares(const NoiseSchedule& schedule, double t) {
  const double gamma = noise_level(schedule, t);
  if (is_flow(schedule)) return {gamma, t, gamma};
  return {std::sqrt(gamma), std::sqrt(1 - gamma), gamma};
}

}  // namespace FIT_ABI
}  // namespace fit
