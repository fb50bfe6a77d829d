#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <type_traits>

#include <fit/models/arguments.hpp>
#include <fit/models/by_groups.hpp>
#include <fit/models/trunk.hpp>
#include <fit/nn/initialise.hpp>
#include <fit/nn/stem.hpp>
#include <fit/nn/time_embedding.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The FIT diffusion decoder: a denoiser of data tokens, told the noise level and, as configured, a condition and its
/// own latents of the step before. Chen and Li, arXiv 2305.12689, section 3; latent self-conditioning after Jabri et
/// al., arXiv 2212.11972.
///
/// As an Encoder, it is its parameters and nothing else. B is the batch, any number.
template <DiffusionConfig c, class T = float>
class DiffusionDecoder {
  static_assert(detail::check_diffusion<c>());
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "fit: a diffusion decoder computes in float or double");

 public:
  using Scalar = T;
  static constexpr DiffusionConfig config = c;
  static constexpr bool has_condition = config.condition_channels > 0;
  static constexpr bool has_previous = config.self_conditioning == SelfConditioning::latent;
  static constexpr int condition_rank = config.condition_tokens > 0 ? 3 : 2;
  using ConditionView = TensorView<const T, condition_rank>;
  static constexpr std::array<Index, std::size_t{condition_rank}> condition_shape(Index batch) {
    if constexpr (condition_rank == 3) {
      return {batch, config.condition_tokens, config.condition_channels};
    } else {
      return {batch, config.condition_channels};
    }
  }

  struct Output {
    Tensor<T, 4> prediction;  ///< [B, groups, tokens, output_channels]
    Tensor<T, 4> latents;     ///< [B, groups, latents, latent_dim], not normalised: the next step's previous latents
  };
  /// The same in memory of a tape.
  struct OutputView {
    TensorView<const T, 4> prediction, latents;
  };
  /// Gradients of a loss by the outputs; one that is left out is zero.
  struct OutputGradients {
    std::optional<TensorView<const T, 4>> prediction = {}, latents = {};
  };
  /// Where to write gradients by the inputs, shaped like them; one that is left out is not computed.
  struct InputGradients {
    std::optional<TensorView<T, 4>> noisy = {};
    std::optional<TensorView<T, condition_rank>> condition = {};
    std::optional<TensorView<T, 4>> previous_latents = {};
  };
  /// What a pass is given: views, of a temporary tensor only for a call, not for forward() and backward(). The
  /// condition is there exactly when the configuration has one; previous latents that are left out are zero.
  struct Inputs {
    TensorView<const T, 4> noisy;       ///< [B, groups, tokens, channels]
    TensorView<const double, 1> gamma;  ///< [B], noise levels in [0, 1]: shares of signal
    std::optional<ConditionView> condition =
        {};  ///< [B, condition_channels] or [B, condition_tokens, condition_channels]
    std::optional<TensorView<const T, 4>> previous_latents = {};  ///< [B, groups, latents, latent_dim]
    Grid grid = {};  ///< how the groups lie, where latent_positions are sin_cos_grid, and only there
  };

  /// The same where the noisy tokens come from a source, and the groups' predictions go to a loss.
  struct GroupInputs {
    const GroupSource<T>& noisy;        ///< [count, tokens, channels]
    TensorView<const double, 1> gamma;  ///< as of Inputs, and so are the next two
    std::optional<ConditionView> condition = {};
    std::optional<TensorView<const T, 4>> previous_latents = {};
    /// Where to leave the latents, [B, groups, latents, latent_dim]; it may be where the previous ones are.
    std::optional<TensorView<T, 4>> latents = {};
  };

  /// All parameters zero: a gradient, or a decoder to load into.
  DiffusionDecoder() = default;

  /// Initial values for training; the norm of the previous latents starts with weight zero.
  explicit DiffusionDecoder(Random random) {
    nn::initialise(*this, random);
    if constexpr (has_previous) set_zero(previous_norm_);
  }

  static void visit(auto&& f, auto&... p) {
    Stem::visit(f, p.stem_...);
    f("latent_positions", p.latent_positions_.table...);
    f("time_embedding", p.time_embedding_...);
    f("condition_projection", p.condition_projection_...);
    f("previous_latents", p.previous_...);
    f("previous_latents_norm", p.previous_norm_...);
    detail::Trunk<T, trunk_config>::visit(f, p.trunk_...);
    f("data_norm", p.data_norm_...);
    f("output", p.output_...);
  }

  /// Inference, in memory of the thread. Throws Error for inputs of other shapes or a gamma outside [0, 1].
  Output operator()(const Inputs& inputs) const { return (*this)(inputs, detail::inference_tape()); }
  /// The same with the threads and the scratch memory of a tape, which is left as it was; a trace sees what is inside.
  Output operator()(const Inputs& inputs, Tape& tape, const Trace<T>& trace = {}) const {
    const Sizes sizes = check(inputs, tape.team());
    Output output{Tensor<T, 4>(sizes.batch, sizes.groups, config.tokens, config.output_channels),
                  Tensor<T, 4>(sizes.batch, sizes.groups, config.latents, config.latent_dim)};
    const Tape::Inference inference(tape);
    run(inputs, {this, inputs.noisy.data(), output.prediction.data()}, sizes, output.latents.data(), inputs.grid, tape,
        trace);
    return output;
  }

  /// The same with outputs that live on the tape until it records or is cleared again, recorded for the way back on a
  /// tape that records; what the inputs view must then stay as it is until backward. Throws Error as above.
  OutputView forward(const Inputs& inputs, Tape& tape) const {
    const Sizes sizes = check(inputs, tape.team());
    const auto prediction = detail::output<T>(tape, sizes.batch, sizes.groups, config.tokens, config.output_channels);
    const auto latents = detail::output<T>(tape, sizes.batch, sizes.groups, config.latents, config.latent_dim);
    run(inputs, {this, inputs.noisy.data(), prediction.data()}, sizes, latents.data(), inputs.grid, tape);
    return {prediction, latents};
  }

  /// The way back through the last forward on the tape: adds to `gradient` and writes the inputs' gradients that are
  /// asked for. Throws Error when a shape is not that of the forward pass, or when none was recorded.
  void backward(const OutputGradients& outputs, DiffusionDecoder& gradient, Tape& tape,
                const InputGradients& inputs = {}) const {
    const Sizes sizes = tape.peek<Record>().sizes;
    check_gradients(outputs, inputs, sizes);
    const auto saved = tape.pop<Record>();
    Ends ends = saved->ends;
    ends.p = this;
    ends.gradient = &gradient;
    ends.prediction_gradient = outputs.prediction ? outputs.prediction->data() : nullptr;
    ends.noisy_gradient = inputs.noisy ? inputs.noisy->data() : nullptr;
    T* z = detail::zeros<T>(sizes.latent_rows() * config.latent_dim, tape);  // [B, groups, latents, latent_dim]
    if (outputs.latents) std::copy_n(outputs.latents->data(), outputs.latents->size(), z);
    backward_all(*saved, ends, z, inputs, tape);
  }

  /// The sum of the loss of all groups' predictions, [count, tokens, output_channels], at inference. Neither the noisy
  /// tokens nor the prediction ever stand in memory as a whole. The tape is left as it was. Throws Error for a source
  /// without a function or with counts or a grid that cannot be, and for other shapes or a gamma outside [0, 1].
  double loss(const GroupInputs& inputs, const GroupLoss<T>& loss, Tape& tape, const Watch& watch = {}) const {
    const Sizes sizes = check(inputs, loss, tape.team());
    const Tape::Inference inference(tape);
    return run_loss(inputs, loss, sizes, nullptr, tape, watch);
  }
  /// The same, recorded with these options, and the way back: adds the gradient of the sum to `gradient`. The loss may
  /// run layers and their way back on the tape. Where a function throws, part of the gradient has been added.
  double loss(const GroupInputs& inputs, const GroupLoss<T>& loss, DiffusionDecoder& gradient, Tape& tape,
              const TrainingOptions& options = {}, Random random = Random(0), const Watch& watch = {}) const {
    const Sizes sizes = check(inputs, loss, tape.team());
    tape.record(options, random);
    const double total = run_loss(inputs, loss, sizes, &gradient, tape, watch);
    const auto saved = tape.pop<Record>();
    std::fill_n(saved->z, sizes.latent_rows() * config.latent_dim, T(0));
    backward_all(*saved, saved->ends, saved->z, {}, tape, watch);
    return total;
  }

  /// Throws Error for inputs of wrong shapes, or a gamma outside [0, 1]; else says what a pass over them goes over.
  static Sizes check(const Inputs& inputs, Team* team = nullptr) {
    detail::require_shape(inputs.noisy, {-1, detail::groups_wanted<config>(team), config.tokens, config.channels},
                          "the decoder's noisy input");
    const Index batch = inputs.noisy.dimension(0), groups = inputs.noisy.dimension(1);
    detail::require_counts<config>(batch, groups, config.tokens);
    const Sizes sizes = detail::sizes_of<config>(batch, groups, config.tokens, team);
    detail::require_grid<config>(inputs.grid, sizes.groups_of_example());
    check_others(inputs, sizes);
    return sizes;
  }
  static Sizes check(const GroupInputs& inputs, const GroupLoss<T>& loss, Team* team = nullptr) {
    detail::require_source<config>(inputs.noisy, config.tokens);
    require(loss != nullptr, "a loss by groups needs a function");
    const Sizes sizes = detail::sizes_of<config>(inputs.noisy, config.tokens, team);
    check_others(inputs, sizes);
    if (inputs.latents) detail::require_shape(*inputs.latents, latents_shape(sizes), "the latents");
    return sizes;
  }

 private:
  /// What Inputs and GroupInputs have in common.
  static void check_others(const auto& inputs, const Sizes& sizes) {
    const Index batch = sizes.batch;
    detail::require_shape(inputs.gamma, {batch}, "gamma");
    for (Index i = 0; i < batch; ++i) {
      require(inputs.gamma(i) >= 0 && inputs.gamma(i) <= 1, "gamma must be in [0, 1], not ", inputs.gamma(i));
    }
    require(inputs.condition.has_value() == has_condition,
            has_condition ? "this decoder needs a condition" : "this decoder takes no condition");
    if (inputs.condition) detail::require_shape(*inputs.condition, condition_shape(batch), "the condition");
    require(has_previous || !inputs.previous_latents, "this decoder takes no previous latents");
    if (inputs.previous_latents) {
      detail::require_shape(*inputs.previous_latents, latents_shape(sizes), "the previous latents");
    }
  }

  static constexpr Index own_tokens = has_condition ? std::max(1, config.condition_tokens) : 0;
  static constexpr Index condition_count = 1 + own_tokens;  // the noise level's token comes first
  static constexpr detail::TrunkConfig trunk_config = detail::trunk_of(config);
  using Stem = nn::DataStem<T, config.tokens, config.channels, config.data_dim, config.data_positions>;
  /// What is before the trunk and behind it, for some groups.
  struct Ends {
    const DiffusionDecoder* p;
    const T* noisy;
    T* prediction;
    const T* prediction_gradient = nullptr;
    DiffusionDecoder* gradient = nullptr;
    T* noisy_gradient = nullptr;
    detail::ByGroups<T> by_groups = {};

    static constexpr Index input_size = Index{config.tokens} * config.channels;  // of a group
    static constexpr Index output_size = Index{config.tokens} * config.output_channels;

    void start(const detail::Chunk& groups, T* x, Tape& tape) const {
      const auto start = tape.mark();
      nn::forward(p->stem_, by_groups.read(groups, noisy, input_size, tape), x, groups.count, tape);
      tape.finish(start);
    }
    void start_backward(const detail::Chunk& groups, const T* x_gradient, Tape& tape) const {
      const auto frame = tape.pop();
      by_groups.read_backward(groups, noisy_gradient, input_size, tape, [&](T* to) {
        nn::backward<T>(p->stem_, x_gradient, to, gradient->stem_, groups.count, tape);
      });
    }

    void end(const detail::Chunk& groups, T* x, bool again, Tape& tape) const {
      if (by_groups.loss) {
        if (again) return;
        // x becomes its own gradient.
        return by_groups.add_loss(
            groups, output_size, gradient != nullptr, tape, [&](T* to) { predict(groups, x, to, tape); },
            [&](const T* from) { predict_backward(groups, from, x, tape); });
      }
      const auto start = tape.mark();
      T* to = again ? tape.allocate<T>(groups.count * output_size) : groups.of(prediction, output_size);
      predict(groups, x, to, tape);
      tape.finish(start);
    }
    void end_backward(const detail::Chunk& groups, T* x_gradient, Tape& tape) const {
      if (by_groups.loss) return;
      const auto frame = tape.pop();
      const T* from = groups.of(prediction_gradient, output_size);
      predict_backward(groups, from ? from : detail::zeros<T>(groups.count * output_size, tape), x_gradient, tape);
    }

   private:
    void predict(const detail::Chunk& groups, const T* x, T* to, Tape& tape) const {
      const auto start = tape.mark();
      const Index rows = groups.count * config.tokens;
      T* normed = tape.allocate<T>(rows * config.data_dim);  // [groups, tokens, data_dim]
      nn::forward<T>(p->data_norm_, x, normed, rows, tape);
      nn::forward<T>(p->output_, normed, to, rows, tape);
      tape.finish(start);
    }
    void predict_backward(const detail::Chunk& groups, const T* from, T* x_gradient, Tape& tape) const {
      const auto frame = tape.pop();
      const Index rows = groups.count * config.tokens;
      T* normed = tape.scratch<T>(rows * config.data_dim);
      nn::backward<T>(p->output_, from, normed, gradient->output_, rows, tape);
      std::fill_n(x_gradient, rows * config.data_dim, T(0));
      nn::backward<T>(p->data_norm_, normed, x_gradient, gradient->data_norm_, rows, tape);
    }
  };

  struct Record {
    Sizes sizes;
    Ends ends;
    T *x, *z;  // for their gradients; z is null where it is the caller's
    const T* condition;
  };

  static constexpr std::array<Index, 4> data_shape(const Sizes& sizes, Index width) {
    return {sizes.batch, sizes.groups, config.tokens, width};
  }
  static constexpr std::array<Index, 4> latents_shape(const Sizes& sizes) {
    return {sizes.batch, sizes.groups, config.latents, config.latent_dim};
  }

  static void check_gradients(const OutputGradients& outputs, const InputGradients& inputs, const Sizes& sizes) {
    const auto check_one = [](const char* name, const auto& gradient, const auto& shape) {
      if (gradient) detail::require_shape(*gradient, shape, name);
    };
    require(has_condition || !inputs.condition, "this decoder takes no condition");
    require(has_previous || !inputs.previous_latents, "this decoder takes no previous latents");
    check_one("the gradient of the prediction", outputs.prediction, data_shape(sizes, config.output_channels));
    check_one("the gradient of the latents", outputs.latents, latents_shape(sizes));
    check_one("the gradient of the noisy input", inputs.noisy, data_shape(sizes, config.channels));
    check_one("the gradient of the condition", inputs.condition, condition_shape(sizes.batch));
    check_one("the gradient of the previous latents", inputs.previous_latents, latents_shape(sizes));
  }

  double run_loss(const GroupInputs& inputs, const GroupLoss<T>& loss, const Sizes& sizes, DiffusionDecoder* gradient,
                  Tape& tape, const Watch& watch) const {
    double total = 0;
    Ends ends{this, nullptr, nullptr};
    ends.gradient = gradient;
    ends.by_groups = {&inputs.noisy, &loss, &total};
    run(inputs, ends, sizes, nullptr, inputs.noisy.grid, tape, {}, watch);
    return detail::sum_over(sizes.team, total);
  }

  /// Leaves the latents where there is a place for them; a loss by groups has its own, and copies them.
  void run(const auto& inputs, const Ends& ends, const Sizes& sizes, T* latents, const Grid& grid, Tape& tape,
           const Trace<T>& trace = {}, const Watch& watch = {}) const {
    const auto start = tape.mark();
    const Index latent_size = sizes.latent_rows() * config.latent_dim;
    T* x = tape.allocate<T>(sizes.data_rows() * config.data_dim);  // [B, groups, tokens, data_dim]
    T* own = latents ? nullptr : tape.allocate<T>(latent_size);    // [B, groups, latents, latent_dim]
    T* z = latents ? latents : own;
    nn::copy_positions(latent_positions_, z, sizes.batch, sizes.first_group, sizes.groups, sizes.groups_of_example(),
                       grid);
    if constexpr (has_previous) {
      T* previous = tape.allocate<T>(latent_size);  // [B, groups, latents, latent_dim]
      T* normed = tape.allocate<T>(latent_size);    // [B, groups, latents, latent_dim]
      if (inputs.previous_latents) {
        std::copy_n(inputs.previous_latents->data(), latent_size, previous);
      } else {
        std::fill_n(previous, latent_size, T(0));
      }
      nn::forward<T>(previous_, previous, sizes.latent_rows(), {}, {}, tape);
      nn::forward<T>(previous_norm_, previous, normed, sizes.latent_rows(), tape);
      for (Index i = 0; i < latent_size; ++i) z[i] += normed[i];
    }
    const T* condition = forward_condition(inputs, sizes.batch, tape);
    trunk_.forward(ends, x, z, {condition, condition_count, nullptr}, sizes, tape, trace, watch);
    if constexpr (requires { inputs.latents; }) {
      if (inputs.latents) std::copy_n(z, latent_size, inputs.latents->data());
    }
    tape.finish(start, Record{sizes, ends, x, own, condition});
  }

  /// The way back of all but the end, from the gradient z of the latents, in place.
  void backward_all(const Record& saved, const Ends& ends, T* z, const InputGradients& inputs, Tape& tape,
                    const Watch& watch = {}) const {
    const Sizes& sizes = saved.sizes;
    const Index latent_size = sizes.latent_rows() * config.latent_dim;
    DiffusionDecoder& gradient = *ends.gradient;
    T* condition = detail::zeros<T>(sizes.batch * condition_count * config.latent_dim, tape);  // [B, count, latent_dim]
    trunk_.backward(ends, saved.x, z, {saved.condition, condition_count, condition}, gradient.trunk_, sizes, tape,
                    watch);
    backward_condition(condition, inputs, gradient, sizes.batch, tape);
    if constexpr (has_previous) {
      T* previous = detail::zeros<T>(latent_size, tape);
      nn::backward<T>(previous_norm_, z, previous, gradient.previous_norm_, sizes.latent_rows(), tape);
      nn::backward(previous_, previous, gradient.previous_, sizes.latent_rows(), tape);
      if (inputs.previous_latents) std::copy_n(previous, latent_size, inputs.previous_latents->data());
    }
    nn::backward(latent_positions_, z, gradient.latent_positions_, sizes.batch, sizes.first_group, sizes.groups, tape);
  }

  /// Tokens [batch, condition_count, latent_dim]: the noise level's, then the condition's.
  const T* forward_condition(const auto& inputs, Index batch, Tape& tape) const {
    constexpr Index width = config.latent_dim;
    T* time = tape.allocate<T>(batch * width);
    nn::forward(time_embedding_, inputs.gamma.data(), time, batch, tape);
    if constexpr (!has_condition) {
      return time;
    } else {
      T* own = tape.allocate<T>(batch * own_tokens * width);
      nn::forward(condition_projection_, inputs.condition->data(), own, batch * own_tokens, tape);
      T* all = tape.allocate<T>(batch * condition_count * width);
      detail::join<T>(time, width, own, own_tokens * width, all, batch);
      return all;
    }
  }

  void backward_condition(const T* condition, const InputGradients& inputs, DiffusionDecoder& gradient, Index batch,
                          Tape& tape) const {
    constexpr Index width = config.latent_dim;
    T* time = tape.scratch<T>(batch * width);
    T* own = tape.scratch<T>(batch * own_tokens * width);
    detail::split(condition, time, width, own, own_tokens * width, batch);
    if constexpr (has_condition) {
      nn::backward<T>(condition_projection_, own, inputs.condition ? inputs.condition->data() : nullptr,
                      gradient.condition_projection_, batch * own_tokens, tape);
    }
    nn::backward<T>(time_embedding_, time, gradient.time_embedding_, batch, tape);
  }

  Stem stem_;
  nn::LatentPositions<T, config.groups, config.latents, config.latent_dim, config.latent_positions> latent_positions_;
  nn::TimeEmbedding<T, config.latent_dim> time_embedding_;
  If<has_condition, nn::Linear<T, config.latent_dim, std::max(1, config.condition_channels)>> condition_projection_;
  If<has_previous, nn::ResidualMLP<T, config.latent_dim, config.mlp_ratio>> previous_;
  If<has_previous, nn::LayerNorm<T, config.latent_dim>> previous_norm_;
  detail::Trunk<T, trunk_config> trunk_;
  nn::LayerNorm<T, config.data_dim> data_norm_;
  nn::Linear<T, config.output_channels, config.data_dim> output_;
};

}  // namespace FIT_ABI
}  // namespace fit
