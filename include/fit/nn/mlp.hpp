#pragma once

#include <fit/nn/layer_norm.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/residual.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

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
  const T *input, *slope, *activated;
  PathScale<T> path;
};

}  // namespace detail

/// residual [rows, Width] += path * MLP(input [rows, Width]), hidden units dropped out.
template <class T, int Width, int Ratio>
void forward(const MLP<T, Width, Ratio>& p, const T* input, T* residual, Index rows, const PathScale<T>& path,
             const kernels::Dropout& dropout, Tape& tape, const StepKernels<T>& with = {}) {
  const auto start = tape.mark();
  T* activated = tape.allocate<T>(rows * Width * Ratio);
  T* slope = tape.recording() ? tape.allocate<T>(rows * Width * Ratio) : activated;
  auto up = output_product(p.fc1, input, slope, rows);
  up.activation = kernels::Activation::gelu;
  up.activated = activated;
  up.dropout = dropout;
  with.multiply({up}, tape);
  with.multiply({residual_product<T>(p.fc2, activated, residual, rows, path)}, tape);
  tape.finish(start, detail::MLPRecord<T>{input, slope, activated, path});
}

/// Writes input_gradient, and adds to `gradient`.
template <class T, int Width, int Ratio>
void backward(const MLP<T, Width, Ratio>& p, const T* residual_gradient, T* input_gradient,
              MLP<T, Width, Ratio>& gradient, Index rows, Tape& tape) {
  const auto saved = tape.pop<detail::MLPRecord<T>>();
  const T* branch = branch_gradient(saved->path, residual_gradient, rows, Index{Width}, tape);
  T* hidden = tape.scratch<T>(rows * Width * Ratio);
  auto through = input_product(p.fc2.weight, branch, hidden, rows);
  through.activation = kernels::Activation::times_slope;
  through.slope = saved->slope;
  kernels::multiply({through, weight_product(gradient.fc2.weight, saved->activated, branch, rows)}, tape);
  kernels::multiply({input_product<T>(p.fc1.weight, hidden, input_gradient, rows),
                     weight_product<T>(gradient.fc1.weight, saved->input, hidden, rows)},
                    tape);
  kernels::add_column_sums({bias_sum<T>(gradient.fc1, hidden, rows), bias_sum(gradient.fc2, branch, rows)}, tape);
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
             const kernels::Dropout& dropout, Tape& tape, const StepKernels<T>& with = {}) {
  const auto start = tape.mark();
  T* normed = tape.allocate<T>(rows * Width);
  forward<T>(p.mlp_norm, x, normed, rows, tape);
  forward<T>(p.mlp, normed, x, rows, path, dropout, tape, with);
  tape.finish(start);
}

/// The gradient of x in place; adds to `gradient`.
template <class T, int Width, int Ratio>
void backward(const ResidualMLP<T, Width, Ratio>& p, T* x_gradient, ResidualMLP<T, Width, Ratio>& gradient, Index rows,
              Tape& tape) {
  const auto frame = tape.pop();
  T* normed = tape.scratch<T>(rows * Width);
  backward<T>(p.mlp, x_gradient, normed, gradient.mlp, rows, tape);
  backward<T>(p.mlp_norm, normed, x_gradient, gradient.mlp_norm, rows, tape);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
