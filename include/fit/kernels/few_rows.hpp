#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>

#include <fit/core/workspace.hpp>
#include <fit/kernels/product.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

namespace detail {

/// sums[r, o] = x row r . weight row o, for Rows and Outs rows of `depth` elements. How an element is summed does not
/// depend on how many there are.
template <class T, int Rows, int Outs>
inline void dot_tile(const T* x, Index x_row, const T* weight, Index weight_row, Index depth,
                     T (*sums)[std::size_t{Outs}]) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  Batch totals[std::size_t{Rows}][std::size_t{Outs}];
  for (auto& row : totals) {
    for (Batch& total : row) total = Batch(T(0));
  }
  const auto step = [&](Index k, auto&& get) {
    Batch columns[std::size_t{Outs}];
#pragma GCC unroll 4
    for (int o = 0; o < Outs; ++o) columns[o] = get(weight + o * weight_row + k);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const Batch row = get(x + r * x_row + k);
#pragma GCC unroll 4
      for (int o = 0; o < Outs; ++o) totals[r][o] = simd::fma(row, columns[o], totals[r][o]);
    }
  };
  Index k = 0;
  for (; k + w <= depth; k += w) step(k, [](const T* from) { return simd::load(from); });
  if (k < depth) step(k, [&](const T* from) { return simd::load_part(from, depth - k); });
  for (int r = 0; r < Rows; ++r) {
    for (int o = 0; o < Outs; ++o) sums[r][o] = simd::sum(totals[r][o]);
  }
}

template <class T, int Rows, int Outs>
void few_rows_tile(const Product<T>& product, Index row, Index column) {
  const Factors<T>& factors = product.factors[0];
  T sums[std::size_t{Rows}][std::size_t{Outs}];
  dot_tile<T, Rows, Outs>(factors.a.data + row * factors.a.row, factors.a.row,
                          factors.b.data + column * factors.b.column, factors.b.column, factors.depth, sums);
  FIT_COUNT(products, 2 * Rows * Outs * factors.depth);
  for (int r = 0; r < Rows; ++r) {
    T* c = product.c + (row + r) * product.c_row + column;
    for (int o = 0; o < Outs; ++o) {
      const T sum = product.finish.bias ? sums[r][o] + product.finish.bias[column + o] : sums[r][o];
      c[o] = product.finish.accumulate ? c[o] + sum : sum;
    }
  }
}

template <class T>
void require_few_rows(const Product<T>& p) {
  const auto refuse_unless = [](bool condition, const char* what) {
    require(condition, "multiply_few_rows computes products of one pair of factors, the left one plain and the right ",
            "one transposed, with bias and GELU in place; it was given ", what);
  };
  refuse_unless(p.count == 1, "several pairs");
  refuse_unless(p.factors[0].a.column == 1, "a left factor that is transposed");
  refuse_unless(p.factors[0].b.row == 1, "a right factor that is plain");
  refuse_unless(!p.finish.row_scale, "row_scale");
  refuse_unless(!p.dropout, "drop-out");
  const bool in_place = p.activation == Activation::gelu && p.activated == p.c;
  refuse_unless(p.activation == Activation::none || in_place, "the slope of GELU");
}

}  // namespace detail

/// What multiply() computes, for rows so few that the time goes into reading the right operands: these are read once,
/// where they are. Products of one pair of factors, x [rows, depth] plain and a weight [columns, depth] transposed,
/// with bias, `accumulate`, and GELU in place without drop-out. An element's bits depend neither on the number of rows,
/// so that sequences of a batch do not see each other, nor on the threads; they differ from multiply()'s in rounding.
/// Throws Error for any other product.
template <class T>
void multiply_few_rows(std::initializer_list<Product<T>> products, Workspace& workspace) {
  for (const Product<T>& product : products) {
    detail::require_few_rows(product);
    detail::check(product);
  }
  constexpr Index piece = Index{1} << 14;  // elements of a weight
  const auto across = [](const Product<T>& product) {
    return std::max<Index>(4, piece / std::max<Index>(1, product.factors[0].depth) / 4 * 4);
  };
  const auto pieces_of = [&](const Product<T>& product) {
    return (product.columns + across(product) - 1) / across(product);
  };
  Index tasks = 0;
  for (const Product<T>& product : products) tasks += pieces_of(product);
  workspace.executor().parallel_for(tasks, [&](Index task, int) {
    for (const Product<T>& product : products) {
      if (task >= pieces_of(product)) {
        task -= pieces_of(product);
        continue;
      }
      const Index first = task * across(product), last = std::min(product.columns, first + across(product));
      for (Index column = first; column < last;) {
        const bool four = last - column >= 4;
        Index row = 0;
        for (; row + 4 <= product.rows; row += 4) {
          four ? detail::few_rows_tile<T, 4, 4>(product, row, column)
               : detail::few_rows_tile<T, 4, 1>(product, row, column);
        }
        for (; row < product.rows; ++row) {
          four ? detail::few_rows_tile<T, 1, 4>(product, row, column)
               : detail::few_rows_tile<T, 1, 1>(product, row, column);
        }
        column += four ? 4 : 1;
      }
      if (product.activation == Activation::gelu) {
        for (Index row = 0; row < product.rows; ++row) {
          const Index at = row * product.c_row + first;
          gelu(product.c + at, product.c + at, last - first);
        }
      }
      return;
    }
  });
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
