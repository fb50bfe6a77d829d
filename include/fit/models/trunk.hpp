#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <vector>

#include <fit/models/arguments.hpp>
#include <fit/models/config.hpp>
#include <fit/nn/block.hpp>
#include <fit/nn/cross.hpp>
#include <fit/nn/recompute.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Told of the tokens after every part of every stage: groups first .. first + count - 1 of batch * groups in all, data
/// tokens [count, tokens, data_dim] after local and write, else latents [count, latents, latent_dim].
template <class T>
using Trace = std::function<void(std::size_t stage, Part part, Index first, Index count, const T* data)>;

namespace detail {

/// The layers of one stage of the trunk; which of them are there, its StagePlan says.
template <class T, TrunkConfig c>
struct Stage {
  static constexpr nn::CrossOptions cross{c.cross_context_norm, c.cross_mlp ? c.mlp_ratio : 0};
  static constexpr nn::CrossOptions conditioning{c.cross_context_norm, 0};
  using Local = nn::Block<T, c.data_dim, c.local_attention ? c.data_heads : 0, c.mlp_ratio>;
  using Condition = nn::Cross<T, c.latent_dim, c.latent_dim, c.latent_dim, c.latent_heads, conditioning>;

  std::vector<Local> local;
  std::optional<nn::Cross<T, c.latent_dim, c.data_dim, c.cross_dim(), c.cross_heads(), cross>> read;
  If<c.conditioned, std::optional<Condition>> condition;
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

/// The interleaved stages that the three models share. Chen and Li, arXiv 2305.12689, figure 1.
///
///   part       changes   sees                                             goes through in chunks of
///   write      data      latents of its group (autoregressive: before)    groups
///   local      data      data of its group (autoregressive: earlier)      groups
///   read       latents   data of its group                                groups
///   condition  latents   condition tokens of its example                  examples
///   global     latents   latents of its example (causal: no later group)  examples
///
/// Groups go through depth first: a chunk of them, of a fixed number of tokens, passes from the write of one stage to
/// the read of the next before the following chunk starts, so memory holds the inner activations of one chunk.
template <class T, TrunkConfig c>
class Trunk {
 public:
  static constexpr Plan plan = plan_of(c.layers);

  Trunk() : stages_(plan.count) {
    for (std::size_t i = 0; i < plan.count; ++i) {
      Stage<T, c>& stage = stages_[i];
      stage.local.resize(static_cast<std::size_t>(plan[i].local_blocks));
      stage.global.resize(static_cast<std::size_t>(plan[i].global_blocks));
      if (plan[i].reads) stage.read.emplace();
      if constexpr (c.conditioned) {
        if (plan[i].reads) stage.condition.emplace();
      }
      if (plan[i].writes) stage.write.emplace();
    }
  }

  static void visit(auto&& f, auto&... p) { f("stages", p.stages_...); }

  /// x [batch, groups, tokens, data_dim] and z [batch, groups, latents, latent_dim] in place.
  void forward(T* x, T* z, const Conditioning<T>& condition, const Sizes& sizes, Tape& tape,
               const Trace<T>& trace = {}) const {
    for (std::size_t i = 0; i < plan.count; ++i) {
      const auto start = tape.mark();
      const T* before = c.autoregressive && i > 0 ? latents_before(z, sizes, tape) : nullptr;
      const Pass pass{i, sizes, condition, before, tape, trace};
      const Chunks groups(sizes.all_groups(), sizes.tokens), examples(sizes.batch, sizes.groups * sizes.latents);
      for (Index k = 0; k < groups.count; ++k) {
        nn::forward_recomputed(groups_of(x, z, groups[k], sizes), tape,
                               [&](const auto& tokens) { forward_groups(pass, groups[k], tokens); });
      }
      tape.finish(start, Before{before});
      if (!plan[i].reads) continue;
      for (Index k = 0; k < examples.count; ++k) {
        nn::forward_recomputed(examples_of(z, examples[k], sizes), tape,
                               [&](const auto& tokens) { forward_examples(pass, examples[k], tokens.latents); });
      }
    }
  }

