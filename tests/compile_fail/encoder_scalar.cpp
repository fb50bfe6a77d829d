// expect: an encoder computes in float or double
#include <fit/models/encoder.hpp>

constexpr fit::EncoderConfig config{
    .layers = "(2)1(1)",
    .groups = 6,
    .tokens = 9,
    .channels = 3,
    .latents = 2,
    .data_dim = 24,
    .latent_dim = 32,
    .data_heads = 2,
    .latent_heads = 4};
#ifdef FIT_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

int main() {
  const fit::Encoder<config, Scalar> encoder;
}
