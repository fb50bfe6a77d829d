#include <fit/bench/report.hpp>

#include <cstdlib>
#include <fstream>
#include <iostream>

constexpr fit::EncoderConfig config{
    .layers = "(1)2(1)", .groups = 16, .tokens = 128, .channels = 3, .latents = 4,
    .data_dim = 64, .latent_dim = 128, .data_heads = 2, .latent_heads = 4};

int main(int argc, char** argv) try {
  const fit::Index longest = argc > 1 ? std::atol(argv[1]) : 16384;
  // Longer sequences have more groups of the same size.
  const auto sizes = [](fit::Index length) {
    return fit::Sizes{1, length / config.tokens, config.tokens, config.latents};
  };
  const auto results = fit::bench::sweep(
      {fit::bench::curve<config>("kept", sizes),
       fit::bench::curve<config>("streamed", sizes, {.recompute = fit::Recompute::stream})},
      {.lengths = fit::bench::doublings(longest / 16, longest), .seconds = argc > 2 ? std::atof(argv[2]) : 0.5});
  fit::bench::write_csv(std::cout, results);
  std::ofstream picture("own_sweep.svg");
  fit::plot::write_svg(picture, fit::bench::figure(results));
} catch (const fit::Error& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
