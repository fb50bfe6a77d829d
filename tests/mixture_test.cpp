#include <array>
#include <numeric>

#include <fit/diffusion/loss.hpp>
#include <fit/diffusion/sampler.hpp>
#include <fit/training/adamw.hpp>
#include <fit/training/learning_rate.hpp>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;
using fit::Prediction;
using fit::Sampler;

/// The data: a few points of the plane, each a share of all examples.
struct Point {
  double x, y, share;
};
constexpr std::array<Point, 4> points{{{0.8, 0.6, 0.5}, {-0.7, 0.5, 0.25}, {-0.4, -0.8, 0.15}, {0.6, -0.5, 0.1}}};

constexpr fit::DiffusionConfig plane{.layers = "(1)1(1)",
                                     .groups = 1,
                                     .tokens = 1,
                                     .channels = 2,
                                     .latents = 1,
                                     .data_dim = 32,
                                     .latent_dim = 32,
                                     .data_heads = 2,
                                     .latent_heads = 2,
                                     .mlp_ratio = 2,
                                     .output_channels = 2};

/// A denoiser as sample() needs one, but without a network: `clean` writes the expectation of x0 at x_t = keep x0 +
/// lose eps.
struct ExactDenoiser {
  using T = double;
  using Scalar = T;
  static constexpr fit::DiffusionConfig config = plane;
  static constexpr bool has_condition = false, has_previous = false;
  static constexpr int condition_rank = 2;
  using ConditionView = fit::TensorView<const T, 2>;
  struct Inputs {
    fit::TensorView<const T, 4> noisy;
    fit::TensorView<const double, 1> gamma;
    std::optional<ConditionView> condition = {};
    std::optional<fit::TensorView<const T, 4>> previous_latents = {};
  };
  struct OutputView {
    fit::TensorView<const T, 4> prediction, latents;
  };

  void (*clean)(const double* x, double keep, double lose, double* x0);
  bool flow;
  Prediction kind;
  std::vector<double>* times = nullptr;  // of all evaluations, where asked for

  OutputView forward(const Inputs& inputs, fit::Tape& tape) const {
    const Index count = inputs.noisy.dimension(0);
    if (times && count > 0) times->push_back(1 - inputs.gamma(0));
    double* prediction = tape.output<double>(2 * count);
    double* latents = tape.output<double>(count * plane.latents * plane.latent_dim);
    std::fill_n(latents, count * plane.latents * plane.latent_dim, 0.0);
    for (Index b = 0; b < count; ++b) {
      const double gamma = inputs.gamma(b);
      const double keep = flow ? gamma : std::sqrt(gamma), lose = flow ? 1 - gamma : std::sqrt(1 - gamma);
      const double* x = inputs.noisy.data() + 2 * b;
      double x0[2];
      clean(x, keep, lose, x0);
      for (Index i = 0; i < 2; ++i) {
        const double eps = (x[i] - keep * x0[i]) / lose;
        double& out = prediction[2 * b + i];
        switch (kind) {
          case Prediction::eps:
            out = eps;
            break;
          case Prediction::x0:
            out = x0[i];
            break;
          case Prediction::v:
            out = keep * eps - lose * x0[i];
            break;
          case Prediction::velocity:
            out = eps - x0[i];
            break;
        }
      }
    }
    return {{prediction, inputs.noisy.dimensions()}, {latents, count, 1, plane.latents, plane.latent_dim}};
  }
};

void mixture_mean(const double* x, double keep, double lose, double* x0) {
  std::array<double, points.size()> logs;
  for (std::size_t k = 0; k < points.size(); ++k) {
    const double right = x[0] - keep * points[k].x, up = x[1] - keep * points[k].y;
    logs[k] = std::log(points[k].share) - (right * right + up * up) / (2 * lose * lose);
  }
  const double largest = *std::max_element(logs.begin(), logs.end());
  double total = 0;
  x0[0] = x0[1] = 0;
  for (std::size_t k = 0; k < points.size(); ++k) {
    const double weight = std::exp(logs[k] - largest);
    total += weight;
    x0[0] += weight * points[k].x;
    x0[1] += weight * points[k].y;
  }
  x0[0] /= total;
  x0[1] /= total;
}

/// Normal data instead of points, whose flow is known: x moves with x_t's mean and deviation.
constexpr double mean[] = {0.4, -0.3}, deviation = 0.35;

