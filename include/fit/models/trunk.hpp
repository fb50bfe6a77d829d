#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include <fit/models/arguments.hpp>
#include <fit/models/chunks.hpp>
#include <fit/models/latents_before.hpp>
#include <fit/models/stage_layers.hpp>
#include <fit/nn/recompute.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Told of the tokens after every part of every stage: groups first .. first + count - 1 of batch * groups in all, data
/// tokens [count, tokens, data_dim] after local and write, else latents [count, latents, latent_dim].
template <class T>
using Trace = std::function<void(std::size_t stage, Part part, Index first, Index count, const T* data)>;

namespace detail {

/// The interleaved stages that the three models share. Chen and Li, arXiv 2305.12689, figure 1.
///
///   part       changes   sees                                             goes through in chunks of
///   start      data      the model's input of its group                   groups
///   write      data      latents of its group (autoregressive: before)    groups
///   local      data      data of its group (autoregressive: earlier)      groups
///   read       latents   data of its group                                groups
///   end        -         data of its group                                groups
///   condition  latents   condition tokens of its example                  examples
///   global     latents   latents of its example (causal: no later group)  examples
///
/// Groups go through depth first: a chunk of them, of a fixed number of tokens, passes from the write of one stage to
/// the read of the next before the following chunk starts, so memory holds the inner activations of one chunk. As a
/// group's data follow from its own input and from the latents that are written into it, a chunk of them can be made
/// again at any stage from the latents that were kept.
///
/// Start and end are the model's: `ends` has, for a chunk of groups and x [groups, tokens, data_dim] of it,
///
///     void start(const Chunk&, T* x, Tape&) const;                            // writes x
///     void start_backward(const Chunk&, const T* x_gradient, Tape&) const;
///     void end(const Chunk&, T* x, bool again, Tape&) const;                  // reads x; again: for its records alone
///     void end_backward(const Chunk&, T* x_gradient, Tape&) const;            // writes x_gradient
///
/// A loss may go back at once: its end() makes x the gradient of x, and its end_backward() has nothing left to do.
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

  /// x [batch, groups, tokens, data_dim], which is left as the last stage has it, and z [batch, groups, latents,
  /// latent_dim] in place.
  template <class Ends>
  void forward(const Ends& ends, T* x, T* z, const Conditioning<T>& condition, const Sizes& sizes, Tape& tape,
               const Trace<T>& trace = {}, const Watch& watch = {}) const {
    check();
    const auto start = tape.mark();
    Kept* kept = tape.allocate<Kept>(static_cast<Index>(plan.count));
    for (std::size_t i = 0; i < plan.count; ++i) {
      kept[i] = keep(i, x, z, sizes, tape);
      const Pass<Ends> pass{ends, i, sizes, condition, kept, tape, trace, watch, false};
      const Chunks groups = groups_of(sizes), examples = examples_of(sizes);
      for (Index k = 0; k < groups.count; ++k) {
        const Tape::Recording recording(tape, tape.recording() && tape.options().recompute == Recompute::none);
        forward_groups(pass, groups[k], data_of(x, groups[k], sizes), latents_of(z, groups[k], sizes), false);
        pass.report(Part::local, groups[k].first + groups[k].count, groups.sequences);
      }
      if (!plan[i].reads) continue;
      for (Index k = 0; k < examples.count; ++k)
        forward_examples(pass, examples[k], examples[k].of(z, example_size(sizes)));
    }
    tape.finish(start, Record{kept});
  }

