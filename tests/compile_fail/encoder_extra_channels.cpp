// expect: must both be positive or both be zero
#include <fit/models/encoder.hpp>

#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.extra_tokens = 2;
#endif
  return changed;
}();

const fit::Encoder<config> encoder;
