#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <type_traits>

#include <fit/core/tensor.hpp>
#include <fit/diffusion/noise_schedule.hpp>
#include <fit/diffusion/prediction.hpp>
#include <fit/models/diffusion_decoder.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What the squared error is taken of: eps, x0 / scale, or the velocity eps - x0 of rectified flow.
enum class LossOn { eps, x0, velocity };

/// How a diffusion decoder is trained.
struct DiffusionObjective {
  NoiseSchedule schedule = CosineSchedule{};
  Prediction prediction = Prediction::eps;
  LossOn loss_on = LossOn::eps;
  std::optional<Range> x0_clip = {};
  double scale = 1;  ///< images in [0, 1] are trained as (2 image - 1) * scale
  /// Share of the batch, from its beginning, that is given latents of a first pass without gradient; the rest, zeros.
  double self_conditioning_rate = 0;
  /// Share of the examples whose condition is multiplied by zero, so that sampling can be guided. Ho and Salimans,
  /// arXiv 2207.12598.
  double condition_drop = 0;
};

/// A time in (0, 1) whose logit is normal: sigmoid(mean + deviation * normal). Esser et al., arXiv 2403.03206, 3.1.
inline double logit_normal_time(Random& random, double mean = 0, double deviation = 1) {
  return 1 / (1 + std::exp(-mean - deviation * random.normal()));
}

/// The training loss of a diffusion decoder and its gradient: mean squared error of the estimate of eps, x0 or their
/// difference at x_t = sqrt(gamma(t)) x0 + sqrt(1 - gamma(t)) eps, or (1 - t) x0 + t eps for rectified flow. x_t, what
/// the decoder makes of it and its gradient are made some groups at a time. Holds what little memory a step takes
/// beside the tape, so that the next one allocates nothing; so it is for one call at a time: threads, and leaves of one
/// process, need one each. A leaf that calls it while another waits in the middle of its call gets an Error.
template <class Model>
class DiffusionLoss {
  static_assert(Model::config.channels == Model::config.output_channels,
                "fit: a diffusion loss needs config.output_channels equal to config.channels");

 public:
  using T = typename Model::Scalar;
  using ConditionView = typename Model::ConditionView;

  explicit DiffusionLoss(const DiffusionObjective& objective) : objective_(objective) {
    detail::check_range(objective.x0_clip);
    detail::check_prediction(objective.schedule, objective.prediction);
    require(objective.scale > 0, "the scale of a diffusion objective must be positive, not ", objective.scale);
    require(objective.self_conditioning_rate >= 0 && objective.self_conditioning_rate <= 1,
            "the self-conditioning rate must be in [0, 1], not ", objective.self_conditioning_rate);
    require(objective.condition_drop >= 0 && objective.condition_drop <= 1,
            "the share of dropped conditions must be in [0, 1], not ", objective.condition_drop);
  }

  /// The loss for x0 and eps [B, groups, tokens, channels], whole over a team, too, and times t [B] in [0, 1]; its
  /// gradient is added to `gradient`. Records on the tape, with drop-outs from `random`; the grid is that of
  /// Model::Inputs. Throws Error for other shapes or times.
  double operator()(const Model& model, TensorView<const T, 4> x0, TensorView<const T, 4> eps,
                    TensorView<const double, 1> t, const std::optional<ConditionView>& condition, Model& gradient,
                    Tape& tape, const TrainingOptions& options = {}, Random random = Random(0), const Grid& grid = {}) {
    check_shapes(x0, eps);
    return run(model, {source_of(x0, grid), source_of(eps, {}), t, condition}, &gradient, tape, options, random, {});
  }
  /// The same without a gradient: what the call above gives without drop-outs, with the same conditions dropped for the
  /// same `random`. The tape is left as it was.
  double operator()(const Model& model, TensorView<const T, 4> x0, TensorView<const T, 4> eps,
                    TensorView<const double, 1> t, const std::optional<ConditionView>& condition, Tape& tape,
                    Random random = Random(0), const Grid& grid = {}) {
    check_shapes(x0, eps);
    return run(model, {source_of(x0, grid), source_of(eps, {}), t, condition}, nullptr, tape, {}, random, {});
  }

  /// What the loss is of where it comes from sources, and never stands in memory as a whole.
  struct Sources {
    GroupSource<T> x0;              ///< [count, tokens, channels], with the grid where there is one
    GroupSource<T> eps;             ///< the same of the noise, without a grid
    TensorView<const double, 1> t;  ///< [B]
    std::optional<ConditionView> condition = {};
  };

  /// The same of sources. Throws Error as above, and for sources without a function, or with one for gradients.
  double operator()(const Model& model, const Sources& of, Model& gradient, Tape& tape,
                    const TrainingOptions& options = {}, Random random = Random(0), const Watch& watch = {}) {
    return run(model, of, &gradient, tape, options, random, watch);
  }
  double operator()(const Model& model, const Sources& of, Tape& tape, Random random = Random(0),
                    const Watch& watch = {}) {
    return run(model, of, nullptr, tape, {}, random, watch);
  }

