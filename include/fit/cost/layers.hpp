#pragma once

#include <cstddef>

#include <fit/core/index_range.hpp>
#include <fit/cost/meter.hpp>
#include <fit/nn/mlp_rows.hpp>

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
  return {p.out, p.in, {{rows, p.in, 1, true}}};
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
  if (meter.options().drop_path > 0) meter.allocate(sequences);
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
  meter.allocate(rows * p.width * p.ratio);                         // activated
  if (meter.recording()) meter.allocate(rows * p.width * p.ratio);  // slope
  meter.multiply({output_product<T>(p.fc1(), rows)});
  meter.multiply({output_product<T>(p.fc2(), rows)});
  meter.finish(inside, 3 * sizeof(void*) + path_size);
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

/// `self` says whether the context is the input.
struct Attention {
  Index query_dim, context_dim, width, heads, key_heads;
  bool self = false;

  constexpr Index key_width() const { return width / heads * key_heads; }
  constexpr Linear query() const { return {width, query_dim}; }
  constexpr Linear key() const { return {key_width(), context_dim}; }
  constexpr Linear output() const { return {query_dim, width}; }
  constexpr Index parameters() const { return query().parameters() + 2 * key().parameters() + output().parameters(); }
  constexpr kernels::AttentionShape shape(Index sequences, Index queries, Index keys, const kernels::Mask& mask) const {
    return {sequences, queries, keys, heads, width / heads, mask, {}, heads / key_heads};
  }
};

/// How the rows of a sequence are spread over members, in units; of no unit, not at all.
struct Spread {
  Index unit = 0, units = 0;
  Members members = {};
  double growth = 0;

  constexpr Index rows_of(Index member) const { return unit * share_of(units, member, members.count, growth).count; }
  constexpr Index first() const { return unit * share_of(units, members.own, members.count, growth).first; }
};

struct Lengths {
  Index sequences = 0, queries = 0, keys = 0;
  kernels::Mask mask = {};
  Spread spread = {};

  constexpr bool is_spread() const { return spread.unit > 0; }
  constexpr bool causal() const { return mask.chunk != kernels::Mask::none().chunk; }
  /// Whether the queries of one member see keys of another.
  constexpr bool sees(Index member, Index other) const { return !causal() || other <= member; }
  /// Keys of a sequence that this member's queries see.
  constexpr Index seen_keys() const {
    if (!is_spread()) return keys;
    return causal() ? spread.first() + keys : spread.unit * spread.units;
  }
  constexpr kernels::Mask own_mask() const {
    kernels::Mask own = mask;
    if (is_spread()) own.offset = spread.first();
    return own;
  }
  /// Calls f(member) for all others.
  template <class F>
  constexpr void for_others(F&& f) const {
    for (Index member = 0; is_spread() && member < spread.members.count; ++member) {
      if (member != spread.members.own) f(member);
    }
  }
};

template <class T>
constexpr void forward(const Attention& p, const Lengths& of, Meter<T>& meter) {
  const Index start = meter.mark(), rows = of.sequences * of.queries, context_rows = of.sequences * of.keys;
  const Index all_keys = of.sequences * of.seen_keys() * p.key_width();
  meter.allocate(rows * p.width);  // q
  meter.allocate(all_keys);        // k
  meter.allocate(all_keys);        // v
  meter.allocate(rows * p.width);  // mixed
  if (meter.recording()) meter.allocate(rows * p.heads);
  meter.multiply({output_product<T>(p.query(), rows), output_product<T>(p.key(), context_rows),
                  output_product<T>(p.key(), context_rows)});
  of.for_others([&](Index other) {
    if (of.sees(other, of.spread.members.own)) meter.send(2 * context_rows * p.key_width());
  });
  meter.attention(p.shape(of.sequences, of.queries, of.seen_keys(), of.own_mask()));
  meter.multiply({output_product<T>(p.output(), rows)});
  meter.finish(start, 11 * sizeof(void*) + sizeof(kernels::AttentionShape) + path_size);
}
template <class T>
constexpr void backward(const Attention& p, const Lengths& of, Meter<T>& meter) {
  const auto frame = meter.pop();
  const Index rows = of.sequences * of.queries, context_rows = of.sequences * of.keys;
  branch_gradient(p.self, rows, p.query_dim, meter);
  if (p.width != p.query_dim) meter.scratch(rows * p.width);  // mixed
  const Index all_keys = of.sequences * of.seen_keys() * p.key_width();
  meter.scratch(rows * p.width);  // q
  meter.scratch(all_keys);        // k
  meter.scratch(all_keys);        // v
  meter.multiply({input_product<T>(p.output(), rows), weight_product<T>(p.output(), rows)});
  meter.in_scope([&] {
    if (of.is_spread()) meter.scratch(2 * context_rows * p.key_width() * of.spread.members.count);
    meter.attention_backward(p.shape(of.sequences, of.queries, of.seen_keys(), of.own_mask()));
  });
  of.for_others([&](Index other) {
    if (of.sees(of.spread.members.own, other)) meter.send(2 * of.spread.rows_of(other) * p.key_width());
  });
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
  meter.add_column_sums(
      {{rows, p.width}, {context_rows, p.key_width()}, {context_rows, p.key_width()}, {rows, p.query_dim}});
}

