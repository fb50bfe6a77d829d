#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include <fit/cost/layers.hpp>
#include <fit/models/config.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {
namespace metered {

/// Trunk, with its chunks.
struct Trunk {
  TrunkConfig c;
  Plan plan;

  constexpr Block local() const {
    return {c.data_dim, c.local_attention ? c.data_heads : 0, c.mlp_ratio, c.data_key_heads};
  }
  constexpr Block global() const { return {c.latent_dim, c.latent_heads, c.mlp_ratio, c.latent_key_heads}; }
  constexpr Cross read() const { return cross(c.latent_dim, c.data_dim); }
  constexpr Cross write() const { return cross(c.data_dim, c.latent_dim); }
  constexpr Cross condition() const {
    return {{c.latent_dim, c.latent_dim, c.latent_dim, c.latent_heads, c.latent_heads}, c.cross_context_norm, 0};
  }

 private:
  constexpr Cross cross(Index query_dim, Index context_dim) const {
    return {{query_dim, context_dim, c.cross_dim(), c.cross_heads(), c.cross_heads()},
            c.cross_context_norm,
            c.cross_mlp ? c.mlp_ratio : 0};
  }
};

/// Sequences that go through together, `rows` times: `whole` times `each`, and once the `rest`.
struct Chunks {
  Index rows, each, whole, rest;

  constexpr Chunks(Index times, Index sequences, Index together)
      : rows(times), each(together), whole(sequences / each), rest(sequences % each) {}
};
/// Those of a team do not go on from one example to the next.
constexpr Chunks groups_of(const Sizes& s) {
  const Index rows = s.example_groups > 0 ? s.batch : 1;
  return {rows, s.all_groups() / rows, sequences_together(s.tokens)};
}
constexpr Chunks examples_of(const Sizes& s) {
  return {1, s.batch, s.example_groups > 0 ? 1 : sequences_together(s.groups * s.latents)};
}

/// Parts of a stage that are computed again by themselves: those of groups and, one by one or together, of examples.
constexpr bool again_groups(const TrainingOptions& options) { return options.recompute != Recompute::none; }
constexpr bool again_together(const TrainingOptions& options) { return options.recompute == Recompute::stage; }
constexpr bool again_alone(const TrainingOptions& options) { return options.recompute == Recompute::stream; }

/// A stage of a pass. Ends has start(), start_backward(), end() and end_backward() of a number of groups.
template <class T, class Ends>
struct StagePass {
  const Trunk& p;
  const Ends& ends;
  std::size_t stage;
  Index condition;
  const Sizes& sizes;
  Meter<T>& meter;

  constexpr Index latents_size() const { return sizes.latent_rows() * p.c.latent_dim; }
  constexpr Index data_size() const { return sizes.data_rows() * p.c.data_dim; }
  constexpr Index keeps_every() const {
    if (again_together(meter.options())) return 1;
    return again_alone(meter.options()) ? meter.options().keep_data_every : 0;
  }
  constexpr bool keeps_data(std::size_t i) const {
    return i > 0 && keeps_every() > 0 && static_cast<Index>(i) % keeps_every() == 0;
  }
  /// Sizes of what keep() allocates.
  constexpr std::array<Index, 3> kept() const {
    return {p.c.autoregressive && stage > 0 ? latents_size() : 0, again_groups(meter.options()) ? latents_size() : 0,
            keeps_data(stage) ? data_size() : 0};
  }

  constexpr void enter(Part part, std::size_t i) const { meter.enter(part, static_cast<Index>(i)); }
  constexpr Lengths reading(Index groups) const { return {groups, sizes.latents, sizes.tokens}; }
  constexpr Lengths writing(Index groups) const { return {groups, sizes.tokens, sizes.latents}; }
  constexpr Lengths conditioning(Index examples) const { return {examples, sizes.groups * sizes.latents, condition}; }

  constexpr void forward_data(std::size_t i, Index groups) const {
    if (i == 0) {
      meter.enter(Part::stem);
      meter.repeat(1, [&] { ends.start(groups, meter); });
    } else {
      enter(Part::write, i - 1);
      meter.repeat(1, [&] { forward(p.write(), writing(groups), meter); });
    }
    enter(Part::local, i);
    meter.repeat(p.plan[i].local_blocks,
                 [&] { forward(p.local(), groups, sizes.tokens, p.c.data_mask(), false, meter); });
  }
  constexpr bool last() const { return stage + 1 == p.plan.count; }