 private:
  static constexpr Index group_size = Index{Model::config.tokens} * Model::config.channels;

  static void check_shapes(const TensorView<const T, 4>& x0, const TensorView<const T, 4>& eps) {
    constexpr DiffusionConfig c = Model::config;
    detail::require_shape(x0, {-1, c.groups, c.tokens, c.channels}, "x0");
    detail::require_shape(eps, {x0.dimension(0), x0.dimension(1), c.tokens, c.channels}, "eps");
  }
  static GroupSource<T> source_of(const TensorView<const T, 4>& tokens, const Grid& grid) {
    return {.batch = tokens.dimension(0),
            .groups = tokens.dimension(1),
            .fill = [from = tokens.data()](Index first, Index count,
                                           T* to) { std::copy_n(from + first * group_size, count * group_size, to); },
            .grid = grid};
  }

  double run(const Model& model, const Sources& of, Model* gradient, Tape& tape, const TrainingOptions& options,
             Random random, const Watch& watch) {
    require(!running_, "a diffusion loss is called in the middle of another call: leaves of a process need one each");
    const Running running(running_);
    detail::check(options);
    const Index batch = of.x0.batch;
    detail::require_source<Model::config>(of.x0, Model::config.tokens);
    require(of.eps.fill != nullptr, "a diffusion loss needs a source of eps that fills groups");
    require(!of.x0.gradient && !of.eps.gradient, "a diffusion loss has no gradient by x0 and eps for their sources");
    require(of.eps.batch == batch && of.eps.groups == of.x0.groups,
            "the source of eps must give as much as that of x0, ", batch, " x ", of.x0.groups, " groups, not ",
            of.eps.batch, " x ", of.eps.groups);
    detail::require_shape(of.t, {batch}, "t");
    if (gamma_.size() != batch) gamma_ = Tensor<double, 1>(batch);
    for (Index b = 0; b < batch; ++b) gamma_(b) = noise_level(objective_.schedule, of.t(b));

    // In scratch of the tape, between layers.
    const auto mix = [&](Index first, Index count, const T* x0, const T* eps, T* noisy) {
      for_groups(of, first, count, tape, [&](Index group, const NoiseShares& shares) {
        const T keep = static_cast<T>(shares.keep), lose = static_cast<T>(shares.lose);
        for (Index i = group * group_size; i < (group + 1) * group_size; ++i) noisy[i] = keep * x0[i] + lose * eps[i];
      });
    };
    const auto fill = [&](Index first, Index count, T* noisy) {
      const Arena::Scope scope(tape.arena());
      T* eps = tape.scratch<T>(count * group_size);
      of.x0.fill(first, count, noisy);
      of.eps.fill(first, count, eps);
      mix(first, count, noisy, eps, noisy);
    };
    const double values = static_cast<double>(batch * of.x0.groups * group_size);
    const auto loss = [&](Index first, Index count, const T* prediction, T* to) {
      const Arena::Scope scope(tape.arena());
      T* x0 = tape.scratch<T>(count * group_size);
      T* eps = tape.scratch<T>(count * group_size);
      T* noisy = tape.scratch<T>(count * group_size);
      double* squares = tape.scratch<double>(count);  // of each group
      of.x0.fill(first, count, x0);
      of.eps.fill(first, count, eps);
      mix(first, count, x0, eps, noisy);
      for_groups(of, first, count, tape, [&](Index group, const NoiseShares& shares) {
        const Index at = group * group_size;
        squares[group] = error(prediction + at, noisy + at, x0 + at, eps + at, to ? to + at : nullptr, shares, values);
      });
      return std::accumulate(squares, squares + count, 0.0) / values;
    };
    // By reference, as what is larger than a pointer or two would be allocated.
    const GroupSource<T> noisy{.batch = batch, .groups = of.x0.groups, .fill = std::ref(fill), .grid = of.x0.grid};
    typename Model::GroupInputs inputs{noisy, gamma_, of.condition};
    const GroupLoss<T> by_groups = std::ref(loss);
    Model::check(inputs, by_groups);
    if constexpr (Model::has_condition) {
      if (objective_.condition_drop > 0) inputs.condition = drop_conditions(*of.condition, random);
    }
    if constexpr (Model::has_previous) {
      find_previous(model, inputs, tape);
      inputs.previous_latents = previous_;
    }
    return gradient ? model.loss(inputs, by_groups, *gradient, tape, options, random, watch)
                    : model.loss(inputs, by_groups, tape, watch);
  }

