// What a training step on one picture would take on many machines, on paper: a FIT that shares the picture's groups,
// and a plain transformer of as many parameters by ring attention and by Ulysses.
#include <fit/cost/scaling.hpp>

#include <cstdio>

#include <CLI/CLI.hpp>

#include "support/checks.hpp"

namespace {

using fit::Index;

constexpr int group_tokens = 400;

/// That of train_gigapixel.
constexpr fit::EncoderConfig fit_config{.layers = "(2)4(2)4(2)",
                                        .groups = fit::any,
                                        .tokens = group_tokens,
                                        .channels = 768,
                                        .latents = 16,
                                        .data_dim = 256,
                                        .latent_dim = 512,
                                        .data_heads = 4,
                                        .latent_heads = 8,
                                        .latent_positions = fit::Positions::sin_cos_grid};
/// All tokens see each other.
constexpr fit::EncoderConfig plain_config{.layers = "(10)",
                                          .groups = 1,
                                          .tokens = 1,
                                          .channels = 768,
                                          .latents = 1,
                                          .data_dim = 512,
                                          .latent_dim = 8,
                                          .data_heads = 8,
                                          .latent_heads = 1,
                                          .data_positions = fit::Positions::sin_cos};

void print(const fit::StepTime& time, double alone, Index members) {
  std::printf(" %10.4g s %10.4g s %7.0f %% |", time.computing, time.sending,
              100 * alone / static_cast<double>(members) / time.seconds());
}

void print_row(Index size, Index members, double gigabits, double gigaflops) {
  const fit::MemberSpeed speed{1e9 * gigaflops, 1e9 * gigabits};
  const Index side = size / 320, groups = side * side;
  auto plain = plain_config;
  plain.tokens = static_cast<int>(groups * group_tokens);
  fit::CostOptions options{
      .options = {.recompute = fit::Recompute::stream}, .groups = static_cast<int>(groups), .by_groups = true};
  const double alone = fit::shared_step(fit_config, 1, options, speed).seconds();
  const double plain_alone = fit::ring_step(plain, 1, 1, speed).seconds();
  options.members = static_cast<int>(members);
  std::printf("%5td %5.0f Gb/s |", members, gigabits);
  if (members <= groups) {
    print(fit::shared_step(fit_config, 1, options, speed), alone, members);
  } else {
    std::printf(" %37s", "more members than groups |");
  }
  print(fit::ring_step(plain, 1, members, speed), plain_alone, members);
  if (members <= plain.data_heads) {
    print(fit::ulysses_step(plain, 1, members, speed), plain_alone, members);
  } else {
    std::printf(" %37s", "more members than heads |");
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  Index size = 12800;
  double rate = 0;
  CLI::App app("What a training step on one large picture would take on many machines, on paper.");
  app.add_option("--size", size, "pixels of a side, a multiple of 320")
      ->capture_default_str()
      ->check(CLI::Range(320, 37760));
  app.add_option("--rate", rate, "GFLOP/s of one machine in such a step, as train_gigapixel measures them")
      ->required()
      ->check(examples::positive);
  CLI11_PARSE(app, argc, argv);
  try {
    fit::require(size % 320 == 0, "the pixels of a side must be a multiple of 320, not ", size);
    std::printf(
        "A step on one picture of %td x %td pixels, at %.0f GFLOP/s a machine: seconds that computing and sending "
        "take,\n"
        "and the share of the speed that as many machines would have if nothing had to be sent.\n\n",
        size, size, rate);
    std::printf("%18s %37s %37s %37s\n", "|", "FIT, by groups |", "plain, ring attention |", "plain, Ulysses |");
    for (const Index members : {8, 64, 512}) {
      for (const double gigabits : {10.0, 100.0, 400.0}) print_row(size, members, gigabits, rate);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "scaling_table: %s\n", error.what());
    return 1;
  }
}
