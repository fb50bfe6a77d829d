// Trains a denoiser on discs and frames of 8 x 8 pixels, then draws some of each.
#include <fit/fit.hpp>

#include <cmath>
#include <cstdio>

constexpr fit::ImageGrouping grouping{.sub_image = {4, 4}, .patch = {1, 1}};
constexpr fit::DiffusionConfig config{.layers = "(1)1(1)1(1)",
                                      .groups = 4,
                                      .tokens = 16,
                                      .channels = 1,
                                      .latents = 4,
                                      .data_dim = 32,
                                      .latent_dim = 64,
                                      .data_heads = 2,
                                      .latent_heads = 4,
                                      .output_channels = 1,
                                      .condition_channels = 2};
using Model = fit::DiffusionDecoder<config>;

/// Images of one kind each, in [-1, 1], and the kinds as one-hot vectors.
struct Batch {
  fit::Tensor<float, 4> images;
  fit::Tensor<float, 2> kinds;

  Batch(fit::Index count, fit::Random random) : images(count, 8, 8, 1), kinds(count, 2) {
    for (fit::Index i = 0; i < count; ++i) {
      const bool disc = random.uniform() < 0.5;
      const double x = 3 + random.uniform(), y = 3 + random.uniform(), size = 2 + random.uniform();
      kinds(i, disc ? 0 : 1) = 1;
      for (fit::Index row = 0; row < 8; ++row) {
        for (fit::Index column = 0; column < 8; ++column) {
          const double right = static_cast<double>(column) - x, down = static_cast<double>(row) - y;
          const double far = std::max(std::abs(right), std::abs(down));
          const bool on = disc ? std::hypot(right, down) < size : std::abs(far - size) < 0.7;
          images(i, row, column, 0) = on ? 1.0f : -1.0f;
        }
      }
    }
  }
};

int main() {
  fit::TrainingState<Model> state{.model = Model(fit::Random(1)), .random = fit::Random(2)};
  state.average = state.model;
  Model gradient;
  fit::Tape tape;
  fit::DiffusionLoss<Model> loss({.prediction = fit::Prediction::v});
  constexpr fit::Index steps = 600;
  const fit::LearningRate rate{.peak = 3e-3, .warm_up = 20, .floor = 3e-5};
  while (state.step < steps) {
    fit::Random random = state.random.split();
    const Batch batch(32, random.split());
    const auto x0 = fit::group_image(batch.images, grouping);
    fit::Tensor<float, 4> noise(x0.dimensions());
    fit::sample_noise<float>(random.split())(0, 0, noise);
    fit::Tensor<double, 1> times(32);
    for (fit::Index i = 0; i < 32; ++i) times(i) = random.uniform();
    const double now = loss(state.model, x0, noise, times, batch.kinds, gradient, tape);
    state.update(gradient, {.learning_rate = rate(state.step, steps), .average_decay = 0.99}, tape);
    if (state.step % 100 == 0) std::printf("step %td: loss %.3f\n", state.step, now);
  }

  fit::Tensor<float, 2> kinds(6, 2);
  for (fit::Index i = 0; i < 6; ++i) kinds(i, i % 2) = 1;
  const auto samples = fit::sample(
      *state.average, {.steps = 25, .prediction = fit::Prediction::v, .x0_clip = fit::Range{}}, kinds, fit::Random(3));
  const auto images = fit::ungroup_image(samples, {8, 8}, grouping);
  for (fit::Index row = 0; row < 8; ++row) {
    for (fit::Index i = 0; i < 6; ++i) {
      for (fit::Index column = 0; column < 8; ++column) std::printf("%s", images(i, row, column, 0) > 0 ? "##" : "  ");
      std::printf("   ");
    }
    std::printf("\n");
  }
}
