#pragma once

#include <algorithm>
#include <span>

#include <fit/nn/attention.hpp>
#include <fit/nn/layer_norm.hpp>
#include <fit/nn/mlp.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// A pre-norm transformer block, local or global: x += Attention(Norm(x), Norm(x)), unless it has 0 heads, and
/// x += MLP(Norm(x)).
template <class T, int Width, int Heads, int Ratio>
struct Block {
  If<(Heads > 0), LayerNorm<T, Width>> attention_norm;
  If<(Heads > 0), Attention<T, Width, Width, Width, std::max(1, Heads)>> attention;
  ResidualMLP<T, Width, Ratio> residual_mlp;

  static void visit(auto&& f, auto&... p) {
    f("attention_norm", p.attention_norm...);
    f("attention", p.attention...);
    ResidualMLP<T, Width, Ratio>::visit(f, p.residual_mlp...);
  }
};

/// x [sequences, length, Width] in place; each sequence by itself, under the mask.
template <class T, int Width, int Heads, int Ratio>
void forward(const Block<T, Width, Heads, Ratio>& p, T* x, Index sequences, Index length, const kernels::Mask& mask,
             Draws draws, Tape& tape) {
  const auto start = tape.mark();
  const Index rows = sequences * length;
  if constexpr (Heads > 0) {
    const PathScale<T> path = draw_path<T>(sequences, length, draws, tape);
    T* normed = tape.allocate<T>(rows * Width);
    forward<T>(p.attention_norm, x, normed, rows, tape);
    forward<T>(p.attention, normed, normed, x, {sequences, length, length, mask}, path,
               draw_dropout(tape.options().drop_attention, draws, Heads * length * length), tape);
  }
  const PathScale<T> path = draw_path<T>(sequences, length, draws, tape);
  forward<T>(p.residual_mlp, x, rows, path, draw_dropout(tape.options().drop_units, draws, length * Width * Ratio),
             tape);
  tape.finish(start);
}

/// The gradient of x in place; adds to `gradient`.
template <class T, int Width, int Heads, int Ratio>
void backward(const Block<T, Width, Heads, Ratio>& p, T* x_gradient, Block<T, Width, Heads, Ratio>& gradient,
              Index sequences, Index length, Tape& tape) {
  const auto frame = tape.pop();
  const Index rows = sequences * length;
  backward<T>(p.residual_mlp, x_gradient, gradient.residual_mlp, rows, tape);
  if constexpr (Heads > 0) {
    T* normed = tape.scratch<T>(rows * Width);
    backward<T>(p.attention, x_gradient, normed, nullptr, gradient.attention, {sequences, length, length}, tape);
    backward<T>(p.attention_norm, normed, x_gradient, gradient.attention_norm, rows, tape);
  }
}

/// x [rows of each sequence in turn, Width] in place; keys and values of the rows join the caches.
template <class T, int Width, int Heads, int Ratio>
void step(const Block<T, Width, Heads, Ratio>& p, T* x, std::span<const CachedRows<T>> sequences,
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
