// expect: config.latent_dim of a diffusion decoder must be a multiple of 4, and at least 12
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.latent_dim = 8;
#endif
  return changed;
}();

static_assert(fit::detail::check_diffusion<config>());
