// expect: config.condition_tokens need config.condition_channels
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.condition_channels = 0;
#endif
  return changed;
}();

static_assert(fit::detail::check_diffusion<config>());
