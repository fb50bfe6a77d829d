#pragma once

#include <functional>
#include <optional>
#include <vector>

#include <fit/models/arguments.hpp>
#include <fit/models/config.hpp>
#include <fit/nn/block.hpp>
#include <fit/nn/cross.hpp>
#include <fit/nn/recompute.hpp>

namespace fit::inline FIT_ABI {

/// One stage of the trunk: local blocks on the data tokens of each group, and, unless it is a last stage without them,
/// global blocks on the latents of all groups, which read the data before and write to it afterwards.
template <class T, TrunkConfig c>
struct Stage {
  static constexpr nn::CrossOptions cross{c.cross_context_norm, c.cross_mlp ? c.mlp_ratio : 0};
  static constexpr nn::CrossOptions conditioning{c.cross_context_norm, 0};
  using Local = std::conditional_t<c.local_attention, nn::Block<T, c.data_dim, c.data_heads, c.mlp_ratio>,
                                   nn::MLPBlock<T, c.data_dim, c.mlp_ratio>>;

  std::vector<Local> local;
  std::optional<nn::Cross<T, c.latent_dim, c.data_dim, c.cross_dim(), c.cross_heads(), cross>> read;
  If<c.conditioned, std::optional<nn::Cross<T, c.latent_dim, c.latent_dim, c.latent_dim, c.latent_heads, conditioning>>>
      condition;
  std::vector<nn::Block<T, c.latent_dim, c.latent_heads, c.mlp_ratio>> global;
  std::optional<nn::Cross<T, c.data_dim, c.latent_dim, c.cross_dim(), c.cross_heads(), cross>> write;

  static void visit(auto&& f, auto&... p) {
    f("local", p.local...);
    f("read", p.read...);
    f("condition", p.condition...);
    f("global", p.global...);
    f("write", p.write...);
  }
};

/// What the latents of an example attend to besides the data: tokens [batch, count, latent_dim], or none, and where to
/// add their gradient on the way back.
template <class T>
struct Conditioning {
  const T* tokens = nullptr;
  Index count = 0;
  T* gradient = nullptr;
};

/// Parts of a stage.
enum class Part { local, read, condition, global, write };

/// Told of the tokens after every part of every stage: groups first .. first + count - 1 of batch * groups in all, data
/// tokens [count, tokens, data_dim] after local and write, else latents [count, latents, latent_dim].
template <class T>
using Trace = std::function<void(std::size_t stage, Part part, Index first, Index count, const T* data)>;

/// The interleaved stages that the three models share. Chen and Li, arXiv 2305.12689, figure 1.
///
/// Groups go through depth first: a chunk of them, of a fixed number of tokens, passes from the write of one stage to
/// the read of the next before the following chunk starts, so memory holds the inner activations of one chunk.
template <class T, TrunkConfig c>
class Trunk {
 public:
  static constexpr Schedule schedule = parse_layers(c.layers.view());

  Trunk() : stages_(schedule.count) {
    for (std::size_t i = 0; i < schedule.count; ++i) {
      Stage<T, c>& stage = stages_[i];
      stage.local.resize(static_cast<std::size_t>(schedule.stages[i].local_blocks));
      stage.global.resize(static_cast<std::size_t>(schedule.stages[i].global_blocks));
      if (stage.global.empty()) continue;
      stage.read.emplace();
      if constexpr (c.conditioned) stage.condition.emplace();
      if (i + 1 < schedule.count) stage.write.emplace();
    }
  }

  static void visit(auto&& f, auto&... p) { f("stages", p.stages_...); }

  /// x [batch, groups, tokens, data_dim] and z [batch, groups, latents, latent_dim] in place.
  void forward(T* x, T* z, const Conditioning<T>& condition, Index batch, Tape& tape,
               const Trace<T>& trace = {}) const {
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      const auto start = tape.mark();
      const T* shifted = c.autoregressive && i > 0 ? shift(z, batch, tape) : nullptr;
      for_chunks(batch * c.groups, c.tokens, [&](Index first, Index count) {
        nn::forward_recomputed(groups_of(x, z, first, count), tape, [&](const nn::Streams<T>& streams) {
          forward_groups(i, streams.data, streams.latents, shifted, first, count, tape, trace);
        });
      });
      tape.finish(start, ShiftRecord{shifted});
      if (stages_[i].global.empty()) continue;
      for_chunks(batch, c.groups * c.latents, [&](Index first, Index count) {
        nn::forward_recomputed(examples_of(z, first, count), tape, [&](const nn::Streams<T>& streams) {
          forward_examples(i, streams.latents, condition, first, count, tape, trace);
        });
      });
    }
  }

