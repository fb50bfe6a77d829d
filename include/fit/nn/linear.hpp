#pragma once

#include <fit/kernels/column_sums.hpp>
#include <fit/kernels/gemm.hpp>
#include <fit/nn/layer.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// y = x weight^T + bias over the last axis.
template <class T, int Out, int In>
struct Linear {
  Matrix<T, Out, In> weight;
  Vector<T, Out> bias;

  static void visit(auto&& f, auto&... p) {
    f("weight", p.weight...);
    f("bias", p.bias...);
  }
};

/// The product y [rows, Out] = x [rows, In] weight^T + bias, or no bias, to be computed with others by
/// kernels::multiply.
template <class T, int Out, int In>
kernels::Product<T> output_product(const Matrix<T, Out, In>& weight, const T* bias, const T* x, T* y, Index rows) {
  return {.rows = rows,
          .columns = Out,
          .factors = {{kernels::plain(x, In), kernels::transposed(weight.data(), In), In}},
          .c = y,
          .c_row = Out,
          .finish = {.bias = bias}};
}
template <class T, int Out, int In>
kernels::Product<T> output_product(const Linear<T, Out, In>& p, const T* x, T* y, Index rows) {
  return output_product(p.weight, p.bias.data(), x, y, rows);
}

/// One summand of an input gradient: y_gradient [rows, Out] weight.
template <class T, int Out, int In>
kernels::Factors<T> input_factors(const Matrix<T, Out, In>& weight, const T* y_gradient) {
  return {kernels::plain(y_gradient, Out), kernels::plain(weight.data(), In), Out};
}

/// The product x_gradient [rows, In] = y_gradient [rows, Out] weight.
template <class T, int Out, int In>
kernels::Product<T> input_product(const Matrix<T, Out, In>& weight, const T* y_gradient, T* x_gradient, Index rows) {
  return {.rows = rows, .columns = In, .factors = {input_factors(weight, y_gradient)}, .c = x_gradient, .c_row = In};
}

/// The product weight_gradient += y_gradient^T [Out, rows] x [rows, In].
template <class T, int Out, int In>
kernels::Product<T> weight_product(Matrix<T, Out, In>& weight_gradient, const T* x, const T* y_gradient, Index rows) {
  return {.rows = Out,
          .columns = In,
          .factors = {{kernels::transposed(y_gradient, Out), kernels::plain(x, In), rows}},
          .c = weight_gradient.data(),
          .c_row = In,
          .finish = {.accumulate = true}};
}

/// gradient.bias += the column sums of y_gradient [rows, Out].
template <class T, int Out, int In>
kernels::ColumnSum<T> bias_sum(Linear<T, Out, In>& gradient, const T* y_gradient, Index rows) {
  return {y_gradient, rows, Out, gradient.bias.data()};
}

namespace detail {

template <class T>
struct LinearRecord {
  const T* x;
};

}  // namespace detail

/// y [rows, Out] from x [rows, In].
template <class T, int Out, int In>
void forward(const Linear<T, Out, In>& p, const T* x, T* y, Index rows, Tape& tape) {
  const auto start = tape.mark();
  kernels::multiply({output_product(p, x, y, rows)}, tape);
  tape.finish(start, detail::LinearRecord<T>{x});
}

/// Writes x_gradient, unless it is null, and adds to `gradient`.
template <class T, int Out, int In>
void backward(const Linear<T, Out, In>& p, const T* y_gradient, T* x_gradient, Linear<T, Out, In>& gradient, Index rows,
              Tape& tape) {
  const auto saved = tape.pop<detail::LinearRecord<T>>();
  const auto weight = weight_product(gradient.weight, saved->x, y_gradient, rows);
  if (x_gradient) {
    kernels::multiply({input_product(p.weight, y_gradient, x_gradient, rows), weight}, tape);
  } else {
    kernels::multiply({weight}, tape);
  }
  kernels::add_column_sums({bias_sum(gradient, y_gradient, rows)}, tape);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
