#include <fit/grouping/shift.hpp>
#include <fit/models/autoregressive_decoder.hpp>

#include "golden_model.hpp"

namespace {

constexpr fit::AutoregressiveConfig trace{.layers = "(1)1(1)",
                                          .groups = 5,
                                          .tokens = 7,
                                          .latents = 3,
                                          .data_dim = 24,
                                          .latent_dim = 20,
                                          .data_heads = 3,
                                          .latent_heads = 2,
                                          .mlp_ratio = 2,
                                          .vocabulary = 17};
constexpr fit::AutoregressiveConfig three_stages{.layers = "(1)2(1)1(1)",
                                                 .groups = 4,
                                                 .tokens = 8,
                                                 .latents = 2,
                                                 .data_dim = 12,
                                                 .latent_dim = 20,
                                                 .data_heads = 2,
                                                 .latent_heads = 4,
                                                 .mlp_ratio = 2,
                                                 .data_positions = fit::Positions::sin_cos,
                                                 .latent_positions = fit::Positions::sin_cos,
                                                 .vocabulary = 32,
                                                 .shared_embedding = false,
                                                 .output_bias = false};
constexpr fit::AutoregressiveConfig no_local{.layers = "(0)2(0)",
                                             .groups = 3,
                                             .tokens = 16,
                                             .latents = 4,
                                             .data_dim = 32,
                                             .latent_dim = 16,
                                             .data_heads = 2,
                                             .latent_heads = 2,
                                             .mlp_ratio = 2,
                                             .vocabulary = 19,
                                             .output_bias = false};
constexpr fit::AutoregressiveConfig unused_latents{.layers = "(1)1(1)1",
                                                   .groups = 3,
                                                   .tokens = 5,
                                                   .latents = 2,
                                                   .data_dim = 20,
                                                   .latent_dim = 12,
                                                   .data_heads = 5,
                                                   .latent_heads = 3,
                                                   .mlp_ratio = 2,
                                                   .vocabulary = 23,
                                                   .shared_embedding = false,
                                                   .keep_unused_latents = true};

template <fit::AutoregressiveConfig config, class T>
void check(const std::string& name) {
  using test::Bounds;
  INFO(name << (std::is_same_v<T, float> ? " in float" : " in double"));
  const test::Golden golden("autoregressive_" + name);
  fit::AutoregressiveDecoder<config, T> decoder;
  test::load_parameters(golden, decoder);
  const auto ids = test::tensor<std::int32_t, 3>(golden.file, "input.ids");
  const auto targets = test::tensor<std::int32_t, 3>(golden.file, "input.targets");
  const auto cotangent = test::tensor<T>(golden.file, "cotangent.logits");
  const auto shifted = fit::shift_right(targets);
  CHECK(std::equal(ids.data(), ids.data() + ids.size(), shifted.data()));
  fit::Executor executor(2);
  fit::Tape tape(executor);

  test::TraceCheck<T> trace_check(golden, config.groups);
  const auto logits = decoder(ids, tape, std::ref(trace_check));
  CHECK(trace_check.complete());
  CHECK(golden.error("output.logits", logits.data(), logits.size(), 0) < Bounds<T>::output);
  const double expected = test::read<double>(golden.file, "output.loss").at(0);
  CHECK(std::abs(decoder.loss(targets, tape) - expected) < Bounds<T>::output * expected);

  for (const fit::Recompute recompute : test::recomputes) {
    INFO("recompute " << static_cast<int>(recompute));
    fit::AutoregressiveDecoder<config, T> gradient, loss_gradient;
    tape.record({.recompute = recompute});
    const auto recorded = decoder.forward(ids, tape);
    CHECK(test::max_error(recorded.data(), logits.data(), logits.size()) == 0);
    decoder.backward(cotangent, gradient, tape);
    test::check_gradients(golden, "grad.", gradient);
    const double loss = decoder.loss(targets, loss_gradient, tape, {.recompute = recompute});
    CHECK(std::abs(loss - expected) < Bounds<T>::output * expected);
    test::check_gradients(golden, "grad_loss.", loss_gradient);
  }
}

}  // namespace

TEST_CASE("logits, traces, losses and gradients are those of the golden files", "[autoregressive_golden]") {
  check<trace, float>("trace");
  check<trace, double>("trace");
  check<three_stages, float>("three_stages");
  check<three_stages, double>("three_stages");
  check<no_local, float>("no_local");
  check<no_local, double>("no_local");
  check<unused_latents, float>("unused_latents");
  check<unused_latents, double>("unused_latents");
}
