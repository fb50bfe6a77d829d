// expect: config.data_positions must be learned, sin_cos or sin_cos_2d
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.data_positions = fit::Positions::shared;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
