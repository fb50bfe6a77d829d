#pragma once

#include <fit/kernels/attention_backward.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/residual.hpp>

namespace fit::inline FIT_ABI::nn {

/// Queries from one set of tokens, keys and values from another: affine maps to Width, softmax attention in Heads
/// heads, affine map back to the queries' width. Vaswani et al., arXiv 1706.03762, section 3.2.
template <class T, int QueryDim, int ContextDim, int Width, int Heads>
struct Attention {
  Linear<T, Width, QueryDim> query;
  Linear<T, Width, ContextDim> key, value;
  Linear<T, QueryDim, Width> output;

  static void visit(auto&& f, auto&... p) {
    f("query", p.query...);
    f("key", p.key...);
    f("value", p.value...);
    f("output", p.output...);
  }
};

/// The sequences that an attention layer sees.
struct AttentionLengths {
  Index sequences = 0, queries = 0, keys = 0;
  kernels::Mask mask = {};
};

namespace detail {

template <class T>
struct AttentionRecord {
  const T *input, *context;
  kernels::AttentionTensors<T> tensors;
  kernels::AttentionShape shape;
  PathScale<T> path;
};

}  // namespace detail

/// stream [sequences, queries, QueryDim] += path * Attention(input, context), input shaped as the stream, context
/// [sequences, keys, ContextDim], which may be the input. Both must stay as they are until backward.
template <class T, int QueryDim, int ContextDim, int Width, int Heads>
void forward(const Attention<T, QueryDim, ContextDim, Width, Heads>& p, const T* input, const T* context, T* stream,
             const AttentionLengths& lengths, const PathScale<T>& path, const kernels::Dropout& dropout, Tape& tape) {
  static_assert(Width % Heads == 0, "fit: the width of an attention must be a multiple of its heads");
  const auto start = tape.mark();
  const kernels::AttentionShape shape{lengths.sequences, lengths.queries, lengths.keys, Heads,
                                      Width / Heads,     lengths.mask,    dropout};
  const Index rows = lengths.sequences * lengths.queries, context_rows = lengths.sequences * lengths.keys;
  T* q = tape.allocate<T>(rows * Width);
  T* k = tape.allocate<T>(context_rows * Width);
  T* v = tape.allocate<T>(context_rows * Width);
  T* mixed = tape.allocate<T>(rows * Width);
  T* log_sum = tape.recording() ? tape.allocate<T>(rows * Heads) : nullptr;
  kernels::multiply({output_product(p.query, input, q, rows), output_product(p.key, context, k, context_rows),
                     output_product(p.value, context, v, context_rows)},
                    tape);
  const kernels::AttentionTensors<T> tensors{q, k, v, mixed, log_sum};
  kernels::attention(shape, tensors, tape);
  auto out = output_product(p.output, static_cast<const T*>(mixed), stream, rows);
  out.finish.accumulate = true;
  out.finish.row_scale = path.scale;
  out.finish.rows_per_scale = path.rows_per_sequence;
  kernels::multiply({out}, tape);
  tape.finish(start, detail::AttentionRecord<T>{input, context, tensors, shape, path});
}

/// Writes input_gradient and context_gradient from the gradient of the stream, which passes on unchanged, and adds to
/// `gradient`. When forward's context was its input, input_gradient gets both and context_gradient is left alone.
template <class T, int QueryDim, int ContextDim, int Width, int Heads>
void backward(const Attention<T, QueryDim, ContextDim, Width, Heads>& p, const T* stream_gradient, T* input_gradient,
              T* context_gradient, Attention<T, QueryDim, ContextDim, Width, Heads>& gradient, Tape& tape) {
  const auto saved = tape.pop<detail::AttentionRecord<T>>();
  const kernels::AttentionShape& shape = saved->shape;
  const Index rows = shape.sequences * shape.queries, context_rows = shape.sequences * shape.keys;
  const T* branch = branch_gradient(saved->path, stream_gradient, rows, Index{QueryDim}, tape);
  T* mixed_gradient = tape.scratch<T>(rows * Width);
  T* q_gradient = tape.scratch<T>(rows * Width);
  T* k_gradient = tape.scratch<T>(context_rows * Width);
  T* v_gradient = tape.scratch<T>(context_rows * Width);
  kernels::multiply({input_product(p.output, branch, mixed_gradient, rows),
                     weight_product(gradient.output, saved->tensors.o, branch, rows)},
                    tape);
  kernels::attention_backward<T>(shape, saved->tensors, {mixed_gradient, q_gradient, k_gradient, v_gradient}, tape);
  const T *dq = q_gradient, *dk = k_gradient, *dv = v_gradient;
  auto to_input = input_product(p.query, dq, input_gradient, rows);
  const auto to_query = weight_product(gradient.query, saved->input, dq, rows);
  const auto to_key = weight_product(gradient.key, saved->context, dk, context_rows);
  const auto to_value = weight_product(gradient.value, saved->context, dv, context_rows);
  // Tensors without rows may share an address.
  if (QueryDim == ContextDim && rows == context_rows && saved->input == saved->context) {
    to_input.factors[1] = input_factors(p.key, dk);
    to_input.factors[2] = input_factors(p.value, dv);
    to_input.count = 3;
    kernels::multiply({to_input, to_query, to_key, to_value}, tape);
  } else {
    auto to_context = input_product(p.key, dk, context_gradient, context_rows);
    to_context.factors[1] = input_factors(p.value, dv);
    to_context.count = 2;
    kernels::multiply({to_input, to_context, to_query, to_key, to_value}, tape);
  }
  kernels::add_column_sums({bias_sum(gradient.query, dq, rows), bias_sum(gradient.key, dk, context_rows),
                            bias_sum(gradient.value, dv, context_rows), bias_sum(gradient.output, branch, rows)},
                           tape);
}

}  // namespace fit::inline FIT_ABI::nn
