#include <fit/diffusion/sampler.hpp>

#include <cstring>

#include "allocations.hpp"
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

template <fit::DiffusionConfig config>
fit::DiffusionDecoder<config> stirred() {
  fit::DiffusionDecoder<config> decoder(fit::Random(3));
  test::stir(decoder);
  return decoder;
}

/// Two one-hot rows, and one of both.
fit::Tensor<float, 2> some_conditions() {
  fit::Tensor<float, 2> condition(3, 5);
  condition(0, 1) = condition(1, 4) = condition(2, 1) = condition(2, 4) = 1;
  return condition;
}

template <class T>
bool same_bits(const fit::Tensor<T, 4>& a, const fit::Tensor<T, 4>& b) {
  return a.dimensions() == b.dimensions() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
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
  const auto decoder = stirred<base>();
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

TEST_CASE("samples have the same bits for any number of threads", "[sampler]") {
  const auto decoder = stirred<base>();
  const fit::Index count = 90;
  fit::Tensor<float, 2> condition(count, 5);
  for (fit::Index i = 0; i < count; ++i) condition(i, i % 5) = 1;
  const fit::SampleOptions options{
      .steps = 3, .method = fit::Sampler::ddpm_large, .guidance = 0.5, .latent_decay = 0.2};
  std::vector<fit::Tensor<float, 4>> samples;
  for (const int threads : {1, 2, 3}) {
    fit::Executor executor(threads);
    fit::Tape tape(executor);
    samples.push_back(fit::sample(decoder, options, count, fit::TensorView<const float, 2>(condition),
                                  fit::sample_noise<float>(fit::Random(4)), tape));
    INFO(threads << " threads");
    CHECK(same_bits(samples.back(), samples.front()));
  }
}

TEST_CASE("without guidance a run is DDIM's loop and nothing else", "[sampler]") {
  const auto decoder = stirred<base>();
  const auto condition = some_conditions();
  const fit::Index count = condition.dimension(0), steps = 8;  // times that are exact in binary
  const fit::SampleOptions options{.steps = steps,
                                   .guidance = 0,
                                   .schedule = fit::SigmoidSchedule{},
                                   .prediction = fit::Prediction::v,
                                   .x0_clip = fit::Range{-1, 1},
                                   .latent_decay = 0.3};
  const auto noise = fit::sample_noise<float>(fit::Random(4));
  fit::Tape tape;
  const auto samples = fit::sample(decoder, options, count, fit::TensorView<const float, 2>(condition), noise, tape);

  fit::Tensor<float, 4> x(count, 3, 4, 4), x0 = x, eps = x, latents(count, 3, 2, 24);
  fit::Tensor<double, 1> gamma(count);
  noise(-1, 0, x);
  for (fit::Index step = 0; step < steps; ++step) {
    const double t = 1 - static_cast<double>(step) / static_cast<double>(steps);
    const auto now = fit::noise_shares(options.schedule, t),
               then = fit::noise_shares(options.schedule, std::max(t - 1 / static_cast<double>(steps), 0.0));
    gamma.setConstant(now.gamma);
    const auto output = decoder({x, gamma, fit::TensorView<const float, 2>(condition), latents}, tape);
    fit::detail::estimate(output.prediction.data(), x.data(), x0.data(), eps.data(), x.size(), options.prediction, now,
                          options.x0_clip, true);
    const float keep = static_cast<float>(then.keep), lose = static_cast<float>(then.lose);
    for (fit::Index i = 0; i < x.size(); ++i) x.data()[i] = keep * x0.data()[i] + lose * eps.data()[i];
    for (fit::Index i = 0; i < latents.size(); ++i) {
      latents.data()[i] = 0.3f * latents.data()[i] + 0.7f * output.latents.data()[i];
    }
  }
  CHECK(same_bits(samples, x0));
}

TEST_CASE("a step of DDIM or Euler to the time it is at leaves x", "[sampler]") {
  using fit::Prediction;
  const fit::Index count = 40;
  const auto x = test::normal_values<double>(count, 1), prediction = test::normal_values<double>(count, 2);
  std::vector<double> x0(x.size()), eps = x0, next = x0;
  for (const auto& [schedule, method] :
       {std::pair<fit::NoiseSchedule, fit::Sampler>{fit::CosineSchedule{}, fit::Sampler::ddim},
        {fit::RectifiedFlow{}, fit::Sampler::euler}}) {
    for (const auto kind : {Prediction::eps, Prediction::x0, Prediction::v, Prediction::velocity}) {
      if (fit::is_flow(schedule) && kind == Prediction::v) continue;
      for (const double t : {0.05, 0.5, 0.95}) {
        INFO("prediction " << static_cast<int>(kind) << ", flow " << fit::is_flow(schedule) << ", time " << t);
        const fit::NoiseShares shares = fit::noise_shares(schedule, t);
        for (const std::optional<fit::Range>& clip : {std::optional<fit::Range>(), {fit::Range{-0.5, 0.5}}}) {
          fit::detail::estimate(prediction.data(), x.data(), x0.data(), eps.data(), count, kind, shares, clip, true);
          fit::detail::step_back(method, shares, shares, x.data(), x0.data(), eps.data(), next.data(), count);
          CHECK(test::max_error(next.data(), x.data(), count) < 1e-13);
        }
      }
    }
  }
}

TEST_CASE("a run can start at a time before 1, from what the noise of step -1 is said to be", "[sampler]") {
  static constexpr fit::DiffusionConfig config = [] {
    auto c = base;
    c.self_conditioning = fit::SelfConditioning::none;
    return c;
  }();
  const auto decoder = stirred<config>();
  const auto condition = some_conditions();
  const fit::TensorView<const float, 2> conditions(condition);
  fit::Tape tape;
  for (const auto& [schedule, method] :
       {std::pair<fit::NoiseSchedule, fit::Sampler>{fit::CosineSchedule{}, fit::Sampler::ddim},
        {fit::CosineSchedule{}, fit::Sampler::ddpm_small},
        {fit::RectifiedFlow{}, fit::Sampler::euler},
        {fit::RectifiedFlow{}, fit::Sampler::heun}}) {
    INFO("sampler " << static_cast<int>(method));
    fit::SampleOptions options{.steps = 8,
                               .method = method,
                               .guidance = 1,
                               .schedule = schedule,
                               .prediction = fit::Prediction::x0,
                               .time_difference = 0.25};
    const auto fresh = fit::sample_noise<float>(fit::Random(4));
    fit::Tensor<float, 4> middle;
    const auto whole = fit::sample(decoder, options, 3, conditions, fresh, tape, [&](const auto& step) {
      if (step.step == 3) middle = step.next.eigen();
      return true;
    });
    // The second half of it: times that are exact in binary, and steps of the same length.
    options.steps = 4;
    options.start = 0.5;
    std::vector<fit::Index> asked;
    const auto half = fit::sample(
        decoder, options, 3, conditions,
        [&](fit::Index step, fit::Index first, fit::TensorView<float, 4> to) {
          asked.push_back(step);
          if (step >= 0) return fresh(step + 4, first, to);
          std::copy_n(middle.data(), middle.size(), to.data());
        },
        tape);
    CHECK(same_bits(half, whole));
    const bool ddpm = method == fit::Sampler::ddpm_small;
    CHECK(asked == (ddpm ? std::vector<fit::Index>{-1, 0, 1, 2, 3} : std::vector<fit::Index>{-1}));
  }
}

TEST_CASE("no samples are an empty tensor", "[sampler]") {
  const fit::DiffusionDecoder<base> decoder(fit::Random(3));
  const auto none = fit::sample(decoder, {}, fit::Tensor<float, 2>(0, 5), fit::Random(1));
  CHECK(none.dimensions() == Eigen::DSizes<fit::Index, 4>(0, 3, 4, 4));
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

TEST_CASE("a callback ends some examples, whose samples are the last that it saw", "[sampler]") {
  const auto decoder = stirred<base>();
  fit::Tensor<float, 2> condition(3, 5);
  condition.setConstant(0.5f);
  fit::Tensor<float, 4> last(3, 3, 4, 4);
  std::vector<fit::Index> calls(3);
  const auto samples = fit::sample(decoder, {.steps = 6, .batch = 2}, condition, fit::Random(1), [&](const auto& step) {
    std::copy_n(step.x0.data(), step.x0.size(), last.data() + step.first * 3 * 4 * 4);
    ++calls[static_cast<std::size_t>(step.first)];
    return step.first > 0 || step.step < 3;
  });
  CHECK(calls == std::vector<fit::Index>{4, 0, 6});
  CHECK(same_bits(samples, last));
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
  for (const double start : {0.0, -0.5, 1.01, std::nan("")}) refused({.start = start}, "time in (0, 1]");
  refused({.time_difference = -0.1}, "time difference must not be negative");
  refused({.time_difference = std::nan("")}, "time difference");
  refused({.batch = 0}, "batch of at least 1, not 0");
  using fit::Sampler;
  const auto of_flow = [](Sampler method) {
    return fit::SampleOptions{
        .method = method, .schedule = fit::RectifiedFlow{}, .prediction = fit::Prediction::velocity};
  };
  for (const auto method : {Sampler::ddpm_large, Sampler::ddpm_small}) refused(of_flow(method), "not with ddpm");
  for (const auto method : {Sampler::euler, Sampler::heun}) refused({.method = method}, "euler and heun sample");
  refused({.schedule = fit::RectifiedFlow{}, .prediction = fit::Prediction::v}, "not with v");
  for (const auto method : {Sampler::ddim, Sampler::euler, Sampler::heun}) {
    CHECK_NOTHROW(fit::sample(decoder, of_flow(method), condition, fit::Random(1)));
  }
  CHECK(test::contains(test::error_of([&] { fit::sample(decoder, {}, wrong, fit::Random(1)); }), "[1, 5], not [1, 4]"));
  fit::Tape tape;
  const auto noise = fit::sample_noise<float>(fit::Random(1));
  const auto sample = [&](fit::Index count, const std::optional<fit::TensorView<const float, 2>>& given) {
    return test::error_of([&] { fit::sample(decoder, {}, count, given, noise, tape); });
  };
  tape.record();
  CHECK(test::contains(sample(2, condition), "[2, 5], not [1, 5]"));
  CHECK(test::contains(sample(1, wrong), "[1, 5], not [1, 4]"));
  CHECK(test::contains(sample(0, fit::Tensor<float, 2>(0, 4)), "[0, 5], not [0, 4]"));
  CHECK(tape.recording());
  CHECK(test::contains(sample(1, {}), "needs a condition"));
  CHECK(test::contains(sample(-1, condition), "-1 examples"));
  fit::Tensor<float, 4> noisy(1, 3, 4, 4), latents(1, 3, 2, 24);
  fit::Tensor<double, 1> gamma(1);
  gamma(0) = 1.5;
  CHECK(test::contains(test::error_of([&] {
                         decoder({noisy, gamma, condition, latents});
                       }),
                       "gamma must be in [0, 1]"));
}

TEST_CASE("DDPM goes on where a schedule is flat", "[sampler]") {
  const fit::DiffusionDecoder<base> decoder(fit::Random(3));
  const fit::Tensor<float, 2> condition(1, 5);
  for (const auto method : {fit::Sampler::ddpm_large, fit::Sampler::ddpm_small}) {
    const auto samples =
        fit::sample(decoder, {.steps = 10, .method = method, .schedule = fit::SigmoidSchedule{-80, 3, 0.9}}, condition,
                    fit::Random(1));
    for (fit::Index i = 0; i < samples.size(); ++i) CHECK(std::isfinite(samples.data()[i]));
  }
  fit::Tape tape;
  CHECK(test::contains(test::error_of([&] {
                         fit::sample(decoder, {}, 1, fit::TensorView<const float, 2>(condition),
                                     fit::SampleNoise<float>{}, tape);
                       }),
                       "a function that gives noise"));
}

TEST_CASE("sampling steps allocate nothing after the first, with guidance or two evaluations too", "[sampler]") {
  const auto decoder = stirred<base>();
  fit::Tensor<float, 2> condition(70, 5);
  for (fit::Index i = 0; i < 70; ++i) condition(i, i % 5) = 1;
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto noise = fit::sample_noise<float>(fit::Random(1));
  const fit::SampleOptions ddpm{.steps = 6, .method = fit::Sampler::ddpm_large, .guidance = 1.5, .batch = 70};
  const fit::SampleOptions heun{.steps = 6,
                                .method = fit::Sampler::heun,
                                .guidance = 0.5,
                                .schedule = fit::RectifiedFlow{},
                                .prediction = fit::Prediction::velocity,
                                .batch = 70};
  for (const fit::SampleOptions& options : {ddpm, heun}) {
    std::vector<long> seen;
    seen.reserve(6);
    fit::sample(decoder, options, 70, fit::TensorView<const float, 2>(condition), noise, tape, [&](const auto&) {
      seen.push_back(test::allocations());
      return true;
    });
    REQUIRE(seen.size() == 6);
    CHECK(seen[5] == seen[1]);
  }
}
