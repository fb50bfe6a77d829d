#include <fit/fit.hpp>

#include <cstdio>

constexpr fit::EncoderConfig config{
    .layers = "(2)4(2)",  // two local blocks, four global ones, two local ones
    .groups = 16, .tokens = 49, .channels = 1, .latents = 4,
    .data_dim = 64, .latent_dim = 128, .data_heads = 2, .latent_heads = 4};

int main() {
  // Four gray images of 28 x 28: 16 groups of 7 x 7 pixels.
  fit::Tensor<float, 4> images(4, 28, 28, 1);
  images.setConstant(0.5f);
  const auto groups = fit::group_image(images, {.sub_image = {7, 7}, .patch = {1, 1}});

  fit::Encoder<config> encoder(fit::Random{7});
  auto [data, latents] = encoder(groups);  // [4, 16, 49, 64] and [4, 16, 4, 128]

  // One training step, towards latents of length zero.
  fit::Tape tape;
  fit::AdamW<fit::Encoder<config>> optimizer;
  fit::Encoder<config> gradient;
  tape.record({.drop_path = 0.1f}, fit::Random{1});
  const auto output = encoder.forward(groups, tape);
  encoder.backward({.latents = output.latents}, gradient, tape);
  optimizer.step(encoder, gradient, 1e-3, tape);

  fit::save("encoder.safetensors", encoder);
  fit::load("encoder.safetensors", encoder);
  std::printf("%td parameters\n", fit::count_parameters(encoder));
}
