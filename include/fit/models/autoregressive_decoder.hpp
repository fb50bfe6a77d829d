#pragma once

#include <cstdint>
#include <type_traits>

#include <fit/grouping/shift.hpp>
#include <fit/kernels/cross_entropy.hpp>
#include <fit/models/arguments.hpp>
#include <fit/models/stem.hpp>
#include <fit/models/trunk.hpp>
#include <fit/nn/embedding.hpp>
#include <fit/nn/initialise.hpp>

namespace fit::inline FIT_ABI {

/// The FIT autoregressive decoder: the probabilities of each id given those before it. Chen and Li, arXiv 2305.12689,
/// section 3.
///
/// As an Encoder, it is its parameters and nothing else. B is the batch, any number, and V the vocabulary. Inputs are
/// the sequence moved right by one position, which is what shift_right() makes of it; so no logit depends on the id
/// that it is about, nor on a later one.
template <AutoregressiveConfig config, class Scalar = float>
class AutoregressiveDecoder {
  static_assert(detail::check_autoregressive<config>());
  static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>,
                "fit: an autoregressive decoder computes in float or double");

 public:
  using T = Scalar;
  static constexpr AutoregressiveConfig configuration = config;
  static constexpr TrunkConfig trunk_config{.layers = config.layers,
                                            .groups = config.groups,
                                            .tokens = config.tokens,
                                            .latents = config.latents,
                                            .data_dim = config.data_dim,
                                            .latent_dim = config.latent_dim,
                                            .data_heads = config.data_heads,
                                            .latent_heads = config.latent_heads,
                                            .mlp_ratio = config.mlp_ratio,
                                            .mask = Mask::causal,
                                            .autoregressive = true};
  using Ids = TensorView<const std::int32_t, 3>;

  /// All parameters zero: a gradient, or a decoder to load into.
  AutoregressiveDecoder() = default;

  /// Initial values for training.
  explicit AutoregressiveDecoder(Random random) { nn::initialise(*this, random); }

  static void visit(auto&& f, auto&... p) {
    f("token_embedding", p.token_embedding_...);
    Places::visit(f, p.places_...);
    Start::visit(f, p.start_...);
    Trunk<T, trunk_config>::visit(f, p.trunk_...);
    f("data_norm", p.data_norm_...);
    f("output_embedding", p.output_embedding_...);
    f("output_bias", p.output_bias_...);
  }

  /// Inference: logits [B, groups, tokens, V] of ids [B, groups, tokens], the sequence moved right by one.
  /// Throws Error for another shape or an id outside 0 .. V-1. Scratch memory stays with the thread.
  Tensor<T, 4> operator()(Ids ids) const { return (*this)(ids, detail::inference_tape()); }
  /// The same with the threads and the scratch memory of a tape, which stops recording; a trace sees what is inside.
  Tensor<T, 4> operator()(Ids ids, Tape& tape, const Trace<T>& trace = {}) const {
    const Index batch = check("the decoder's input", ids);
    tape.clear();
    Tensor<T, 4> logits(batch, config.groups, config.tokens, config.vocabulary);
    run(ids.data(), batch, tape, trace,
        [&](const T* normed) { write_logits(normed, logits.data(), batch * length, tape); });
    return logits;
  }

  /// Training with a loss of one's own: as above, on a tape that records. The ids must stay as they are until backward,
  /// and the logits last until the tape records or is cleared again. Throws Error as above, and when the tape does not
  /// record.
  TensorView<const T, 4> forward(Ids ids, Tape& tape) const {
    const Index batch = check("the decoder's input", ids);
    require(tape.recording(), "forward needs a tape that records: call tape.record() before it");
    T* logits = tape.template output<T>(batch * length * config.vocabulary);
    run(ids.data(), batch, tape, {}, [&](const T* normed) { write_logits(normed, logits, batch * length, tape); });
    return TensorView<const T, 4>(logits, batch, config.groups, config.tokens, config.vocabulary);
  }

  /// The way back through the last forward on the tape from the gradient of the logits: adds to `gradient`. Throws
  /// Error when its shape is not that of the forward pass, or when there was none.
  void backward(TensorView<const T, 4> logits_gradient, AutoregressiveDecoder& gradient, Tape& tape) const {
    const auto& record = tape.template peek<Record>();
    const Index batch = record.batch;
    detail::require_shape("the gradient of the logits", logits_gradient,
                          std::array<Index, 4>{batch, config.groups, config.tokens, config.vocabulary});
    T* normed_gradient = tape.template output<T>(batch * length * config.data_dim);
    backward_logits(logits_gradient.data(), record.normed, normed_gradient, gradient, batch * length, tape);
    backward_trunk(normed_gradient, gradient, tape);
  }

