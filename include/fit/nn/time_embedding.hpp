#pragma once

#include <cmath>

#include <fit/kernels/silu.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/positions.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// A token for a noise level g: fc2(silu(fc1(code))), the code being that of 1000 g in Width / 4 numbers, brought to
/// mean 0 and deviation 1. Of two numbers that would leave a sign: there must be three.
template <class T, int Width>
struct TimeEmbedding {
  static_assert(Width % 4 == 0 && Width >= 12,
                "fit: the width of a time embedding must be a multiple of 4, and at least 12");
  static constexpr int code_width = Width / 4;

  Linear<T, Width, code_width> fc1;
  Linear<T, Width, Width> fc2;

  static void visit(auto&& f, auto&... p) {
    f("fc1", p.fc1...);
    f("fc2", p.fc2...);
  }
};

namespace detail {

template <class T>
struct TimeEmbeddingRecord {
  const T *code, *hidden, *activated;
};

}  // namespace detail

/// tokens [count, Width] of noise levels [count], which are kept in double: 1000 g loses its last digits in float.
template <class T, int Width>
void forward(const TimeEmbedding<T, Width>& p, const double* levels, T* tokens, Index count, Tape& tape) {
  constexpr Index width = TimeEmbedding<T, Width>::code_width;
  const auto start = tape.mark();
  T* code = tape.allocate<T>(count * width);
  double values[std::size_t{width}];
  for (Index i = 0; i < count; ++i) {
    for (Index k = 0; k < width; ++k) {
      const Wave wave(k, width);
      values[wave.at] = wave(1000 * levels[i]);
    }
    double mean = 0, square = 0;
    for (const double value : values) mean += value / static_cast<double>(width);
    for (const double value : values) square += (value - mean) * (value - mean) / static_cast<double>(width);
    for (Index k = 0; k < width; ++k) code[i * width + k] = static_cast<T>((values[k] - mean) / std::sqrt(square));
  }
  T* hidden = tape.allocate<T>(count * Width);
  T* activated = tape.allocate<T>(count * Width);
  kernels::multiply({output_product<T>(p.fc1, code, hidden, count)}, tape);
  kernels::silu(hidden, activated, count * Width);
  kernels::multiply({output_product<T>(p.fc2, activated, tokens, count)}, tape);
  tape.finish(start, detail::TimeEmbeddingRecord<T>{code, hidden, activated});
}

/// Adds to `gradient`; the noise levels have none.
template <class T, int Width>
void backward(const TimeEmbedding<T, Width>& p, const T* tokens_gradient, TimeEmbedding<T, Width>& gradient,
              Index count, Tape& tape) {
  const auto saved = tape.pop<detail::TimeEmbeddingRecord<T>>();
  T* hidden = tape.scratch<T>(count * Width);
  kernels::multiply({input_product(p.fc2.weight, tokens_gradient, hidden, count),
                     weight_product(gradient.fc2.weight, saved->activated, tokens_gradient, count)},
                    tape);
  kernels::silu_backward(saved->hidden, hidden, count * Width);
  kernels::multiply({weight_product<T>(gradient.fc1.weight, saved->code, hidden, count)}, tape);
  kernels::add_column_sums({bias_sum<T>(gradient.fc1, hidden, count), bias_sum(gradient.fc2, tokens_gradient, count)},
                           tape);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
