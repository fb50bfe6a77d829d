#pragma once

#include <fit/nn/attention.hpp>
#include <fit/nn/layer_norm.hpp>
#include <fit/nn/mlp.hpp>

namespace fit::inline FIT_ABI {

/// A pre-norm transformer block, local or global: x += Attention(Norm(x), Norm(x)); x += MLP(Norm(x)).
template <class T, int Width, int Heads, int Ratio>
struct Block {
  LayerNorm<T, Width> attention_norm;
  Attention<T, Width, Width, Width, Heads> attention;
  LayerNorm<T, Width> mlp_norm;
  MLP<T, Width, Ratio> mlp;

  static void visit(auto&& f, auto&... p) {
    f("attention_norm", p.attention_norm...);
    f("attention", p.attention...);
    f("mlp_norm", p.mlp_norm...);
    f("mlp", p.mlp...);
  }
};

namespace detail {

struct FrameRecord {};

/// x [rows, Width] += path * MLP(Norm(x))
template <class T, int Width, int Ratio>
void forward_mlp(const LayerNorm<T, Width>& norm, const MLP<T, Width, Ratio>& mlp, T* x, Index rows,
                 const PathScale<T>& path, Tape& tape) {
  T* normed = tape.allocate<T>(rows * Width);
  forward(norm, static_cast<const T*>(x), normed, rows, tape);
  forward(mlp, static_cast<const T*>(normed), x, rows, path, tape);
}

template <class T, int Width, int Ratio>
void backward_mlp(const LayerNorm<T, Width>& norm, const MLP<T, Width, Ratio>& mlp, T* x_gradient,
                  LayerNorm<T, Width>& norm_gradient, MLP<T, Width, Ratio>& mlp_gradient, Index rows, Tape& tape) {
  T* normed = tape.scratch<T>(rows * Width);
  backward(mlp, static_cast<const T*>(x_gradient), normed, mlp_gradient, rows, tape);
  backward(norm, static_cast<const T*>(normed), x_gradient, norm_gradient, rows, tape);
}

}  // namespace detail

/// x [sequences, length, Width] in place; each sequence by itself, under the mask.
template <class T, int Width, int Heads, int Ratio>
void forward(const Block<T, Width, Heads, Ratio>& p, T* x, Index sequences, Index length, const kernels::Mask& mask,
             Tape& tape) {
  const auto start = tape.mark();
  const Index rows = sequences * length;
  const PathScale<T> attention_path = draw_path<T>(sequences, length, tape);
  T* normed = tape.allocate<T>(rows * Width);
  forward(p.attention_norm, static_cast<const T*>(x), normed, rows, tape);
  forward(p.attention, static_cast<const T*>(normed), static_cast<const T*>(normed), x,
          {sequences, length, length, mask}, attention_path, tape.dropout(tape.options().drop_attention), tape);
  detail::forward_mlp(p.mlp_norm, p.mlp, x, rows, draw_path<T>(sequences, length, tape), tape);
  tape.finish(start, detail::FrameRecord{});
}

/// Adds what the branches contribute to x_gradient, the gradient of x after the block and then before it, and adds to
/// `gradient`.
template <class T, int Width, int Heads, int Ratio>
void backward(const Block<T, Width, Heads, Ratio>& p, T* x_gradient, Block<T, Width, Heads, Ratio>& gradient,
              Index sequences, Index length, Tape& tape) {
  const auto frame = tape.pop<detail::FrameRecord>();
  const Index rows = sequences * length;
  detail::backward_mlp(p.mlp_norm, p.mlp, x_gradient, gradient.mlp_norm, gradient.mlp, rows, tape);
  T* normed = tape.scratch<T>(rows * Width);
  backward(p.attention, static_cast<const T*>(x_gradient), normed, static_cast<T*>(nullptr), gradient.attention, tape);
  backward(p.attention_norm, static_cast<const T*>(normed), x_gradient, gradient.attention_norm, rows, tape);
}

}  // namespace fit::inline FIT_ABI
