// expect: the layer string is empty
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.layers = "";
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
