// expect: learned latent positions need a number as config.groups
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.groups = fit::any;
#endif
  return changed;
}();

static_assert(fit::detail::check_diffusion<config>());
