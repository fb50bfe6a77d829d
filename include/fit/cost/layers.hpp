#pragma once

#include <algorithm>
#include <array>

#include <fit/cost/meter.hpp>
#include <fit/models/config.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {
namespace metered {

// The layers of nn/ with their widths as values: parameters, and forward and backward, each as the function of that
// name there, allocation by allocation and product by product.

struct Linear {
  Index out, in;

  constexpr Index parameters() const { return out * in + out; }
};

template <class T>
constexpr typename Meter<T>::Product output_product(const Linear& p, Index rows) {
  return {rows, p.out, {{p.in, 1, p.in}}};
}
template <class T>
constexpr typename Meter<T>::Product input_product(const Linear& p, Index rows) {
  return {rows, p.in, {{p.out, p.in, 1}}};
}
template <class T>
constexpr typename Meter<T>::Product weight_product(const Linear& p, Index rows) {
  return {p.out, p.in, {{rows, p.in, 1}}};
}

template <class T>
constexpr void forward(const Linear& p, Index rows, Meter<T>& meter) {
  const Index start = meter.mark();
  meter.multiply({output_product<T>(p, rows)});
  meter.finish(start, sizeof(void*));
}
template <class T>
constexpr void backward(const Linear& p, bool input, Index rows, Meter<T>& meter) {
  const auto frame = meter.pop();
  if (input) {
    meter.multiply({input_product<T>(p, rows), weight_product<T>(p, rows)});
  } else {
    meter.multiply({weight_product<T>(p, rows)});
  }
  meter.add_column_sums({{rows, p.out}});
}

struct LayerNorm {
  Index width;

  constexpr Index parameters() const { return 2 * width; }
};

template <class T>
constexpr void forward(const LayerNorm& p, Index rows, Meter<T>& meter) {
  const Index start = meter.mark();
  if (meter.recording()) {
    meter.allocate(rows * p.width);
    meter.allocate(rows);
  }
  meter.finish(start, 2 * sizeof(void*));
}
template <class T>
constexpr void backward(const LayerNorm& p, Index rows, Meter<T>& meter) {
  const auto frame = meter.pop();
  meter.layer_norm_backward(rows, p.width);
}

/// A residual branch of sequences that may be dropped.
template <class T>
constexpr void draw_path(Index sequences, Meter<T>& meter) {
  if (meter.recording() && meter.options().drop_path > 0) meter.allocate(sequences);
}
template <class T>
constexpr void branch_gradient(bool path, Index rows, Index width, Meter<T>& meter) {
  if (path && meter.options().drop_path > 0) meter.scratch(rows * width);
}
inline constexpr std::size_t path_size = sizeof(void*) + sizeof(Index);

/// ResidualMLP; `path` says whether it is one of a block.
struct MLP {
  Index width, ratio;
  bool path = false;

  constexpr LayerNorm norm() const { return {width}; }
  constexpr Linear fc1() const { return {width * ratio, width}; }
  constexpr Linear fc2() const { return {width, width * ratio}; }
  constexpr Index parameters() const { return norm().parameters() + fc1().parameters() + fc2().parameters(); }
};

template <class T>
constexpr void forward(const MLP& p, Index rows, Meter<T>& meter) {
  const Index start = meter.mark();
  meter.allocate(rows * p.width);  // normed
  forward(p.norm(), rows, meter);
  const Index inside = meter.mark();
  meter.allocate(rows * p.width * p.ratio);                         // before
  if (meter.recording()) meter.allocate(rows * p.width * p.ratio);  // activated
  meter.multiply({output_product<T>(p.fc1(), rows)});
  meter.multiply({output_product<T>(p.fc2(), rows)});
  meter.finish(inside, 3 * sizeof(void*) + path_size + sizeof(kernels::Dropout));
  meter.finish(start);
}
template <class T>
constexpr void backward(const MLP& p, Index rows, Meter<T>& meter) {
  const auto frame = meter.pop();
  meter.scratch(rows * p.width);  // normed
  {
    const auto inside = meter.pop();
    branch_gradient(p.path, rows, p.width, meter);
    meter.scratch(rows * p.width * p.ratio);  // hidden
    meter.multiply({input_product<T>(p.fc2(), rows), weight_product<T>(p.fc2(), rows)});
    meter.multiply({input_product<T>(p.fc1(), rows), weight_product<T>(p.fc1(), rows)});
    meter.add_column_sums({{rows, p.fc1().out}, {rows, p.fc2().out}});
  }
  backward(p.norm(), rows, meter);
}

/// `self` says whether the context is the input, and `path` whether it is of a block.
struct Attention {
  Index query_dim, context_dim, width, heads;
  bool self = false;

