#pragma once

#include <optional>
#include <type_traits>

#include <fit/models/arguments.hpp>
#include <fit/models/stem.hpp>
#include <fit/models/trunk.hpp>
#include <fit/nn/initialise.hpp>
#include <fit/nn/time_embedding.hpp>

namespace fit::inline FIT_ABI {

/// The FIT diffusion decoder: a denoiser of data tokens, told the noise level and, as configured, a condition and its
/// own latents of the step before. Chen and Li, arXiv 2305.12689, section 3; latent self-conditioning after Jabri et
/// al., arXiv 2212.11972.
///
/// As an Encoder, it is its parameters and nothing else. B is the batch, any number.
template <DiffusionConfig config, class Scalar = float>
class DiffusionDecoder {
  static_assert(detail::check_diffusion<config>());
  static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>,
                "fit: a diffusion decoder computes in float or double");

 public:
  using T = Scalar;
  static constexpr DiffusionConfig configuration = config;
  static constexpr bool has_condition = config.condition_channels > 0;
  static constexpr bool has_previous = config.self_conditioning == SelfConditioning::latent;
  static constexpr int condition_rank = config.condition_tokens > 0 ? 3 : 2;
  using ConditionView = TensorView<const T, condition_rank>;

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
  /// What a pass is given. The condition is there exactly when the configuration has one; previous latents that are
  /// left out are zero.
  struct Inputs {
    TensorView<const T, 4> noisy;       ///< [B, groups, tokens, channels]
    TensorView<const double, 1> gamma;  ///< [B], noise levels in [0, 1]: shares of signal
    std::optional<ConditionView> condition =
        {};  ///< [B, condition_channels] or [B, condition_tokens, condition_channels]
    std::optional<TensorView<const T, 4>> previous_latents = {};  ///< [B, groups, latents, latent_dim]
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
    Start::visit(f, p.start_...);
    f("time_embedding", p.time_embedding_...);
    f("condition_projection", p.condition_projection_...);
    f("previous_latents", p.previous_...);
    f("previous_latents_norm", p.previous_norm_...);
    Trunk<T, trunk_config>::visit(f, p.trunk_...);
    f("data_norm", p.data_norm_...);
    f("output", p.output_...);
  }

  /// Inference: noisy [B, groups, tokens, channels], gamma [B], then the condition and the previous latents where the
  /// configuration has them. Throws Error for other shapes or a gamma outside [0, 1].
  Output operator()(TensorView<const T, 4> noisy, TensorView<const T, 1> gamma) const
      requires(!has_condition && !has_previous) {
    return infer(noisy, gamma, {}, {});
  }
  Output operator()(TensorView<const T, 4> noisy, TensorView<const T, 1> gamma, ConditionView condition) const
      requires(has_condition && !has_previous) {
    return infer(noisy, gamma, condition, {});
  }
  Output operator()(TensorView<const T, 4> noisy, TensorView<const T, 1> gamma,
                    TensorView<const T, 4> previous_latents) const requires(!has_condition && has_previous) {
    return infer(noisy, gamma, {}, previous_latents);
  }
  Output operator()(TensorView<const T, 4> noisy, TensorView<const T, 1> gamma, ConditionView condition,
                    TensorView<const T, 4> previous_latents) const requires(has_condition&& has_previous) {
    return infer(noisy, gamma, condition, previous_latents);
  }
  /// The same with the threads and the scratch memory of a tape, which stops recording; a trace sees what is inside.
  Output operator()(const Inputs& inputs, Tape& tape, const Trace<T>& trace = {}) const {
    const Index batch = check(inputs);
    tape.clear();
    Output output{Tensor<T, 4>(batch, config.groups, config.tokens, config.output_channels),
                  Tensor<T, 4>(batch, config.groups, config.latents, config.latent_dim)};
    run(inputs, batch, output.prediction.data(), output.latents.data(), tape, trace);
    return output;
  }

  /// Training: as above, on a tape that records. The inputs must stay as they are until backward, and the outputs last
  /// until the tape records or is cleared again. Throws Error as above, and when the tape does not record.
  OutputView forward(const Inputs& inputs, Tape& tape) const {
    const Index batch = check(inputs);
    require(tape.recording(), "forward needs a tape that records: call tape.record() before it");
    T* prediction = tape.template output<T>(batch * config.groups * config.tokens * config.output_channels);
    T* latents = tape.template output<T>(batch * latent_size);
    run(inputs, batch, prediction, latents, tape, {});
    return {TensorView<const T, 4>(prediction, batch, config.groups, config.tokens, config.output_channels),
            TensorView<const T, 4>(latents, batch, config.groups, config.latents, config.latent_dim)};
  }