  /// x_gradient and z_gradient, of what came out and then of what went in, in place; adds to `gradient`.
  void backward(T* x_gradient, T* z_gradient, const Conditioning<T>& condition, Trunk& gradient, Index batch,
                Tape& tape) const {
    for (std::size_t i = stages_.size(); i-- > 0;) {
      if (!stages_[i].global.empty()) {
        for_chunks_backward(batch, c.groups * c.latents, [&](Index first, Index count) {
          nn::backward_recomputed<T>(
              tape,
              [&](const nn::Streams<T>& streams) {
                forward_examples(i, streams.latents, condition, first, count, tape, {});
              },
              [&] {
                backward_examples(i, examples_of(z_gradient, first, count).latents, condition, first, gradient, count,
                                  tape);
              });
        });
      }
      const auto saved = tape.template pop<ShiftRecord>();
      T* shifted_gradient = saved->shifted ? detail::zeros<T>(batch * c.groups * latent_size, tape) : nullptr;
      for_chunks_backward(batch * c.groups, c.tokens, [&](Index first, Index count) {
        nn::backward_recomputed<T>(
            tape,
            [&](const nn::Streams<T>& streams) {
              forward_groups(i, streams.data, streams.latents, saved->shifted, first, count, tape, {});
            },
            [&] {
              backward_groups(i, groups_of(x_gradient, z_gradient, first, count), shifted_gradient, first, gradient,
                              count, tape);
            });
      });
      if (shifted_gradient) add_shifted(shifted_gradient, z_gradient, batch);
    }
  }

  const std::vector<Stage<T, c>>& stages() const { return stages_; }

 private:
  static constexpr Index chunk_tokens = 4096;
  static constexpr Index data_size = Index{c.tokens} * c.data_dim, latent_size = Index{c.latents} * c.latent_dim;

  struct ShiftRecord {
    const T* shifted;
  };

  /// What an autoregressive model's groups are written from, [batch, groups, latents, latent_dim]: the latents of the
  /// group before, zeros for the first. A copy, as the groups' reads change the latents in place.
  static const T* shift(const T* z, Index batch, Tape& tape) {
    T* shifted = tape.template allocate<T>(batch * c.groups * latent_size);
    for (Index b = 0; b < batch; ++b) {
      T* to = shifted + b * c.groups * latent_size;
      std::fill_n(to, latent_size, T(0));
      std::copy_n(z + b * c.groups * latent_size, (c.groups - 1) * latent_size, to + latent_size);
    }
    return shifted;
  }
  static void add_shifted(const T* shifted_gradient, T* z_gradient, Index batch) {
    for (Index b = 0; b < batch; ++b) {
      const T* from = shifted_gradient + (b * c.groups + 1) * latent_size;
      T* to = z_gradient + b * c.groups * latent_size;
      for (Index i = 0; i < (c.groups - 1) * latent_size; ++i) to[i] += from[i];
    }
  }

  static nn::AttentionLengths lengths(Index sequences, Index queries, Index keys) {
    return {sequences, queries, keys, {}};
  }

  static nn::Streams<T> groups_of(T* x, T* z, Index first, Index count) {
    return {x + first * data_size, count * data_size, z + first * latent_size, count * latent_size};
  }
  static nn::Streams<T> examples_of(T* z, Index first, Index count) {
    return {nullptr, 0, z + first * c.groups * latent_size, count * c.groups * latent_size};
  }