  constexpr Linear query() const { return {width, query_dim}; }
  constexpr Linear key() const { return {width, context_dim}; }
  constexpr Linear output() const { return {query_dim, width}; }
  constexpr Index parameters() const { return query().parameters() + 2 * key().parameters() + output().parameters(); }
  constexpr kernels::AttentionShape shape(Index sequences, Index queries, Index keys, const kernels::Mask& mask) const {
    return {sequences, queries, keys, heads, width / heads, mask, {}};
  }
};

struct Lengths {
  Index sequences = 0, queries = 0, keys = 0;
  kernels::Mask mask = {};
};

template <class T>
constexpr void forward(const Attention& p, const Lengths& of, Meter<T>& meter) {
  const Index start = meter.mark(), rows = of.sequences * of.queries, context_rows = of.sequences * of.keys;
  meter.allocate(rows * p.width);          // q
  meter.allocate(context_rows * p.width);  // k
  meter.allocate(context_rows * p.width);  // v
  meter.allocate(rows * p.width);          // mixed
  if (meter.recording()) meter.allocate(rows * p.heads);
  meter.multiply({output_product<T>(p.query(), rows), output_product<T>(p.key(), context_rows),
                  output_product<T>(p.key(), context_rows)});
  meter.attention(p.shape(of.sequences, of.queries, of.keys, of.mask));
  meter.multiply({output_product<T>(p.output(), rows)});
  meter.finish(start, 7 * sizeof(void*) + sizeof(kernels::AttentionShape) + path_size);
}
template <class T>
constexpr void backward(const Attention& p, const Lengths& of, Meter<T>& meter) {
  const auto frame = meter.pop();
  const Index rows = of.sequences * of.queries, context_rows = of.sequences * of.keys;
  branch_gradient(p.self, rows, p.query_dim, meter);
  meter.scratch(rows * p.width);          // mixed
  meter.scratch(rows * p.width);          // q
  meter.scratch(context_rows * p.width);  // k
  meter.scratch(context_rows * p.width);  // v
  meter.multiply({input_product<T>(p.output(), rows), weight_product<T>(p.output(), rows)});
  meter.attention_backward(p.shape(of.sequences, of.queries, of.keys, of.mask));
  auto to_input = input_product<T>(p.query(), rows);
  const auto to_query = weight_product<T>(p.query(), rows), to_key = weight_product<T>(p.key(), context_rows);
  const auto of_key = input_product<T>(p.key(), context_rows).factors[0];
  if (p.self) {
    to_input.factors[1] = to_input.factors[2] = of_key;
    to_input.count = 3;
    meter.multiply({to_input, to_query, to_key, to_key});
  } else {
    auto to_context = input_product<T>(p.key(), context_rows);
    to_context.factors[1] = of_key;
    to_context.count = 2;
    meter.multiply({to_input, to_context, to_query, to_key, to_key});
  }
  meter.add_column_sums({{rows, p.width}, {context_rows, p.width}, {context_rows, p.width}, {rows, p.query_dim}});
}

/// A width of zero stands for no MLP.
struct Cross {
  Attention attention;
  bool context_norm = true;
  Index mlp_ratio = 0;