void normal_mean(const double* x, double keep, double lose, double* x0) {
  const double variance = deviation * deviation, gain = keep * variance / (keep * keep * variance + lose * lose);
  for (int i = 0; i < 2; ++i) x0[i] = mean[i] + gain * (x[i] - keep * mean[i]);
}

/// Where samples lie.
struct Found {
  std::array<double, points.size()> counts{};
  double farthest = 0, near = 0;  // distance to the nearest point; share of samples closer than 0.2 to it

  template <class T>
  explicit Found(const fit::Tensor<T, 4>& samples) {
    const Index count = samples.dimension(0);
    for (Index b = 0; b < count; ++b) {
      const auto distance = [&](const Point& p) {
        return std::hypot(static_cast<double>(samples(b, 0, 0, 0)) - p.x,
                          static_cast<double>(samples(b, 0, 0, 1)) - p.y);
      };
      std::size_t best = 0;
      for (std::size_t k = 1; k < points.size(); ++k) {
        if (distance(points[k]) < distance(points[best])) best = k;
      }
      ++counts[best];
      const double least = distance(points[best]);
      farthest = test::worse(farthest, least);
      near += (least < 0.2) / static_cast<double>(count);
    }
  }

  double count() const { return std::accumulate(counts.begin(), counts.end(), 0.0); }
  double chi_square() const {
    double sum = 0;
    for (std::size_t k = 0; k < points.size(); ++k) {
      const double expected = points[k].share * count();
      sum += (counts[k] - expected) * (counts[k] - expected) / expected;
    }
    return sum;
  }
  double worst_share() const {
    double worst = 0;
    for (std::size_t k = 0; k < points.size(); ++k) {
      worst = std::max(worst, std::abs(counts[k] / count() - points[k].share));
    }
    return worst;
  }
};

/// Root mean square error of samples of the normal data against where the exact flow ends.
double flow_error(const fit::SampleOptions& options) {
  const Index count = 500;
  const ExactDenoiser denoiser{normal_mean, fit::is_flow(options.schedule), options.prediction};
  const auto samples = fit::sample(denoiser, options, count, fit::Random(5));
  fit::Tensor<double, 4> noise(count, 1, 1, 2);
  fit::sample_noise<double>(fit::Random(5))(-1, 0, noise);
  double squares = 0;
  for (Index i = 0; i < noise.size(); ++i) {
    squares += std::pow(samples.data()[i] - (mean[i % 2] + deviation * noise.data()[i]), 2);
  }
  return std::sqrt(squares / static_cast<double>(noise.size()));
}

fit::SampleOptions flow(Sampler method) {
  return {.method = method, .schedule = fit::RectifiedFlow{}, .prediction = Prediction::velocity};
}

using Decoder = fit::DiffusionDecoder<plane>;

/// A decoder that has seen `steps` batches of the points.
Decoder train(const fit::DiffusionObjective& objective, Index steps) {
  constexpr Index batch = 256;
  fit::Executor executor(2);
  fit::Tape tape(executor);
  Decoder decoder(fit::Random(1)), gradient;
  fit::AdamW<Decoder> optimizer{.options = {.beta2 = 0.99}};
  fit::DiffusionLoss<Decoder> loss(objective);
  const fit::LearningRate rate{.peak = 1e-2, .warm_up = 20};
  fit::Random random(2);
  fit::Tensor<float, 4> x0(batch, 1, 1, 2), eps = x0;
  fit::Tensor<double, 1> times(batch);
  for (Index step = 0; step < steps; ++step) {
    for (Index b = 0; b < batch; ++b) {
      double left = random.uniform();
      std::size_t k = 0;
      while (k + 1 < points.size() && left >= points[k].share) left -= points[k++].share;
      x0(b, 0, 0, 0) = static_cast<float>(points[k].x);
      x0(b, 0, 0, 1) = static_cast<float>(points[k].y);
      for (Index i = 0; i < 2; ++i) eps(b, 0, 0, i) = static_cast<float>(random.normal());
      times(b) = (static_cast<double>(b) + random.uniform()) / static_cast<double>(batch);
    }
    fit::set_zero(gradient);
    loss(decoder, x0, eps, times, {}, gradient, tape);
    optimizer.step(decoder, gradient, rate(step, steps), tape);
  }
  return decoder;
}

void check_learning(const fit::DiffusionObjective& objective, const fit::SampleOptions& options) {
  const auto found = [&](Index steps) {
    return Found(fit::sample(train(objective, steps), options, 1000, fit::Random(3)));
  };
  const Found trained = found(600), untrained = found(0);
  CHECK(trained.near > 0.8);
  CHECK(trained.worst_share() < 0.08);
  CHECK(untrained.near < 0.4);
  CHECK(untrained.worst_share() > 0.08);
}

}  // namespace

