// expect: sampling needs config.output_channels equal to config.channels
#include <fit/diffusion/sampler.hpp>

#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.output_channels = 4;
#endif
  return changed;
}();

void use() {
  const fit::DiffusionDecoder<config> decoder;
  fit::sample(decoder, {}, fit::Tensor<float, 3>(1, 2, 5), fit::Random(1));
}
