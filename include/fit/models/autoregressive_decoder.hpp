#pragma once

#include <algorithm>
#include <cstdint>
#include <numbers>
#include <type_traits>

#include <fit/grouping/shift.hpp>
#include <fit/kernels/cross_entropy.hpp>
#include <fit/models/arguments.hpp>
#include <fit/models/trunk.hpp>
#include <fit/nn/embedding.hpp>
#include <fit/nn/initialise.hpp>
#include <fit/nn/stem.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The FIT autoregressive decoder: the probabilities of each id given those before it. Chen and Li, arXiv 2305.12689,
/// section 3.
///
/// As an Encoder, it is its parameters and nothing else. B is the batch, any number, and V the vocabulary. Inputs are
/// the sequence moved right by one position, which is what shift_right() makes of it; so no logit depends on the id
/// that it is about, nor on a later one.
template <AutoregressiveConfig c, class T = float>
class AutoregressiveDecoder {
  static_assert(detail::check_autoregressive<c>());
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "fit: an autoregressive decoder computes in float or double");

 public:
  using Scalar = T;
  static constexpr AutoregressiveConfig config = c;
  using Ids = TensorView<const std::int32_t, 3>;

  /// All parameters zero: a gradient, or a decoder to load into.
  AutoregressiveDecoder() = default;

  /// Initial values for training.
  explicit AutoregressiveDecoder(Random random) { nn::initialise(*this, random); }

  static void visit(auto&& f, auto&... p) {
    f("token_embedding", p.token_embedding_...);
    f("data_positions", p.data_positions_.table...);
    f("latent_positions", p.latent_positions_.table...);
    DecoderTrunk::visit(f, p.trunk_...);
    f("data_norm", p.data_norm_...);
    f("output_embedding", p.output_embedding_...);
    f("output_bias", p.output_bias_...);
  }

  /// Inference, in memory of the thread: logits [B, groups, tokens, V] of ids [B, groups, tokens], the sequence moved
  /// right by one. Throws Error for another shape or an id outside 0 .. V-1.
  Tensor<T, 4> operator()(Ids ids) const { return (*this)(ids, detail::inference_tape()); }
  /// The same with the threads and the scratch memory of a tape, which is left as it was; a trace sees what is inside.
  Tensor<T, 4> operator()(Ids ids, Tape& tape, const Trace<T>& trace = {}) const {
    const Sizes sizes = check("the decoder's input", ids);
    Tensor<T, 4> logits(sizes.batch, config.groups, config.tokens, config.vocabulary);
    const Tape::Inference inference(tape);
    run(ids.data(), sizes, tape, trace,
        [&](const T* normed) { kernels::multiply({logits_product(normed, logits.data(), sizes.data_rows())}, tape); });
    return logits;
  }

  /// The same with logits that live on the tape until it records or is cleared again, recorded for the way back on a
  /// tape that records; the ids must then stay as they are until backward. Throws Error as above.
  TensorView<const T, 4> forward(LastingView<const std::int32_t, 3> ids, Tape& tape) const {
    const Sizes sizes = check("the decoder's input", ids);
    const auto logits = detail::output<T>(tape, sizes.batch, config.groups, config.tokens, config.vocabulary);
    run(ids.data(), sizes, tape, {},
        [&](const T* normed) { kernels::multiply({logits_product(normed, logits.data(), sizes.data_rows())}, tape); });
    return logits;
  }

  /// The way back through the last forward on the tape from the gradient of the logits: adds to `gradient`. Throws
  /// Error when its shape is not that of the forward pass, or when none was recorded.
  void backward(TensorView<const T, 4> logits_gradient, AutoregressiveDecoder& gradient, Tape& tape) const {
    const auto& record = tape.peek<Record>();
    const Index rows = record.sizes.data_rows();
    detail::require_shape(logits_gradient, {record.sizes.batch, config.groups, config.tokens, config.vocabulary},
                          "the gradient of the logits");
    T* normed_gradient = tape.output<T>(rows * config.data_dim);
    backward_logits(logits_gradient.data(), record.normed, normed_gradient, gradient, rows, tape);
    backward_trunk(normed_gradient, gradient, tape);
  }

  /// Mean cross entropy in nats of the ids [B, groups, tokens] of whole sequences, each given those before it; it is
  /// zero for an empty batch. The logits go through in chunks, so that they never stand in memory all at once. The tape
  /// is left as it was. Throws Error as the call above.
  double loss(Ids ids, Tape& tape) const {
    const Sizes sizes = check("the sequence", ids);
    const Tape::Inference inference(tape);
    return run_loss(ids, sizes, nullptr, nullptr, tape);
  }

  /// The same, recorded with these options, and the way back: adds the gradient of the mean to `gradient`.
  double loss(Ids ids, AutoregressiveDecoder& gradient, Tape& tape, const TrainingOptions& options = {},
              Random random = Random(0)) const {
    const Sizes sizes = check("the sequence", ids);
    tape.record(options, random);
    T* normed_gradient = tape.output<T>(sizes.data_rows() * config.data_dim);
    const double mean = run_loss(ids, sizes, normed_gradient, &gradient, tape);
    backward_trunk(normed_gradient, gradient, tape);
    return mean;
  }

  // What a Generator runs: the ends of the network for some rows of a sequence, and what is between.

  /// x [rows, data_dim] of ids [rows] that follow each other in a group, the first of them its token `slot`.
  void step_ids(const std::int32_t* ids, Index slot, T* x, Index rows, Tape& tape) const {
    nn::forward(token_embedding_, ids, x, rows, tape);
    const T* added = data_positions_.values() + slot * config.data_dim;
    for (Index i = 0; i < rows * config.data_dim; ++i) x[i] += added[i];
  }
  /// logits [rows, V] of x [rows, data_dim], normalised in place.
  void step_logits(T* x, T* logits, Index rows, const nn::StepKernels<T>& with, Tape& tape) const {
    nn::forward<T>(data_norm_, x, x, rows, tape);
    with.multiply({logits_product(x, logits, rows)}, tape);
  }
  /// z [latents, latent_dim]: the latents that a group starts from.
  void step_latents(Index group, T* z) const {
    constexpr Index size = Index{config.latents} * config.latent_dim;
    std::copy_n(latent_positions_.values() + group * size, size, z);
  }
  const auto& trunk() const { return trunk_; }

 private:
  /// Rows whose logits are in memory together.
  static constexpr Index chunk = std::clamp<Index>((Index{1} << 20) / config.vocabulary, 64, 4096);
  using DecoderTrunk = detail::Trunk<T, detail::trunk_of(config)>;
  struct Record {
    Sizes sizes;
    const T* normed;
  };

  static Sizes check(const char* name, const Ids& ids) {
    detail::require_shape(ids, {-1, config.groups, config.tokens}, name);
    const Index batch = ids.dimension(0);
    detail::require_batch(batch, detail::largest_tensor<config>(config.tokens));
    for (Index i = 0; i < ids.size(); ++i) {
      require(ids.data()[i] >= 0 && ids.data()[i] < config.vocabulary, "ids must be in 0 .. ", config.vocabulary - 1,
              ", not ", ids.data()[i]);
    }
    return {batch, config.groups, config.tokens, config.latents};
  }

  /// Calls head(normed [batch, groups, tokens, data_dim]) with what logits are made of.
  template <class Head>
  void run(const std::int32_t* ids, const Sizes& sizes, Tape& tape, const Trace<T>& trace, Head&& head) const {
    const auto start = tape.mark();
    const Index rows = sizes.data_rows();
    T* x = tape.allocate<T>(rows * config.data_dim);                   // [B, groups, tokens, data_dim]
    T* z = tape.allocate<T>(sizes.latent_rows() * config.latent_dim);  // [B, groups, latents, latent_dim]
    T* normed = tape.allocate<T>(rows * config.data_dim);              // [B, groups, tokens, data_dim]
    nn::forward(token_embedding_, ids, x, rows, tape);
    nn::forward(data_positions_, x, sizes.all_groups(), tape);
    nn::copy_positions(latent_positions_, z, sizes.batch);
    trunk_.forward(x, z, {}, sizes, tape, trace);
    nn::forward<T>(data_norm_, x, normed, rows, tape);
    head(normed);
    tape.finish(start, Record{sizes, normed});
  }

  void backward_trunk(const T* normed_gradient, AutoregressiveDecoder& gradient, Tape& tape) const {
    const auto saved = tape.pop<Record>();
    const Sizes& sizes = saved->sizes;
    const Index rows = sizes.data_rows();
    T* x = detail::zeros<T>(rows * config.data_dim, tape);
    T* z = detail::zeros<T>(sizes.latent_rows() * config.latent_dim, tape);
    nn::backward(data_norm_, normed_gradient, x, gradient.data_norm_, rows, tape);
    trunk_.backward(x, z, {}, gradient.trunk_, sizes, tape);
    nn::backward(latent_positions_, z, gradient.latent_positions_, sizes.batch, tape);
    nn::backward(data_positions_, x, gradient.data_positions_, sizes.all_groups(), tape);
    nn::backward<T>(token_embedding_, x, gradient.token_embedding_, rows, tape);
  }

  /// The product that gives logits [rows, V] of normalised tokens [rows, data_dim].
  kernels::Product<T> logits_product(const T* normed, T* logits, Index rows) const {
    const T* bias = nullptr;
    if constexpr (config.output_bias) bias = output_bias_.data();
    return nn::output_product(output_table(*this), bias, normed, logits, rows);
  }

  /// The table whose rows give the logits, of a decoder or its gradient.
  static auto& output_table(auto& decoder) {
    if constexpr (config.shared_embedding) {
      return decoder.token_embedding_.weight;
    } else {
      return decoder.output_embedding_.weight;
    }
  }

  /// Writes normed_gradient, and adds to the gradients of the embedding and the bias.
  void backward_logits(const T* logits_gradient, const T* normed, T* normed_gradient, AutoregressiveDecoder& gradient,
                       Index rows, Tape& tape) const {
    kernels::multiply({nn::input_product(output_table(*this), logits_gradient, normed_gradient, rows),
                       nn::weight_product(output_table(gradient), normed, logits_gradient, rows)},
                      tape);
    if constexpr (config.output_bias) {
      kernels::add_column_sums<T>({{logits_gradient, rows, config.vocabulary, gradient.output_bias_.data()}}, tape);
    }
  }

  /// The mean cross entropy; unless they are null, also writes normed_gradient and adds to the embedding's gradients.
  double run_loss(const Ids& ids, const Sizes& sizes, T* normed_gradient, AutoregressiveDecoder* gradient,
                  Tape& tape) const {
    const Index rows = sizes.data_rows();
    auto* inputs = tape.output<std::int32_t>(rows);  // [B, groups, tokens]
    shift_right(ids, TensorView<std::int32_t, 3>(inputs, ids.dimensions()));
    double total = 0;
    run(inputs, sizes, tape, {}, [&](const T* normed) {
      const Arena::Scope scope(tape.arena());
      T* logits = tape.scratch<T>(std::min(rows, chunk) * config.vocabulary);
      T* losses = tape.scratch<T>(std::min(rows, chunk));
      for (Index first = 0; first < rows; first += chunk) {
        const Index count = std::min(chunk, rows - first), offset = first * config.data_dim;
        kernels::multiply({logits_product(normed + offset, logits, count)}, tape);
        kernels::cross_entropy<T>({logits, ids.data() + first, losses, gradient ? logits : nullptr},
                                  static_cast<T>(1 / static_cast<double>(rows)), count, config.vocabulary,
                                  tape.executor());
        for (Index i = 0; i < count; ++i) total += static_cast<double>(losses[i]);
        if (gradient) backward_logits(logits, normed + offset, normed_gradient + offset, *gradient, count, tape);
      }
    });
    return total / static_cast<double>(std::max<Index>(1, rows));
  }

  nn::Embedding<T, config.vocabulary, config.data_dim> token_embedding_;
  nn::DataPositions<T, config.tokens, config.data_dim, config.data_positions> data_positions_;
  nn::LatentPositions<T, config.groups, config.latents, config.latent_dim, config.latent_positions> latent_positions_;
  DecoderTrunk trunk_;
  nn::LayerNorm<T, config.data_dim> data_norm_;
  If<!config.shared_embedding, nn::Embedding<T, config.vocabulary, config.data_dim>> output_embedding_;
  If<config.output_bias, Vector<T, config.vocabulary>> output_bias_;
};

/// Nats for each element of a sequence, as a loss gives them, in bits.
inline double bits_per_dimension(double nats) { return nats / std::numbers::ln2; }

}  // namespace FIT_ABI
}  // namespace fit
