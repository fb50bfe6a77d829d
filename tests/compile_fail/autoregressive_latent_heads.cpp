// expect: config.latent_dim must be a multiple of config.latent_heads
#include "right_autoregressive.hpp"

constexpr fit::AutoregressiveConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.latent_heads = 5;
#endif
  return changed;
}();

static_assert(fit::detail::check_autoregressive<config>());
