#include <fit/models/encoder.hpp>

#include "golden_model.hpp"

namespace {

using fit::LatentMask;
using fit::Positions;

constexpr fit::EncoderConfig trace{.layers = "(1)1(1)",
                                   .groups = 5,
                                   .tokens = 7,
                                   .channels = 5,
                                   .latents = 3,
                                   .data_dim = 24,
                                   .latent_dim = 32,
                                   .data_heads = 3,
                                   .latent_heads = 4,
                                   .mlp_ratio = 2};
constexpr fit::EncoderConfig causal_no_local{.layers = "(0)2(0)",
                                             .groups = 4,
                                             .tokens = 16,
                                             .channels = 12,
                                             .latents = 4,
                                             .data_dim = 16,
                                             .latent_dim = 40,
                                             .data_heads = 2,
                                             .latent_heads = 5,
                                             .mlp_ratio = 1,
                                             .data_positions = Positions::sin_cos,
                                             .mask = LatentMask::causal};
constexpr fit::EncoderConfig extra_sin_cos{.layers = "(1)2(1)1(1)",
                                           .groups = 3,
                                           .tokens = 9,
                                           .channels = 6,
                                           .latents = 2,
                                           .data_dim = 16,
                                           .latent_dim = 24,
                                           .data_heads = 4,
                                           .latent_heads = 2,
                                           .mlp_ratio = 3,
                                           .data_positions = Positions::sin_cos_2d,
                                           .latent_positions = Positions::sin_cos,
                                           .extra_tokens = 3,
                                           .extra_channels = 4};

constexpr fit::EncoderConfig local_only{.layers = "(2)",
                                        .groups = 3,
                                        .tokens = 8,
                                        .channels = 3,
                                        .latents = 2,
                                        .data_dim = 32,
                                        .latent_dim = 12,
                                        .data_heads = 4,
                                        .latent_heads = 2,
                                        .latent_positions = Positions::sin_cos,
                                        .extra_tokens = 1,
                                        .extra_channels = 7};
constexpr fit::EncoderConfig simd_one_stage{.layers = "(1)1",
                                            .groups = 2,
                                            .tokens = 16,
                                            .channels = 8,
                                            .latents = 8,
                                            .data_dim = 64,
                                            .latent_dim = 16,
                                            .data_heads = 2,
                                            .latent_heads = 1,
                                            .mlp_ratio = 1,
                                            .mask = LatentMask::causal};

template <fit::EncoderConfig config, class T>
void check(const std::string& name) {
  using test::Bounds;
  INFO(name << (std::is_same_v<T, float> ? " in float" : " in double"));
  const test::Golden golden("encoder_" + name);
  fit::Encoder<config, T> encoder;
  test::load_parameters(golden, encoder);
  const auto x = test::tensor<T>(golden.file, "input.x");
  fit::Tensor<T, 4> extra;
  if constexpr (config.extra_tokens > 0) extra = test::tensor<T>(golden.file, "input.extra");
  fit::Executor executor(2);
  fit::Tape tape(executor);

  test::TraceCheck<T> traced(golden, config.groups);
  typename fit::Encoder<config, T>::Inputs given{x};
  if (config.extra_tokens > 0) given.extra = extra;
  const auto output = encoder(given, tape, std::ref(traced));
  CHECK(golden.error("output.data", output.data.data(), output.data.size(), 0) < Bounds<T>::output);
  CHECK(golden.error("output.latents", output.latents.data(), output.latents.size(), 0) < Bounds<T>::output);
  CHECK(traced.complete());

  for (const fit::Recompute recompute : test::recomputes) {
    INFO("recompute " << static_cast<int>(recompute));
    tape.record({.recompute = recompute});
    const auto views = encoder.forward(given, tape);
    CHECK(test::max_error(views.data.data(), output.data.data(), output.data.size()) == 0);
    CHECK(test::max_error(views.latents.data(), output.latents.data(), output.latents.size()) == 0);
    fit::Encoder<config, T> gradient;
    auto x_gradient = x;
    auto extra_gradient = extra;
    typename fit::Encoder<config, T>::InputGradients inputs{.input = x_gradient};
    if (config.extra_tokens > 0) inputs.extra = extra_gradient;
    encoder.backward({.data = test::tensor<T>(golden.file, "cotangent.data"),
                      .latents = test::tensor<T>(golden.file, "cotangent.latents")},
                     gradient, tape, inputs);
    test::check_gradients(golden, "grad.", gradient);
    const double scale = golden.scale("grad_input.");
    CHECK(golden.error("grad_input.x", x_gradient.data(), x_gradient.size(), scale) < Bounds<T>::input_gradient);
    if (config.extra_tokens > 0) {
      CHECK(golden.error("grad_input.extra", extra_gradient.data(), extra_gradient.size(), scale) <
            Bounds<T>::input_gradient);
    }
  }
}

}  // namespace

TEST_CASE("encoder_trace", "[encoder_golden]") {
  check<trace, float>("trace");
  check<trace, double>("trace");
}
TEST_CASE("encoder_causal_no_local", "[encoder_golden]") {
  check<causal_no_local, float>("causal_no_local");
  check<causal_no_local, double>("causal_no_local");
}
TEST_CASE("encoder_extra_sin_cos", "[encoder_golden]") {
  check<extra_sin_cos, float>("extra_sin_cos");
  check<extra_sin_cos, double>("extra_sin_cos");
}
TEST_CASE("encoder_local_only", "[encoder_golden]") {
  check<local_only, float>("local_only");
  check<local_only, double>("local_only");
}
TEST_CASE("encoder_simd_one_stage", "[encoder_golden]") {
  check<simd_one_stage, float>("simd_one_stage");
  check<simd_one_stage, double>("simd_one_stage");
}
