#include <fit/diffusion/loss.hpp>
#include <fit/diffusion/noise_schedule.hpp>
#include <fit/diffusion/sampler.hpp>
#include <fit/training/clip.hpp>

#include "golden_model.hpp"

#include <algorithm>
#include <vector>

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
  fit::DiffusionLoss<Decoder> loss(
      {.schedule = fit::SigmoidSchedule{-3, 3, 0.9}, .prediction = fit::Prediction::v, .self_conditioning_rate = 0.5});
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

TEST_CASE("the loss's gradient is its slope, for every prediction, error and schedule", "[diffusion_loss]") {
  using Decoder = fit::DiffusionDecoder<config, double>;
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const fit::Index batch = 3;
  const auto random = [](auto tensor, std::uint64_t seed) {
    const auto values = test::normal_values<double>(tensor.size(), seed);
    std::copy(values.begin(), values.end(), tensor.data());
    return tensor;
  };
  const auto x0 = random(fit::Tensor<double, 4>(batch, 3, 4, 4), 1), eps = random(x0, 2);
  const auto condition = random(fit::Tensor<double, 2>(batch, 5), 3);
  fit::Tensor<double, 1> t(batch);
  for (fit::Index i = 0; i < batch; ++i) t(i) = 0.2 + 0.25 * static_cast<double>(i);
  using fit::LossOn;
  using fit::Prediction;
  std::vector<fit::DiffusionObjective> objectives;
  for (const auto on : {LossOn::eps, LossOn::x0, LossOn::velocity}) {
    for (const auto kind : {Prediction::eps, Prediction::x0, Prediction::v, Prediction::velocity}) {
      objectives.push_back({.prediction = kind, .loss_on = on, .scale = 0.7});
      objectives.push_back({.prediction = kind, .loss_on = on, .x0_clip = fit::Range{-0.5, 0.6}});
      if (kind != Prediction::v) {
        objectives.push_back({.schedule = fit::RectifiedFlow{}, .prediction = kind, .loss_on = on});
      }
    }
  }
  for (auto& objective : objectives) {
    INFO("prediction " << static_cast<int>(objective.prediction) << ", on " << static_cast<int>(objective.loss_on)
                       << ", clip " << objective.x0_clip.has_value() << ", flow " << fit::is_flow(objective.schedule));
    objective.condition_drop = 0.4;
    fit::DiffusionLoss<Decoder> loss(objective);
    Decoder decoder(fit::Random(4)), gradient, unused;
    loss(decoder, x0, eps, t, condition, gradient, tape, {}, fit::Random(6));
    // Along a random direction of all parameters.
    double slope = 0, values[2];
    for (const int side : {0, 1}) {
      Decoder moved = decoder;
      fit::Random draw(8);
      fit::for_each_parameter(
          [&](const fit::ParameterName&, auto p, auto g) {
            for (fit::Index i = 0; i < p.size; ++i) {
              const double direction = draw.normal();
              p.data[i] += (side == 0 ? -1e-6 : 1e-6) * direction;
              if (side == 0) slope += direction * g.data[i];
            }
          },
          moved, gradient);
      values[side] = loss(moved, x0, eps, t, condition, unused, tape, {}, fit::Random(6));
    }
    CHECK(std::abs((values[1] - values[0]) / 2e-6 - slope) < 1e-5 * (1 + std::abs(slope)));
  }
}

TEST_CASE("the loss of long examples is the mean over all their elements", "[diffusion_loss]") {
  constexpr fit::DiffusionConfig long_config{.layers = "(1)",
                                             .groups = 3,
                                             .tokens = 61,
                                             .channels = 47,
                                             .latents = 2,
                                             .data_dim = 8,
                                             .latent_dim = 12,
                                             .data_heads = 1,
                                             .latent_heads = 1,
                                             .mlp_ratio = 1,
                                             .output_channels = 47};
  using Decoder = fit::DiffusionDecoder<long_config, double>;
  constexpr fit::Index batch = 3, size = 3 * 61 * 47;  // two pieces of 4,096 and a rest
  fit::Executor executor(2);
  fit::Tape tape(executor);
  Decoder decoder(fit::Random(1)), gradient, expected_gradient;
  test::stir(decoder);
  fit::Tensor<double, 4> x0(batch, 3, 61, 47), eps = x0, noisy = x0, slopes = x0;
  const auto values = test::normal_values<double>(2 * x0.size(), 2);
  std::copy_n(values.begin(), x0.size(), x0.data());
  std::copy_n(values.begin() + x0.size(), x0.size(), eps.data());
  fit::Tensor<double, 1> t(batch), gamma(batch);
  for (fit::Index b = 0; b < batch; ++b) {
    t(b) = 0.2 + 0.25 * static_cast<double>(b);
    gamma(b) = 1 - t(b);
    for (fit::Index i = b * size; i < (b + 1) * size; ++i) {
      noisy.data()[i] = (1 - t(b)) * x0.data()[i] + t(b) * eps.data()[i];
    }
  }
  tape.record();
  const auto prediction = decoder.forward({.noisy = noisy, .gamma = gamma}, tape).prediction;
  const double count = static_cast<double>(batch * size);
  double expected = 0, of_x0 = 0, of_velocity = 0;  // of eps; of x0 where images are half as bright; of eps - x0
  for (fit::Index i = 0; i < batch * size; ++i) {
    const double off = prediction.data()[i] - eps.data()[i], x0_off = (prediction.data()[i] - x0.data()[i]) / 0.5;
    const double velocity_off = prediction.data()[i] - (eps.data()[i] - x0.data()[i]);
    expected += off * off / count;
    of_x0 += x0_off * x0_off / count;
    of_velocity += velocity_off * velocity_off / count;
    slopes.data()[i] = 2 * off / count;
  }
  decoder.backward({.prediction = slopes}, expected_gradient, tape);

  fit::DiffusionLoss<Decoder> loss({.schedule = fit::RectifiedFlow{}});
  CHECK(std::abs(loss(decoder, x0, eps, t, {}, gradient, tape) - expected) < 1e-12 * expected);
  CHECK(std::abs(loss(decoder, x0, eps, t, {}, tape) - expected) < 1e-12 * expected);
  const auto ours = test::values_of(gradient), theirs = test::values_of(expected_gradient);
  CHECK(test::relative_error(ours.data(), theirs.data(), static_cast<fit::Index>(ours.size())) < 1e-12);

  fit::DiffusionLoss<Decoder> on_x0(
      {.schedule = fit::RectifiedFlow{}, .prediction = fit::Prediction::x0, .loss_on = fit::LossOn::x0, .scale = 0.5});
  CHECK(std::abs(on_x0(decoder, x0, eps, t, {}, tape) - of_x0) < 1e-12 * of_x0);
  fit::DiffusionLoss<Decoder> on_velocity(
      {.schedule = fit::RectifiedFlow{}, .prediction = fit::Prediction::velocity, .loss_on = fit::LossOn::velocity});
  CHECK(std::abs(on_velocity(decoder, x0, eps, t, {}, tape) - of_velocity) < 1e-12 * of_velocity);
}

