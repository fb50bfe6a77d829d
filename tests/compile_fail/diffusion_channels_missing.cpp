// expect: config.channels must be positive
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.channels = 0;
#endif
  return changed;
}();

int main() { const fit::DiffusionDecoder<config> decoder; }
