#pragma once

#include <optional>
#include <type_traits>

#include <fit/models/arguments.hpp>
#include <fit/models/stem.hpp>
#include <fit/models/trunk.hpp>
#include <fit/nn/initialise.hpp>

namespace fit::inline FIT_ABI {

/// The FIT encoder: data tokens in, data tokens and latents out. Chen and Li, arXiv 2305.12689, section 3.
///
/// An Encoder is its parameters and nothing else: copying it copies them, and its gradient, the moments of an
/// optimiser and a moving average of it are Encoders too. Calls on one constant Encoder from several threads are safe.
/// B is the batch, any number; with extra tokens a group has N = extra_tokens + tokens data tokens, else N = tokens.
template <EncoderConfig config, class Scalar = float>
class Encoder {
  static_assert(detail::check_encoder<config>());
  static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>,
                "fit: an encoder computes in float or double");

 public:
  using T = Scalar;
  static constexpr EncoderConfig configuration = config;
  static constexpr bool has_extra = config.extra_tokens > 0;

  struct Output {
    Tensor<T, 4> data;     ///< [B, groups, N, data_dim]
    Tensor<T, 4> latents;  ///< [B, groups, latents, latent_dim]
  };
  /// The same in memory of a tape.
  struct OutputView {
    TensorView<const T, 4> data, latents;
  };
  /// Gradients of a loss by the outputs; one that is left out is zero.
  struct OutputGradients {
    std::optional<TensorView<const T, 4>> data = {}, latents = {};
  };
  /// Where to write gradients by the inputs, shaped like them; one that is left out is not computed.
  struct InputGradients {
    std::optional<TensorView<T, 4>> input = {}, extra = {};
  };

  /// All parameters zero: a gradient, or an encoder to load into.
  Encoder() = default;

  /// Initial values for training.
  explicit Encoder(Random random) : Encoder() { nn::initialise(*this, random); }

  static void visit(auto&& f, auto&... p) {
    Stem::visit(f, p.stem_...);
    f("extra_stem", p.extra_stem_...);
    f("extra_stem_norm", p.extra_stem_norm_...);
    Start::visit(f, p.start_...);
    Trunk<T, trunk_config>::visit(f, p.trunk_...);
    f("data_norm", p.data_norm_...);
    f("latent_norm", p.latent_norm_...);
  }

  /// Inference. input [B, groups, tokens, channels]; extra [B, groups, extra_tokens, extra_channels], given exactly
  /// when the configuration has extra tokens. Throws Error for other shapes. Scratch memory stays with the thread.
  Output operator()(TensorView<const T, 4> input) const requires(!has_extra) {
    return infer(input, nullptr, detail::inference_tape(), {});
  }
  Output operator()(TensorView<const T, 4> input, TensorView<const T, 4> extra) const requires has_extra {
    return infer(input, &extra, detail::inference_tape(), {});
  }
  /// The same with the threads and the scratch memory of a tape, which stops recording; a trace sees what is inside.
  Output operator()(TensorView<const T, 4> input, Tape& tape, const Trace<T>& trace = {}) const requires(!has_extra) {
    return infer(input, nullptr, tape, trace);
  }
  Output operator()(TensorView<const T, 4> input, TensorView<const T, 4> extra, Tape& tape,
                    const Trace<T>& trace = {}) const requires has_extra {
    return infer(input, &extra, tape, trace);
  }

  /// Training: as above, on a tape that records. The inputs must stay as they are until backward, and the outputs last
  /// until the tape records or is cleared again. Throws Error for other shapes, or when the tape does not record.
  OutputView forward(TensorView<const T, 4> input, Tape& tape) const requires(!has_extra) {
    return record(input, nullptr, tape);
  }
  OutputView forward(TensorView<const T, 4> input, TensorView<const T, 4> extra, Tape& tape) const requires has_extra {
    return record(input, &extra, tape);
  }

  /// The way back through the last forward on the tape: adds to `gradient` and writes the inputs' gradients that are
  /// asked for. Throws Error when a shape is not that of the forward pass, or when there was none.
  void backward(const OutputGradients& outputs, Encoder& gradient, Tape& tape,
                const InputGradients& inputs = {}) const {
    const Index batch = tape.template peek<Record>().batch, groups = batch * config.groups;
    check_shapes(outputs, inputs, batch);
    const auto saved = tape.template pop<Record>();
    T* x = detail::zeros<T>(groups * data_size, tape);
    T* z = detail::zeros<T>(groups * latent_size, tape);
    T* unused =
        outputs.data && outputs.latents ? nullptr : detail::zeros<T>(groups * std::max(data_size, latent_size), tape);
    nn::backward(latent_norm_, outputs.latents ? outputs.latents->data() : unused, z, gradient.latent_norm_,
                 groups * config.latents, tape);
    nn::backward(data_norm_, outputs.data ? outputs.data->data() : unused, x, gradient.data_norm_, groups * all_tokens,
                 tape);
    trunk_.backward(x, z, {}, gradient.trunk_, batch, tape);
    nn::backward(z, gradient.start_, batch, tape);
    T* data = x;
    if constexpr (has_extra) {
      T* first = tape.template scratch<T>(groups * config.extra_tokens * config.data_dim);
      T* between = detail::zeros<T>(groups * config.extra_tokens * config.data_dim, tape);
      copy_tokens(x, all_tokens, first, config.extra_tokens, config.extra_tokens, groups);
      nn::backward(extra_stem_norm_, static_cast<const T*>(first), between, gradient.extra_stem_norm_,
                   groups * config.extra_tokens, tape);
      nn::backward(extra_stem_, static_cast<const T*>(between), inputs.extra ? inputs.extra->data() : nullptr,
                   gradient.extra_stem_, groups * config.extra_tokens, tape);
      data = tape.template scratch<T>(groups * config.tokens * config.data_dim);
      copy_tokens(x + config.extra_tokens * config.data_dim, all_tokens, data, config.tokens, config.tokens, groups);
    }
    nn::backward(stem_, static_cast<const T*>(data), inputs.input ? inputs.input->data() : nullptr, gradient.stem_,
                 groups, tape);
  }

