#pragma once

#include <fit/nn/attention.hpp>
#include <fit/nn/block.hpp>
#include <fit/nn/layer_norm.hpp>

namespace fit::inline FIT_ABI {

/// read, write: one set of tokens attends to another. x += Attention(Norm_q(x), Norm_c(context)).
template <class T, int QueryDim, int ContextDim, int Width, int Heads>
struct Cross {
  LayerNorm<T, QueryDim> query_norm;
  LayerNorm<T, ContextDim> context_norm;
  Attention<T, QueryDim, ContextDim, Width, Heads> attention;

  static void visit(auto&& f, auto&... p) {
    f("query_norm", p.query_norm...);
    f("context_norm", p.context_norm...);
    f("attention", p.attention...);
  }
};

/// x [sequences, queries, QueryDim] in place, context [sequences, keys, ContextDim].
template <class T, int QueryDim, int ContextDim, int Width, int Heads>
void forward(const Cross<T, QueryDim, ContextDim, Width, Heads>& p, T* x, const T* context,
             const AttentionLengths& lengths, Tape& tape) {
  const auto start = tape.mark();
  const Index rows = lengths.sequences * lengths.queries, context_rows = lengths.sequences * lengths.keys;
  T* query = tape.allocate<T>(rows * QueryDim);
  T* normed = tape.allocate<T>(context_rows * ContextDim);
  forward(p.query_norm, static_cast<const T*>(x), query, rows, tape);
  forward(p.context_norm, context, normed, context_rows, tape);
  forward(p.attention, static_cast<const T*>(query), static_cast<const T*>(normed), x, lengths, {}, {}, tape);
  tape.finish(start, detail::FrameRecord{});
}

/// Adds what the branch contributes to x_gradient (the gradient of x after the layer, then before it) and to
/// context_gradient, and adds to `gradient`.
template <class T, int QueryDim, int ContextDim, int Width, int Heads>
void backward(const Cross<T, QueryDim, ContextDim, Width, Heads>& p, T* x_gradient, T* context_gradient,
              Cross<T, QueryDim, ContextDim, Width, Heads>& gradient, const AttentionLengths& lengths, Tape& tape) {
  const auto frame = tape.pop<detail::FrameRecord>();
  const Index rows = lengths.sequences * lengths.queries, context_rows = lengths.sequences * lengths.keys;
  T* query = tape.scratch<T>(rows * QueryDim);
  T* normed = tape.scratch<T>(context_rows * ContextDim);
  backward(p.attention, static_cast<const T*>(x_gradient), query, normed, gradient.attention, tape);
  backward(p.context_norm, static_cast<const T*>(normed), context_gradient, gradient.context_norm, context_rows, tape);
  backward(p.query_norm, static_cast<const T*>(query), x_gradient, gradient.query_norm, rows, tape);
}

}  // namespace fit::inline FIT_ABI
