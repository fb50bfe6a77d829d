#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <vector>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Where tokens get their positions from: a trained array, the sine and cosine code of a line, or that of a square.
enum class Positions { learned, sin_cos, sin_cos_2d };

namespace nn {

/// The largest whole number whose square is at most n.
constexpr int integer_root(int n) {
  int root = 0;
  while ((root + 1) * (root + 1) <= n) ++root;
  return root;
}

/// Rows of the grid whose code `tokens` data tokens get.
constexpr int grid_rows(int tokens, Positions kind) {
  return kind == Positions::sin_cos_2d ? std::max(1, integer_root(tokens)) : 1;
}

/// The code of a coordinate in `width` numbers: angles coordinate / 10000^(2 floor(k/2) / width), the even k as sines,
/// then the odd k as cosines. After Vaswani et al., arXiv 1706.03762, section 3.5, without their interleaving.
inline void wave_code(double coordinate, Index width, double* code) {
  const Index sines = (width + 1) / 2;
  for (Index k = 0; k < width; ++k) {
    const double rate = std::pow(10000.0, -2.0 * static_cast<double>(k / 2) / static_cast<double>(width));
    code[k % 2 == 0 ? k / 2 : sines + k / 2] = k % 2 == 0 ? std::sin(coordinate * rate) : std::cos(coordinate * rate);
  }
}

/// Codes of a grid, [rows * columns, width], computed in double and rounded once: the row's in the first half of the
/// width, the column's in the second, each index stretched to [0, 1000]. The width must be even. A grid of one row or
/// column is a line, whose codes take the whole width.
template <class T>
Buffer<T> make_codes(Index rows, Index columns, Index width) {
  Buffer<T> codes(rows * columns * width);
  if (rows != 1 && columns != 1) {
    const Index half = width / 2;
    const Buffer<T> by_row = make_codes<T>(1, rows, half), by_column = make_codes<T>(1, columns, half);
    for (Index i = 0; i < rows * columns; ++i) {
      std::copy_n(by_row.data() + i / columns * half, half, codes.data() + i * width);
      std::copy_n(by_column.data() + i % columns * half, half, codes.data() + i * width + half);
    }
    return codes;
  }
  const Index count = rows * columns;
  std::vector<double> code(static_cast<std::size_t>(width));
  for (Index i = 0; i < count; ++i) {
    wave_code(count > 1 ? static_cast<double>(i) * (1000.0 / static_cast<double>(count - 1)) : 0.0, width, code.data());
    for (Index k = 0; k < width; ++k) codes.data()[i * width + k] = static_cast<T>(code[static_cast<std::size_t>(k)]);
  }
  return codes;
}

/// The same, made at the first call for these sizes, then shared by all and never changed.
template <class T>
const T* position_codes(Index rows, Index columns, Index width) {
  static std::mutex mutex;
  static std::map<std::array<Index, 3>, Buffer<T>> table;
  const std::lock_guard lock(mutex);
  Buffer<T>& codes = table[{rows, columns, width}];
  if (codes.size() == 0) codes = make_codes<T>(rows, columns, width);
  return codes.data();
}

}  // namespace nn

}  // namespace FIT_ABI
}  // namespace fit