 private:
  static constexpr int all_tokens = config.extra_tokens + config.tokens;
  static constexpr Index data_size = Index{all_tokens} * config.data_dim;
  static constexpr Index latent_size = Index{config.latents} * config.latent_dim;
  static constexpr TrunkConfig trunk_config{config.layers,    config.groups,     all_tokens,        config.latents,
                                            config.data_dim,  config.latent_dim, config.data_heads, config.latent_heads,
                                            config.mlp_ratio, config.mask};
  using Stem = nn::DataStem<T, config.tokens, config.channels, config.data_dim, config.data_positions>;
  using Start = nn::LatentStart<T, config.groups, config.latents, config.latent_dim, config.latent_positions>;
  struct Record {
    Index batch;
  };

  /// The first `count` tokens of each group, rows of groups of from_tokens and to_tokens.
  static void copy_tokens(const T* from, Index from_tokens, T* to, Index to_tokens, Index count, Index groups) {
    for (Index g = 0; g < groups; ++g) {
      std::copy_n(from + g * from_tokens * config.data_dim, count * config.data_dim,
                  to + g * to_tokens * config.data_dim);
    }
  }

  Index check(const TensorView<const T, 4>& input, const TensorView<const T, 4>* extra) const {
    detail::require_shape("the encoder's input", input,
                          std::array<Index, 4>{-1, config.groups, config.tokens, config.channels});
    if (extra) {
      detail::require_shape(
          "the encoder's extra tokens", *extra,
          std::array<Index, 4>{input.dimension(0), config.groups, config.extra_tokens, config.extra_channels});
    }
    return input.dimension(0);
  }

  static void check_shapes(const OutputGradients& outputs, const InputGradients& inputs, Index batch) {
    const auto check_one = [&](const char* name, const auto& gradient, Index tokens, Index width) {
      if (gradient) detail::require_shape(name, *gradient, std::array<Index, 4>{batch, config.groups, tokens, width});
    };
    check_one("the gradient of the data", outputs.data, all_tokens, config.data_dim);
    check_one("the gradient of the latents", outputs.latents, config.latents, config.latent_dim);
    check_one("the gradient of the input", inputs.input, config.tokens, config.channels);
    check_one("the gradient of the extra tokens", inputs.extra, config.extra_tokens, config.extra_channels);
  }

  Output infer(const TensorView<const T, 4>& input, const TensorView<const T, 4>* extra, Tape& tape,
               const Trace<T>& trace) const {
    const Index batch = check(input, extra);
    tape.clear();
    Output output{Tensor<T, 4>(batch, config.groups, all_tokens, config.data_dim),
                  Tensor<T, 4>(batch, config.groups, config.latents, config.latent_dim)};
    run(input.data(), extra ? extra->data() : nullptr, batch, output.data.data(), output.latents.data(), tape, trace);
    return output;
  }

  OutputView record(const TensorView<const T, 4>& input, const TensorView<const T, 4>* extra, Tape& tape) const {
    const Index batch = check(input, extra);
    require(tape.recording(), "forward needs a tape that records: call tape.record() before it");
    T* data = tape.template output<T>(batch * config.groups * data_size);
    T* latents = tape.template output<T>(batch * config.groups * latent_size);
    run(input.data(), extra ? extra->data() : nullptr, batch, data, latents, tape, {});
    return {TensorView<const T, 4>(data, batch, config.groups, all_tokens, config.data_dim),
            TensorView<const T, 4>(latents, batch, config.groups, config.latents, config.latent_dim)};
  }

  void run(const T* input, const T* extra, Index batch, T* data, T* latents, Tape& tape, const Trace<T>& trace) const {
    const auto start = tape.mark();
    const Index groups = batch * config.groups;
    T* x = tape.template allocate<T>(groups * data_size);
    T* z = tape.template allocate<T>(groups * latent_size);
    T* stem = has_extra ? tape.template allocate<T>(groups * config.tokens * config.data_dim) : x;
    nn::forward(stem_, input, stem, groups, tape);
    if constexpr (has_extra) {
      T* first = tape.template allocate<T>(groups * config.extra_tokens * config.data_dim);
      nn::forward(extra_stem_, extra, first, groups * config.extra_tokens, tape);
      nn::forward(extra_stem_norm_, static_cast<const T*>(first), first, groups * config.extra_tokens, tape);
      copy_tokens(first, config.extra_tokens, x, all_tokens, config.extra_tokens, groups);
      copy_tokens(stem, config.tokens, x + config.extra_tokens * config.data_dim, all_tokens, config.tokens, groups);
    }
    nn::forward(start_, z, batch);
    trunk_.forward(x, z, {}, batch, tape, trace);
    nn::forward(data_norm_, static_cast<const T*>(x), data, groups * all_tokens, tape);
    nn::forward(latent_norm_, static_cast<const T*>(z), latents, groups * config.latents, tape);
    tape.finish(start, Record{batch});
  }

  Stem stem_;
  If<has_extra, nn::Linear<T, config.data_dim, std::max(1, config.extra_channels)>> extra_stem_;
  If<has_extra, nn::LayerNorm<T, config.data_dim>> extra_stem_norm_;
  Start start_;
  Trunk<T, trunk_config> trunk_;
  nn::LayerNorm<T, config.data_dim> data_norm_;
  nn::LayerNorm<T, config.latent_dim> latent_norm_;
};

}  // namespace fit::inline FIT_ABI
