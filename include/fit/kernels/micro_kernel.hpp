#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include <fit/core/assert.hpp>
#include <fit/kernels/panels.hpp>
#include <fit/simd/batch.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// What becomes of a tile's sums. c = scale_i * (sums + bias_j), plus c if `accumulate`.
template <class T>
struct Finish {
  bool accumulate = false;
  const T* bias = nullptr;       // [columns] of the tile, or none
  const T* row_scale = nullptr;  // by row / rows_per_scale, counted from `first_row`, or none
  Index first_row = 0, rows_per_scale = 1;

  T scale(Index row) const { return row_scale ? row_scale[(first_row + row) / rows_per_scale] : T(1); }
};

/// One tile of a product: c(i, j) = the sum over k < depth of a(i, k) b(k, j), before it is finished. Whole vectors of
/// b are read: it is a packed panel, or its rows go on to a whole number of vectors.
template <class T>
struct Tile {
  Index rows, columns, depth;  // 1 .. tile_rows, 1 .. panel_width, 0 or more
  Operand<T> a;                // either stride may be 1
  const T* b;                  // rows b_row apart
  Index b_row;
  T* c;  // rows c_row apart
  Index c_row;
};

namespace detail {

/// How far ahead rows of b are asked for, which come from the second-level cache at best.
inline constexpr Index prefetch_rows = 32;

/// c(i, j) over a tile of Rows x Vectors registers.
template <class T, int Rows, int Vectors>
[[gnu::noinline]] void micro_kernel(const Tile<T>& tile, const Finish<T>& finish) {
  using Batch = simd::Batch<T>;
  const T *a = tile.a.data, *b = tile.b;
  T* const c = tile.c;
  const Index a_row = tile.a.row, a_depth = tile.a.column, b_row = tile.b_row, c_row = tile.c_row;
  const Index depth = tile.depth, columns = tile.columns;
  constexpr Index w = simd::width<T>;
  Batch sums[std::size_t{Rows}][std::size_t{Vectors}];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sums[i][v] = Batch(T(0));
  }
  for (Index k = 0; k < depth; ++k) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(b + prefetch_rows * b_row + v * w);
    Batch right[std::size_t{Vectors}];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) right[v] = simd::load(b + v * w);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Batch factor(a[i * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sums[i][v] = simd::fma(factor, right[v], sums[i][v]);
    }
    a += a_depth;
    b += b_row;
  }
  if (columns == Vectors * w && !finish.row_scale) {
    if (finish.bias) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        const Batch bias = simd::load(finish.bias + v * w);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) sums[i][v] += bias;
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        T* to = c + i * c_row + v * w;
        simd::store(to, finish.accumulate ? simd::load(to) + sums[i][v] : sums[i][v]);
      }
    }
    return;
  }
  alignas(alignment) T values[static_cast<std::size_t>(Rows * Vectors * w)];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) simd::store(values + (i * Vectors + v) * w, sums[i][v]);
  }
  for (int i = 0; i < Rows; ++i) {
    const Batch scale(finish.scale(i));
    for (Index j = 0; j < columns; j += w) {
      Batch value = simd::load(values + i * Vectors * w + j);
      T* to = c + i * c_row + j;
      if (finish.bias) value += simd::load_part(finish.bias + j, columns - j);
      if (finish.row_scale) value *= scale;
      if (finish.accumulate) value += simd::load_part(to, columns - j);
      simd::store_part(to, value, columns - j);
    }
  }
}

template <class T>
using MicroKernel = void (*)(const Tile<T>&, const Finish<T>&);

template <class T>
inline constexpr auto micro_kernels = []<std::size_t... I>(std::index_sequence<I...>) {
  return std::array<std::array<MicroKernel<T>, 2>, sizeof...(I)>{
      {{&micro_kernel<T, static_cast<int>(I) + 1, 1>, &micro_kernel<T, static_cast<int>(I) + 1, 2>}...}};
}
(std::make_index_sequence<static_cast<std::size_t>(tile_rows<T>)>{});

}  // namespace detail

/// Computes a tile and finishes it.
template <class T>
void multiply_tile(const Tile<T>& tile, const Finish<T>& finish) {
  FIT_ASSERT(tile.rows >= 1 && tile.rows <= tile_rows<T>);
  FIT_ASSERT(tile.columns >= 1 && tile.columns <= panel_width<T>);
  const std::size_t vectors = tile.columns > simd::width<T> ? 1 : 0;
  detail::micro_kernels<T>[static_cast<std::size_t>(tile.rows - 1)][vectors](tile, finish);
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
