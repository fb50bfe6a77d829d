// expect: config.groups must be positive, or fit::any
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.groups = 0;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
