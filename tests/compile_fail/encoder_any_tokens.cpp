// expect: config.tokens must be positive
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.tokens = fit::any;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
