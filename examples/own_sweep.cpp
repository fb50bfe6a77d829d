#include <fit/bench/report.hpp>

#include <fstream>
#include <iostream>

constexpr fit::EncoderConfig config{
    .layers = "(1)2(1)", .groups = 16, .tokens = 64, .channels = 3, .latents = 4,
    .data_dim = 64, .latent_dim = 128, .data_heads = 2, .latent_heads = 4};

int main() {
  // Longer sequences have more groups of the same size.
  const auto sizes = [](fit::Index length) {
    return fit::Sizes{1, length / config.tokens, config.tokens, config.latents};
  };
  const auto results = fit::bench::sweep({fit::bench::curve<config>("mine", sizes)},
                                         {.lengths = fit::bench::doublings(1024, 16384), .seconds = 0.5});
  fit::bench::write_csv(std::cout, results);
  std::ofstream picture("own_sweep.svg");
  fit::plot::write_svg(picture, fit::bench::figure(results));
}
