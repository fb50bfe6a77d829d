// expect: config.output_channels must be positive
#include <fit/models/diffusion_decoder.hpp>

#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.output_channels = 0;
#endif
  return changed;
}();

const fit::DiffusionDecoder<config> decoder;
