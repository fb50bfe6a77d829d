#pragma once

#include <fit/models/encoder.hpp>
#include <fit/nn/pooling.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What a classifier takes the mean of.
enum class Pooling { latents, data };

/// An encoder with a linear head on the mean of its latents or, where no stage has any, of its data tokens. Without
/// extra tokens.
template <EncoderConfig c, int classes, class T = float,
          Pooling pooling = plan_of(c.layers)[0].reads ? Pooling::latents : Pooling::data>
class Classifier {
  static_assert(c.extra_tokens == 0, "fit: a classifier has no extra tokens");
  static_assert(classes > 0, "fit: a classifier needs at least one class");
  static_assert(pooling == Pooling::data || plan_of(c.layers)[0].reads,
                "fit: latents that no stage of config.layers reads into know nothing of the input: a classifier of "
                "such an encoder needs Pooling::data");

 public:
  using Scalar = T;
  static constexpr EncoderConfig config = c;

  Encoder<config, T> encoder;
  nn::Linear<T, classes, pooling == Pooling::latents ? config.latent_dim : config.data_dim> head;

  /// All parameters zero: a gradient, or a classifier to load into.
  Classifier() = default;
  /// Initial values for training.
  explicit Classifier(Random random) { nn::initialise(*this, random); }

  static void visit(auto&& f, auto&... p) {
    f("encoder", p.encoder...);
    f("head", p.head...);
  }

  /// Inference, in memory of the thread: logits [B, classes] of input [B, groups, tokens, channels]. Throws Error for
  /// other shapes.
  Tensor<T, 2> operator()(TensorView<const T, 4> input, const Grid& grid = {}) const {
    return (*this)(input, detail::inference_tape(), grid);
  }
  /// The same with the threads and the scratch memory of a tape, which is left as it was.
  Tensor<T, 2> operator()(TensorView<const T, 4> input, Tape& tape, const Grid& grid = {}) const {
    const Tape::Inference inference(tape);
    const auto start = tape.mark();
    const auto output = encoder.forward({.input = input, .grid = grid}, tape);
    Tensor<T, 2> logits(input.dimension(0), Index{classes});
    run(output, logits.data(), start, tape);
    return logits;
  }

  /// The same on the tape, as Encoder::forward.
  TensorView<const T, 2> forward(LastingView<const T, 4> input, Tape& tape, const Grid& grid = {}) const {
    const auto start = tape.mark();
    const auto output = encoder.forward({.input = input, .grid = grid}, tape);
    const auto logits = detail::output<T>(tape, input.dimension(0), Index{classes});
    run(output, logits.data(), start, tape);
    return logits;
  }

  /// The way back from the gradient of the logits [B, classes]: adds to `gradient`.
  /// Throws Error when its shape is not that of the forward pass, or when none was recorded.
  void backward(TensorView<const T, 2> logits_gradient, Classifier& gradient, Tape& tape) const {
    const auto [batch, groups, share] = tape.peek<Record>();
    detail::require_shape(logits_gradient, {batch, classes}, "the gradient of the logits");
    const auto saved = tape.pop<Record>();
    T* pooled = tape.scratch<T>(batch * width);
    if (!tape.team() || tape.team()->leads()) {
      nn::backward(head, logits_gradient.data(), pooled, gradient.head, batch, tape);
    } else {  // the first member has the head's gradient
      const auto frame = tape.pop<nn::detail::LinearRecord<T>>();
      kernels::multiply({nn::input_product(head.weight, logits_gradient.data(), pooled, batch)}, tape);
    }
    for (Index i = 0; tape.team() && i < batch * width; ++i) pooled[i] *= share;
    const TensorView<T, 4> tokens(tape.scratch<T>(batch * groups * length * width), batch, groups, length, width);
    nn::mean_pool_backward(pooled, tokens.data(), batch, groups * length, width, tape.executor());
    if constexpr (pooling == Pooling::latents) {
      encoder.backward({.latents = tokens}, gradient.encoder, tape);
    } else {
      encoder.backward({.data = tokens}, gradient.encoder, tape);
    }
  }

 private:
  static constexpr Index width = pooling == Pooling::latents ? config.latent_dim : config.data_dim;
  static constexpr Index length = pooling == Pooling::latents ? config.latents : config.tokens;  // of a group
  struct Record {
    Index batch = 0, groups = 0;
    T share = 1;  // of the groups of an example
  };

  void run(const typename Encoder<config, T>::OutputView& output, T* logits, const Arena::Mark& start,
           Tape& tape) const {
    const auto& tokens = pooling == Pooling::latents ? output.latents : output.data;
    const Index batch = tokens.dimension(0), groups = tokens.dimension(1);
    T* pooled = tape.allocate<T>(batch * width);
    nn::mean_pool(tokens.data(), pooled, batch, groups * length, width, tape.executor());
    T share = 1;
    if (Team* const team = tape.team()) {
      Index all = 0;
      for (const Index of_one : team->gather(groups)) all += of_one;
      share = static_cast<T>(groups) / static_cast<T>(all);
      for (Index i = 0; i < batch * width; ++i) pooled[i] *= share;
      detail::sum_over(*team, pooled, batch * width, tape);
    }
    nn::forward<T>(head, pooled, logits, batch, tape);
    tape.finish(start, Record{batch, groups, share});
  }
};

}  // namespace FIT_ABI
}  // namespace fit
