// expect: config.latent_dim must be a multiple of config.latent_heads
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.latent_heads = 5;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
