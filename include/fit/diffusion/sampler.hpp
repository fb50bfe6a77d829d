#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include <fit/core/tensor.hpp>
#include <fit/diffusion/noise_schedule.hpp>
#include <fit/diffusion/prediction.hpp>
#include <fit/models/diffusion_decoder.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The reverse process: DDIM (Song et al., arXiv 2010.02502) without noise, DDPM (Ho et al., arXiv 2006.11239) with the
/// larger or the smaller variance; for rectified flow (Liu et al., arXiv 2209.03003) the steps of Euler, which there
/// are DDIM's, or of Heun, with two evaluations each but where they end at time 0.
enum class Sampler { ddim, ddpm_large, ddpm_small, euler, heun };

struct SampleOptions {
  Index steps = 50;
  Sampler method = Sampler::ddim;
  double guidance = 0;  ///< w of (1 + w) out(condition) - w out(none). Ho and Salimans, arXiv 2207.12598
  NoiseSchedule schedule = CosineSchedule{};
  Prediction prediction = Prediction::eps;
  std::optional<Range> x0_clip = {};
  double latent_decay = 0;     ///< previous latents become d * previous + (1 - d) * those of this step
  double start = 1;            ///< time in (0, 1] of the first step; below 1 the noise of step -1 is x at that time
  double time_difference = 0;  ///< td: a step goes on to the noise level of (1 + td) steps later
  Index batch = 64;            ///< examples that are in memory at once
  Index groups = 0;            ///< of an example, where the denoiser takes any number
  Grid grid = {};              ///< as in DiffusionDecoder::Inputs
};

/// What a step has come to, for a part of the examples: first .. first + count - 1, each shaped [count, ...].
template <class T>
struct SampleStep {
  Index step, first;
  TensorView<const T, 4> x0, eps, next;  ///< estimates of this step, and the x of the next
  TensorView<const T, 4> latents;        ///< of the pass with the condition
};

/// Told of every step; sampling of these examples ends when it returns false.
template <class T>
using SampleCallback = std::function<bool(const SampleStep<T>&)>;

/// Fills normal noise [count, groups, tokens, channels] for examples first .. and a step, the start being step -1.
template <class T>
using SampleNoise = std::function<void(Index step, Index first, TensorView<T, 4> noise)>;

/// Normal noise that depends on the example, the step and the element alone, so that parts of any size see the same: of
/// the groups from `first_group` on, for a member of a team.
template <class T>
SampleNoise<T> sample_noise(Random random, Index first_group = 0) {
  return [=](Index step, Index first, TensorView<T, 4> noise) {
    const Index count = noise.dimension(0), size = count > 0 ? noise.size() / count : 0;
    const Index before = first_group * noise.dimension(2) * noise.dimension(3);
    for (Index i = 0; i < count; ++i) {
      Random own = random.fork(first + i, step + 1);
      own.skip_normal(before);
      for (Index j = 0; j < size; ++j) noise.data()[i * size + j] = static_cast<T>(own.normal());
    }
  };
}

namespace detail {

inline void check(const SampleOptions& options) {
  require(options.steps >= 1, "sampling needs at least 1 step, not ", options.steps);
  require(options.batch >= 1, "sampling needs a batch of at least 1, not ", options.batch);
  require(std::isfinite(options.guidance), "the guidance must be finite, not ", options.guidance);
  require(options.latent_decay >= 0 && options.latent_decay <= 1, "the latent decay must be in [0, 1], not ",
          options.latent_decay);
  require(options.start > 0 && options.start <= 1, "sampling starts at a time in (0, 1], not ", options.start);
  require(options.time_difference >= 0, "the time difference must not be negative, but is ", options.time_difference);
  check_range(options.x0_clip);
  check_prediction(options.schedule, options.prediction);
  const bool ddpm = options.method == Sampler::ddpm_large || options.method == Sampler::ddpm_small;
  const bool flow = options.method == Sampler::euler || options.method == Sampler::heun;
  require(!(ddpm && is_flow(options.schedule)), "rectified flow is sampled with euler, heun or ddim, not with ddpm");
  require(!flow || is_flow(options.schedule), "euler and heun sample rectified flow, and the schedule is another");
}

/// body(first, end) for pieces of `count` elements, over the threads.
template <class Body>
void for_elements(Index count, Workspace& workspace, Body&& body) {
  constexpr Index piece = 4096;
  workspace.executor().parallel_for((count + piece - 1) / piece,
                                    [&](Index i, int) { body(i * piece, std::min(count, (i + 1) * piece)); });
}

/// x at the next noise level from the estimates at this one, in place of `next`, which holds fresh noise for DDPM.
template <class T>
void step_back(Sampler method, const NoiseShares& now, const NoiseShares& then, const T* x, const T* x0, const T* eps,
               T* next, Index count) {
  if (method != Sampler::ddpm_large && method != Sampler::ddpm_small) {
    const T keep = static_cast<T>(then.keep), lose = static_cast<T>(then.lose);
    for (Index i = 0; i < count; ++i) next[i] = keep * x0[i] + lose * eps[i];
    return;
  }
  const double a = std::clamp(now.gamma / then.gamma, 0.0, 1.0);
  if (a == 1) {  // no noise comes off
    std::copy_n(x, count, next);
    return;
  }
  const double gone = (1 - then.gamma) / (1 - now.gamma);
  const double variance = method == Sampler::ddpm_large ? 1 - a : (1 - a) * gone;
  // The mean in terms of x0 and x: in terms of eps it loses its digits where a is small.
  const T of_x = static_cast<T>(std::sqrt(a) * gone);
  const T of_x0 = static_cast<T>(std::sqrt(then.gamma) * (1 - a) / (1 - now.gamma));
  const T deviation = static_cast<T>(std::sqrt(variance));
  for (Index i = 0; i < count; ++i) next[i] = of_x * x[i] + of_x0 * x0[i] + deviation * next[i];
}

}  // namespace detail

