// expect: the layer string is empty
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.layers = "";
#endif
  return changed;
}();

int main() {
  const fit::Encoder<config> encoder;
}
