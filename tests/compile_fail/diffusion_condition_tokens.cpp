// expect: config.condition_tokens must not be negative
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.condition_tokens = -1;
#endif
  return changed;
}();

int main() { const fit::DiffusionDecoder<config> decoder; }