  /// x_gradient and z_gradient, of what came out and then of what went in, in place; adds to `gradient`.
  void backward(T* x_gradient, T* z_gradient, const Conditioning<T>& condition, Trunk& gradient, const Sizes& sizes,
                Tape& tape) const {
    const Trace<T> untraced;
    for (std::size_t i = plan.count; i-- > 0;) {
      Pass pass{i, sizes, condition, nullptr, tape, untraced};
      const Chunks groups(sizes.all_groups(), sizes.tokens), examples(sizes.batch, sizes.groups * sizes.latents);
      for (Index k = plan[i].reads ? examples.count : 0; k-- > 0;) {
        T* z = examples_of(z_gradient, examples[k], sizes).latents;
        nn::backward_recomputed<T>(
            tape, [&](const auto& tokens) { forward_examples(pass, examples[k], tokens.latents); },
            [&] { backward_examples(pass, examples[k], z, gradient); });
      }
      const auto saved = tape.pop<Before>();
      pass.before = saved->latents;
      T* before_gradient = pass.before ? zeros<T>(sizes.latent_rows() * c.latent_dim, tape) : nullptr;
      for (Index k = groups.count; k-- > 0;) {
        const auto gradients = groups_of(x_gradient, z_gradient, groups[k], sizes);
        nn::backward_recomputed<T>(
            tape, [&](const auto& tokens) { forward_groups(pass, groups[k], tokens); },
            [&] { backward_groups(pass, groups[k], gradients, before_gradient, gradient); });
      }
      if (before_gradient) add_latents_before(before_gradient, z_gradient, sizes);
    }
  }

  const std::vector<Stage<T, c>>& stages() const { return stages_; }

 private:
  /// Whole sequences first .. first + count - 1.
  struct Chunk {
    Index first, count;
  };
  /// All sequences, some thousands of tokens at a time.
  struct Chunks {
    Index sequences, each, count;

    Chunks(Index all, Index length)
        : sequences(all), each(std::max<Index>(1, 4096 / length)), count((all + each - 1) / each) {}
    Chunk operator[](Index k) const { return {k * each, std::min(each, sequences - k * each)}; }
  };

  /// What the parts of a stage are told.
  struct Pass {
    std::size_t stage;
    const Sizes& sizes;
    const Conditioning<T>& condition;
    const T* before;  // see latents_before(); null where groups are written from their own latents
    Tape& tape;
    const Trace<T>& trace;

    void tell(std::size_t of_stage, Part part, Index first, Index count, const T* data) const {
      if (trace) trace(of_stage, part, first, count, data);
    }
  };
  struct Before {
    const T* latents;
  };

  /// What an autoregressive model's groups are written from, [batch, groups, latents, latent_dim]: the latents of the
  /// group before, zeros for the first. A copy, as the groups' reads change the latents in place.
  static const T* latents_before(const T* z, const Sizes& sizes, Tape& tape) {
    const Index group = sizes.latents * c.latent_dim, example = sizes.groups * group;
    T* before = tape.allocate<T>(sizes.batch * example);
    for (Index b = 0; b < sizes.batch; ++b) {
      std::fill_n(before + b * example, group, T(0));
      std::copy_n(z + b * example, example - group, before + b * example + group);
    }
    return before;
  }
  static void add_latents_before(const T* before_gradient, T* z_gradient, const Sizes& sizes) {
    const Index group = sizes.latents * c.latent_dim, example = sizes.groups * group;
    for (Index b = 0; b < sizes.batch; ++b) {
      const T* from = before_gradient + b * example + group;
      T* to = z_gradient + b * example;
      for (Index i = 0; i < example - group; ++i) to[i] += from[i];
    }
  }

  static nn::Tokens<T> groups_of(T* x, T* z, const Chunk& groups, const Sizes& sizes) {
    const Index data = sizes.tokens * c.data_dim, latents = sizes.latents * c.latent_dim;
    return {x + groups.first * data, groups.count * data, z + groups.first * latents, groups.count * latents};
  }
  static nn::Tokens<T> examples_of(T* z, const Chunk& examples, const Sizes& sizes) {
    const Index latents = sizes.groups * sizes.latents * c.latent_dim;
    return {nullptr, 0, z + examples.first * latents, examples.count * latents};
  }

  /// Random numbers of a block's drop-outs: its own, and the same for a sequence in whatever chunk it comes.
  static nn::Draws draws(Part part, std::size_t stage, std::size_t block, const Chunk& chunk, const Tape& tape) {
    return {tape.random().fork(static_cast<Index>(part), stage, block), chunk.first};
  }