  /// Mean cross entropy in nats of the ids [B, groups, tokens] of whole sequences, each given those before it; it is
  /// zero for an empty batch. The logits go through in chunks, so that they never stand in memory all at once. The tape
  /// stops recording. Throws Error as the call above.
  double loss(Ids ids, Tape& tape) const {
    const Index batch = check("the sequence", ids);
    tape.clear();
    return run_loss(ids, batch, nullptr, nullptr, tape);
  }

  /// The same, recorded with these options, and the way back: adds the gradient of the mean to `gradient`.
  double loss(Ids ids, AutoregressiveDecoder& gradient, Tape& tape, const TrainingOptions& options = {},
              Random random = Random(0)) const {
    const Index batch = check("the sequence", ids);
    tape.record(options, random);
    T* normed_gradient = tape.template output<T>(batch * length * config.data_dim);
    const double mean = run_loss(ids, batch, normed_gradient, &gradient, tape);
    backward_trunk(normed_gradient, gradient, tape);
    return mean;
  }

  // What a Generator runs step by step.
  const auto& token_embedding() const { return token_embedding_; }
  const T* data_positions() const { return places_.values(); }
  const T* latent_positions() const { return start_.values(); }
  const Trunk<T, trunk_config>& trunk() const { return trunk_; }
  const nn::LayerNorm<T, config.data_dim>& data_norm() const { return data_norm_; }
  /// The product that gives logits [rows, V] from the normalised tokens [rows, data_dim] of as many positions.
  kernels::Product<T> logits_product(const T* normed, T* logits, Index rows) const {
    constexpr Index width = config.data_dim;
    return {.rows = rows,
            .columns = config.vocabulary,
            .factors = {{kernels::plain(normed, width), kernels::transposed(output_weight(), width), width}},
            .c = logits,
            .c_row = config.vocabulary,
            .finish = {.bias = output_bias()}};
  }

 private:
  static constexpr Index length = Index{config.groups} * config.tokens;  // of a sequence
  static constexpr Index latent_size = Index{config.groups} * config.latents * config.latent_dim;
  /// Rows whose logits are in memory together.
  static constexpr Index chunk = std::clamp<Index>((Index{1} << 20) / config.vocabulary, 64, 4096);
  using Places = nn::DataPositions<T, config.tokens, config.data_dim, config.data_positions>;
  using Start = nn::LatentStart<T, config.groups, config.latents, config.latent_dim, config.latent_positions>;
  struct Record {
    Index batch;
    const std::int32_t* ids;
    const T* normed;
  };

  static Index check(const char* name, const Ids& ids) {
    detail::require_shape(name, ids, std::array<Index, 3>{-1, config.groups, config.tokens});
    for (Index i = 0; i < ids.size(); ++i) {
      require(ids.data()[i] >= 0 && ids.data()[i] < config.vocabulary, "ids must be in 0 .. ", config.vocabulary - 1,
              ", not ", ids.data()[i]);
    }
    return ids.dimension(0);
  }

  /// Calls head(normed [batch * length, data_dim]) with what logits are made of.
  template <class Head>
  void run(const std::int32_t* ids, Index batch, Tape& tape, const Trace<T>& trace, Head&& head) const {
    const auto start = tape.mark();
    const Index rows = batch * length;
    T* x = tape.template allocate<T>(rows * config.data_dim);
    T* z = tape.template allocate<T>(batch * latent_size);
    T* normed = tape.template allocate<T>(rows * config.data_dim);
    nn::forward(token_embedding_, ids, x, rows);
    nn::forward(places_, x, batch * config.groups, tape);
    nn::forward(start_, z, batch);
    trunk_.forward(x, z, {}, batch, tape, trace);
    nn::forward(data_norm_, static_cast<const T*>(x), normed, rows, tape);
    head(normed);
    tape.finish(start, Record{batch, ids, normed});
  }