  /// The way back through the last forward on the tape: adds to `gradient` and writes the inputs' gradients that are
  /// asked for. Throws Error when a shape is not that of the forward pass, or when there was none.
  void backward(const OutputGradients& outputs, DiffusionDecoder& gradient, Tape& tape,
                const InputGradients& inputs = {}) const {
    const Index batch = tape.template peek<Record>().batch, groups = batch * config.groups;
    check_gradients(outputs, inputs, batch);
    const auto saved = tape.template pop<Record>();
    T* x = detail::zeros<T>(groups * data_size, tape);
    T* z = detail::zeros<T>(batch * latent_size, tape);
    T* normed = tape.template scratch<T>(groups * data_size);
    T* condition = detail::zeros<T>(batch * condition_count * config.latent_dim, tape);
    if (outputs.latents) std::copy_n(outputs.latents->data(), batch * latent_size, z);
    const T* prediction = outputs.prediction ? outputs.prediction->data()
                                             : detail::zeros<T>(groups * config.tokens * config.output_channels, tape);
    nn::backward(output_, prediction, normed, gradient.output_, groups * config.tokens, tape);
    nn::backward(data_norm_, static_cast<const T*>(normed), x, gradient.data_norm_, groups * config.tokens, tape);
    trunk_.backward(x, z, {saved->condition, condition_count, condition}, gradient.trunk_, batch, tape);
    backward_condition(condition, inputs, gradient, batch, tape);
    if constexpr (has_previous) {
      T* previous = detail::zeros<T>(batch * latent_size, tape);
      nn::backward(previous_norm_, static_cast<const T*>(z), previous, gradient.previous_norm_, groups * config.latents,
                   tape);
      nn::backward(previous_, previous, gradient.previous_, groups * config.latents, tape);
      if (inputs.previous_latents) std::copy_n(previous, batch * latent_size, inputs.previous_latents->data());
    }
    nn::backward(static_cast<const T*>(z), gradient.start_, batch, tape);
    nn::backward(stem_, static_cast<const T*>(x), inputs.noisy ? inputs.noisy->data() : nullptr, gradient.stem_, groups,
                 tape);
  }

  /// The batch of inputs of the right shapes. Throws Error for others, or a gamma outside [0, 1].
  static Index check(const Inputs& inputs) {
    using Shape = std::array<Index, 4>;
    detail::require_shape("the decoder's noisy input", inputs.noisy,
                          Shape{-1, config.groups, config.tokens, config.channels});
    const Index batch = inputs.noisy.dimension(0);
    detail::require_shape("gamma", inputs.gamma, std::array<Index, 1>{batch});
    for (Index i = 0; i < batch; ++i) {
      require(inputs.gamma(i) >= 0 && inputs.gamma(i) <= 1, "gamma must be in [0, 1], not ", inputs.gamma(i));
    }
    require(inputs.condition.has_value() == has_condition,
            has_condition ? "this decoder needs a condition" : "this decoder takes no condition");
    if (inputs.condition) detail::require_shape("the condition", *inputs.condition, condition_shape(batch));
    require(has_previous || !inputs.previous_latents, "this decoder takes no previous latents");
    if (inputs.previous_latents) {
      detail::require_shape("the previous latents", *inputs.previous_latents, latents_shape(batch));
    }
    return batch;
  }

 private:
  static constexpr Index data_size = Index{config.tokens} * config.data_dim;                       // of a group
  static constexpr Index latent_size = Index{config.groups} * config.latents * config.latent_dim;  // of an example
  static constexpr Index own_tokens = has_condition ? std::max(1, config.condition_tokens) : 0;
  static constexpr Index condition_count = 1 + own_tokens;  // the noise level's token comes first
  static constexpr TrunkConfig trunk_config{config.layers,
                                            config.groups,
                                            config.tokens,
                                            config.latents,
                                            config.data_dim,
                                            config.latent_dim,
                                            config.data_heads,
                                            config.latent_heads,
                                            config.mlp_ratio,
                                            config.mask,
                                            config.local_attention,
                                            config.cross_mlp,
                                            config.cross_context_norm,
                                            true};
  using Stem = nn::DataStem<T, config.tokens, config.channels, config.data_dim, config.data_positions>;
  using Start = nn::LatentStart<T, config.groups, config.latents, config.latent_dim, config.latent_positions>;
  struct Record {
    Index batch;
    const T* condition;
  };

  static constexpr std::array<Index, condition_rank> condition_shape(Index batch) {
    if constexpr (condition_rank == 3) {
      return {batch, config.condition_tokens, config.condition_channels};
    } else {
      return {batch, config.condition_channels};
    }
  }
  static constexpr std::array<Index, 4> latents_shape(Index batch) {
    return {batch, config.groups, config.latents, config.latent_dim};
  }

  static void check_gradients(const OutputGradients& outputs, const InputGradients& inputs, Index batch) {
    using Shape = std::array<Index, 4>;
    if (outputs.prediction) {
      detail::require_shape("the gradient of the prediction", *outputs.prediction,
                            Shape{batch, config.groups, config.tokens, config.output_channels});
    }
    if (outputs.latents) detail::require_shape("the gradient of the latents", *outputs.latents, latents_shape(batch));
    if (inputs.noisy) {
      detail::require_shape("the gradient of the noisy input", *inputs.noisy,
                            Shape{batch, config.groups, config.tokens, config.channels});
    }
    if (inputs.condition) {
      detail::require_shape("the gradient of the condition", *inputs.condition, condition_shape(batch));
    }
    if (inputs.previous_latents) {
      detail::require_shape("the gradient of the previous latents", *inputs.previous_latents, latents_shape(batch));
    }
  }

