// expect: the width of read and write
#include <fit/models/encoder.hpp>

#ifdef FIT_MUST_FAIL
constexpr fit::EncoderConfig config{
    .layers = "(2)1(1)",
    .groups = 6,
    .tokens = 9,
    .channels = 3,
    .latents = 2,
    .data_dim = 9,
    .latent_dim = 32,
    .data_heads = 3,
    .latent_heads = 2};
#else
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
#endif

int main() {
  const fit::Encoder<config> encoder;
}