TEST_CASE("every sampler finds the points in their shares", "[mixture]") {
  struct Case {
    Sampler method;
    fit::NoiseSchedule schedule;
    Prediction prediction;
    Index steps;
  };
  const Case cases[] = {{Sampler::ddim, fit::CosineSchedule{}, Prediction::v, 100},
                        {Sampler::ddim, fit::SigmoidSchedule{}, Prediction::eps, 100},
                        {Sampler::ddim, fit::RectifiedFlow{}, Prediction::x0, 100},
                        {Sampler::ddpm_large, fit::CosineSchedule{}, Prediction::x0, 200},
                        {Sampler::ddpm_small, fit::CosineSchedule{}, Prediction::v, 200},
                        {Sampler::ddpm_small, fit::CosineSchedule{}, Prediction::velocity, 200},
                        {Sampler::euler, fit::RectifiedFlow{}, Prediction::velocity, 100},
                        {Sampler::heun, fit::RectifiedFlow{}, Prediction::velocity, 50}};
  for (const Case& c : cases) {
    INFO("sampler " << static_cast<int>(c.method) << ", schedule " << c.schedule.index() << ", prediction "
                    << static_cast<int>(c.prediction));
    const ExactDenoiser denoiser{mixture_mean, fit::is_flow(c.schedule), c.prediction};
    const Found found(fit::sample(
        denoiser, {.steps = c.steps, .method = c.method, .schedule = c.schedule, .prediction = c.prediction}, 4000,
        fit::Random(4)));
    CHECK(found.farthest < 1e-3);
    CHECK(found.chi_square() < 16.3);  // one in a thousand, with three degrees of freedom
  }
}

TEST_CASE("Euler's error falls as the number of steps, Heun's as its square", "[mixture]") {
  const fit::SampleOptions ddim{.schedule = fit::CosineSchedule{}, .prediction = Prediction::v};
  const fit::SampleOptions euler = flow(Sampler::euler), heun = flow(Sampler::heun);
  const auto error = [](fit::SampleOptions options, Index steps) {
    options.steps = steps;
    return flow_error(options);
  };
  for (const Index steps : {12, 24, 50}) {
    INFO(steps << " steps");
    CHECK(std::abs(error(ddim, steps) / error(ddim, 2 * steps) - 2) < 0.2);
    CHECK(std::abs(error(euler, steps) / error(euler, 2 * steps) - 2) < 0.2);
    CHECK(std::abs(error(heun, steps) / error(heun, 2 * steps) - 4) < 0.6);
    CHECK(error(heun, steps) < 0.2 * error(euler, steps));
  }
}

TEST_CASE("Euler's steps are DDIM's, and Heun evaluates twice in each but the last", "[mixture]") {
  std::vector<double> times;
  const ExactDenoiser denoiser{mixture_mean, true, Prediction::velocity, &times};
  const auto run = [&](Sampler method, Index steps) {
    auto options = flow(method);
    options.steps = steps;
    times.clear();
    return fit::sample(denoiser, options, 3, fit::Random(1));
  };
  for (Index steps = 1; steps <= 60; ++steps) {
    INFO(steps << " steps");
    const auto euler = run(Sampler::euler, steps), ddim = run(Sampler::ddim, steps);
    CHECK(test::max_error(euler.data(), ddim.data(), euler.size()) == 0);
    CHECK(static_cast<Index>(times.size()) == steps);
    run(Sampler::heun, steps);
    CHECK(static_cast<Index>(times.size()) == 2 * steps - 1);
    CHECK(std::abs(times.back() - 1 / static_cast<double>(steps)) < 1e-12);
  }
}

TEST_CASE("a decoder learns the points from a cosine schedule", "[mixture]") {
  const fit::DiffusionObjective objective{
      .schedule = fit::CosineSchedule{}, .prediction = Prediction::v, .loss_on = fit::LossOn::velocity};
  check_learning(objective, {.steps = 40, .schedule = objective.schedule, .prediction = objective.prediction});
}

TEST_CASE("a decoder learns the points by rectified flow", "[mixture]") {
  const fit::DiffusionObjective objective{
      .schedule = fit::RectifiedFlow{}, .prediction = Prediction::velocity, .loss_on = fit::LossOn::velocity};
  check_learning(
      objective,
      {.steps = 20, .method = Sampler::heun, .schedule = objective.schedule, .prediction = objective.prediction});
}