  Output infer(const TensorView<const T, 4>& noisy, const TensorView<const T, 1>& gamma,
               const std::optional<ConditionView>& condition,
               const std::optional<TensorView<const T, 4>>& previous_latents) const {
    const std::vector<double> levels(gamma.data(), gamma.data() + gamma.size());
    return (*this)(Inputs{noisy, TensorView<const double, 1>(levels.data(), gamma.size()), condition, previous_latents},
                   detail::inference_tape());
  }

  void run(const Inputs& inputs, Index batch, T* prediction, T* latents, Tape& tape, const Trace<T>& trace) const {
    const auto start = tape.mark();
    const Index groups = batch * config.groups;
    T* x = tape.template allocate<T>(groups * data_size);
    nn::forward(stem_, inputs.noisy.data(), x, groups, tape);
    nn::forward(start_, latents, batch);
    if constexpr (has_previous) {
      T* previous = tape.template allocate<T>(batch * latent_size);
      T* normed = tape.template allocate<T>(batch * latent_size);
      if (inputs.previous_latents) {
        std::copy_n(inputs.previous_latents->data(), batch * latent_size, previous);
      } else {
        std::fill_n(previous, batch * latent_size, T(0));
      }
      nn::forward(previous_, previous, groups * config.latents, {}, {}, tape);
      nn::forward(previous_norm_, static_cast<const T*>(previous), normed, groups * config.latents, tape);
      for (Index i = 0; i < batch * latent_size; ++i) latents[i] += normed[i];
    }
    const T* condition = forward_condition(inputs, batch, tape);
    trunk_.forward(x, latents, {condition, condition_count, nullptr}, batch, tape, trace);
    T* normed = tape.template allocate<T>(groups * data_size);
    nn::forward(data_norm_, static_cast<const T*>(x), normed, groups * config.tokens, tape);
    nn::forward(output_, static_cast<const T*>(normed), prediction, groups * config.tokens, tape);
    tape.finish(start, Record{batch, condition});
  }

  /// Tokens [batch, condition_count, latent_dim]: the noise level's, then the condition's.
  const T* forward_condition(const Inputs& inputs, Index batch, Tape& tape) const {
    constexpr Index width = config.latent_dim;
    T* time = tape.template allocate<T>(batch * width);
    nn::forward(time_embedding_, inputs.gamma.data(), time, batch, tape);
    if constexpr (!has_condition) {
      return time;
    } else {
      T* own = tape.template allocate<T>(batch * own_tokens * width);
      nn::forward(condition_projection_, inputs.condition->data(), own, batch * own_tokens, tape);
      T* all = tape.template allocate<T>(batch * condition_count * width);
      for (Index b = 0; b < batch; ++b) {
        T* to = all + b * condition_count * width;
        std::copy_n(time + b * width, width, to);
        std::copy_n(own + b * own_tokens * width, own_tokens * width, to + width);
      }
      return all;
    }
  }

  void backward_condition(const T* condition, const InputGradients& inputs, DiffusionDecoder& gradient, Index batch,
                          Tape& tape) const {
    constexpr Index width = config.latent_dim;
    T* time = tape.template scratch<T>(batch * width);
    T* own = tape.template scratch<T>(batch * own_tokens * width);
    for (Index b = 0; b < batch; ++b) {
      const T* from = condition + b * condition_count * width;
      std::copy_n(from, width, time + b * width);
      std::copy_n(from + width, own_tokens * width, own + b * own_tokens * width);
    }
    if constexpr (has_condition) {
      nn::backward(condition_projection_, static_cast<const T*>(own),
                   inputs.condition ? inputs.condition->data() : nullptr, gradient.condition_projection_,
                   batch * own_tokens, tape);
    }
    nn::backward(time_embedding_, static_cast<const T*>(time), gradient.time_embedding_, batch, tape);
  }

  Stem stem_;
  Start start_;
  nn::TimeEmbedding<T, config.latent_dim> time_embedding_;
  If<has_condition, nn::Linear<T, config.latent_dim, std::max(1, config.condition_channels)>> condition_projection_;
  If<has_previous, nn::ResidualMLP<T, config.latent_dim, config.mlp_ratio>> previous_;
  If<has_previous, nn::LayerNorm<T, config.latent_dim>> previous_norm_;
  Trunk<T, trunk_config> trunk_;
  nn::LayerNorm<T, config.data_dim> data_norm_;
  nn::Linear<T, config.output_channels, config.data_dim> output_;
};

}  // namespace fit::inline FIT_ABI
