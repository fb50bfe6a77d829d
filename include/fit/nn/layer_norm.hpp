#pragma once

#include <fit/kernels/layer_norm.hpp>
#include <fit/nn/layer.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// y = weight * (x - mean) / sqrt(variance + 1e-6) + bias over the last axis.        Ba et al., arXiv 1607.06450
template <class T, int Width>
struct LayerNorm {
  Vector<T, Width> weight, bias;

  static void visit(auto&& f, auto&... p) {
    f("weight", p.weight...);
    f("bias", p.bias...);
  }
};

namespace detail {

template <class T>
struct LayerNormRecord {
  const T *normalised, *inverse_deviation;
};

}  // namespace detail

/// y [rows, Width] from x [rows, Width]; y may be x.
template <class T, int Width>
void forward(const LayerNorm<T, Width>& p, const T* x, T* y, Index rows, Tape& tape) {
  const auto start = tape.mark();
  T* normalised = tape.recording() ? tape.allocate<T>(rows * Width) : nullptr;
  T* inverse_deviation = tape.recording() ? tape.allocate<T>(rows) : nullptr;
  kernels::layer_norm<T>({x, p.weight.data(), p.bias.data(), y, normalised, inverse_deviation}, rows, Width,
                         tape.executor());
  tape.finish(start, detail::LayerNormRecord<T>{normalised, inverse_deviation});
}

/// Adds to x_gradient and to `gradient`.
template <class T, int Width>
void backward(const LayerNorm<T, Width>& p, const T* y_gradient, T* x_gradient, LayerNorm<T, Width>& gradient,
              Index rows, Tape& tape) {
  const auto saved = tape.pop<detail::LayerNormRecord<T>>();
  kernels::layer_norm_backward<T>({saved->normalised, saved->inverse_deviation, p.weight.data(), y_gradient, x_gradient,
                                   gradient.weight.data(), gradient.bias.data()},
                                  rows, Width, tape);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
