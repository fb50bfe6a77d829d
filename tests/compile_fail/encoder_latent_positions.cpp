// expect: config.latent_positions must be learned, sin_cos, sin_cos_grid, shared or shared_sin_cos
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.latent_positions = fit::Positions::sin_cos_2d;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
