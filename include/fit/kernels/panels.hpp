#pragma once

#include <algorithm>

#include <fit/core/assert.hpp>
#include <fit/kernels/scratch.hpp>
#include <fit/simd/transpose.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// A matrix whose element (i, j) is data[i * row + j * column]; one of the strides is 1: plain or transposed.
template <class T>
struct Operand {
  const T* data;
  Index row, column;
};

/// Packs rows first..last-1 of the panel that starts at `from`'s first column and has `columns` columns, at most
/// panel_width. `panel` is the start of the panel, whose rows are padded_columns(columns) long.
template <class T>
void pack_panel(const Operand<T>& from, Index columns, Index first, Index last, T* panel) {
  constexpr Index w = simd::width<T>;
  FIT_ASSERT(columns >= 0 && columns <= panel_width<T>);
  FIT_ASSERT(from.row == 1 || from.column == 1);
  const Index row = padded_columns<T>(columns);
  if (from.column == 1) {
    for (Index k = first; k < last; ++k) {
      for (Index j = 0; j < row; j += w) {
        simd::store(panel + k * row + j, simd::load_part(from.data + k * from.row + j, columns - j));
      }
    }
    return;
  }
  // Squares are transposed in registers.
  for (Index j = 0; j < row; j += w) {
    const T* column = from.data + j * from.column;
    const Index across = std::min(w, columns - j);
    for (Index k = first; k < last; k += w) {
      const Index down = std::min(w, last - k);
      T* to = panel + k * row + j;
      if (across == w && down == w) {
        simd::transpose(column + k, from.column, to, row);
      } else {
        simd::transpose(column + k, from.column, to, row, across, down);
      }
    }
  }
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