  /// x_gradient and z_gradient, of what came out and then of what went in, in place; the first is written by the ends,
  /// into the memory of forward's x, too. Adds to `gradient`.
  template <class Ends>
  void backward(const Ends& ends, T* x_gradient, T* z_gradient, const Conditioning<T>& condition, Trunk& gradient,
                const Sizes& sizes, Tape& tape, const Watch& watch = {}) const {
    check();
    gradient.check();
    const Trace<T> untraced;
    const auto saved = tape.pop<Record>();
    const Kept* kept = saved->kept;
    for (std::size_t i = plan.count; i-- > 0;) {
      const Pass<Ends> pass{ends, i, sizes, condition, kept, tape, untraced, watch, true};
      const Chunks groups = groups_of(sizes), examples = examples_of(sizes);
      for (Index k = plan[i].reads ? examples.count : 0; k-- > 0;) {
        backward_examples(pass, examples[k], examples[k].of(z_gradient, example_size(sizes)), gradient);
      }
      const Arena::Scope scope(tape.arena());
      T* before_gradient = kept[i].before ? zeros<T>(sizes.latent_rows() * c.latent_dim, tape) : nullptr;
      for (Index k = groups.count; k-- > 0;) {
        const Arena::Scope chunk(tape.arena());
        if (tape.options().recompute != Recompute::none) run_again(pass, groups[k]);
        backward_groups(pass, groups[k], data_of(x_gradient, groups[k], sizes),
                        latents_of(z_gradient, groups[k], sizes), before_gradient, gradient);
        pass.report(Part::local, groups.sequences - groups[k].first, groups.sequences);
      }
      if (before_gradient) add_latents_before(before_gradient, z_gradient, c.latent_dim, sizes, tape);
      if (!tape.finished()) continue;
      for_each_parameter([&](const ParameterName&, auto p) { tape.finished()(p.data, p.size); }, gradient.stages_[i]);
      tape.finished()(nullptr, 0);
    }
  }

  const std::vector<Stage<T, c>>& stages() const { return stages_; }

 private:
  void check() const { require(stages_.size() == plan.count, "a model is used whose stages were moved away"); }

  /// What is left of the beginning of a stage, as long as it may be needed again.
  struct Kept {
    const T* before = nullptr;   // see latents_before(); null where groups are written from their own latents
    const T* latents = nullptr;  // [batch, groups, latents, latent_dim], where something is computed again
    const T* data = nullptr;     // [batch, groups, tokens, data_dim], where streaming goes on from here
  };
  struct Record {
    const Kept* kept;
  };

  /// What the parts of a stage are told.
  template <class Ends>
  struct Pass {
    const Ends& ends;
    std::size_t stage;
    const Sizes& sizes;
    const Conditioning<T>& condition;
    const Kept* kept;
    Tape& tape;
    const Trace<T>& trace;
    const Watch& watch;
    bool backward;

    void report(Part part, Index done, Index all) const {
      if (watch) watch({stage, part, backward, done, all});
    }
    void tell(std::size_t of_stage, Part part, Index first, Index count, const T* data) const {
      if (trace) trace(of_stage, part, first, count, data);
    }
  };

  static T* copy_of(const T* from, Index size, Tape& tape) {
    T* to = tape.allocate<T>(size);
    std::copy_n(from, size, to);
    return to;
  }

  static Kept keep(std::size_t i, const T* x, const T* z, const Sizes& sizes, Tape& tape) {
    Kept kept;
    if (c.autoregressive && i > 0) kept.before = latents_before(z, c.latent_dim, sizes, tape);
    if (!tape.recording() || tape.options().recompute == Recompute::none) return kept;
    const auto every =
        static_cast<std::size_t>(tape.options().recompute == Recompute::stage ? 1 : tape.options().keep_data_every);
    kept.latents = copy_of(z, sizes.latent_rows() * c.latent_dim, tape);
    if (i > 0 && every > 0 && i % every == 0) kept.data = copy_of(x, sizes.data_rows() * c.data_dim, tape);
    return kept;
  }

  template <class U>
  static U* data_of(U* x, const Chunk& groups, const Sizes& sizes) {
    return groups.of(x, sizes.tokens * c.data_dim);
  }
  template <class U>
  static U* latents_of(U* z, const Chunk& groups, const Sizes& sizes) {
    return groups.of(z, sizes.latents * c.latent_dim);
  }
  static Index example_size(const Sizes& sizes) { return sizes.groups * sizes.latents * c.latent_dim; }

  /// Random numbers of a block's drop-outs: its own, and the same for a sequence in whatever chunk it comes.
  static nn::Draws draws(Part part, std::size_t stage, std::size_t block, const Chunk& chunk, const Tape& tape) {
    return {tape.random().fork(static_cast<Index>(part), stage, block), chunk.number};
  }

