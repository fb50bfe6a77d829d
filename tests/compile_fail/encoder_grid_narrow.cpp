// expect: sin_cos_grid latent positions need a config.latent_dim of at least 8
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.latent_dim = 4;
  changed.latent_positions = fit::Positions::sin_cos_grid;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