  void backward_trunk(const T* normed_gradient, AutoregressiveDecoder& gradient, Tape& tape) const {
    const auto saved = tape.template pop<Record>();
    const Index rows = saved->batch * length;
    T* x = detail::zeros<T>(rows * config.data_dim, tape);
    T* z = detail::zeros<T>(saved->batch * latent_size, tape);
    nn::backward(data_norm_, normed_gradient, x, gradient.data_norm_, rows, tape);
    trunk_.backward(x, z, {}, gradient.trunk_, saved->batch, tape);
    nn::backward(static_cast<const T*>(z), gradient.start_, saved->batch, tape);
    nn::backward(static_cast<const T*>(x), gradient.places_, saved->batch * config.groups, tape);
    nn::backward(saved->ids, static_cast<const T*>(x), gradient.token_embedding_, rows, tape);
  }

  const T* output_weight() const {
    if constexpr (!config.shared_embedding) return output_embedding_.weight.data();
    return token_embedding_.weight.data();
  }
  const T* output_bias() const {
    if constexpr (config.output_bias) return output_bias_.data();
    return nullptr;
  }

  void write_logits(const T* normed, T* logits, Index rows, Tape& tape) const {
    kernels::multiply({logits_product(normed, logits, rows)}, tape);
  }

  /// Writes normed_gradient, and adds to the gradients of the embedding and the bias.
  void backward_logits(const T* logits_gradient, const T* normed, T* normed_gradient, AutoregressiveDecoder& gradient,
                       Index rows, Tape& tape) const {
    constexpr Index width = config.data_dim, vocabulary = config.vocabulary;
    T* weight_gradient = gradient.token_embedding_.weight.data();
    if constexpr (!config.shared_embedding) weight_gradient = gradient.output_embedding_.weight.data();
    kernels::multiply<T>(
        {{.rows = rows,
          .columns = width,
          .factors = {{kernels::plain(logits_gradient, vocabulary), kernels::plain(output_weight(), width),
                       vocabulary}},
          .c = normed_gradient,
          .c_row = width},
         {.rows = vocabulary,
          .columns = width,
          .factors = {{kernels::transposed(logits_gradient, vocabulary), kernels::plain(normed, width), rows}},
          .c = weight_gradient,
          .c_row = width,
          .finish = {.accumulate = true}}},
        tape);
    if constexpr (config.output_bias) {
      kernels::add_column_sums({kernels::ColumnSum<T>{logits_gradient, rows, vocabulary, gradient.output_bias_.data()}},
                               tape);
    }
  }

  /// The mean cross entropy; unless they are null, also writes normed_gradient and adds to the embedding's gradients.
  double run_loss(const Ids& ids, Index batch, T* normed_gradient, AutoregressiveDecoder* gradient, Tape& tape) const {
    const Index rows = batch * length;
    auto* inputs = tape.template output<std::int32_t>(rows);
    shift_right(ids, TensorView<std::int32_t, 3>(inputs, batch, config.groups, config.tokens));
    double total = 0;
    run(inputs, batch, tape, {}, [&](const T* normed) {
      const auto mark = tape.arena().mark();
      T* logits = tape.arena().template allocate<T>(std::min(rows, chunk) * config.vocabulary);
      T* losses = tape.arena().template allocate<T>(std::min(rows, chunk));
      for (Index first = 0; first < rows; first += chunk) {
        const Index count = std::min(chunk, rows - first), offset = first * config.data_dim;
        write_logits(normed + offset, logits, count, tape);
        kernels::cross_entropy<T>({logits, ids.data() + first, losses, gradient ? logits : nullptr},
                                  static_cast<T>(1 / static_cast<double>(rows)), count, config.vocabulary,
                                  tape.executor());
        for (Index i = 0; i < count; ++i) total += static_cast<double>(losses[i]);
        if (gradient) backward_logits(logits, normed + offset, normed_gradient + offset, *gradient, count, tape);
      }
      tape.arena().rewind(mark);
    });
    return total / static_cast<double>(std::max<Index>(1, rows));
  }

  nn::Embedding<T, config.vocabulary, config.data_dim> token_embedding_;
  Places places_;
  Start start_;
  Trunk<T, trunk_config> trunk_;
  nn::LayerNorm<T, config.data_dim> data_norm_;
  If<!config.shared_embedding, nn::Embedding<T, config.vocabulary, config.data_dim>> output_embedding_;
  If<config.output_bias, Vector<T, config.vocabulary>> output_bias_;
};

/// Nats for each element of a sequence, as a loss gives them, in bits.
inline double bits_per_dimension(double nats) { return nats / 0.6931471805599453; }

}  // namespace fit::inline FIT_ABI