/// An mlp_ratio of zero stands for no MLP.
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

/// A Block; no heads, no attention.
struct Block {
  Index width, heads, ratio, key_heads;

  constexpr LayerNorm norm() const { return {width}; }
  constexpr Attention attention() const { return {width, width, width, heads, key_heads, true}; }
  constexpr MLP mlp() const { return {width, ratio, true}; }
  constexpr Index parameters() const {
    return (heads > 0 ? norm().parameters() + attention().parameters() : 0) + mlp().parameters();
  }
};

/// Rows of its MLP that go through together: `whole` times `each`, and once the `rest`.
struct Pieces {
  Index each, whole, rest;

  constexpr Pieces(Index sequences, Index length)
      : each(nn::mlp_rows(sequences, length)), whole(sequences * length / each), rest(sequences * length % each) {}
};

/// With `again`, without the MLP, which waits for the way back.
template <class T>
constexpr void forward(const Block& p, Index sequences, Index length, const kernels::Mask& mask, bool again,
                       Meter<T>& meter, const Spread& spread = {}) {
  const Index start = meter.mark(), rows = sequences * length;
  if (p.heads > 0) {
    draw_path(sequences, meter);
    meter.allocate(rows * p.width);  // normed
    forward(p.norm(), rows, meter);
    forward(p.attention(), {sequences, length, length, mask, spread}, meter);
  }
  draw_path(sequences, meter);
  if (!again) {
    const Pieces pieces(sequences, length);
    meter.repeat(pieces.whole, [&] { forward(p.mlp(), pieces.each, meter); });
    meter.repeat(pieces.rest > 0, [&] { forward(p.mlp(), pieces.rest, meter); });
  }
  meter.finish(start, sizeof(void*) + path_size + sizeof(kernels::Dropout));
}
template <class T>
constexpr void backward(const Block& p, Index sequences, Index length, const kernels::Mask& mask, bool again,
                        Meter<T>& meter, const Spread& spread = {}) {
  const auto frame = meter.pop();
  const Index rows = sequences * length;
  const Pieces pieces(sequences, length);
  meter.add_above(Meter<T>::entry_bytes(sizeof(void*) + path_size + sizeof(kernels::Dropout)));
  const auto back = [&](Index count, Index each) {
    if (count == 0) return;
    if (again) {
      const Index above = meter.take_above();
      meter.times(count, [&] {
        forward(p.mlp(), each, meter);
        backward(p.mlp(), each, meter);
      });
      meter.add_above(above);
    } else {
      meter.repeat_backward(
          count, [&] { forward(p.mlp(), each, meter); }, [&] { backward(p.mlp(), each, meter); });
    }
  };
  back(pieces.rest > 0, pieces.rest);
  back(pieces.whole, pieces.each);
  if (p.heads > 0) {
    meter.scratch(rows * p.width);  // normed
    backward(p.attention(), {sequences, length, length, mask, spread}, meter);
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

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