  constexpr void forward_groups(Index groups, bool again) const {
    forward_data(stage, groups);
    if (p.plan[stage].reads) {
      enter(Part::read, stage);
      meter.repeat(1, [&] { forward(p.read(), reading(groups), meter); });
    }
    if (!last()) return;
    meter.enter(Part::head);
    meter.repeat(1, [&] { ends.end(groups, again, meter); });
  }
  constexpr void backward_groups(Index groups, bool again) const {
    if (last()) {
      meter.enter(Part::head);
      meter.repeat_backward(
          1, [&] { ends.end(groups, again, meter); }, [&] { ends.end_backward(groups, meter); });
    }
    if (p.plan[stage].reads) {
      enter(Part::read, stage);
      meter.repeat_backward(
          1, [&] { forward(p.read(), reading(groups), meter); }, [&] { backward(p.read(), reading(groups), meter); });
    }
    enter(Part::local, stage);
    meter.repeat_backward(
        p.plan[stage].local_blocks, [&] { forward(p.local(), groups, sizes.tokens, p.c.data_mask(), false, meter); },
        [&] { backward(p.local(), groups, sizes.tokens, p.c.data_mask(), false, meter); });
    if (stage > 0) {
      enter(Part::write, stage - 1);
      meter.repeat_backward(
          1, [&] { forward(p.write(), writing(groups), meter); }, [&] { backward(p.write(), writing(groups), meter); });
    } else {
      meter.enter(Part::stem);
      meter.repeat_backward(
          1, [&] { ends.start(groups, meter); }, [&] { ends.start_backward(groups, meter); });
    }
  }
  constexpr void run_again(Index groups) const {
    meter.scratch(groups * sizes.tokens * p.c.data_dim);
    meter.scratch(groups * sizes.latents * p.c.latent_dim);
    std::size_t from = stage;
    while (from > 0 && !keeps_data(from)) --from;
    meter.record(false, [&] {
      for (; from < stage; ++from) forward_data(from, groups);
    });
    forward_groups(groups, true);
  }

