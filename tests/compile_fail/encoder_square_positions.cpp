// expect: need a square number as config.tokens
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.tokens = 8;
  changed.data_positions = fit::Positions::sin_cos_2d;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
