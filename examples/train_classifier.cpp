// Trains a classifier on a task made by formula: which of the six groups holds the bright token?
#include <fit/fit.hpp>

#include <cstdio>

constexpr fit::EncoderConfig config{.layers = "(1)1(1)1",
                                    .groups = 6,
                                    .tokens = 16,
                                    .channels = 3,
                                    .latents = 2,
                                    .data_dim = 32,
                                    .latent_dim = 64,
                                    .data_heads = 2,
                                    .latent_heads = 4};
using Model = fit::Classifier<config, config.groups>;

struct Batch {
  fit::Tensor<float, 4> input{32, 6, 16, 3};
  fit::Tensor<std::int32_t, 1> labels{32};

  explicit Batch(fit::Random random) {
    for (fit::Index i = 0; i < input.size(); ++i) input.data()[i] = static_cast<float>(0.1 * random.normal());
    for (fit::Index i = 0; i < 32; ++i) {
      labels(i) = static_cast<std::int32_t>(random.below(config.groups));
      input(i, labels(i), random.below(config.tokens), 0) = 3;
    }
  }
};

int main() {
  fit::TrainingState<Model> state{.model = Model(fit::Random(1)), .random = fit::Random(2)};
  state.average = state.model;
  Model gradient;
  fit::Tape tape;
  fit::Tensor<float, 2> logits_gradient(32, 6);
  constexpr fit::Index steps = 400;
  const fit::LearningRate rate{.peak = 3e-3, .warm_up = 20, .floor = 3e-4};
  while (state.step < steps) {
    const Batch batch(state.random.split());
    tape.record({.drop_units = 0.05f}, state.random.split());
    const auto logits = state.model.forward(batch.input, tape);
    const double loss = fit::cross_entropy(logits, batch.labels, logits_gradient, tape);
    state.model.backward(logits_gradient, gradient, tape);
    if (state.step % 80 == 0) std::printf("step %td: loss %.3f\n", state.step, loss);
    state.update(gradient, {.learning_rate = rate(state.step, steps)}, tape);
  }

  const Batch test(fit::Random(3));
  const auto logits = (*state.average)(test.input);
  const double right = fit::accuracy(logits, test.labels).sum;
  std::printf("%g of 32 right\n", right);
  return right >= 28 ? 0 : 1;
}
