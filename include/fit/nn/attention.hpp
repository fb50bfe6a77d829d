#pragma once

#include <algorithm>
#include <span>

#include <fit/kernels/attention_backward.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/residual.hpp>
#include <fit/nn/spread.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// Queries from one set of tokens, keys and values from another: affine maps to Width, softmax attention in Heads
/// heads, affine map back to the queries' width. Vaswani et al., arXiv 1706.03762, section 3.2. With fewer KeyHeads,
/// keys and values have these, and each serves as many heads of queries: Ainslie et al., arXiv 2305.13245, section 2.2.
template <class T, int QueryDim, int ContextDim, int Width, int Heads, int KeyHeads = Heads>
struct Attention {
  static_assert(Width % Heads == 0, "fit: the width of an attention must be a multiple of its heads");
  static_assert(Heads % KeyHeads == 0, "fit: the heads of an attention must be a multiple of its key heads");

  static constexpr int key_width = Width / Heads * KeyHeads;
  static constexpr kernels::HeadCounts heads{Heads, Width / Heads, Heads / KeyHeads};

  Linear<T, Width, QueryDim> query;
  Linear<T, key_width, ContextDim> key, value;
  Linear<T, QueryDim, Width> output;

  static void visit(auto&& f, auto&... p) {
    f("query", p.query...);
    f("key", p.key...);
    f("value", p.value...);
    f("output", p.output...);
  }
};

/// The sequences that an attention layer sees. Of one that is spread over a team the queries and keys of this member.
struct AttentionLengths {
  Index sequences = 0, queries = 0, keys = 0;
  kernels::Mask mask = {};
  Spread spread = {};

  Index query_rows() const { return sequences * queries; }
  Index key_rows() const { return sequences * keys; }
};

namespace detail {

template <class T>
struct AttentionRecord {
  const T *input, *context;
  kernels::AttentionTensors<T> tensors;
  kernels::AttentionShape shape;
  PathScale<T> path;
  Spread spread;
};

}  // namespace detail

/// residual [sequences, queries, QueryDim] += path * Attention(input, context), input shaped as the residual, context
/// [sequences, keys, ContextDim], which may be the input. Of a sequence that is spread over a team the keys and values
/// of the other members come from these, and none of a later member's under a mask.
template <class T, int QueryDim, int ContextDim, int Width, int Heads, int KeyHeads>
void forward(const Attention<T, QueryDim, ContextDim, Width, Heads, KeyHeads>& p, const T* input, const T* context,
             T* residual, const AttentionLengths& lengths, const PathScale<T>& path, const kernels::Dropout& dropout,
             Tape& tape) {
  const auto start = tape.mark();
  kernels::AttentionShape shape{lengths.sequences, lengths.queries, lengths.keys, Heads,
                                Width / Heads,     lengths.mask,    dropout,      Heads / KeyHeads};
  detail::SpreadKeys spread(lengths.spread, shape);
  const Index rows = lengths.query_rows(), context_rows = lengths.key_rows();
  Index own_keys = 0;
  if (lengths.spread.team) {
    FIT_ASSERT(lengths.sequences == 1);
    shape.mask.offset = spread.own().first;
    shape.keys = spread.seen();
    own_keys = spread.own().first * p.key_width;
  }
  T* q = tape.allocate<T>(rows * Width);
  T* k = tape.allocate<T>(shape.sequences * shape.keys * p.key_width);
  T* v = tape.allocate<T>(shape.sequences * shape.keys * p.key_width);
  T* mixed = tape.allocate<T>(rows * Width);
  T* log_sum = tape.recording() ? tape.allocate<T>(rows * Heads) : nullptr;
  const kernels::AttentionTensors<T> tensors{q, k, v, mixed, log_sum};
  kernels::multiply(
      {output_product(p.query, input, q, rows), output_product(p.key, context, k + own_keys, context_rows),
       output_product(p.value, context, v + own_keys, context_rows)},
      tape);
  if (lengths.spread.team) {
    detail::attend_spread(spread, shape, k, v, tensors, tape);
  } else {
    kernels::attention(shape, tensors, tape);
  }
  kernels::multiply({residual_product<T>(p.output, mixed, residual, rows, path)}, tape);
  tape.finish(start, detail::AttentionRecord<T>{input, context, tensors, shape, path, lengths.spread});
}