  constexpr LayerNorm query_norm() const { return {attention.query_dim}; }
  constexpr LayerNorm norm_of_context() const { return {attention.context_dim}; }
  constexpr MLP mlp() const { return {attention.query_dim, mlp_ratio}; }
  constexpr Index parameters() const {
    return query_norm().parameters() + (context_norm ? norm_of_context().parameters() : 0) + attention.parameters() +
           (mlp_ratio > 0 ? mlp().parameters() : 0);
  }
};

template <class T>
constexpr void forward(const Cross& p, const Lengths& of, Meter<T>& meter) {
  const Index start = meter.mark(), rows = of.sequences * of.queries, context_rows = of.sequences * of.keys;
  meter.allocate(rows * p.attention.query_dim);            // query
  meter.allocate(context_rows * p.attention.context_dim);  // normed
  forward(p.query_norm(), rows, meter);
  if (p.context_norm) forward(p.norm_of_context(), context_rows, meter);
  forward(p.attention, of, meter);
  if (p.mlp_ratio > 0) forward(p.mlp(), rows, meter);
  meter.finish(start);
}
template <class T>
constexpr void backward(const Cross& p, const Lengths& of, Meter<T>& meter) {
  const auto frame = meter.pop();
  const Index rows = of.sequences * of.queries, context_rows = of.sequences * of.keys;
  if (p.mlp_ratio > 0) backward(p.mlp(), rows, meter);
  meter.scratch(rows * p.attention.query_dim);            // query
  meter.scratch(context_rows * p.attention.context_dim);  // normed
  backward(p.attention, of, meter);
  if (p.context_norm) backward(p.norm_of_context(), context_rows, meter);
  backward(p.query_norm(), rows, meter);
}

/// Block or, without heads, MLPBlock.
struct Block {
  Index width, heads, ratio;

  constexpr LayerNorm norm() const { return {width}; }
  constexpr Attention attention() const { return {width, width, width, heads, true}; }
  constexpr MLP mlp() const { return {width, ratio, true}; }
  constexpr Index parameters() const {
    return (heads > 0 ? norm().parameters() + attention().parameters() : 0) + mlp().parameters();
  }
};

template <class T>
constexpr void forward(const Block& p, Index sequences, Index length, const kernels::Mask& mask, Meter<T>& meter) {
  const Index start = meter.mark(), rows = sequences * length;
  if (p.heads > 0) {
    draw_path(sequences, meter);
    meter.allocate(rows * p.width);  // normed
    forward(p.norm(), rows, meter);
    forward(p.attention(), {sequences, length, length, mask}, meter);
  }
  draw_path(sequences, meter);
  forward(p.mlp(), rows, meter);
  meter.finish(start);
}
template <class T>
constexpr void backward(const Block& p, Index sequences, Index length, const kernels::Mask& mask, Meter<T>& meter) {
  const auto frame = meter.pop();
  const Index rows = sequences * length;
  backward(p.mlp(), rows, meter);
  if (p.heads > 0) {
    meter.scratch(rows * p.width);  // normed
    backward(p.attention(), {sequences, length, length, mask}, meter);
    backward(p.norm(), rows, meter);
  }
}

struct DataStem {
  Linear linear;
  bool positions;  ///< whether they are trained

  constexpr LayerNorm norm() const { return {linear.out}; }
  constexpr Index parameters(Index tokens) const {
    return linear.parameters() + norm().parameters() + (positions ? tokens * linear.out : 0);
  }
};

template <class T>
constexpr void forward(const DataStem& p, Index rows, Meter<T>& meter) {
  const Index start = meter.mark();
  forward(p.linear, rows, meter);
  forward(p.norm(), rows, meter);
  meter.finish(start);
}
template <class T>
constexpr void backward(const DataStem& p, Index groups, Index tokens, Meter<T>& meter) {
  const auto frame = meter.pop();
  if (p.positions) meter.add_column_sums({{groups, tokens * p.linear.out}});
  meter.scratch(groups * tokens * p.linear.out);  // between
  backward(p.norm(), groups * tokens, meter);
  backward(p.linear, false, groups * tokens, meter);
}

/// Trunk, with its chunks.
struct Trunk {
  TrunkConfig c;
  Plan plan;

