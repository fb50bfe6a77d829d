#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <fit/core/assert.hpp>
#include <fit/nn/attention.hpp>
#include <fit/nn/layer_norm.hpp>
#include <fit/nn/mlp.hpp>
#include <fit/nn/mlp_rows.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// A pre-norm transformer block, local or global: x += Attention(Norm(x), Norm(x)), unless it has 0 heads, and
/// x += MLP(Norm(x)). KeyHeads are those of its keys and values, each for Heads / KeyHeads heads of queries.
template <class T, int Width, int Heads, int Ratio, int KeyHeads = Heads>
struct Block {
  If<(Heads > 0), LayerNorm<T, Width>> attention_norm;
  If<(Heads > 0), Attention<T, Width, Width, Width, std::max(1, Heads), std::max(1, KeyHeads)>> attention;
  ResidualMLP<T, Width, Ratio> residual_mlp;

  static void visit(auto&& f, auto&... p) {
    f("attention_norm", p.attention_norm...);
    f("attention", p.attention...);
    ResidualMLP<T, Width, Ratio>::visit(f, p.residual_mlp...);
  }
};

namespace detail {

template <class T>
struct BlockRecord {
  T* waiting;  // the input of the MLP, which has not run yet; or null
  PathScale<T> path;
  kernels::Dropout dropout;
};

/// The MLP of rows first .. first + rows - 1 of x.
template <class T, int Width, int Ratio>
void forward_rows(const ResidualMLP<T, Width, Ratio>& p, T* x, Index first, Index rows, Index sequences,
                  const BlockRecord<T>& with, Tape& tape) {
  PathScale<T> path = with.path;
  if (sequences == 1) path.rows_per_sequence = rows;
  kernels::Dropout dropout = with.dropout;
  dropout.offset += static_cast<std::uint64_t>(first * Width * Ratio);
  forward<T>(p, x, rows, path, dropout, tape);
}

}  // namespace detail

/// x [sequences, length, Width] in place; each sequence by itself, under the mask. With `again`, for its records alone:
/// x is left as the MLP's input, which must stay until the way back, where the MLP runs some rows at a time. Of one
/// sequence that is spread over a team, x has this member's rows.
template <class T, int Width, int Heads, int Ratio, int KeyHeads>
void forward(const Block<T, Width, Heads, Ratio, KeyHeads>& p, T* x, Index sequences, Index length,
             const kernels::Mask& mask, Draws draws, Tape& tape, bool again = false, const Spread& spread = {}) {
  FIT_ASSERT(!again || tape.recording());
  const auto start = tape.mark();
  const Index rows = sequences * length, whole = spread.team ? spread.rows() : length;
  if constexpr (Heads > 0) {
    const PathScale<T> path = draw_path<T>(sequences, length, draws, tape);
    T* normed = tape.allocate<T>(rows * Width);
    forward<T>(p.attention_norm, x, normed, rows, tape);
    forward<T>(p.attention, normed, normed, x, {sequences, length, length, mask, spread}, path,
               draw_dropout(tape.options().drop_attention, draws, Heads * whole * whole), tape);
  }
  const PathScale<T> path = draw_path<T>(sequences, length, draws, tape);
  const detail::BlockRecord<T> record{again ? x : nullptr, path,
                                      draw_dropout(tape.options().drop_units, draws, whole * Width * Ratio)};
  const Index piece = mlp_rows(sequences, length);
  for (Index first = 0; first < rows && !again; first += piece) {
    detail::forward_rows(p.residual_mlp, x + first * Width, first, std::min(piece, rows - first), sequences, record,
                         tape);
  }
  tape.finish(start, record);
}

/// The gradient of x in place; adds to `gradient`.
template <class T, int Width, int Heads, int Ratio, int KeyHeads>
void backward(const Block<T, Width, Heads, Ratio, KeyHeads>& p, T* x_gradient,
              Block<T, Width, Heads, Ratio, KeyHeads>& gradient, Index sequences, Index length, Tape& tape) {
  const auto saved = tape.pop<detail::BlockRecord<T>>();
  const Index rows = sequences * length, piece = mlp_rows(sequences, length);
  for (Index end = rows; end > 0;) {
    const Index first = (end - 1) / piece * piece, count = end - first;
    const Arena::Scope scope(tape.arena());
    if (saved->waiting) {
      T* x = saved->waiting + first * Width;
      detail::forward_rows(p.residual_mlp, x, first, count, sequences, *saved, tape);
    }
    backward<T>(p.residual_mlp, x_gradient + first * Width, gradient.residual_mlp, count, tape);
    end = first;
  }
  if constexpr (Heads > 0) {
    T* normed = tape.scratch<T>(rows * Width);
    backward<T>(p.attention, x_gradient, normed, nullptr, gradient.attention, {sequences, length, length}, tape);
    backward<T>(p.attention_norm, normed, x_gradient, gradient.attention_norm, rows, tape);
  }
}

/// x [rows of each sequence in turn, Width] in place; keys and values of the rows join the caches.
template <class T, int Width, int Heads, int Ratio, int KeyHeads>
void step(const Block<T, Width, Heads, Ratio, KeyHeads>& p, T* x, std::span<const CachedRows<T>> sequences,
          const kernels::Mask& mask, const StepKernels<T>& with, Tape& tape) {
  const Arena::Scope scope(tape.arena());
  const Index rows = rows_of(sequences);
  T* normed = tape.scratch<T>(rows * Width);
  forward<T>(p.attention_norm, x, normed, rows, tape);
  step<T>(p.attention, normed, x, sequences, mask, with, tape);
  forward<T>(p.residual_mlp, x, rows, {}, {}, tape, with);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
