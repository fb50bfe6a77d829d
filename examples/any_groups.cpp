// Trains classifiers on pictures of one size or several, and runs them on others: in which quarter is the bright token?
#include <fit/fit.hpp>

#include <cstdio>

using fit::Index;

constexpr fit::EncoderConfig with(fit::Positions positions) {
  return {.layers = "(1)1(1)1",
          .groups = fit::any,
          .tokens = 4,
          .channels = 1,
          .latents = 2,
          .data_dim = 16,
          .latent_dim = 48,
          .data_heads = 2,
          .latent_heads = 4,
          .latent_positions = positions};
}

/// Pictures of side x side groups of noise, each with a bright token.
struct Batch {
  fit::Tensor<float, 4> input;
  fit::Tensor<std::int32_t, 1> quarters;

  Batch(Index count, Index side, fit::Random random) : input(count, side * side, 4, 1), quarters(count) {
    for (Index i = 0; i < input.size(); ++i) input.data()[i] = static_cast<float>(0.1 * random.normal());
    for (Index i = 0; i < count; ++i) {
      const Index row = random.below(side), column = random.below(side);
      input(i, row * side + column, random.below(4), 0) = 3;
      quarters(i) = (row < side / 2 ? 0 : 2) + (column < side / 2 ? 0 : 1);
    }
  }
};

/// Trains on one size or on several, and prints what share is right on each.
template <fit::EncoderConfig config>
void run(const char* name, bool several) {
  using Model = fit::Classifier<config, 4>;
  constexpr bool placed = config.latent_positions == fit::Positions::sin_cos_grid;
  const auto grid = [](Index side) { return placed ? fit::Grid{.rows = side, .columns = side} : fit::Grid{}; };
  fit::TrainingState<Model> state{.model = Model(fit::Random(1)), .random = fit::Random(2)};
  Model gradient;
  fit::Tape tape;
  fit::Tensor<float, 2> logits_gradient(32, 4);
  constexpr fit::Index steps = 800;
  const fit::LearningRate rate{.peak = 3e-3, .warm_up = 50, .floor = 1e-4};
  while (state.step < steps) {
    const Index side = several ? 2 + state.random.below(7) : 4;
    const Batch batch(32, side, state.random.split());
    tape.record();
    const auto logits = state.model.forward(batch.input, tape, grid(side));
    fit::cross_entropy(logits, batch.quarters, logits_gradient, tape);
    state.model.backward(logits_gradient, gradient, tape);
    state.update(gradient, {.learning_rate = rate(state.step, steps)}, tape);
  }
  std::printf("%-16s %-9s", name, several ? "2 to 8" : "4");
  for (const Index side : {2, 4, 6, 8, 12, 20}) {
    const Batch batch(256, side, fit::Random(3));
    const auto logits = state.model(batch.input, tape, grid(side));
    std::printf(" %4.0f %%", 100 * fit::accuracy(logits, batch.quarters).value());
  }
  std::printf("\n");
}

int main() {
  std::printf("%-16s %-9s %6d %6d %6d %6d %6d %6d\n", "positions", "trained", 2, 4, 6, 8, 12, 20);
  for (const bool several : {false, true}) {
    run<with(fit::Positions::sin_cos)>("sin_cos", several);
    run<with(fit::Positions::sin_cos_grid)>("sin_cos_grid", several);
    run<with(fit::Positions::shared)>("shared", several);
    run<with(fit::Positions::shared_sin_cos)>("shared_sin_cos", several);
  }
}
