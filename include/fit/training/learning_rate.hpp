#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Learning rates that rise in a line to `peak` over `warm_up` steps and fall along half a cosine to `floor` at step
/// `total`, where they stay. Loshchilov and Hutter, arXiv 1608.03983, without restarts.
struct WarmUpCosine {
  double peak = 1e-3;
  Index warm_up = 0, total = 1;
  double floor = 0;

  /// The rate of a step, the first being 0.
  double operator()(Index step) const {
    if (step < warm_up) return peak * static_cast<double>(step + 1) / static_cast<double>(warm_up);
    const double length = static_cast<double>(std::max<Index>(1, total - warm_up));
    const double share = std::min(1.0, static_cast<double>(step - warm_up) / length);
    return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * share));
  }
};

}  // namespace FIT_ABI
}  // namespace fit
