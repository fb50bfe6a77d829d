// expect: learned latent positions need a number as config.groups
#include "right_autoregressive.hpp"

constexpr fit::AutoregressiveConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.groups = fit::any;
#endif
  return changed;
}();

static_assert(fit::detail::check_autoregressive<config>());