  /// body(first, count) for chunks of whole sequences, of about chunk_tokens, in order or from the last one back.
  template <class Body>
  static void for_chunks(Index sequences, Index length, Body&& body) {
    const Index chunk = std::max<Index>(1, chunk_tokens / length);
    for (Index first = 0; first < sequences; first += chunk) body(first, std::min(chunk, sequences - first));
  }
  template <class Body>
  static void for_chunks_backward(Index sequences, Index length, Body&& body) {
    const Index chunk = std::max<Index>(1, chunk_tokens / length);
    for (Index first = (sequences - 1) / chunk * chunk; first >= 0 && first < sequences; first -= chunk) {
      body(first, std::min(chunk, sequences - first));
    }
  }

  /// What `count` groups do by themselves on their way from one stage's global blocks to the next one's.
  void forward_groups(std::size_t i, T* x, T* z, const T* shifted, Index first, Index count, Tape& tape,
                      const Trace<T>& trace) const {
    const auto tell = [&](std::size_t stage, Part part, const T* data) {
      if (trace) trace(stage, part, first, count, data);
    };
    if (i > 0) {
      const T* context = shifted ? shifted + first * latent_size : z;
      nn::forward(*stages_[i - 1].write, x, context, lengths(count, c.tokens, c.latents), tape);
      tell(i - 1, Part::write, x);
    }
    const auto mask = c.autoregressive ? kernels::Mask::causal() : kernels::Mask::none();
    for (const auto& block : stages_[i].local) nn::forward(block, x, count, c.tokens, mask, tape);
    tell(i, Part::local, x);
    if (stages_[i].read) {
      nn::forward(*stages_[i].read, z, static_cast<const T*>(x), lengths(count, c.latents, c.tokens), tape);
      tell(i, Part::read, z);
    }
  }

  void backward_groups(std::size_t i, const nn::Streams<T>& gradients, T* shifted_gradient, Index first,
                       Trunk& gradient, Index count, Tape& tape) const {
    const Stage<T, c>& stage = stages_[i];
    Stage<T, c>& to = gradient.stages_[i];
    T *x = gradients.data, *z = gradients.latents;
    if (stage.read) nn::backward(*stage.read, z, x, *to.read, lengths(count, c.latents, c.tokens), tape);
    for (std::size_t j = stage.local.size(); j-- > 0;) {
      nn::backward(stage.local[j], x, to.local[j], count, c.tokens, tape);
    }
    if (i > 0) {
      T* context = shifted_gradient ? shifted_gradient + first * latent_size : z;
      nn::backward(*stages_[i - 1].write, x, context, *gradient.stages_[i - 1].write,
                   lengths(count, c.tokens, c.latents), tape);
    }
  }

  /// What the latents of `count` examples do over all their groups.
  void forward_examples(std::size_t i, T* z, const Conditioning<T>& condition, Index first, Index count, Tape& tape,
                        const Trace<T>& trace) const {
    const auto tell = [&](Part part) {
      if (trace) trace(i, part, first * c.groups, count * c.groups, z);
    };
    if constexpr (c.conditioned) {
      nn::forward(*stages_[i].condition, z, condition.tokens + first * condition.count * c.latent_dim,
                  lengths(count, c.groups * c.latents, condition.count), tape);
      tell(Part::condition);
    }
    const auto mask = c.mask == Mask::causal ? kernels::Mask::chunk_causal(c.latents) : kernels::Mask::none();
    for (const auto& block : stages_[i].global) nn::forward(block, z, count, c.groups * c.latents, mask, tape);
    tell(Part::global);
  }

  void backward_examples(std::size_t i, T* z_gradient, const Conditioning<T>& condition, Index first, Trunk& gradient,
                         Index count, Tape& tape) const {
    for (std::size_t j = stages_[i].global.size(); j-- > 0;) {
      nn::backward(stages_[i].global[j], z_gradient, gradient.stages_[i].global[j], count, c.groups * c.latents, tape);
    }
    if constexpr (c.conditioned) {
      nn::backward(*stages_[i].condition, z_gradient, condition.gradient + first * condition.count * c.latent_dim,
                   *gradient.stages_[i].condition, lengths(count, c.groups * c.latents, condition.count), tape);
    }
  }

  std::vector<Stage<T, c>> stages_;
};

}  // namespace fit::inline FIT_ABI
