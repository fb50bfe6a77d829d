#pragma once

#include <algorithm>
#include <cstdint>

#include <fit/kernels/dropout.hpp>
#include <fit/nn/linear.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// Where a block's drop-outs come from: random numbers of its own, and the number of its first sequence among all those
/// of the pass, so that what is dropped does not depend on how these are cut in chunks.
struct Draws {
  Random random;
  Index first = 0;
  Index part = 0, parts = 1;  ///< of each sequence that is here
};

/// The next drop-out, of so many elements a sequence, or a part of it at most.
inline kernels::Dropout draw_dropout(float rate, Draws& draws, Index elements) {
  if (rate == 0) return {};
  return {draws.random.bits(), rate, static_cast<std::uint64_t>((draws.first * draws.parts + draws.part) * elements)};
}

/// How a branch joins its residual: whole sequences of it are dropped and the others scaled by 1 / keep, or all are
/// added as they are. Huang et al., arXiv 1603.09382.
template <class T>
struct PathScale {
  const T* scale = nullptr;  // [sequences], or none
  Index rows_per_sequence = 1;
};

/// Draws which of `sequences` keep their branch, where the tape's options have a drop_path; the numbers live on the
/// tape.
template <class T>
PathScale<T> draw_path(Index sequences, Index length, Draws& draws, Tape& tape) {
  if (tape.options().drop_path == 0) return {};
  // Not of a part: all of a sequence is dropped, or nothing.
  const kernels::Dropout dropout{draws.random.bits(), tape.options().drop_path,
                                 static_cast<std::uint64_t>(draws.first)};
  T* scale = tape.allocate<T>(sequences);
  std::fill_n(scale, sequences, T(1));
  dropout.apply(scale, sequences, 0);
  return {scale, std::max<Index>(1, length)};
}

/// The product residual [rows, Out] += path * (x [rows, In] weight^T + bias), with which a branch ends.
template <class T, int Out, int In>
kernels::Product<T> residual_product(const Linear<T, Out, In>& p, const T* x, T* residual, Index rows,
                                     const PathScale<T>& path = {}) {
  auto product = output_product(p, x, residual, rows);
  product.finish.accumulate = true;
  product.finish.row_scale = path.scale;
  product.finish.rows_per_scale = path.rows_per_sequence;
  return product;
}

/// The gradient of a branch [rows, width] from that of its residual: the same, or a scaled copy on the tape.
template <class T>
const T* branch_gradient(const PathScale<T>& path, const T* gradient, Index rows, Index width, Tape& tape) {
  if (!path.scale) return gradient;
  T* scaled = tape.scratch<T>(rows * width);
  tape.executor().parallel_for(rows / path.rows_per_sequence, [&](Index sequence, int) {
    const Index first = sequence * path.rows_per_sequence * width;
    for (Index i = first; i < first + path.rows_per_sequence * width; ++i) {
      scaled[i] = gradient[i] * path.scale[sequence];
    }
  });
  return scaled;
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