/// Samples `count` examples with a trained denoiser, in parts of options.batch: returns the last estimates of x0,
/// [count, groups, tokens, channels]. `condition` [count, ...] as the denoiser takes it, none where it has none; it is
/// multiplied by zero for the pass without condition that guidance needs. The tape is cleared in every step. Of a tape
/// that has joined a team its members sample their shares of every example's groups together: noise is asked for these,
/// and callbacks must answer alike. Throws Error for wrong options or shapes.
template <class Model>
Tensor<typename Model::Scalar, 4> sample(const Model& denoiser, const SampleOptions& options, Index count,
                                         const std::optional<typename Model::ConditionView>& condition,
                                         const SampleNoise<typename Model::Scalar>& noise, Tape& tape,
                                         const SampleCallback<typename Model::Scalar>& callback = {}) {
  using T = typename Model::Scalar;
  constexpr DiffusionConfig c = Model::config;
  static_assert(c.channels == c.output_channels, "fit: sampling needs config.output_channels equal to config.channels");
  detail::check(options);
  require(Model::has_condition || options.guidance == 0, "there is no guidance without a condition");
  require(count >= 0, "sampling cannot make ", count, " examples");
  require(static_cast<bool>(noise), "sampling needs a function that gives noise, not an empty one");
  require(condition.has_value() == Model::has_condition,
          Model::has_condition ? "this decoder needs a condition" : "this decoder takes no condition");
  if constexpr (Model::has_condition) {
    detail::require_shape(*condition, Model::condition_shape(count), "the condition of the samples");
  }
  const Index all = c.groups == any ? options.groups : c.groups;
  require(all >= 1, "a denoiser of any number of groups samples options.groups of them, at least 1, not ", all);
  require(options.groups == 0 || options.groups == all, "this denoiser samples ", all,
          " groups, and not options.groups, ", options.groups);
  detail::require_counts<c>(count, all, c.tokens);
  detail::require_grid<c>(options.grid, all);
  const Index groups = detail::own_groups<c>(all, tape.team());
  const bool ddpm = options.method == Sampler::ddpm_large || options.method == Sampler::ddpm_small;
  const bool heun = options.method == Sampler::heun;
  const Index size = groups * c.tokens * c.channels;
  const double steps = static_cast<double>(options.steps);
  Tensor<T, 4> result(count, groups, c.tokens, c.channels);

  for (Index first = 0; first < count; first += options.batch) {
    const Index part = std::min(options.batch, count - first);
    Tensor<T, 4> x(part, groups, c.tokens, c.channels), x0 = x, eps = x, next = x;
    Tensor<T, 4> guided(options.guidance == 0 ? 0 : part, groups, c.tokens, c.channels);
    Tensor<T, 4> first_x0(heun ? part : 0, groups, c.tokens, c.channels), first_eps = first_x0;
    Tensor<T, 4> carried(part, groups, c.latents, c.latent_dim);
    Tensor<double, 1> gamma(part);
    typename Model::Inputs inputs{x, gamma}, blank = inputs;
    if constexpr (c.latent_positions == Positions::sin_cos_grid) inputs.grid = blank.grid = options.grid;
    Tensor<T, Model::condition_rank> zero;
    if constexpr (Model::has_condition) {
      auto dimensions = condition->dimensions();
      dimensions[0] = part;
      const Index each = dimensions.TotalSize() / part;
      zero = Tensor<T, Model::condition_rank>(dimensions);
      inputs.condition = typename Model::ConditionView(condition->data() + first * each, dimensions);
      blank.condition = zero;
    }
    noise(-1, first, x);
    // What the network says at some x and noise level, with guidance.
    const auto evaluate = [&](const Tensor<T, 4>& at, double level) {
      gamma.setConstant(level);
      inputs.noisy = blank.noisy = at;
      auto output = denoiser.forward(inputs, tape);
      if (options.guidance == 0) return output;
      const auto without = denoiser.forward(blank, tape);
      const T with_share = static_cast<T>(1 + options.guidance), without_share = static_cast<T>(options.guidance);
      const T *with_condition = output.prediction.data(), *without_condition = without.prediction.data();
      detail::for_elements(part * size, tape, [&](Index i, Index end) {
        for (; i < end; ++i) guided.data()[i] = with_share * with_condition[i] - without_share * without_condition[i];
      });
      output.prediction = guided;
      return output;
    };
    const auto interpret = [&](const TensorView<const T, 4>& prediction, const Tensor<T, 4>& at,
                               const NoiseShares& shares) {
      detail::for_elements(part * size, tape, [&](Index i, Index end) {
        detail::estimate(prediction.data() + i, at.data() + i, x0.data() + i, eps.data() + i, end - i,
                         options.prediction, shares, options.x0_clip, true);
      });
    };
    for (Index step = 0; step < options.steps; ++step) {
      const double t = options.start * (1 - static_cast<double>(step) / steps);
      // From the count of steps, not from t: the last step ends at 0 and not a rounding error above it.
      const double gone = (static_cast<double>(step + 1) + options.time_difference) / steps;
      const double t_next = options.start * std::max(1 - gone, 0.0);
      const NoiseShares now = noise_shares(options.schedule, t), then = noise_shares(options.schedule, t_next);
      if (Model::has_previous && step > 0) inputs.previous_latents = blank.previous_latents = carried;
      tape.clear();
      const auto output = evaluate(x, now.gamma);
      interpret(output.prediction, x, now);
      if (ddpm) noise(step, first, next);
      detail::for_elements(part * size, tape, [&](Index i, Index end) {
        detail::step_back(options.method, now, then, x.data() + i, x0.data() + i, eps.data() + i, next.data() + i,
                          end - i);
      });
      if (heun && t_next > 0) {
        std::swap(first_x0, x0);
        std::swap(first_eps, eps);
        interpret(evaluate(next, then.gamma).prediction, next, then);
        const T half = static_cast<T>((t_next - t) / 2);  // of the two velocities eps - x0
        detail::for_elements(part * size, tape, [&](Index i, Index end) {
          for (; i < end; ++i) {
            const T velocities = first_eps.data()[i] - first_x0.data()[i] + eps.data()[i] - x0.data()[i];
            next.data()[i] = x.data()[i] + half * velocities;
          }
        });
      }
      if constexpr (Model::has_previous) {
        const T old_share = static_cast<T>(options.latent_decay), share = static_cast<T>(1 - options.latent_decay);
        detail::for_elements(carried.size(), tape, [&](Index i, Index end) {
          for (; i < end; ++i) carried.data()[i] = old_share * carried.data()[i] + share * output.latents.data()[i];
        });
      }
      const bool go_on = !callback || callback({step, first, x0, eps, next, output.latents});
      std::swap(x, next);
      if (!go_on) break;
    }
    std::copy_n(x0.data(), part * size, result.data() + first * size);
  }
  return result;
}

/// The same with one example for each condition, and noise drawn from `random`: the same samples for any number of
/// threads and any options.batch.
template <class Model>
Tensor<typename Model::Scalar, 4> sample(
    const Model& denoiser, const SampleOptions& options, const typename Model::ConditionView& condition, Random random,
    const SampleCallback<typename Model::Scalar>& callback = {}) requires(Model::has_condition) {
  return sample(denoiser, options, condition.dimension(0), condition, sample_noise<typename Model::Scalar>(random),
                detail::inference_tape(), callback);
}

/// The same for a denoiser without condition.
template <class Model>
Tensor<typename Model::Scalar, 4> sample(
    const Model& denoiser, const SampleOptions& options, Index count, Random random,
    const SampleCallback<typename Model::Scalar>& callback = {}) requires(!Model::has_condition) {
  return sample(denoiser, options, count, {}, sample_noise<typename Model::Scalar>(random), detail::inference_tape(),
                callback);
}

}  // namespace FIT_ABI
}  // namespace fit