  constexpr Block local() const { return {c.data_dim, c.local_attention ? c.data_heads : 0, c.mlp_ratio}; }
  constexpr Block global() const { return {c.latent_dim, c.latent_heads, c.mlp_ratio}; }
  constexpr Cross read() const { return cross(c.latent_dim, c.data_dim); }
  constexpr Cross write() const { return cross(c.data_dim, c.latent_dim); }
  constexpr Cross condition() const {
    return {{c.latent_dim, c.latent_dim, c.latent_dim, c.latent_heads}, c.cross_context_norm, 0};
  }

 private:
  constexpr Cross cross(Index query_dim, Index context_dim) const {
    return {
        {query_dim, context_dim, c.cross_dim(), c.cross_heads()}, c.cross_context_norm, c.cross_mlp ? c.mlp_ratio : 0};
  }
};

/// Sequences that go through together: `whole` times `each`, and once the `rest`.
struct Chunks {
  Index each, whole, rest;

  constexpr Chunks(Index sequences, Index length)
      : each(std::max<Index>(1, 4096 / length)), whole(sequences / each), rest(sequences % each) {}
};

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
  constexpr kernels::Mask data_mask() const {
    return p.c.autoregressive ? kernels::Mask::causal() : kernels::Mask::none();
  }
  constexpr kernels::Mask latent_mask() const {
    return p.c.mask == LatentMask::causal ? kernels::Mask::chunk_causal(sizes.latents) : kernels::Mask::none();
  }
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
    meter.repeat(p.plan[i].local_blocks, [&] { forward(p.local(), groups, sizes.tokens, data_mask(), meter); });
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
        p.plan[stage].local_blocks, [&] { forward(p.local(), groups, sizes.tokens, data_mask(), meter); },
        [&] { backward(p.local(), groups, sizes.tokens, data_mask(), meter); });
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
  constexpr void forward_global(Index examples) const {
    forward(p.global(), examples, sizes.groups * sizes.latents, latent_mask(), meter);
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
                    again, [&] { forward_global(examples); },
                    [&] { backward(p.global(), examples, sizes.groups * sizes.latents, latent_mask(), meter); });
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
  const Chunks groups(sizes.all_groups(), sizes.tokens), examples(sizes.batch, sizes.groups * sizes.latents);
  meter.enter(Part::stem);
  meter.template allocate<std::array<void*, 3>>(static_cast<Index>(p.plan.count));
  for (std::size_t i = 0; i < p.plan.count; ++i) {
    const StagePass<T, Ends> pass{p, ends, i, condition, sizes, meter};
    meter.enter(i > 0 ? Part::write : Part::local, static_cast<Index>(i > 0 ? i - 1 : 0));
    const auto kept = pass.kept();
    meter.allocate(kept[0]);
    if (meter.recording()) {
      meter.allocate(kept[1]);
      meter.allocate(kept[2]);
    }
    meter.record(meter.recording() && !again_groups(meter.options()), [&] {
      meter.repeat(groups.whole, [&] { pass.forward_groups(groups.each, false); });
      meter.repeat(groups.rest > 0, [&] { pass.forward_groups(groups.rest, false); });
    });
    if (!p.plan[i].reads) continue;
    meter.repeat(examples.whole, [&] { pass.forward_examples(examples.each); });
    meter.repeat(examples.rest > 0, [&] { pass.forward_examples(examples.rest); });
  }
  meter.finish(start, sizeof(void*));
}

template <class T, class Ends>
constexpr void backward(const Trunk& p, const Ends& ends, Index condition, const Sizes& sizes, Meter<T>& meter) {
  const Chunks groups(sizes.all_groups(), sizes.tokens), examples(sizes.batch, sizes.groups * sizes.latents);
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
      back_groups(groups.rest > 0, groups.rest);
      back_groups(groups.whole, groups.each);
    });
    for (const Index size : kept) meter.add_above(Meter<T>::template bytes<T>(size));
  }
}

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
