#pragma once

#include <optional>

#include <fit/core/tensor.hpp>
#include <fit/diffusion/noise_schedule.hpp>
#include <fit/diffusion/prediction.hpp>
#include <fit/models/diffusion_decoder.hpp>

namespace fit::inline FIT_ABI {

/// What the squared error is taken of: eps, or x0 / scale.
enum class LossOn { eps, x0 };

/// How a diffusion decoder is trained.
struct DiffusionObjective {
  NoiseSchedule schedule = CosineSchedule{};
  Prediction prediction = Prediction::eps;
  LossOn loss_on = LossOn::eps;
  std::optional<Range> x0_clip = {};
  double scale = 1;  ///< images in [0, 1] are trained as (2 image - 1) * scale
  /// Share of the batch, from its beginning, that is given latents of a first pass without gradient; the rest, zeros.
  double self_conditioning_rate = 0;
};

/// The training loss of a diffusion decoder and its gradient: mean squared error of the estimate of eps or x0 at x_t =
/// sqrt(gamma(t)) x0 + sqrt(1 - gamma(t)) eps. Holds the memory of a step, so that the next one allocates nothing.
template <class Model>
class DiffusionLoss {
  static_assert(Model::configuration.channels == Model::configuration.output_channels,
                "fit: a diffusion loss needs config.output_channels equal to config.channels");

 public:
  using T = typename Model::T;
  using ConditionView = typename Model::ConditionView;

  explicit DiffusionLoss(const DiffusionObjective& objective) : objective_(objective) {
    detail::check_range(objective.x0_clip);
    noise_level(objective.schedule, 0.5);  // refuses a wrong schedule
    require(objective.scale > 0, "the scale of a diffusion objective must be positive, not ", objective.scale);
    require(objective.self_conditioning_rate >= 0 && objective.self_conditioning_rate <= 1,
            "the self-conditioning rate must be in [0, 1], not ", objective.self_conditioning_rate);
  }

  /// The loss for x0 and eps [B, groups, tokens, channels] and times t [B] in [0, 1]; its gradient is added to
  /// `gradient`. Records on the tape, with drop-outs from `random`. Throws Error for other shapes or times.
  double operator()(const Model& model, TensorView<const T, 4> x0, TensorView<const T, 4> eps,
                    TensorView<const double, 1> t, const std::optional<ConditionView>& condition, Model& gradient,
                    Tape& tape, const TrainingOptions& options = {}, Random random = Random(0)) {
    constexpr DiffusionConfig c = Model::configuration;
    const Index batch = x0.dimension(0), size = Index{c.groups} * c.tokens * c.channels;
    detail::require_shape("x0", x0, std::array<Index, 4>{-1, c.groups, c.tokens, c.channels});
    detail::require_shape("eps", eps, std::array<Index, 4>{batch, c.groups, c.tokens, c.channels});
    detail::require_shape("t", t, std::array<Index, 1>{batch});
    reserve(batch);
    for (Index b = 0; b < batch; ++b) {
      gamma_(b) = noise_level(objective_.schedule, t(b));
      const NoiseShares shares(gamma_(b));
      const T keep = static_cast<T>(shares.keep), lose = static_cast<T>(shares.lose);
      for (Index i = b * size; i < (b + 1) * size; ++i) noisy_.data()[i] = keep * x0.data()[i] + lose * eps.data()[i];
    }
    typename Model::Inputs inputs{noisy_, gamma_, condition, {}};
    if constexpr (Model::has_previous) {
      find_previous(model, inputs, tape);
      inputs.previous_latents = previous_;
    }
    tape.record(options, random);
    const auto views = model.forward(inputs, tape);
    const double loss = error(views.prediction.data(), x0.data(), eps.data(), batch, size);
    model.backward({.prediction = prediction_gradient_}, gradient, tape);
    return loss;
  }

 private:
  void reserve(Index batch) {
    constexpr DiffusionConfig c = Model::configuration;
    if (gamma_.size() == batch) return;
    gamma_ = Tensor<double, 1>(batch);
    noisy_ = Tensor<T, 4>(batch, c.groups, c.tokens, c.channels);
    prediction_gradient_ = noisy_;
    if constexpr (Model::has_previous) previous_ = Tensor<T, 4>(batch, c.groups, c.latents, c.latent_dim);
  }

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
    typename Model::Inputs part{leading(inputs.noisy), leading(inputs.gamma), {}, {}};
    if (inputs.condition) part.condition = leading(*inputs.condition);
    tape.record();
    const auto latents = model.forward(part, tape).latents;
    std::copy_n(latents.data(), latents.size(), previous_.data());
  }

  double error(const T* prediction, const T* x0, const T* eps, Index batch, Index size) {
    const bool on_x0 = objective_.loss_on == LossOn::x0;
    const Prediction kind = objective_.prediction;
    const double count = static_cast<double>(std::max<Index>(1, batch * size));
    const T scale = static_cast<T>(objective_.scale);
    double total = 0;
    for (Index b = 0; b < batch; ++b) {
      const NoiseShares shares(gamma_(b));
      const T keep = static_cast<T>(shares.keep), lose = static_cast<T>(shares.lose);
      // How the estimate moves with the prediction, where x0 is not cut.
      const double of_x0 = kind == Prediction::eps  ? -shares.lose / shares.keep
                           : kind == Prediction::x0 ? 1
                                                    : -shares.lose;
      const double of_eps = kind == Prediction::eps  ? 1
                            : kind == Prediction::x0 ? -shares.keep / shares.lose
                                                     : shares.keep;
      const T factor = static_cast<T>(2 * (on_x0 ? of_x0 / objective_.scale : of_eps) / count);
      for (Index i = b * size; i < (b + 1) * size; ++i) {
        const T p = prediction[i], x = noisy_.data()[i];
        const T free = kind == Prediction::eps  ? (x - lose * p) / keep
                       : kind == Prediction::x0 ? p
                                                : keep * x - lose * p;
        T clean = free;
        if (objective_.x0_clip) {
          clean = std::clamp(free, static_cast<T>(objective_.x0_clip->low), static_cast<T>(objective_.x0_clip->high));
        }
        const T noise = kind == Prediction::eps  ? p
                        : kind == Prediction::x0 ? (x - keep * clean) / lose
                                                 : lose * x + keep * p;
        const T off = on_x0 ? (clean - x0[i]) / scale : noise - eps[i];
        const bool moves = clean == free || (!on_x0 && kind != Prediction::x0);
        total += static_cast<double>(off) * static_cast<double>(off);
        prediction_gradient_.data()[i] = moves ? factor * off : T(0);
      }
    }
    return total / count;
  }

  DiffusionObjective objective_;
  Tensor<double, 1> gamma_;
  Tensor<T, 4> noisy_, previous_, prediction_gradient_;
};

}  // namespace fit::inline FIT_ABI
