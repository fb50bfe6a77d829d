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

/// x [rows, width] as a left or right operand, and its transpose.
template <class T>
Operand<T> plain(const T* data, Index width) {
  return {data, width, 1};
}
template <class T>
Operand<T> transposed(const T* data, Index width) {
  return {data, 1, width};
}

/// Packs rows first..last-1 of the panel that starts at a transposed operand's first column and has `columns` columns,
/// at most panel_width. `panel` is the start of the panel, whose rows are padded_columns(columns) long.
template <class T>
void pack_panel(const Operand<T>& from, Index columns, Index first, Index last, T* panel) {
  constexpr Index w = simd::width<T>;
  FIT_ASSERT(columns >= 0 && columns <= panel_width<T>);
  FIT_ASSERT(from.row == 1);
  const Index row = padded_columns<T>(columns);
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

/// Packs rows first..last-1 of a plain operand, rows `row` apart, as panels one after the other, each of `depth` rows.
/// Rows are read whole: memory gives them faster than pieces that lie far apart.
template <class T>
void pack_rows(const T* from, Index row, Index columns, Index depth, Index first, Index last, T* panels) {
  constexpr Index w = simd::width<T>, line = static_cast<Index>(alignment / sizeof(T));
  const Index whole = columns / panel_width<T> * panel_width<T>, rest = columns - whole;
  for (Index k = first; k < last; ++k) {
    const T* elements = from + k * row;
    for (Index j = 0; j < whole; j += line) __builtin_prefetch(elements + 16 * row + j, 0, 2);
    T* to = panels + k * panel_width<T>;
    for (Index j = 0; j < whole; j += panel_width<T>, to += depth * panel_width<T>) {
      simd::store(to, simd::load(elements + j));
      simd::store(to + w, simd::load(elements + j + w));
    }
    to = panels + whole * depth + k * padded_columns<T>(rest);
    for (Index j = 0; j < rest; j += w) simd::store(to + j, simd::load_part(elements + whole + j, rest - j));
  }
}

/// Packs a transposed left operand, of which from.data is the beginning, for a block's tiles one after the other: the
/// elements of a column of a tile side by side, columns padded_columns(tile_rows) apart.
template <class T>
void pack_tiles(const Operand<T>& from, Index rows, Index depth, T* to) {
  constexpr Index w = simd::width<T>, apart = padded_columns<T>(tile_rows<T>), together = 32;
  for (Index first = 0; first < depth; first += together) {
    const Index last = std::min(first + together, depth);
    for (Index i = 0; i < rows; i += tile_rows<T>) {
      const Index down = std::min<Index>(tile_rows<T>, rows - i);
      T* place = to + (i / tile_rows<T> * depth + first) * apart;
      for (Index k = first; k < last; ++k, place += apart) {
        const T* column = from.data + i + k * from.column;
        __builtin_prefetch(column + together * from.column, 0, 2);
        for (Index j = 0; j < down; j += w) simd::store(place + j, simd::load_part(column + j, down - j));
      }
    }
  }
}

/// Copies a tile's rows of a plain left operand to where they do not collide.
template <class T>
Operand<T> copy_tile(const Operand<T>& from, Index rows, Index depth, T* to) {
  constexpr Index line = static_cast<Index>(alignment / sizeof(T)), ahead = 2;
  const Index apart = copied_row<T>(depth);
  for (Index i = 0; i < rows; ++i) {
    const T* row = from.data + i * from.row;
    for (Index k = 0; k < depth; k += line) __builtin_prefetch(row + ahead * from.row + k, 0, 3);
    std::copy_n(row, depth, to + i * apart);
  }
  return {to, apart, 1};
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
