// expect: config.latent_heads must be a multiple of config.latent_key_heads, or that be 0
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.latent_key_heads = 3;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
