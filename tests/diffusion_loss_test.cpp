#include <fit/diffusion/noise_schedule.hpp>
#include <fit/diffusion/objective.hpp>

#include "golden_model.hpp"

namespace {

constexpr fit::DiffusionConfig config{.layers = "(1)1(1)",
                                      .groups = 3,
                                      .tokens = 4,
                                      .channels = 4,
                                      .latents = 2,
                                      .data_dim = 16,
                                      .latent_dim = 24,
                                      .data_heads = 2,
                                      .latent_heads = 3,
                                      .mlp_ratio = 2,
                                      .output_channels = 4,
                                      .condition_channels = 5,
                                      .self_conditioning = fit::SelfConditioning::latent};

template <class T>
void check(double loss_bound) {
  const test::Golden golden("diffusion_loss");
  using Decoder = fit::DiffusionDecoder<config, T>;
  Decoder decoder, gradient;
  test::load_parameters(golden, decoder);
  fit::DiffusionLoss<Decoder> loss({.schedule = fit::SigmoidSchedule{-3, 3, 0.9},
                                    .prediction = fit::Prediction::v,
                                    .scale = 0.8,
                                    .self_conditioning_rate = 0.5});
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto x0 = test::tensor<T>(golden.file, "input.x0"), eps = test::tensor<T>(golden.file, "input.eps");
  const auto t = test::tensor<double, 1>(golden.file, "input.t");
  const auto condition = test::tensor<T, 2>(golden.file, "input.condition");
  const double value = loss(decoder, x0, eps, t, condition, gradient, tape);
  const double expected = test::read<double>(golden.file, "output.loss").at(0);
  CHECK(std::abs(value - expected) < loss_bound * expected);
  test::check_gradients(golden, "grad.", gradient);
}

}  // namespace

TEST_CASE("the diffusion loss and its gradients are those of the golden file", "[diffusion_loss]") {
  check<float>(1e-6);
  check<double>(6e-8);
}

TEST_CASE("noise schedules are those of the golden file", "[diffusion_loss]") {
  const auto file = test::golden("schedules");
  const auto t = test::read<double>(file, "input.t");
  const std::pair<const char*, fit::NoiseSchedule> schedules[] = {
      {"cosine", fit::CosineSchedule{0, 1, 1}},
      {"cosine_part", fit::CosineSchedule{0.2, 0.9, 0.7}},
      {"cosine_simple", fit::CosineSimpleSchedule{}},
      {"cosine_steep", fit::CosineSchedule{0.2, 1, 2}},
      {"linear", fit::LinearSchedule{}},
      {"log", fit::LogSchedule{1, 100, false}},
      {"log_reverse", fit::LogSchedule{1, 100, true}},
      {"sigmoid", fit::SigmoidSchedule{-3, 3, 0.9}},
      {"sigmoid_half", fit::SigmoidSchedule{0, 3, 0.3}}};
  for (const auto& [name, schedule] : schedules) {
    INFO(name);
    const auto expected = test::read<double>(file, std::string("output.") + name);
    REQUIRE(expected.size() == t.size());
    for (std::size_t i = 0; i < t.size(); ++i) {
      CHECK(std::abs(fit::noise_level(schedule, t[i]) - expected[i]) <= 1e-6 * expected[i]);
    }
  }
}

TEST_CASE("wrong schedules and times are errors", "[diffusion_loss]") {
  const auto refused = [](const fit::NoiseSchedule& schedule, double t, const char* part) {
    CHECK(test::contains(test::error_of([&] { fit::noise_level(schedule, t); }), part));
  };
  refused(fit::LinearSchedule{}, -0.1, "[0, 1]");
  refused(fit::LinearSchedule{}, std::nan(""), "[0, 1]");
  refused(fit::CosineSchedule{0.5, 0.5, 1}, 0.5, "start < end");
  refused(fit::CosineSchedule{0, 1, 0}, 0.5, "tau > 0");
  refused(fit::SigmoidSchedule{1, -1, 1}, 0.5, "start < end");
  refused(fit::LogSchedule{0, 1, false}, 0.5, "positive ends");
}
