#pragma once

#include <algorithm>

#include <fit/simd/transpose.hpp>

namespace fit::inline FIT_ABI::kernels {

/// A matrix b(k, j) of `depth` rows and `columns` columns, one of whose strides is 1: plain or transposed.
template <class T>
struct Operand {
  const T* data;
  Index row, column;
};

/// Panels: the right-hand side of a product, in the order in which the micro-kernel reads it. Panel p holds the columns
/// from p * panel_width on, row by row; the last one is filled up with zeros to a whole number of vectors.
template <class T>
inline constexpr Index panel_width = 2 * simd::width<T>;

/// Columns that `columns` take up in panels.
template <class T>
constexpr Index padded_columns(Index columns) {
  return (columns + simd::width<T> - 1) / simd::width<T> * simd::width<T>;
}

/// Packs rows first..last-1 of the panel that starts at `from`'s first column and has `columns` columns, at most
/// panel_width. `panel` is the start of the panel, whose rows are padded_columns(columns) long.
template <class T>
void pack_panel(const Operand<T>& from, Index columns, Index first, Index last, T* panel) {
  constexpr Index w = simd::width<T>;
  const Index row = padded_columns<T>(columns);
  if (from.column == 1) {
    for (Index k = first; k < last; ++k) {
      for (Index j = 0; j < row; j += w) {
        simd::store(panel + k * row + j, simd::load_part(from.data + k * from.row + j, columns - j));
      }
    }
    return;
  }
  for (Index j = 0; j < row; j += w) {
    Index k = first;
    if (columns - j >= w) {
      for (; k + w <= last; k += w)
        simd::transpose(from.data + j * from.column + k, from.column, panel + k * row + j, row);
    }
    for (; k < last; ++k) {
      for (Index i = 0; i < w; ++i) {
        panel[k * row + j + i] = j + i < columns ? from.data[k * from.row + (j + i) * from.column] : T(0);
      }
    }
  }
}

}  // namespace fit::inline FIT_ABI::kernels
