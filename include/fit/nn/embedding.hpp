#pragma once

#include <algorithm>
#include <cstdint>

#include <fit/core/assert.hpp>
#include <fit/nn/layer.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// A table of one row for each id.
template <class T, int Vocabulary, int Width>
struct Embedding {
  Matrix<T, Vocabulary, Width> weight;

  static void visit(auto&& f, auto&... p) { f("weight", p.weight...); }
};

namespace detail {

struct EmbeddingRecord {
  const std::int32_t* ids;
};

}  // namespace detail

/// x [rows, Width] from ids [rows] in 0 .. Vocabulary-1.
template <class T, int Vocabulary, int Width>
void forward(const Embedding<T, Vocabulary, Width>& p, const std::int32_t* ids, T* x, Index rows, Tape& tape) {
  const auto start = tape.mark();
  for (Index i = 0; i < rows; ++i) {
    FIT_ASSERT(ids[i] >= 0 && ids[i] < Vocabulary);
    std::copy_n(p.weight.data() + ids[i] * Index{Width}, Width, x + i * Width);
  }
  tape.finish(start, detail::EmbeddingRecord{ids});
}

/// Adds to `gradient`; ids have none. The rows of an id are summed in their order, whatever the threads: each takes
/// columns.
template <class T, int Vocabulary, int Width>
void backward(const Embedding<T, Vocabulary, Width>&, const T* x_gradient, Embedding<T, Vocabulary, Width>& gradient,
              Index rows, Tape& tape) {
  constexpr Index columns = 16;
  const auto saved = tape.pop<detail::EmbeddingRecord>();
  tape.executor().parallel_for((Width + columns - 1) / columns, [&](Index task, int) {
    const Index first = task * columns, last = std::min<Index>(Width, first + columns);
    for (Index i = 0; i < rows; ++i) {
      T* to = gradient.weight.data() + saved->ids[i] * Index{Width};
      for (Index j = first; j < last; ++j) to[j] += x_gradient[i * Width + j];
    }
  });
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