  /// The data tokens x [groups, tokens, data_dim] of some groups, from the end of one stage's local blocks to that of
  /// the next one's: from the latents z [groups, latents, latent_dim] that stage i starts with.
  template <class Ends>
  void forward_data(const Pass<Ends>& pass, std::size_t i, const Chunk& groups, T* x, const T* z) const {
    const Sizes& sizes = pass.sizes;
    Tape& tape = pass.tape;
    if (i == 0) pass.ends.start(groups, x, tape);
    if (i > 0) {
      const T* before = pass.kept[i].before;
      const T* context = before ? latents_of(before, groups, sizes) : z;
      nn::forward(*stages_[i - 1].write, x, context, {groups.count, sizes.tokens, sizes.latents}, tape);
      pass.tell(i - 1, Part::write, groups.number, groups.count, x);
    }
    for (std::size_t j = 0; j < stages_[i].local.size(); ++j) {
      nn::forward(stages_[i].local[j], x, groups.count, sizes.tokens, c.data_mask(),
                  draws(Part::local, i, j, groups, tape), tape);
    }
    pass.tell(i, Part::local, groups.number, groups.count, x);
  }

  /// What groups do by themselves on their way from one stage's global blocks to the next one's.
  template <class Ends>
  void forward_groups(const Pass<Ends>& pass, const Chunk& groups, T* x, T* z, bool again) const {
    const auto& read = stages_[pass.stage].read;
    forward_data(pass, pass.stage, groups, x, z);
    if (read) {
      nn::forward<T>(*read, z, x, {groups.count, pass.sizes.latents, pass.sizes.tokens}, pass.tape);
      pass.tell(pass.stage, Part::read, groups.number, groups.count, z);
    }
    if (pass.stage + 1 == plan.count) pass.ends.end(groups, x, again, pass.tape);
  }

  /// Leaves the records of forward_groups() once more.
  template <class Ends>
  void run_again(const Pass<Ends>& pass, const Chunk& groups) const {
    Tape& tape = pass.tape;
    const Sizes& sizes = pass.sizes;
    const Kept* kept = pass.kept;
    const std::size_t i = pass.stage;
    const Index size = groups.count * sizes.tokens * c.data_dim;
    const Index latents_size = groups.count * sizes.latents * c.latent_dim;
    T* x = tape.scratch<T>(size);
    T* z = tape.scratch<T>(latents_size);
    std::size_t from = i;
    while (from > 0 && !kept[from].data) --from;
    if (kept[from].data) std::copy_n(data_of(kept[from].data, groups, sizes), size, x);
    {
      const Tape::Recording unrecorded(tape, false);
      for (; from < i; ++from) forward_data(pass, from, groups, x, latents_of(kept[from].latents, groups, sizes));
    }
    std::copy_n(latents_of(kept[i].latents, groups, sizes), latents_size, z);
    forward_groups(pass, groups, x, z, true);
  }

  template <class Ends>
  void backward_groups(const Pass<Ends>& pass, const Chunk& groups, T* x_gradient, T* z_gradient, T* before_gradient,
                       Trunk& gradient) const {
    const std::size_t i = pass.stage;
    const Sizes& sizes = pass.sizes;
    Tape& tape = pass.tape;
    const Stage<T, c>& stage = stages_[i];
    Stage<T, c>& to = gradient.stages_[i];
    if (i + 1 == plan.count) pass.ends.end_backward(groups, x_gradient, tape);
    if (stage.read) {
      nn::backward(*stage.read, z_gradient, x_gradient, *to.read, {groups.count, sizes.latents, sizes.tokens}, tape);
    }
    for (std::size_t j = stage.local.size(); j-- > 0;) {
      nn::backward(stage.local[j], x_gradient, to.local[j], groups.count, sizes.tokens, tape);
    }
    if (i > 0) {
      T* context = before_gradient ? latents_of(before_gradient, groups, sizes) : z_gradient;
      nn::backward(*stages_[i - 1].write, x_gradient, context, *gradient.stages_[i - 1].write,
                   {groups.count, sizes.tokens, sizes.latents}, tape);
    }
    if (i == 0) pass.ends.start_backward(groups, x_gradient, tape);
  }

  /// What of the latents' parts is computed again by itself: all of a stage together, or each of them.
  static bool again_together(const Tape& tape) { return tape.options().recompute == Recompute::stage; }
  static bool again_alone(const Tape& tape) { return tape.options().recompute == Recompute::stream; }

  /// What the latents z [examples, groups, latents, latent_dim] do over all their groups.
  template <class Ends>
  void forward_examples(const Pass<Ends>& pass, const Chunk& examples, T* z) const {
    const Index size = examples.count * example_size(pass.sizes);
    nn::forward_recomputed(z, size, again_together(pass.tape), pass.tape,
                           [&](T* x) { forward_parts(pass, examples, x); });
  }

