// expect: config.condition_channels must not be negative
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.condition_channels = -1;
#endif
  return changed;
}();

static_assert(fit::detail::check_diffusion<config>());
