// expect: needs a number of blocks
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.layers = "(-1)1(1)";
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
