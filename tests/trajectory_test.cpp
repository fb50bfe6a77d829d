#include <fit/diffusion/loss.hpp>
#include <fit/models/autoregressive_decoder.hpp>
#include <fit/models/classifier.hpp>
#include <fit/training/cross_entropy.hpp>
#include <fit/training/state.hpp>

#include <algorithm>
#include <cmath>
#include <functional>

#include "golden_model.hpp"

namespace {

using fit::Index;

/// Takes the steps that tests/golden/make_trajectories.py took in PyTorch, and compares the losses. Measured: 2.3e-7 in
/// the first 50 steps, 5.5e-5 in all.
template <class Model>
void follow(const std::string& name,
            const std::function<double(const test::Golden&, Index batch, const Model&, Model&, fit::Tape&)>& loss_of) {
  const test::Golden golden("trajectory_" + name);
  const auto expected = test::read<double>(golden.file, "output.losses");
  REQUIRE(expected.size() == 200);
  REQUIRE(expected.back() < 0.7 * expected.front());
  fit::TrainingState<Model> state{.optimizer = {.options = {.beta2 = 0.98, .weight_decay = 0.05}}};
  test::load_parameters(golden, state.model);
  Model gradient;
  fit::Tape tape;
  double first = 0, all = 0;
  for (std::size_t step = 0; step < expected.size(); ++step) {
    const double loss = loss_of(golden, static_cast<Index>(step % 10), state.model, gradient, tape);
    state.update(gradient, {.learning_rate = 1e-3}, tape);
    const double error = std::abs(loss - expected[step]) / expected[step];
    all = std::max(all, error);
    if (step < 50) first = std::max(first, error);
  }
  INFO("largest relative differences: " << first << " in 50 steps, " << all << " in 200");
  CHECK(first < 2e-6);
  CHECK(all < 1e-3);
}

/// Batch `number` of a tensor that holds all.
template <class T, int Rank>
fit::Tensor<T, Rank> batch_of(const test::Golden& golden, const std::string& name, Index number) {
  const auto all = test::tensor<T, Rank + 1>(golden.file, name);
  Eigen::DSizes<Index, Rank> dimensions;
  std::copy_n(all.dimensions().begin() + 1, Rank, dimensions.begin());
  fit::Tensor<T, Rank> batch(dimensions);
  std::copy_n(all.data() + number * batch.size(), batch.size(), batch.data());
  return batch;
}

/// SHAPE of the script.
template <class Config>
constexpr Config shape() {
  Config c{.layers = "(1)1(1)", .groups = 3, .tokens = 8};
  c.latents = 2;
  c.data_dim = 16;
  c.latent_dim = 24;
  c.data_heads = c.latent_heads = 2;
  return c;
}
constexpr auto encoder = [] {
  auto c = shape<fit::EncoderConfig>();
  c.channels = 4;
  return c;
}();
constexpr auto diffusion = [] {
  auto c = shape<fit::DiffusionConfig>();
  c.channels = c.output_channels = 4;
  c.condition_channels = 3;
  c.self_conditioning = fit::SelfConditioning::latent;
  return c;
}();
constexpr auto autoregressive = [] {
  auto c = shape<fit::AutoregressiveConfig>();
  c.vocabulary = 11;
  return c;
}();

}  // namespace

TEST_CASE("a classifier learns as it does in PyTorch", "[trajectory]") {
  using Model = fit::Classifier<encoder, 5>;
  follow<Model>("encoder", [](const auto& golden, Index number, const Model& model, Model& gradient, auto& tape) {
    const auto x = batch_of<float, 4>(golden, "input.x", number);
    tape.record();
    const auto logits = model.forward(x, tape);
    fit::Tensor<float, 2> slopes(logits.dimension(0), Index{5});
    const auto labels = batch_of<std::int32_t, 1>(golden, "input.labels", number);
    const double loss = fit::cross_entropy(logits, labels, slopes, tape);
    model.backward(slopes, gradient, tape);
    return loss;
  });
}

TEST_CASE("a diffusion decoder learns as it does in PyTorch", "[trajectory]") {
  using Model = fit::DiffusionDecoder<diffusion>;
  const fit::DiffusionObjective objective{.schedule = fit::CosineSchedule{}, .self_conditioning_rate = 0.5};
  fit::DiffusionLoss<Model> loss(objective);
  follow<Model>("diffusion", [&](const auto& golden, Index number, const Model& model, Model& gradient, auto& tape) {
    const auto x0 = batch_of<float, 4>(golden, "input.x0", number),
               eps = batch_of<float, 4>(golden, "input.eps", number);
    const auto t = batch_of<double, 1>(golden, "input.t", number);
    const auto condition = batch_of<float, 2>(golden, "input.condition", number);
    return loss(model, x0, eps, t, condition, gradient, tape);
  });
}

TEST_CASE("an autoregressive decoder learns as it does in PyTorch", "[trajectory]") {
  using Model = fit::AutoregressiveDecoder<autoregressive>;
  follow<Model>("autoregressive",
                [](const auto& golden, Index number, const Model& model, Model& gradient, auto& tape) {
                  return model.loss(batch_of<std::int32_t, 3>(golden, "input.ids", number), gradient, tape);
                });
}
