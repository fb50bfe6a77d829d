#pragma once

#include <fit/nn/layer_norm.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/residual.hpp>

namespace fit::inline FIT_ABI::nn {

/// fc2(gelu(fc1(x))), hidden width Ratio times the width.
template <class T, int Width, int Ratio>
struct MLP {
  Linear<T, Width * Ratio, Width> fc1;
  Linear<T, Width, Width * Ratio> fc2;

  static void visit(auto&& f, auto&... p) {
    f("fc1", p.fc1...);
    f("fc2", p.fc2...);
  }
};

namespace detail {

template <class T>
struct MLPRecord {
  const T *input, *before, *activated;
  PathScale<T> path;
  kernels::Dropout dropout;
};

}  // namespace detail

/// stream [rows, Width] += path * MLP(input [rows, Width]), hidden units dropped out. The input must stay as it is
/// until backward.
template <class T, int Width, int Ratio>
void forward(const MLP<T, Width, Ratio>& p, const T* input, T* stream, Index rows, const PathScale<T>& path,
             const kernels::Dropout& dropout, Tape& tape) {
  constexpr Index hidden = Width * Ratio;
  const auto start = tape.mark();
  T* before = tape.allocate<T>(rows * hidden);
  T* activated = tape.recording() ? tape.allocate<T>(rows * hidden) : before;
  auto up = output_product(p.fc1, input, before, rows);
  up.activation = kernels::Activation::gelu;
  up.activated = activated;
  up.dropout = dropout;
  kernels::multiply({up}, tape);
  auto down = output_product(p.fc2, static_cast<const T*>(activated), stream, rows);
  down.finish.accumulate = true;
  down.finish.row_scale = path.scale;
  down.finish.rows_per_scale = path.rows_per_sequence;
  kernels::multiply({down}, tape);
  tape.finish(start, detail::MLPRecord<T>{input, before, activated, path, dropout});
}

/// Writes input_gradient from the gradient of the stream, which passes on unchanged, and adds to `gradient`.
template <class T, int Width, int Ratio>
void backward(const MLP<T, Width, Ratio>& p, const T* stream_gradient, T* input_gradient,
              MLP<T, Width, Ratio>& gradient, Index rows, Tape& tape) {
  const auto saved = tape.pop<detail::MLPRecord<T>>();
  const T* branch = branch_gradient(saved->path, stream_gradient, rows, Index{Width}, tape);
  T* hidden_gradient = tape.scratch<T>(rows * Width * Ratio);
  auto through = input_product(p.fc2, branch, hidden_gradient, rows);
  through.activation = kernels::Activation::gelu_backward;
  through.before = saved->before;
  through.dropout = saved->dropout;
  kernels::multiply({through, weight_product(gradient.fc2, saved->activated, branch, rows)}, tape);
  const T* hidden = hidden_gradient;
  kernels::multiply(
      {input_product(p.fc1, hidden, input_gradient, rows), weight_product(gradient.fc1, saved->input, hidden, rows)},
      tape);
  kernels::add_column_sums({bias_sum(gradient.fc1, hidden, rows), bias_sum(gradient.fc2, branch, rows)}, tape);
}

/// x += MLP(Norm(x)).
template <class T, int Width, int Ratio>
struct ResidualMLP {
  LayerNorm<T, Width> mlp_norm;
  MLP<T, Width, Ratio> mlp;

  static void visit(auto&& f, auto&... p) {
    f("mlp_norm", p.mlp_norm...);
    f("mlp", p.mlp...);
  }
};

/// x [rows, Width] in place.
template <class T, int Width, int Ratio>
void forward(const ResidualMLP<T, Width, Ratio>& p, T* x, Index rows, const PathScale<T>& path,
             const kernels::Dropout& dropout, Tape& tape) {
  const auto start = tape.mark();
  T* normed = tape.allocate<T>(rows * Width);
  forward(p.mlp_norm, static_cast<const T*>(x), normed, rows, tape);
  forward(p.mlp, static_cast<const T*>(normed), x, rows, path, dropout, tape);
  tape.finish(start);
}

/// Adds what the branch contributes to x_gradient, the gradient of x after the layer and then before it, and adds to
/// `gradient`.
template <class T, int Width, int Ratio>
void backward(const ResidualMLP<T, Width, Ratio>& p, T* x_gradient, ResidualMLP<T, Width, Ratio>& gradient, Index rows,
              Tape& tape) {
  const auto frame = tape.pop();
  T* normed = tape.scratch<T>(rows * Width);
  backward(p.mlp, static_cast<const T*>(x_gradient), normed, gradient.mlp, rows, tape);
  backward(p.mlp_norm, static_cast<const T*>(normed), x_gradient, gradient.mlp_norm, rows, tape);
}

}  // namespace fit::inline FIT_ABI::nn
