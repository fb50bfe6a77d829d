// expect: more than 1000 blocks
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.layers = "(2000)1(1)";
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
