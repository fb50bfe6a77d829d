#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// How a learning rate falls: along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts); in a
/// line; or not until the last part of a run, and then in a line (Hu et al., arXiv 2404.06395, section 4).
enum class Decay { cosine, linear, late };

/// Learning rates that rise in a line to `peak` over `warm_up` steps, a fifth of the run at most, and fall to `floor`
/// at the end of a run, where they stay.
struct LearningRate {
  double peak = 1e-3;
  Index warm_up = 0;
  double floor = 0;
  Decay decay = Decay::cosine;
  double part = 0.2;  ///< of a run, in which Decay::late falls

  /// The rate of a step, the first being 0, of a run of `total`.
  double operator()(Index step, Index total) const {
    if (total > 0 && step >= total) return floor;
    const Index rise = std::min(warm_up, total / 5);
    if (step < rise) return peak * static_cast<double>(step + 1) / static_cast<double>(rise);
    const auto end = static_cast<double>(total);
    const double begin = std::max(static_cast<double>(rise), decay == Decay::late ? (1 - part) * end : 0);
    const double share = std::clamp((static_cast<double>(step) - begin) / std::max(1.0, end - begin), 0.0, 1.0);
    const double height = decay == Decay::cosine ? 0.5 * (1 + std::cos(std::numbers::pi * share)) : 1 - share;
    return floor + (peak - floor) * height;
  }
};

}  // namespace FIT_ABI
}  // namespace fit
