#pragma once

#include <algorithm>
#include <cmath>
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
/// difference at x_t = sqrt(gamma(t)) x0 + sqrt(1 - gamma(t)) eps, or (1 - t) x0 + t eps for rectified flow. Holds the
/// memory of a step, so that the next one allocates nothing.
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

  /// The loss for x0 and eps [B, groups, tokens, channels] and times t [B] in [0, 1]; its gradient is added to
  /// `gradient`. Records on the tape, with drop-outs from `random`; the grid is that of Model::Inputs. Throws Error for
  /// other shapes or times.
  double operator()(const Model& model, TensorView<const T, 4> x0, TensorView<const T, 4> eps,
                    TensorView<const double, 1> t, const std::optional<ConditionView>& condition, Model& gradient,
                    Tape& tape, const TrainingOptions& options = {}, Random random = Random(0), const Grid& grid = {}) {
    return run(model, x0, eps, t, condition, &gradient, tape, options, random, grid);
  }
  /// The same without a gradient: what the call above gives without drop-outs, with the same conditions dropped for the
  /// same `random`. The tape stops recording.
  double operator()(const Model& model, TensorView<const T, 4> x0, TensorView<const T, 4> eps,
                    TensorView<const double, 1> t, const std::optional<ConditionView>& condition, Tape& tape,
                    Random random = Random(0), const Grid& grid = {}) {
    return run(model, x0, eps, t, condition, nullptr, tape, {}, random, grid);
  }

 private:
  static constexpr Index piece = 4096;

  double run(const Model& model, const TensorView<const T, 4>& x0, const TensorView<const T, 4>& eps,
             const TensorView<const double, 1>& t, const std::optional<ConditionView>& condition, Model* gradient,
             Tape& tape, const TrainingOptions& options, Random random, const Grid& grid) {
    constexpr DiffusionConfig c = Model::config;
    const Index batch = x0.dimension(0), groups = x0.dimension(1);
    detail::require_shape(x0, {-1, c.groups, c.tokens, c.channels}, "x0");
    detail::require_shape(eps, {batch, groups, c.tokens, c.channels}, "eps");
    detail::require_shape(t, {batch}, "t");
    reserve(batch, groups);
    for (Index b = 0; b < batch; ++b) gamma_(b) = noise_level(objective_.schedule, t(b));
    typename Model::Inputs inputs{noisy_, gamma_, condition, {}, grid};
    Model::check(inputs);
    const auto begin_pass = [&] { gradient ? tape.record(options, random) : tape.clear(); };
    begin_pass();  // refuses wrong options
    for_pieces(t, tape, [&](Index, const NoiseShares& shares, Index first, Index last) {
      const T keep = static_cast<T>(shares.keep), lose = static_cast<T>(shares.lose);
      for (Index i = first; i < last; ++i) noisy_.data()[i] = keep * x0.data()[i] + lose * eps.data()[i];
    });
    if constexpr (Model::has_condition) {
      if (objective_.condition_drop > 0) inputs.condition = drop_conditions(*condition, random);
    }
    if constexpr (Model::has_previous) {
      find_previous(model, inputs, tape);
      inputs.previous_latents = previous_;
    }
    begin_pass();
    const auto views = model.forward(inputs, tape);
    const double loss = error(views.prediction.data(), x0.data(), eps.data(), t, tape);
    if (gradient) model.backward({.prediction = prediction_gradient_}, *gradient, tape);
    return loss;
  }

  /// body(example, its noise, first element, last element + 1) for pieces of examples, the same for any threads.
  template <class Body>
  void for_pieces(const TensorView<const double, 1>& t, Tape& tape, Body&& body) {
    const Index size = this->size(), pieces = this->pieces();
    tape.executor().parallel_for(t.size() * pieces, [&](Index task, int) {
      const Index b = task / pieces, first = b * size + task % pieces * piece;
      body(b, noise_shares(objective_.schedule, t(b)), first, std::min(first + piece, (b + 1) * size));
    });
  }

  void reserve(Index batch, Index groups) {
    constexpr DiffusionConfig c = Model::config;
    if (gamma_.size() == batch && noisy_.dimension(1) == groups) return;
    gamma_ = {};  // so that an allocation that fails is made again
    noisy_ = Tensor<T, 4>(batch, groups, c.tokens, c.channels);
    prediction_gradient_ = noisy_;
    partial_ = Tensor<double, 1>(batch * pieces());
    if constexpr (Model::has_previous) previous_ = Tensor<T, 4>(batch, groups, c.latents, c.latent_dim);
    gamma_ = Tensor<double, 1>(batch);
  }

  /// Elements of an example, and the pieces of them.
  Index size() const { return noisy_.dimension(1) * noisy_.dimension(2) * noisy_.dimension(3); }
  Index pieces() const { return (size() + piece - 1) / piece; }

  /// Latents of a first pass for the leading share of the batch, zeros for the rest.
  void find_previous(const Model& model, const typename Model::Inputs& inputs, Tape& tape) {
    const Index batch = gamma_.size();
    const auto lead = static_cast<Index>(static_cast<double>(batch) * objective_.self_conditioning_rate);
    previous_.setZero();
    if (lead == 0) return;
    const auto leading = [&](const auto& view) {
      auto dimensions = view.dimensions();
      dimensions[0] = lead;
      return std::remove_cvref_t<decltype(view)>(view.data(), dimensions);
    };
    typename Model::Inputs part{leading(inputs.noisy), leading(inputs.gamma), {}, {}, inputs.grid};
    if (inputs.condition) part.condition = leading(*inputs.condition);
    tape.clear();
    const auto latents = model.forward(part, tape).latents;
    std::copy_n(latents.data(), latents.size(), previous_.data());
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

  double error(const T* prediction, const T* x0, const T* eps, const TensorView<const double, 1>& t, Tape& tape) {
    constexpr Index part = 256;
    const Index size = this->size(), pieces = this->pieces();
    const double count = static_cast<double>(std::max<Index>(1, t.size() * size)), scale = objective_.scale;
    const auto& clip = objective_.x0_clip;
    const bool on_x0 = objective_.loss_on == LossOn::x0, on_eps = objective_.loss_on == LossOn::eps;
    for_pieces(t, tape, [&](Index b, const NoiseShares& shares, Index begin, Index end) {
      const detail::Estimates e = detail::estimates_of(objective_.prediction, shares);
      double total = 0;
      for (Index first = begin; first < end; first += part) {
        const Index length = std::min(part, end - first);
        T clean[part], noise[part];
        detail::estimate(prediction + first, noisy_.data() + first, clean, noise, length, objective_.prediction, shares,
                         clip, false);
        for (Index j = 0; j < length; ++j) {
          const Index i = first + j;
          const double x0_off = static_cast<double>(clean[j] - x0[i]), eps_off = static_cast<double>(noise[j] - eps[i]);
          const bool cut = clip && (clean[j] <= static_cast<T>(clip->low) || clean[j] >= static_cast<T>(clip->high));
          // How the estimates move with the prediction: not where x0 was cut, nor eps where it follows from that.
          const double of_x0 = cut ? 0 : e.x0_of_p;
          const double of_eps = cut && objective_.prediction == Prediction::x0 ? 0 : e.eps_of_p;
          const double off = on_x0 ? x0_off / scale : on_eps ? eps_off : eps_off - x0_off;
          const double slope = on_x0 ? of_x0 / scale : on_eps ? of_eps : of_eps - of_x0;
          total += off * off;
          prediction_gradient_.data()[i] = static_cast<T>(2 * off * slope / count);
        }
      }
      partial_(b * pieces + (begin - b * size) / piece) = total;
    });
    double total = 0;
    for (Index i = 0; i < partial_.size(); ++i) total += partial_(i);
    return total / count;
  }

  using Condition = Tensor<T, Model::condition_rank>;

  DiffusionObjective objective_;
  Tensor<double, 1> gamma_, partial_;
  Condition condition_;
  Tensor<T, 4> noisy_, previous_, prediction_gradient_;
};

}  // namespace FIT_ABI
}  // namespace fit