  constexpr void forward_condition(Index examples) const {
    enter(Part::condition, stage);
    meter.repeat(1, [&] { forward(p.condition(), conditioning(examples), meter); });
  }
  constexpr Spread spread() const {
    if (sizes.example_groups == 0) return {};
    return {sizes.latents, sizes.example_groups, meter.members(), sizes.growth};
  }
  constexpr void forward_global(Index examples, bool again = false) const {
    forward(p.global(), examples, sizes.groups * sizes.latents, p.c.latent_mask(sizes.latents), again, meter, spread());
  }
  /// What latents_before() and the way back from it give to the member that is `by` further on.
  constexpr void pass_on(Index by) const {
    if (sizes.example_groups == 0) return;
    const Index size = sizes.batch * sizes.latents * p.c.latent_dim, to = meter.members().own + by;
    meter.in_scope([&] {
      meter.scratch(size);
      meter.scratch(size);
    });
    if (to >= 0 && to < meter.members().count) meter.send(size);
  }
  constexpr Index examples_size(Index examples) const {
    return examples * sizes.groups * sizes.latents * p.c.latent_dim;
  }
  constexpr void forward_parts(Index examples) const {
    const bool again = again_alone(meter.options());
    const Index size = examples_size(examples);
    if (p.c.conditioned) {
      enter(Part::condition, stage);
      meter.repeat(1, [&] { meter.forward_recomputed(size, again, [&] { forward_condition(examples); }); });
    }
    enter(Part::global, stage);
    meter.repeat(p.plan[stage].global_blocks,
                 [&] { meter.forward_recomputed(size, again, [&] { forward_global(examples); }); });
  }
  constexpr void forward_examples(Index examples) const {
    enter(Part::global, stage);
    meter.forward_recomputed(examples_size(examples), again_together(meter.options()),
                             [&] { forward_parts(examples); });
  }
  constexpr void backward_examples(Index examples) const {
    const bool again = again_alone(meter.options());
    const Index size = examples_size(examples);
    meter.backward_recomputed(
        again_together(meter.options()), [&] { forward_parts(examples); },
        [&] {
          enter(Part::global, stage);
          meter.repeat_backward(
              p.plan[stage].global_blocks,
              [&] { meter.forward_recomputed(size, again, [&] { forward_global(examples); }); },
              [&] {
                meter.backward_recomputed(
                    again, [&] { forward_global(examples, true); },
                    [&] {
                      backward(p.global(), examples, sizes.groups * sizes.latents, p.c.latent_mask(sizes.latents),
                               again, meter, spread());
                    });
              });
          if (!p.c.conditioned) return;
          enter(Part::condition, stage);
          meter.repeat_backward(
              1, [&] { meter.forward_recomputed(size, again, [&] { forward_condition(examples); }); },
              [&] {
                meter.backward_recomputed(
                    again, [&] { forward(p.condition(), conditioning(examples), meter); },
                    [&] { backward(p.condition(), conditioning(examples), meter); });
              });
        });
  }
};

/// `condition` is the number of condition tokens of an example.
template <class T, class Ends>
constexpr void forward(const Trunk& p, const Ends& ends, Index condition, const Sizes& sizes, Meter<T>& meter) {
  const Index start = meter.mark();
  const Chunks groups = groups_of(sizes), examples = examples_of(sizes);
  meter.enter(Part::stem);
  meter.template allocate<std::array<void*, 3>>(static_cast<Index>(p.plan.count));
  for (std::size_t i = 0; i < p.plan.count; ++i) {
    const StagePass<T, Ends> pass{p, ends, i, condition, sizes, meter};
    meter.enter(i > 0 ? Part::write : Part::local, static_cast<Index>(i > 0 ? i - 1 : 0));
    const auto kept = pass.kept();
    meter.allocate(kept[0]);
    if (kept[0] > 0) pass.pass_on(1);
    if (meter.recording()) {
      meter.allocate(kept[1]);
      meter.allocate(kept[2]);
    }
    meter.record(meter.recording() && !again_groups(meter.options()), [&] {
      meter.repeat(groups.rows, [&] {
        meter.repeat(groups.whole, [&] { pass.forward_groups(groups.each, false); });
        meter.repeat(groups.rest > 0, [&] { pass.forward_groups(groups.rest, false); });
      });
    });
    if (!p.plan[i].reads) continue;
    meter.repeat(examples.whole, [&] { pass.forward_examples(examples.each); });
    meter.repeat(examples.rest > 0, [&] { pass.forward_examples(examples.rest); });
  }
  meter.finish(start, sizeof(void*));
}

template <class T, class Ends>
constexpr void backward(const Trunk& p, const Ends& ends, Index condition, const Sizes& sizes, Meter<T>& meter) {
  const Chunks groups = groups_of(sizes), examples = examples_of(sizes);
  const auto saved = meter.pop();
  meter.add_above(Meter<T>::entry_bytes(sizeof(void*)));
  for (std::size_t i = p.plan.count; i-- > 0;) {
    const StagePass<T, Ends> pass{p, ends, i, condition, sizes, meter};
    const auto back_examples = [&](Index count, Index each) {
      meter.repeat_backward(
          count, [&] { pass.forward_examples(each); }, [&] { pass.backward_examples(each); });
    };
    if (p.plan[i].reads) {
      back_examples(examples.rest > 0, examples.rest);
      back_examples(examples.whole, examples.each);
    }
    const auto kept = pass.kept();
    meter.in_scope([&] {
      meter.scratch(kept[0]);  // before_gradient
      const auto back_groups = [&](Index count, Index each) {
        if (count == 0) return;
        if (!again_groups(meter.options())) {
          meter.repeat_backward(
              count, [&] { pass.forward_groups(each, false); }, [&] { pass.backward_groups(each, false); });
        } else {
          const Index above = meter.take_above();
          meter.times(count, [&] {
            meter.in_scope([&] {
              pass.run_again(each);
              pass.backward_groups(each, true);
            });
          });
          meter.add_above(above);
        }
      };
      if (groups.rows == 1) {
        back_groups(groups.rest > 0, groups.rest);
        back_groups(groups.whole, groups.each);
      } else if (again_groups(meter.options())) {
        const Index above = meter.take_above();
        meter.times(groups.rows, [&] {
          back_groups(groups.rest > 0, groups.rest);
          back_groups(groups.whole, groups.each);
        });
        meter.add_above(above);
      } else {
        meter.repeat_backward(
            groups.rows,
            [&] {
              meter.repeat(groups.whole, [&] { pass.forward_groups(groups.each, false); });
              meter.repeat(groups.rest > 0, [&] { pass.forward_groups(groups.rest, false); });
            },
            [&] {
              back_groups(groups.rest > 0, groups.rest);
              back_groups(groups.whole, groups.each);
            });
      }
      if (kept[0] > 0) pass.pass_on(-1);
    });
    for (const Index size : kept) meter.add_above(Meter<T>::template bytes<T>(size));
  }
}

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