  /// body(group, its noise) of some groups, the first of which is 0 to it.
  template <class Body>
  void for_groups(const Sources& of, Index first, Index count, Tape& tape, Body&& body) const {
    constexpr Index together = std::max<Index>(1, 4096 / group_size);
    tape.executor().parallel_for((count + together - 1) / together, [&](Index task, int) {
      for (Index group = task * together; group < std::min(count, (task + 1) * together); ++group) {
        body(group, noise_shares(objective_.schedule, of.t((first + group) / of.x0.groups)));
      }
    });
  }

  /// Latents of a first pass for the leading share of the batch, zeros for the rest.
  void find_previous(const Model& model, const typename Model::GroupInputs& inputs, Tape& tape) {
    constexpr DiffusionConfig c = Model::config;
    const Index batch = inputs.noisy.batch, all = inputs.noisy.groups;
    const Index groups = detail::own_groups<c>(all, tape.team());
    if (previous_.dimension(0) != batch || previous_.dimension(1) != groups) {
      previous_ = Tensor<T, 4>(batch, groups, c.latents, c.latent_dim);
    }
    previous_.setZero();
    const auto lead = static_cast<Index>(static_cast<double>(batch) * objective_.self_conditioning_rate);
    if (lead == 0) return;
    const auto leading = [&](const auto& view) {
      auto dimensions = view.dimensions();
      dimensions[0] = lead;
      return std::remove_cvref_t<decltype(view)>(view.data(), dimensions);
    };
    const GroupSource<T> noisy{.batch = lead,
                               .groups = all,
                               .fill = [&](Index first, Index count, T* to) { inputs.noisy.fill(first, count, to); },
                               .grid = inputs.noisy.grid};
    typename Model::GroupInputs part{noisy, leading(inputs.gamma)};
    if (inputs.condition) part.condition = leading(*inputs.condition);
    part.latents = leading(TensorView<T, 4>(previous_));
    model.loss(
        part, [](Index, Index, const T*, T*) { return 0.0; }, tape);
  }

  /// The condition, some examples' multiplied by zero.
  ConditionView drop_conditions(const ConditionView& condition, Random& random) {
    if (condition_.dimensions() != condition.dimensions()) condition_ = Condition(condition.dimensions());
    const Index batch = condition.dimension(0), each = batch > 0 ? condition.size() / batch : 0;
    for (Index b = 0; b < batch; ++b) {
      const T factor = random.uniform() < objective_.condition_drop ? T(0) : T(1);
      for (Index i = b * each; i < (b + 1) * each; ++i) condition_.data()[i] = factor * condition.data()[i];
    }
    return condition_;
  }

  /// The sum of a group's squares; writes the gradient of the mean over so many values where there is a place for it.
  double error(const T* prediction, const T* noisy, const T* x0, const T* eps, T* gradient, const NoiseShares& shares,
               double values) const {
    constexpr Index part = 256;
    const detail::Estimates e = detail::estimates_of(objective_.prediction, shares);
    const auto& clip = objective_.x0_clip;
    const bool on_x0 = objective_.loss_on == LossOn::x0, on_eps = objective_.loss_on == LossOn::eps;
    const double scale = objective_.scale;
    double total = 0;
    for (Index first = 0; first < group_size; first += part) {
      const Index length = std::min(part, group_size - first);
      T clean[part], noise[part];
      detail::estimate(prediction + first, noisy + first, clean, noise, length, objective_.prediction, shares, clip,
                       false);
      for (Index j = 0; j < length; ++j) {
        const Index i = first + j;
        const double x0_off = static_cast<double>(clean[j] - x0[i]), eps_off = static_cast<double>(noise[j] - eps[i]);
        const double off = on_x0 ? x0_off / scale : on_eps ? eps_off : eps_off - x0_off;
        total += off * off;
        if (!gradient) continue;
        const bool cut = clip && (clean[j] <= static_cast<T>(clip->low) || clean[j] >= static_cast<T>(clip->high));
        // How the estimates move with the prediction: not where x0 was cut, nor eps where it follows from that.
        const double of_x0 = cut ? 0 : e.x0_of_p;
        const double of_eps = cut && objective_.prediction == Prediction::x0 ? 0 : e.eps_of_p;
        const double slope = on_x0 ? of_x0 / scale : on_eps ? of_eps : of_eps - of_x0;
        gradient[i] = static_cast<T>(2 * off * slope / values);
      }
    }
    return total;
  }

  class Running {
   public:
    explicit Running(bool& is) : is_(is) { is_ = true; }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() { is_ = false; }

   private:
    bool& is_;
  };
  using Condition = Tensor<T, Model::condition_rank>;

  DiffusionObjective objective_;
  bool running_ = false;
  Tensor<double, 1> gamma_;
  Condition condition_;
  Tensor<T, 4> previous_;
};

}  // namespace FIT_ABI
}  // namespace fit
