#pragma once

#include <algorithm>
#include <cstdint>
#include <numbers>
#include <type_traits>

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
    const Sizes sizes = check("the decoder's input", ids, tape.team());
    Tensor<T, 4> logits(sizes.batch, sizes.groups, config.tokens, config.vocabulary);
    const Tape::Inference inference(tape);
    run({.p = this, .ids = ids.data(), .logits = logits.data()}, sizes, tape, trace);
    return logits;
  }

  /// The same with logits that live on the tape until it records or is cleared again, recorded for the way back on a
  /// tape that records; the ids must then stay as they are until backward. Throws Error as above.
  TensorView<const T, 4> forward(LastingView<const std::int32_t, 3> ids, Tape& tape) const {
    const Sizes sizes = check("the decoder's input", ids, tape.team());
    const auto logits = detail::output<T>(tape, sizes.batch, sizes.groups, config.tokens, config.vocabulary);
    run({.p = this, .ids = ids.data(), .logits = logits.data()}, sizes, tape, {});
    return logits;
  }

  /// The way back through the last forward on the tape from the gradient of the logits: adds to `gradient`. Throws
  /// Error when its shape is not that of the forward pass, or when none was recorded.
  void backward(TensorView<const T, 4> logits_gradient, AutoregressiveDecoder& gradient, Tape& tape) const {
    const Sizes sizes = tape.peek<Record>().sizes;
    detail::require_shape(logits_gradient, {sizes.batch, sizes.groups, config.tokens, config.vocabulary},
                          "the gradient of the logits");
    Ends ends = tape.peek<Record>().ends;
    ends.logits_gradient = logits_gradient.data();
    backward_trunk(ends, gradient, tape);
  }

  /// Mean cross entropy in nats of the ids [B, groups, tokens] of whole sequences, each given those before it; it is
  /// zero for an empty batch. The logits go through in chunks, so that they never stand in memory all at once.
  /// Sequences are whole over a team, too. The tape is left as it was. Throws Error as the call above.
  double loss(Ids ids, Tape& tape, const Watch& watch = {}) const { return loss(source_of(ids), tape, watch); }
  /// The same, recorded with these options, and the way back: adds the gradient of the mean to `gradient`.
  double loss(Ids ids, AutoregressiveDecoder& gradient, Tape& tape, const TrainingOptions& options = {},
              Random random = Random(0), const Watch& watch = {}) const {
    return loss(source_of(ids), gradient, tape, options, random, watch);
  }

  /// The same of ids [count, tokens] that come from a source, and never stand in memory as a whole; over a team it is
  /// asked for the member's groups and the one before them. Throws Error for a
  /// source without a function, with one for gradients or with a grid, and for counts and ids that cannot be; the
  /// latter, and what the source throws, on the way, when part of the gradient may have been added.
  double loss(const GroupSource<std::int32_t>& ids, Tape& tape, const Watch& watch = {}) const {
    const Sizes sizes = check(ids, tape.team());
    const Tape::Inference inference(tape);
    return run_loss(ids, sizes, nullptr, tape, watch);
  }
  double loss(const GroupSource<std::int32_t>& ids, AutoregressiveDecoder& gradient, Tape& tape,
              const TrainingOptions& options = {}, Random random = Random(0), const Watch& watch = {}) const {
    const Sizes sizes = check(ids, tape.team());
    tape.record(options, random);
    const double mean = run_loss(ids, sizes, &gradient, tape, watch);
    backward_trunk(tape.peek<Record>().ends, gradient, tape, watch);
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
  /// z [latents, latent_dim]: the latents that a group out of `groups` starts from.
  void step_latents(Index group, Index groups, T* z) const {
    nn::write_positions(latent_positions_, z, group, 1, groups, {});
  }
  const auto& trunk() const { return trunk_; }

 private:
  using DecoderTrunk = detail::Trunk<T, detail::trunk_of(config)>;
  /// What is before the trunk and behind it, for some groups: gives logits of ids or, where there is a source, the loss
  /// of what it gives, whose way back is then gone at once.
  struct Ends {
    const AutoregressiveDecoder* p;
    const std::int32_t* ids = nullptr;
    T* logits = nullptr;
    const GroupSource<std::int32_t>* source = nullptr;
    double* total = nullptr;  // of the losses of all ids
    Index all_rows = 0;
    AutoregressiveDecoder* gradient = nullptr;
    const T* logits_gradient = nullptr;

    static Index rows_of(const detail::Chunk& groups) { return groups.count * config.tokens; }
    static Index first_of(const detail::Chunk& groups) { return groups.first * config.tokens; }

    void start(const detail::Chunk& groups, T* x, Tape& tape) const {
      const auto start = tape.mark();
      nn::forward(p->token_embedding_, source ? ids_before(groups, tape) : ids + first_of(groups), x, rows_of(groups),
                  tape);
      nn::forward(p->data_positions_, x, groups.count, tape);
      tape.finish(start);
    }
    void start_backward(const detail::Chunk& groups, const T* x_gradient, Tape& tape) const {
      const auto frame = tape.pop();
      nn::backward(p->data_positions_, x_gradient, gradient->data_positions_, groups.count, tape);
      nn::backward<T>(p->token_embedding_, x_gradient, gradient->token_embedding_, rows_of(groups), tape);
    }

    void end(const detail::Chunk& groups, T* x, bool again, Tape& tape) const {
      if (source) {
        if (!again) end_loss(groups, x, tape);
        return;
      }
      const auto start = tape.mark();
      T* normed = tape.allocate<T>(rows_of(groups) * config.data_dim);  // [groups, tokens, data_dim]
      nn::forward<T>(p->data_norm_, x, normed, rows_of(groups), tape);
      if (!again) {
        T* to = logits + first_of(groups) * config.vocabulary;
        kernels::multiply({p->logits_product(normed, to, rows_of(groups))}, tape);
      }
      tape.finish(start, EndRecord{normed});
    }
    void end_backward(const detail::Chunk& groups, T* x_gradient, Tape& tape) const {
      if (source) return;
      const auto saved = tape.pop<EndRecord>();
      T* normed = tape.scratch<T>(rows_of(groups) * config.data_dim);
      p->backward_logits(logits_gradient + first_of(groups) * config.vocabulary, saved->normed, normed, *gradient,
                         rows_of(groups), tape);
      backward_norm(normed, x_gradient, rows_of(groups), tape);
    }

   private:
    struct EndRecord {
      const T* normed;
    };

    /// The id before each of some groups' [groups, tokens], and 0 where a sequence begins.
    const std::int32_t* ids_before(const detail::Chunk& groups, Tape& tape) const {
      const Index before = groups.number % source->groups == 0 ? 0 : 1;  // that is asked for, too
      auto* all = tape.allocate<std::int32_t>((1 + groups.count) * config.tokens);
      fill(groups.number - before, groups.count + before, all + (1 - before) * config.tokens);
      std::int32_t* shifted = all + config.tokens - 1;
      for (Index i = 0; i < groups.count; ++i) {
        if ((groups.number + i) % source->groups == 0) shifted[i * config.tokens] = 0;
      }
      return shifted;
    }

    void fill(Index first, Index count, std::int32_t* to) const {
      source->fill(first, count, to);
      check_ids(to, count * config.tokens);
    }

    void backward_norm(const T* normed_gradient, T* x_gradient, Index rows, Tape& tape) const {
      std::fill_n(x_gradient, rows * config.data_dim, T(0));
      nn::backward(p->data_norm_, normed_gradient, x_gradient, gradient->data_norm_, rows, tape);
    }

    /// Adds to the total and, with a gradient, to that, and makes x its own gradient.
    void end_loss(const detail::Chunk& groups, T* x, Tape& tape) const {
      const Tape::Recording recording(tape, gradient != nullptr);
      const Arena::Scope scope(tape.arena());
      const Index rows = rows_of(groups), piece = std::min(rows, detail::logit_rows(config.vocabulary));
      T* normed = tape.scratch<T>(rows * config.data_dim);  // and then its gradient
      T* normed_gradient = gradient ? tape.scratch<T>(piece * config.data_dim) : nullptr;
      T* logits_of_piece = tape.scratch<T>(piece * config.vocabulary);
      T* losses = tape.scratch<T>(piece);
      auto* targets = tape.scratch<std::int32_t>(rows);
      fill(groups.number, groups.count, targets);
      nn::forward<T>(p->data_norm_, x, normed, rows, tape);
      for (Index first = 0; first < rows; first += piece) {
        const Index count = std::min(piece, rows - first);
        T* of_piece = normed + first * config.data_dim;
        kernels::multiply({p->logits_product(of_piece, logits_of_piece, count)}, tape);
        kernels::cross_entropy<T>({logits_of_piece, targets + first, losses, gradient ? logits_of_piece : nullptr},
                                  static_cast<T>(1 / static_cast<double>(all_rows)), count, config.vocabulary,
                                  tape.executor());
        for (Index i = 0; i < count; ++i) *total += static_cast<double>(losses[i]);
        if (!gradient) continue;
        p->backward_logits(logits_of_piece, of_piece, normed_gradient, *gradient, count, tape);
        std::copy_n(normed_gradient, count * config.data_dim, of_piece);
      }
      if (gradient) backward_norm(normed, x, rows, tape);
    }
  };

  struct Record {
    Sizes sizes;
    Ends ends;
    T *x, *z;  // for their gradients
  };

  static Sizes check(const char* name, const Ids& ids, Team* team) {
    detail::require_shape(ids, {-1, detail::groups_wanted<config>(team), config.tokens}, name);
    const Index batch = ids.dimension(0), groups = ids.dimension(1);
    detail::require_counts<config>(batch, groups, config.tokens);
    check_ids(ids.data(), ids.size());
    return detail::sizes_of<config>(batch, groups, config.tokens, team);
  }
  static void check_ids(const std::int32_t* ids, Index count) {
    for (Index i = 0; i < count; ++i) {
      require(ids[i] >= 0 && ids[i] < config.vocabulary, "ids must be in 0 .. ", config.vocabulary - 1, ", not ",
              ids[i]);
    }
  }
  static Sizes check(const GroupSource<std::int32_t>& ids, Team* team) {
    detail::require_source<config>(ids, config.tokens);
    require(!ids.gradient, "ids have no gradient, so their source takes none");
    return detail::sizes_of<config>(ids, config.tokens, team);
  }
  static GroupSource<std::int32_t> source_of(const Ids& ids) {
    check("the sequence", ids, nullptr);
    return {.batch = ids.dimension(0),
            .groups = ids.dimension(1),
            .fill = [from = ids.data()](Index first, Index count, std::int32_t* to) {
              std::copy_n(from + first * config.tokens, count * config.tokens, to);
            }};
  }

  void run(const Ends& ends, const Sizes& sizes, Tape& tape, const Trace<T>& trace, const Watch& watch = {}) const {
    const auto start = tape.mark();
    T* x = tape.allocate<T>(sizes.data_rows() * config.data_dim);      // [B, groups, tokens, data_dim]
    T* z = tape.allocate<T>(sizes.latent_rows() * config.latent_dim);  // [B, groups, latents, latent_dim]
    nn::copy_positions(latent_positions_, z, sizes.batch, sizes.first_group, sizes.groups, sizes.groups_of_example(),
                       {});
    trunk_.forward(ends, x, z, {}, sizes, tape, trace, watch);
    tape.finish(start, Record{sizes, ends, x, z});
  }

  void backward_trunk(Ends ends, AutoregressiveDecoder& gradient, Tape& tape, const Watch& watch = {}) const {
    const auto saved = tape.pop<Record>();
    const Sizes& sizes = saved->sizes;
    ends.p = this;
    ends.gradient = &gradient;
    std::fill_n(saved->z, sizes.latent_rows() * config.latent_dim, T(0));
    trunk_.backward(ends, saved->x, saved->z, {}, gradient.trunk_, sizes, tape, watch);
    nn::backward(latent_positions_, saved->z, gradient.latent_positions_, sizes.batch, sizes.first_group, sizes.groups,
                 tape);
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

  /// The mean cross entropy; with a gradient, the way back is gone to the end of the trunk.
  double run_loss(const GroupSource<std::int32_t>& ids, const Sizes& sizes, AutoregressiveDecoder* gradient, Tape& tape,
                  const Watch& watch) const {
    double total = 0;
    const Index rows = ids.batch * ids.groups * config.tokens;
    run({.p = this, .source = &ids, .total = &total, .all_rows = rows, .gradient = gradient}, sizes, tape, {}, watch);
    return detail::sum_over(sizes.team, total) / static_cast<double>(std::max<Index>(1, rows));
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