  template <class Ends>
  void backward_examples(const Pass<Ends>& pass, const Chunk& examples, T* z_gradient, Trunk& gradient) const {
    const Index length = pass.sizes.groups * pass.sizes.latents;
    const auto blocks = static_cast<Index>(stages_[pass.stage].global.size());
    const auto backward_all = [&] {
      for (std::size_t j = stages_[pass.stage].global.size(); j-- > 0;) {
        nn::backward_recomputed<T>(
            again_alone(pass.tape), pass.tape, [&](T* z) { forward_global(pass, examples, j, z, true); },
            [&] {
              nn::backward(stages_[pass.stage].global[j], z_gradient, gradient.stages_[pass.stage].global[j],
                           examples.count, length, pass.tape);
            });
        const Index after = pass.sizes.batch - examples.first - examples.count;
        pass.report(Part::global, after * blocks + examples.count * (blocks - static_cast<Index>(j)),
                    pass.sizes.batch * blocks);
      }
      if constexpr (c.conditioned) {
        nn::backward_recomputed<T>(
            again_alone(pass.tape), pass.tape, [&](T* z) { forward_condition(pass, examples, z); },
            [&] {
              const Conditioning<T>& to = pass.condition;
              nn::backward(*stages_[pass.stage].condition, z_gradient,
                           to.gradient + examples.first * to.count * c.latent_dim,
                           *gradient.stages_[pass.stage].condition, {examples.count, length, to.count}, pass.tape);
            });
      }
    };
    nn::backward_recomputed<T>(
        again_together(pass.tape), pass.tape, [&](T* z) { forward_parts(pass, examples, z); }, backward_all);
  }

  /// The parts of forward_examples().
  template <class Ends>
  void forward_parts(const Pass<Ends>& pass, const Chunk& examples, T* z) const {
    const Index size = examples.count * example_size(pass.sizes);
    const bool again = again_alone(pass.tape);
    const auto blocks = static_cast<Index>(stages_[pass.stage].global.size());
    if constexpr (c.conditioned) {
      nn::forward_recomputed(z, size, again, pass.tape, [&](T* x) { forward_condition(pass, examples, x); });
    }
    for (std::size_t j = 0; j < stages_[pass.stage].global.size(); ++j) {
      nn::forward_recomputed(z, size, again, pass.tape, [&](T* x) { forward_global(pass, examples, j, x); });
      if (pass.backward) continue;
      pass.report(Part::global, examples.first * blocks + examples.count * static_cast<Index>(j + 1),
                  pass.sizes.batch * blocks);
    }
    tell_examples(pass, Part::global, examples, z);
  }

  template <class Ends>
  void forward_condition(const Pass<Ends>& pass, const Chunk& examples, T* z) const {
    const Conditioning<T>& from = pass.condition;
    nn::forward(*stages_[pass.stage].condition, z, from.tokens + examples.first * from.count * c.latent_dim,
                {examples.count, pass.sizes.groups * pass.sizes.latents, from.count}, pass.tape);
    tell_examples(pass, Part::condition, examples, z);
  }

  template <class Ends>
  void forward_global(const Pass<Ends>& pass, const Chunk& examples, std::size_t block, T* z,
                      bool again = false) const {
    const Sizes& sizes = pass.sizes;
    nn::Draws random = draws(Part::global, pass.stage, block, examples, pass.tape);
    nn::Spread spread;
    if (sizes.team) {
      random.part = sizes.team->rank();
      random.parts = sizes.team->size();
      spread = {sizes.team, sizes.latents, sizes.example_groups, sizes.growth};
    }
    nn::forward(stages_[pass.stage].global[block], z, examples.count, sizes.groups * sizes.latents,
                c.latent_mask(sizes.latents), random, pass.tape, again, spread);
  }

  template <class Ends>
  static void tell_examples(const Pass<Ends>& pass, Part part, const Chunk& examples, const T* z) {
    const Index groups = pass.sizes.groups;
    pass.tell(pass.stage, part, pass.sizes.number_of(examples.first * groups), examples.count * groups, z);
  }

  std::vector<Stage<T, c>> stages_;
};

}  // namespace detail

}  // namespace FIT_ABI
}  // namespace fit