TEST_CASE("times with a normal logit", "[diffusion_loss]") {
  const auto check = [](double mean, double deviation, const std::vector<double>& expected) {
    fit::Random random(7);
    for (const double value : expected) {
      CHECK(std::abs(fit::logit_normal_time(random, mean, deviation) - value) < 1e-14);
    }
  };
  // sigmoid(mean + deviation * normal), computed elsewhere.
  check(0, 1, {0.28044453035929934, 0.268669555292179, 0.5943029848501179});
  check(0.5, 0.25, {0.5657263422081131, 0.5620913860838056, 0.6446136558314296});
  check(-1, 2, {0.05292435539608374, 0.04730105310357738, 0.4411651499821336});

  fit::Random random(1);
  std::vector<double> times(100'001);
  for (double& time : times) time = fit::logit_normal_time(random);
  std::sort(times.begin(), times.end());
  CHECK(times.front() > 0);
  CHECK(times.back() < 1);
  double mean = 0;
  for (const double time : times) mean += time / static_cast<double>(times.size());
  // Five standard errors; the deviation of such times is 0.208.
  CHECK(std::abs(mean - 0.5) < 5 * 0.208 / std::sqrt(static_cast<double>(times.size())));
  const auto quantile = [&](double share) {
    return times[static_cast<std::size_t>(share * static_cast<double>(times.size()))];
  };
  CHECK(std::abs(quantile(0.5) - 0.5) < 0.005);
  CHECK(std::abs(quantile(0.8413447) - 1 / (1 + std::exp(-1.0))) < 0.005);  // one deviation
}

TEST_CASE("losses are finite at both ends of time", "[diffusion_loss]") {
  using Decoder = fit::DiffusionDecoder<config>;
  const Decoder decoder(fit::Random(4));
  fit::Tape tape;
  fit::Tensor<float, 4> x0(2, 3, 4, 4), eps(2, 3, 4, 4);
  x0.setConstant(0.5f);
  eps.setConstant(-0.3f);
  const fit::Tensor<float, 2> condition(2, 5);
  fit::Tensor<double, 1> t(2);
  t(1) = 1;
  for (const fit::NoiseSchedule& schedule :
       {fit::NoiseSchedule(fit::RectifiedFlow{}), fit::NoiseSchedule(fit::LogSchedule{}),
        fit::NoiseSchedule(fit::CosineSchedule{})}) {
    for (const auto kind : {fit::Prediction::eps, fit::Prediction::x0, fit::Prediction::velocity}) {
      for (const auto on : {fit::LossOn::eps, fit::LossOn::x0, fit::LossOn::velocity}) {
        for (const std::optional<fit::Range> clip : {std::optional<fit::Range>(), {fit::Range{-0.4, 0.4}}}) {
          fit::DiffusionLoss<Decoder> loss({.schedule = schedule, .prediction = kind, .loss_on = on, .x0_clip = clip});
          Decoder gradient;
          INFO(schedule.index() << " " << static_cast<int>(kind) << " " << static_cast<int>(on) << " "
                                << clip.has_value());
          CHECK(std::isfinite(loss(decoder, x0, eps, t, condition, gradient, tape)));
          CHECK(std::isfinite(fit::clip_gradient(gradient, 1, tape)));
        }
      }
    }
    const auto samples = fit::sample(decoder, {.steps = 3, .schedule = schedule}, condition, fit::Random(1));
    for (fit::Index i = 0; i < samples.size(); ++i) CHECK(std::isfinite(samples.data()[i]));
  }
}

TEST_CASE("noise schedules are those of the golden file", "[diffusion_loss]") {
  const auto file = test::golden("schedules");
  const auto t = test::read<double>(file, "input.t");
  const std::pair<const char*, fit::NoiseSchedule> schedules[] = {{"cosine", fit::CosineSchedule{0, 1, 1}},
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
  refused(fit::SigmoidSchedule{50, 100, 1}, 0.5, "does not fall");
  refused(fit::CosineSchedule{0, 1e-9, 1}, 0.5, "does not fall");
}
