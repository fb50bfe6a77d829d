#include <fit/diffusion/sampler.hpp>

#include "golden_model.hpp"

namespace {

constexpr fit::DiffusionConfig base{.layers = "(1)1(1)",
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
constexpr fit::DiffusionConfig two_tokens = [] {
  auto c = base;
  c.condition_tokens = 2;
  c.self_conditioning = fit::SelfConditioning::none;
  return c;
}();

template <fit::DiffusionConfig config, class T>
void check(const std::string& name, const fit::SampleOptions& options) {
  INFO(name << (std::is_same_v<T, float> ? " in float" : " in double"));
  const test::Golden golden("sampler_" + name);
  using Decoder = fit::DiffusionDecoder<config, T>;
  Decoder decoder;
  test::load_parameters(golden, decoder);
  const auto condition = test::tensor<T, Decoder::condition_rank>(golden.file, "input.condition");
  const auto start = test::tensor<T>(golden.file, "input.initial_noise");
  std::vector<T> fresh;
  if (golden.file.contains("input.step_noise")) fresh = test::read<T>(golden.file, "input.step_noise");
  const fit::SampleNoise<T> noise = [&](fit::Index step, fit::Index first, fit::TensorView<T, 4> to) {
    const fit::Index size = to.size() / to.dimension(0);
    const T* from = step < 0 ? start.data() : fresh.data() + step * start.size();
    std::copy_n(from + first * size, to.size(), to.data());
  };
  const double trace_bound = std::is_same_v<T, float> ? 8e-6 : 1e-7, bound = std::is_same_v<T, float> ? 2e-6 : 1e-7;
  fit::Index seen = 0;
  const fit::SampleCallback<T> callback = [&](const fit::SampleStep<T>& step) {
    const std::string prefix = "trace.steps." + std::to_string(step.step) + ".";
    INFO(prefix);
    CHECK(golden.error(prefix + "x0", step.x0.data(), step.x0.size(), 0) < trace_bound);
    CHECK(golden.error(prefix + "eps", step.eps.data(), step.eps.size(), 0) < trace_bound);
    CHECK(golden.error(prefix + "x", step.next.data(), step.next.size(), 0) < trace_bound);
    CHECK(golden.error(prefix + "latents", step.latents.data(), step.latents.size(), 0) < trace_bound);
    ++seen;
    return true;
  };
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto samples = fit::sample(decoder, options, start.dimension(0), condition, noise, tape, callback);
  CHECK(seen == options.steps);
  CHECK(golden.error("output.samples", samples.data(), samples.size(), 0) < bound);
}

}  // namespace

TEST_CASE("whole trajectories are those of the golden files", "[sampler]") {
  const fit::SampleOptions ddim{.steps = 5,
                                .guidance = 1.5,
                                .schedule = fit::SigmoidSchedule{-3, 3, 0.9},
                                .prediction = fit::Prediction::v,
                                .x0_clip = fit::Range{-1, 1},
                                .latent_decay = 0.25};
  check<base, float>("ddim_guided", ddim);
  check<base, double>("ddim_guided", ddim);
  const fit::SampleOptions large{.steps = 4,
                                 .method = fit::Sampler::ddpm_large,
                                 .schedule = fit::CosineSimpleSchedule{},
                                 .prediction = fit::Prediction::x0,
                                 .time_difference = 0.5};
  check<two_tokens, float>("ddpm_large", large);
  check<two_tokens, double>("ddpm_large", large);
  const fit::SampleOptions small{.steps = 4,
                                 .method = fit::Sampler::ddpm_small,
                                 .guidance = -0.5,
                                 .schedule = fit::CosineSchedule{0, 1, 1},
                                 .prediction = fit::Prediction::eps,
                                 .x0_clip = fit::Range{-1.5, 1}};
  check<base, float>("ddpm_small", small);
  check<base, double>("ddpm_small", small);
}

TEST_CASE("samples do not depend on how they are dealt to batches", "[sampler]") {
  using Decoder = fit::DiffusionDecoder<base>;
  const Decoder decoder(fit::Random(3));
  fit::Tensor<float, 2> condition(5, 5);
  for (fit::Index i = 0; i < 5; ++i) condition(i, i) = 1;
  fit::SampleOptions options{.steps = 3, .method = fit::Sampler::ddpm_small, .prediction = fit::Prediction::v};
  const auto whole = fit::sample(decoder, options, condition, fit::Random(9));
  options.batch = 2;
  const auto parts = fit::sample(decoder, options, condition, fit::Random(9));
  CHECK(test::max_error(whole.data(), parts.data(), whole.size()) == 0);
  const auto other = fit::sample(decoder, options, condition, fit::Random(10));
  CHECK(test::max_error(whole.data(), other.data(), whole.size()) > 0);
}

TEST_CASE("a callback can end the run", "[sampler]") {
  const fit::DiffusionDecoder<base> decoder(fit::Random(3));
  const fit::Tensor<float, 2> condition(1, 5);
  fit::Index calls = 0;
  fit::sample(decoder, {.steps = 10}, condition, fit::Random(1), [&](const auto& step) {
    CHECK(step.step == calls);
    return ++calls < 4;
  });
  CHECK(calls == 4);
}

TEST_CASE("wrong sampling options and conditions are errors", "[sampler]") {
  const fit::DiffusionDecoder<base> decoder(fit::Random(3));
  const fit::Tensor<float, 2> condition(1, 5), wrong(1, 4);
  const auto refused = [&](const fit::SampleOptions& options, const char* part) {
    CHECK(test::contains(test::error_of([&] { fit::sample(decoder, options, condition, fit::Random(1)); }), part));
  };
  refused({.steps = 0}, "at least 1 step");
  refused({.guidance = std::nan("")}, "guidance");
  refused({.x0_clip = fit::Range{1, -1}}, "low < high");
  refused({.latent_decay = 2}, "latent decay");
  refused({.schedule = fit::CosineSchedule{0, 2, 1}}, "cosine schedule");
  CHECK(test::contains(test::error_of([&] { fit::sample(decoder, {}, wrong, fit::Random(1)); }), "[1, 5], not [1, 4]"));
  fit::Tensor<float, 4> noisy(1, 3, 4, 4), latents(1, 3, 2, 24);
  fit::Tensor<float, 1> gamma(1);
  gamma(0) = 1.5f;
  CHECK(test::contains(test::error_of([&] { decoder(noisy, gamma, condition, latents); }), "gamma must be in [0, 1]"));
}