  /// What groups do by themselves on their way from one stage's global blocks to the next one's.
  void forward_groups(const Pass& pass, const Chunk& groups, const nn::Tokens<T>& tokens) const {
    const auto& [i, sizes, condition, before, tape, trace] = pass;
    const Stage<T, c>& stage = stages_[i];
    T* x = tokens.data;     // [groups, tokens, data_dim]
    T* z = tokens.latents;  // [groups, latents, latent_dim]
    if (i > 0) {
      const T* context = before ? before + groups.first * sizes.latents * c.latent_dim : z;
      nn::forward(*stages_[i - 1].write, x, context, {groups.count, sizes.tokens, sizes.latents}, tape);
      pass.tell(i - 1, Part::write, groups.first, groups.count, x);
    }
    const auto mask = c.autoregressive ? kernels::Mask::causal() : kernels::Mask::none();
    for (std::size_t j = 0; j < stage.local.size(); ++j) {
      nn::forward(stage.local[j], x, groups.count, sizes.tokens, mask, draws(Part::local, i, j, groups, tape), tape);
    }
    pass.tell(i, Part::local, groups.first, groups.count, x);
    if (stage.read) {
      nn::forward<T>(*stage.read, z, x, {groups.count, sizes.latents, sizes.tokens}, tape);
      pass.tell(i, Part::read, groups.first, groups.count, z);
    }
  }

  void backward_groups(const Pass& pass, const Chunk& groups, const nn::Tokens<T>& gradients, T* before_gradient,
                       Trunk& gradient) const {
    const auto& [i, sizes, condition, before, tape, trace] = pass;
    const Stage<T, c>& stage = stages_[i];
    Stage<T, c>& to = gradient.stages_[i];
    T* x = gradients.data;     // [groups, tokens, data_dim]
    T* z = gradients.latents;  // [groups, latents, latent_dim]
    if (stage.read) nn::backward(*stage.read, z, x, *to.read, {groups.count, sizes.latents, sizes.tokens}, tape);
    for (std::size_t j = stage.local.size(); j-- > 0;) {
      nn::backward(stage.local[j], x, to.local[j], groups.count, sizes.tokens, tape);
    }
    if (i > 0) {
      T* context = before_gradient ? before_gradient + groups.first * sizes.latents * c.latent_dim : z;
      nn::backward(*stages_[i - 1].write, x, context, *gradient.stages_[i - 1].write,
                   {groups.count, sizes.tokens, sizes.latents}, tape);
    }
  }

  /// What the latents z [examples, groups, latents, latent_dim] do over all their groups.
  void forward_examples(const Pass& pass, const Chunk& examples, T* z) const {
    const auto& [i, sizes, condition, before, tape, trace] = pass;
    const Index length = sizes.groups * sizes.latents;
    const auto tell = [&](Part part) {
      pass.tell(pass.stage, part, examples.first * pass.sizes.groups, examples.count * pass.sizes.groups, z);
    };
    if constexpr (c.conditioned) {
      nn::forward(*stages_[i].condition, z, condition.tokens + examples.first * condition.count * c.latent_dim,
                  {examples.count, length, condition.count}, tape);
      tell(Part::condition);
    }
    const auto mask = c.mask == LatentMask::causal ? kernels::Mask::chunk_causal(sizes.latents) : kernels::Mask::none();
    for (std::size_t j = 0; j < stages_[i].global.size(); ++j) {
      nn::forward(stages_[i].global[j], z, examples.count, length, mask, draws(Part::global, i, j, examples, tape),
                  tape);
    }
    tell(Part::global);
  }

  void backward_examples(const Pass& pass, const Chunk& examples, T* z_gradient, Trunk& gradient) const {
    const auto& [i, sizes, condition, before, tape, trace] = pass;
    const Index length = sizes.groups * sizes.latents;
    for (std::size_t j = stages_[i].global.size(); j-- > 0;) {
      nn::backward(stages_[i].global[j], z_gradient, gradient.stages_[i].global[j], examples.count, length, tape);
    }
    if constexpr (c.conditioned) {
      nn::backward(*stages_[i].condition, z_gradient,
                   condition.gradient + examples.first * condition.count * c.latent_dim, *gradient.stages_[i].condition,
                   {examples.count, length, condition.count}, tape);
    }
  }

  std::vector<Stage<T, c>> stages_;
};

}  // namespace detail

}  // namespace FIT_ABI
}  // namespace fit