/// Writes input_gradient and context_gradient, and adds to `gradient`. When forward's context was its input,
/// input_gradient gets both and context_gradient is left alone.
template <class T, int QueryDim, int ContextDim, int Width, int Heads, int KeyHeads>
void backward(const Attention<T, QueryDim, ContextDim, Width, Heads, KeyHeads>& p, const T* residual_gradient,
              T* input_gradient, T* context_gradient,
              Attention<T, QueryDim, ContextDim, Width, Heads, KeyHeads>& gradient, const AttentionLengths& lengths,
              Tape& tape) {
  const auto saved = tape.pop<detail::AttentionRecord<T>>();
  const Index rows = lengths.query_rows(), context_rows = lengths.key_rows();
  const T* branch = branch_gradient(saved->path, residual_gradient, rows, Index{QueryDim}, tape);
  // Its last reader is done before the input's gradient is written.
  T* mixed = Width == QueryDim ? input_gradient : tape.scratch<T>(rows * Width);
  T* q = tape.scratch<T>(rows * Width);
  const Index all_keys = saved->shape.sequences * saved->shape.keys * p.key_width;
  T* k = tape.scratch<T>(all_keys);
  T* v = tape.scratch<T>(all_keys);
  kernels::multiply({input_product(p.output.weight, branch, mixed, rows),
                     weight_product<T>(gradient.output.weight, saved->tensors.o, branch, rows)},
                    tape);
  const kernels::AttentionGradients<T> gradients{mixed, q, k, v};
  if (saved->spread.team) {
    detail::SpreadKeys spread(saved->spread, saved->shape);
    detail::attend_spread_backward(spread, saved->shape, saved->tensors, gradients, tape);
    k += spread.own().first * p.key_width;
    v += spread.own().first * p.key_width;
  } else {
    kernels::attention_backward<T>(saved->shape, saved->tensors, gradients, tape);
  }
  auto to_input = input_product<T>(p.query.weight, q, input_gradient, rows);
  const auto to_query = weight_product<T>(gradient.query.weight, saved->input, q, rows);
  const auto to_key = weight_product<T>(gradient.key.weight, saved->context, k, context_rows);
  const auto to_value = weight_product<T>(gradient.value.weight, saved->context, v, context_rows);
  // Tensors without rows may share an address.
  if (QueryDim == ContextDim && rows == context_rows && saved->input == saved->context) {
    to_input.factors[1] = input_factors<T>(p.key.weight, k);
    to_input.factors[2] = input_factors<T>(p.value.weight, v);
    to_input.count = 3;
    kernels::multiply({to_input, to_query, to_key, to_value}, tape);
  } else {
    auto to_context = input_product<T>(p.key.weight, k, context_gradient, context_rows);
    to_context.factors[1] = input_factors<T>(p.value.weight, v);
    to_context.count = 2;
    kernels::multiply({to_input, to_context, to_query, to_key, to_value}, tape);
  }
  kernels::add_column_sums<T>({bias_sum<T>(gradient.query, q, rows), bias_sum<T>(gradient.key, k, context_rows),
                               bias_sum<T>(gradient.value, v, context_rows), bias_sum(gradient.output, branch, rows)},
                              tape);
}

/// Attention of new rows to themselves and to those before them, whose keys and values join the caches: input and
/// residual hold the rows of each sequence in turn.
template <class T, int Dim, int Width, int Heads, int KeyHeads>
void step(const Attention<T, Dim, Dim, Width, Heads, KeyHeads>& p, const T* input, T* residual,
          std::span<const CachedRows<T>> sequences, const kernels::Mask& mask, const StepKernels<T>& with, Tape& tape) {
  const Arena::Scope scope(tape.arena());
  const Index rows = rows_of(sequences);
  T *q = tape.scratch<T>(rows * Width), *mixed = tape.scratch<T>(rows * Width);
  T *k = tape.scratch<T>(rows * p.key_width), *v = tape.scratch<T>(rows * p.key_width);
  with.multiply({output_product(p.query, input, q, rows), output_product(p.key, input, k, rows),
                 output_product(p.value, input, v, rows)},
                tape);
  const T *new_keys = k, *new_values = v;
  for (const CachedRows<T>& s : sequences) {
    const Index size = s.rows * p.key_width, place = (s.keys - s.rows) * p.key_width;
    std::copy_n(new_keys, size, s.keys_cache + place);
    std::copy_n(new_values, size, s.values_cache + place);
    new_keys += size;
    new_values += size;
  }
  attend(sequences, q, mixed, p.heads, mask, with, tape);
  with.multiply({residual_product<T>(p.output, mixed, residual, rows)}, tape);
}

/// Attention to what the caches hold already.
template <class T, int QueryDim, int ContextDim, int Width, int Heads, int KeyHeads>
void step_queries(const Attention<T, QueryDim, ContextDim, Width, Heads, KeyHeads>& p, const T* input, T* residual,
                  std::span<const CachedRows<T>> sequences, const StepKernels<T>& with, Tape& tape) {
  const Arena::Scope scope(tape.arena());
  const Index rows = rows_of(sequences);
  T *q = tape.scratch<T>(rows * Width), *mixed = tape.scratch<T>(rows * Width);
  with.multiply({output_product(p.query, input, q, rows)}, tape);
  attend(sequences, q, mixed, p.heads, kernels::Mask::none(), with, tape);
  with.multiply({residual_product<T>(p.output, mixed, residual, rows)}, tape);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
