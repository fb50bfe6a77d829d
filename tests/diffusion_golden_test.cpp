#include <fit/models/diffusion_decoder.hpp>

#include "golden_model.hpp"

namespace {

using fit::Positions;

constexpr fit::DiffusionConfig trace{.layers = "(1)1(1)",
                                     .groups = 5,
                                     .tokens = 7,
                                     .channels = 5,
                                     .latents = 3,
                                     .data_dim = 20,
                                     .latent_dim = 28,
                                     .data_heads = 5,
                                     .latent_heads = 2,
                                     .mlp_ratio = 2,
                                     .output_channels = 5,
                                     .condition_channels = 7,
                                     .self_conditioning = fit::SelfConditioning::latent};
constexpr fit::DiffusionConfig all_options{.layers = "(1)2(2)",
                                           .groups = 4,
                                           .tokens = 8,
                                           .channels = 12,
                                           .latents = 4,
                                           .data_dim = 16,
                                           .latent_dim = 24,
                                           .data_heads = 2,
                                           .latent_heads = 4,
                                           .mlp_ratio = 2,
                                           .mask = fit::LatentMask::causal,
                                           .output_channels = 12,
                                           .condition_channels = 5,
                                           .condition_tokens = 4,
                                           .local_attention = false,
                                           .cross_mlp = true,
                                           .cross_context_norm = false};
constexpr fit::DiffusionConfig no_local{.layers = "(0)2(0)",
                                        .groups = 2,
                                        .tokens = 16,
                                        .channels = 4,
                                        .latents = 3,
                                        .data_dim = 32,
                                        .latent_dim = 24,
                                        .data_heads = 1,
                                        .latent_heads = 3,
                                        .mlp_ratio = 2,
                                        .data_positions = Positions::sin_cos,
                                        .latent_positions = Positions::sin_cos,
                                        .output_channels = 6,
                                        .condition_channels = 3,
                                        .self_conditioning = fit::SelfConditioning::latent,
                                        .cross_mlp = true};
constexpr fit::DiffusionConfig one_stage{.layers = "(1)1",
                                         .groups = 3,
                                         .tokens = 5,
                                         .channels = 9,
                                         .latents = 2,
                                         .data_dim = 32,
                                         .latent_dim = 20,
                                         .data_heads = 4,
                                         .latent_heads = 5,
                                         .mlp_ratio = 2,
                                         .output_channels = 9,
                                         .condition_channels = 6,
                                         .condition_tokens = 1,
                                         .cross_context_norm = false};
constexpr fit::DiffusionConfig three_stages{.layers = "(1)2(1)1(1)",
                                            .groups = 3,
                                            .tokens = 6,
                                            .channels = 5,
                                            .latents = 2,
                                            .data_dim = 12,
                                            .latent_dim = 20,
                                            .data_heads = 3,
                                            .latent_heads = 1,
                                            .mlp_ratio = 3,
                                            .mask = fit::LatentMask::causal,
                                            .output_channels = 5,
                                            .condition_channels = 4,
                                            .condition_tokens = 2,
                                            .self_conditioning = fit::SelfConditioning::latent};

template <fit::DiffusionConfig config, class T>
void check(const std::string& name) {
  using test::Bounds;
  using Decoder = fit::DiffusionDecoder<config, T>;
  INFO(name << (std::is_same_v<T, float> ? " in float" : " in double"));
  const test::Golden golden("diffusion_" + name);
  Decoder decoder;
  test::load_parameters(golden, decoder);
  const auto x = test::tensor<T>(golden.file, "input.x");
  const auto gamma = test::tensor<double, 1>(golden.file, "input.gamma");
  const auto condition = test::tensor<T, Decoder::condition_rank>(golden.file, "input.condition");
  fit::Tensor<T, 4> previous;
  typename Decoder::Inputs inputs{x, gamma, condition, {}};
  if (Decoder::has_previous) {
    previous = test::tensor<T>(golden.file, "input.previous_latents");
    inputs.previous_latents = previous;
  }
  fit::Executor executor(2);
  fit::Tape tape(executor);
  test::TraceCheck<T> trace_check(golden, config.groups);
  const auto output = decoder(inputs, tape, std::ref(trace_check));
  CHECK(golden.error("output.prediction", output.prediction.data(), output.prediction.size(), 0) < Bounds<T>::output);
  CHECK(golden.error("output.latents", output.latents.data(), output.latents.size(), 0) < Bounds<T>::output);
  CHECK(trace_check.complete());

  for (const fit::Recompute recompute : test::recomputes) {
    INFO("recompute " << static_cast<int>(recompute));
    tape.record({.recompute = recompute});
    const auto views = decoder.forward(inputs, tape);
    CHECK(test::max_error(views.prediction.data(), output.prediction.data(), output.prediction.size()) == 0);
    Decoder gradient;
    auto x_gradient = x;
    auto condition_gradient = condition;
    auto previous_gradient = previous;
    typename Decoder::InputGradients to{.noisy = x_gradient, .condition = condition_gradient};
    if (Decoder::has_previous) to.previous_latents = previous_gradient;
    decoder.backward({.prediction = test::tensor<T>(golden.file, "cotangent.prediction"),
                      .latents = test::tensor<T>(golden.file, "cotangent.latents")},
                     gradient, tape, to);
    test::check_gradients(golden, "grad.", gradient);
    const double scale = golden.scale("grad_input.");
    CHECK(golden.error("grad_input.x", x_gradient.data(), x_gradient.size(), scale) < Bounds<T>::input_gradient);
    CHECK(golden.error("grad_input.condition", condition_gradient.data(), condition_gradient.size(), scale) <
          Bounds<T>::input_gradient);
    if (Decoder::has_previous) {
      CHECK(golden.error("grad_input.previous_latents", previous_gradient.data(), previous_gradient.size(), scale) <
            Bounds<T>::input_gradient);
    }
  }
}

}  // namespace

TEST_CASE("diffusion_trace", "[diffusion_golden]") {
  check<trace, float>("trace");
  check<trace, double>("trace");
}
TEST_CASE("diffusion_all_options", "[diffusion_golden]") {
  check<all_options, float>("all_options");
  check<all_options, double>("all_options");
}
TEST_CASE("diffusion_no_local", "[diffusion_golden]") {
  check<no_local, float>("no_local");
  check<no_local, double>("no_local");
}
TEST_CASE("diffusion_one_stage", "[diffusion_golden]") {
  check<one_stage, float>("one_stage");
  check<one_stage, double>("one_stage");
}
TEST_CASE("diffusion_three_stages", "[diffusion_golden]") {
  check<three_stages, float>("three_stages");
  check<three_stages, double>("three_stages");
}
