#pragma once

#include <algorithm>
#include <cstdint>

#include <fit/core/parameter.hpp>
#include <fit/core/tape.hpp>

namespace fit::inline FIT_ABI::nn {

/// A table of one row for each id.
template <class T, int Vocabulary, int Width>
struct Embedding {
  Matrix<T, Vocabulary, Width> weight;

  static void visit(auto&& f, auto&... p) { f("weight", p.weight...); }
};

/// x [rows, Width] from ids [rows] in 0 .. Vocabulary-1.
template <class T, int Vocabulary, int Width>
void forward(const Embedding<T, Vocabulary, Width>& p, const std::int32_t* ids, T* x, Index rows) {
  for (Index i = 0; i < rows; ++i) std::copy_n(p.weight.data() + ids[i] * Index{Width}, Width, x + i * Width);
}

/// Adds to `gradient`. The rows of an id are summed in their order, whatever the threads: each takes columns.
template <class T, int Vocabulary, int Width>
void backward(const std::int32_t* ids, const T* x_gradient, Embedding<T, Vocabulary, Width>& gradient, Index rows,
              Tape& tape) {
  constexpr Index columns = 16;
  tape.executor().parallel_for((Width + columns - 1) / columns, [&](Index task, int) {
    const Index first = task * columns, last = std::min<Index>(Width, first + columns);
    for (Index i = 0; i < rows; ++i) {
      T* to = gradient.weight.data() + ids[i] * Index{Width};
      for (Index j = first; j < last; ++j) to[j] += x_gradient[i * Width + j];
    }
  });
}

}  // namespace fit::inline FIT_ABI::nn
