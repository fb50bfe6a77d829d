#pragma once

#include <algorithm>
#include <span>

#include <fit/nn/attention.hpp>
#include <fit/nn/layer_norm.hpp>
#include <fit/nn/mlp.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// What a cross-attention layer has besides its attention.
struct CrossOptions {
  bool context_norm = true;
  int mlp_ratio = 0;  ///< of an MLP after the attention; 0 for none
};

/// read, write, condition: one set of tokens attends to another. x += Attention(Norm_q(x), Norm_c(context)), the
/// context without a norm, and x += MLP(Norm(x)) afterwards, as the options say.
template <class T, int QueryDim, int ContextDim, int Width, int Heads, CrossOptions options = CrossOptions{}>
struct Cross {
  LayerNorm<T, QueryDim> query_norm;
  If<options.context_norm, LayerNorm<T, ContextDim>> context_norm;
  Attention<T, QueryDim, ContextDim, Width, Heads> attention;
  If<(options.mlp_ratio > 0), ResidualMLP<T, QueryDim, std::max(1, options.mlp_ratio)>> residual_mlp;

  static void visit(auto&& f, auto&... p) {
    f("query_norm", p.query_norm...);
    f("context_norm", p.context_norm...);
    f("attention", p.attention...);
    decltype(Cross::residual_mlp)::visit(f, p.residual_mlp...);
  }
};

/// x [sequences, queries, QueryDim] in place, context [sequences, keys, ContextDim].
template <class T, int QueryDim, int ContextDim, int Width, int Heads, CrossOptions options>
void forward(const Cross<T, QueryDim, ContextDim, Width, Heads, options>& p, T* x, const T* context,
             const AttentionLengths& lengths, Tape& tape) {
  const auto start = tape.mark();
  const Index rows = lengths.query_rows(), context_rows = lengths.key_rows();
  T* query = tape.allocate<T>(rows * QueryDim);
  T* normed = tape.allocate<T>(context_rows * ContextDim);
  forward<T>(p.query_norm, x, query, rows, tape);
  if constexpr (options.context_norm) {
    forward(p.context_norm, context, normed, context_rows, tape);
  } else {
    std::copy_n(context, context_rows * ContextDim, normed);  // backward needs it as it is now
  }
  forward<T>(p.attention, query, normed, x, lengths, {}, {}, tape);
  if constexpr (options.mlp_ratio > 0) forward<T>(p.residual_mlp, x, rows, {}, {}, tape);
  tape.finish(start);
}

/// The gradient of x in place; adds to context_gradient and to `gradient`.
template <class T, int QueryDim, int ContextDim, int Width, int Heads, CrossOptions options>
void backward(const Cross<T, QueryDim, ContextDim, Width, Heads, options>& p, T* x_gradient, T* context_gradient,
              Cross<T, QueryDim, ContextDim, Width, Heads, options>& gradient, const AttentionLengths& lengths,
              Tape& tape) {
  const auto frame = tape.pop();
  const Index rows = lengths.query_rows(), context_rows = lengths.key_rows();
  if constexpr (options.mlp_ratio > 0) backward(p.residual_mlp, x_gradient, gradient.residual_mlp, rows, tape);
  T* query = tape.scratch<T>(rows * QueryDim);
  T* normed = tape.scratch<T>(context_rows * ContextDim);
  backward<T>(p.attention, x_gradient, query, normed, gradient.attention, lengths, tape);
  if constexpr (options.context_norm) {
    backward<T>(p.context_norm, normed, context_gradient, gradient.context_norm, context_rows, tape);
  } else {
    for (Index i = 0; i < context_rows * ContextDim; ++i) context_gradient[i] += normed[i];
  }
  backward<T>(p.query_norm, query, x_gradient, gradient.query_norm, rows, tape);
}

/// x [rows of each sequence in turn, QueryDim] in place, over contexts whose keys and values are in the caches.
template <class T, int QueryDim, int ContextDim, int Width, int Heads, CrossOptions options>
void step(const Cross<T, QueryDim, ContextDim, Width, Heads, options>& p, T* x,
          std::span<const CachedRows<T>> sequences, const StepKernels<T>& with, Tape& tape) {
  const Arena::Scope scope(tape.arena());
  const Index rows = rows_of(sequences);
  T* query = tape.scratch<T>(rows * QueryDim);
  forward<T>(p.query_norm, x, query, rows, tape);
  step_queries<T>(p.attention, query, x, sequences, with, tape);
  if constexpr (options.mlp_ratio > 0) forward<T>(p.residual_mlp, x, rows, {}, {}, tape, with);
}

/// keys and values [rows, Width], for a cache, of a context [rows, ContextDim].
template <class T, int QueryDim, int ContextDim, int Width, int Heads, CrossOptions options>
void step_context(const Cross<T, QueryDim, ContextDim, Width, Heads, options>& p, const T* context, T* keys, T* values,
                  Index rows, const StepKernels<T>& with, Tape& tape) {
  const Arena::Scope scope(tape.arena());
  if constexpr (options.context_norm) {
    T* normed = tape.scratch<T>(rows * ContextDim);
    forward(p.context_norm, context, normed, rows, tape);
    context = normed;
  }
  with.multiply(
      {output_product(p.attention.key, context, keys, rows), output_product(p.attention.value, context, values, rows)},
      tape);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
