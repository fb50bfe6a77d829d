#pragma once

#include <fit/models/encoder.hpp>
#include <fit/nn/pooling.hpp>

namespace fit::inline FIT_ABI {

/// An encoder with a linear head on the mean of its latents. Without extra tokens.
template <EncoderConfig config, int classes, class Scalar = float>
class Classifier {
  static_assert(config.extra_tokens == 0, "fit: a classifier has no extra tokens");
  static_assert(classes > 0, "fit: a classifier needs at least one class");

 public:
  using T = Scalar;
  static constexpr EncoderConfig configuration = config;

  Encoder<config, T> encoder;
  nn::Linear<T, classes, config.latent_dim> head;

  /// All parameters zero: a gradient, or a classifier to load into.
  Classifier() = default;
  /// Initial values for training.
  explicit Classifier(Random random) { nn::initialise(*this, random); }

  static void visit(auto&& f, auto&... p) {
    f("encoder", p.encoder...);
    f("head", p.head...);
  }

  /// Inference: logits [B, classes] of input [B, groups, tokens, channels]. Throws Error for other shapes.
  Tensor<T, 2> operator()(TensorView<const T, 4> input) const { return (*this)(input, detail::inference_tape()); }
  /// The same with the threads and the scratch memory of a tape, which stops recording.
  Tensor<T, 2> operator()(TensorView<const T, 4> input, Tape& tape) const {
    const auto [data, latents] = encoder(input, tape);
    Tensor<T, 2> logits(input.dimension(0), Index{classes});
    const auto start = tape.mark();
    T* pooled = tape.template allocate<T>(input.dimension(0) * config.latent_dim);
    pool_and_map(latents.data(), pooled, logits.data(), input.dimension(0), tape);
    tape.finish(start, Record{});
    return logits;
  }

  /// Training: logits [B, classes] on a tape that records, as Encoder::forward.
  TensorView<const T, 2> forward(TensorView<const T, 4> input, Tape& tape) const {
    const auto start = tape.mark();
    const auto [data, latents] = encoder.forward(input, tape);
    const Index batch = input.dimension(0);
    T* pooled = tape.template allocate<T>(batch * config.latent_dim);
    T* logits = tape.template output<T>(batch * classes);
    pool_and_map(latents.data(), pooled, logits, batch, tape);
    tape.finish(start, Record{batch});
    return TensorView<const T, 2>(logits, batch, Index{classes});
  }

  /// The way back from the gradient of the logits [B, classes]: adds to `gradient`.
  /// Throws Error when its shape is not that of the forward pass, or when there was none.
  void backward(TensorView<const T, 2> logits_gradient, Classifier& gradient, Tape& tape) const {
    const Index batch = tape.template peek<Record>().batch, length = config.groups * config.latents;
    if (logits_gradient.dimension(0) != batch || logits_gradient.dimension(1) != classes) {
      throw Error(concatenate("the gradient of the logits must have the shape [", batch, ", ", classes, "], not ",
                              shape_text(logits_gradient.dimensions())));
    }
    const auto saved = tape.template pop<Record>();
    T* pooled = tape.template scratch<T>(batch * config.latent_dim);
    nn::backward(head, logits_gradient.data(), pooled, gradient.head, batch, tape);
    T* latents = tape.template scratch<T>(batch * length * config.latent_dim);
    nn::mean_pool_backward(pooled, latents, batch, length, Index{config.latent_dim}, tape.executor());
    encoder.backward({.latents = TensorView<const T, 4>(latents, batch, Index{config.groups}, Index{config.latents},
                                                        Index{config.latent_dim})},
                     gradient.encoder, tape);
  }

 private:
  struct Record {
    Index batch = 0;
  };

  void pool_and_map(const T* latents, T* pooled, T* logits, Index batch, Tape& tape) const {
    nn::mean_pool(latents, pooled, batch, config.groups * config.latents, Index{config.latent_dim}, tape.executor());
    nn::forward(head, static_cast<const T*>(pooled), logits, batch, tape);
  }
};

}  // namespace fit::inline FIT_ABI
