// expect: a diffusion loss needs config.output_channels equal to config.channels
#include <fit/diffusion/loss.hpp>

#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.output_channels = 4;
#endif
  return changed;
}();

const fit::DiffusionLoss<fit::DiffusionDecoder<config>> loss({});
