// expect: config.condition_tokens must not be negative
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.condition_tokens = -1;
#endif
  return changed;
}();

static_assert(fit::detail::check_diffusion<config>());
