#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <fit/core/assert.hpp>
#include <fit/core/work_count.hpp>
#include <fit/kernels/dropout.hpp>
#include <fit/kernels/gelu.hpp>
#include <fit/kernels/micro_kernel.hpp>
#include <fit/kernels/panels.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// a b, one summand of a product: a [rows, depth], b [depth, columns], each plain or transposed.
template <class T>
struct Factors {
  Operand<T> a, b;
  Index depth = 0;
};

enum class Activation {
  none,
  gelu,         // activated = gelu(c) and, unless c is the same memory, c = its slope; both dropped out alike
  times_slope,  // c *= slope
};

/// c = row_scale * (sum of the factors + bias), plus c if `accumulate`; then the activation.
template <class T>
struct Product {
  Index rows = 0, columns = 0;
  Factors<T> factors[3] = {};
  int count = 1;
  T* c = nullptr;  // [rows, columns], rows c_row apart
  Index c_row = 0;
  Finish<T> finish = {};
  Activation activation = Activation::none;
  T* activated = nullptr;    // [rows, columns], laid out as c
  const T* slope = nullptr;  // [rows, columns], laid out as c: what gelu made of its c
  Dropout dropout = {};      // of gelu alone
};

namespace detail {

template <class T>
void check(const Product<T>& p) {
  FIT_ASSERT(p.rows >= 0 && p.columns >= 0);
  FIT_ASSERT(p.count >= 1 && p.count <= 3);
  const bool empty = p.rows == 0 || p.columns == 0;
  FIT_ASSERT(empty || p.c);
  FIT_ASSERT(p.rows <= 1 || p.c_row >= p.columns);
  FIT_ASSERT(!p.finish.row_scale || p.finish.rows_per_scale >= 1);
  FIT_ASSERT(empty || p.activation != Activation::gelu || p.activated);
  FIT_ASSERT(empty || p.activation != Activation::times_slope || (p.slope && p.slope != p.c));
  for (int f = 0; f < p.count; ++f) {
    const auto& [a, b, depth] = p.factors[f];
    FIT_ASSERT(depth >= 0);
    if (empty || depth == 0) continue;
    FIT_ASSERT(a.data && b.data);
    FIT_ASSERT(a.data != p.c && b.data != p.c);
    FIT_ASSERT(p.activation != Activation::gelu || (a.data != p.activated && b.data != p.activated));
    FIT_ASSERT(a.row == 1 || a.column == 1);
    FIT_ASSERT((b.column == 1 && b.row >= p.columns) || (b.row == 1 && b.column >= depth));
  }
}

/// Asks for what a tile's sums are going to be written to before they are computed: it takes long to get where another
/// thread had it.
template <class T>
void ask_for_tile(const T* c, Index c_row, Index rows, Index columns) {
  constexpr Index line = static_cast<Index>(alignment / sizeof(T));
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; j += line) __builtin_prefetch(c + i * c_row + j, 1, 3);
  }
}

/// Rows row..row+rows-1 and columns column..column+columns-1 of one product, as far as depth_block of a summand from
/// its k on goes. Right operands are packed where there is a pointer and else read directly. `left` is room to pack the
/// left one, and may hold a transposed one from the block before, of the same rows.
template <class T>
void multiply_block(const Product<T>& product, const T* const* packed, int f, Index k, Index row, Index rows,
                    Index column, Index columns, T* left, bool left_is_packed) {
  const Factors<T>& factors = product.factors[f];
  const Index depth = std::min(depth_block, factors.depth - k);
  const bool first = f == 0 && k == 0, last = f == product.count - 1 && k + depth_block >= factors.depth;
  const Operand<T> whole{factors.a.data + row * factors.a.row + k * factors.a.column, factors.a.row, factors.a.column};
  const bool packs = packed_left_size<T>(rows, product.columns, depth, whole.row, whole.column) > 0;
  const bool packs_all = packs && whole.column != 1, copies_tiles = packs && !packs_all && columns > panel_width<T>;
  if (packs_all && !left_is_packed) pack_tiles(whole, rows, depth, left);
  for (Index i = row; i < row + rows; i += tile_rows<T>) {
    const Index down = std::min<Index>(tile_rows<T>, row + rows - i);
    constexpr Index apart = padded_columns<T>(tile_rows<T>);
    Operand<T> a{whole.data + (i - row) * whole.row, whole.row, whole.column};
    if (copies_tiles) a = copy_tile(a, down, depth, left);
    if (packs_all) a = {left + (i - row) / tile_rows<T> * depth * apart, 1, apart};
    Finish<T> finish = product.finish;
    finish.accumulate = finish.accumulate || !first;
    finish.first_row = i;
    for (Index j = column; j < column + columns; j += panel_width<T>) {
      const Index wide = std::min(panel_width<T>, product.columns - j);
      const Index b_row = packed[f] ? padded_columns<T>(wide) : factors.b.row;
      const T* b = packed[f] ? packed[f] + j * factors.depth + k * b_row : factors.b.data + k * b_row + j;
      finish.bias = first && product.finish.bias ? product.finish.bias + j : nullptr;
      T* c = product.c + i * product.c_row + j;
      if (depth == depth_block && !finish.accumulate) ask_for_tile(c, product.c_row, down, wide);
      multiply_tile<T>({.rows = down,
                        .columns = wide,
                        .depth = depth,
                        .a = a,
                        .b = b,
                        .b_row = b_row,
                        .c = c,
                        .c_row = product.c_row},
                       finish);
      FIT_COUNT(products, 2 * down * wide * depth);
      if (!last || product.activation == Activation::none) continue;
      for (Index r = 0; r < down; ++r) {
        const Index at = (i + r) * product.c_row + j;
        if (product.activation == Activation::times_slope) {
          times_slope(product.slope + at, product.c + at, wide);
          continue;
        }
        T* activated = product.activated + at;
        T* slope = product.activated == product.c ? nullptr : product.c + at;
        slope ? gelu_and_slope(slope, activated, wide) : gelu(activated, activated, wide);
        if (!product.dropout) continue;
        const auto element = static_cast<std::uint64_t>((i + r) * product.columns + j);
        product.dropout.apply(activated, wide, element);
        if (slope) product.dropout.apply(slope, wide, element);
      }
    }
  }
}

}  // namespace detail
}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
