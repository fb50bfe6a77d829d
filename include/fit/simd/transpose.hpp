#pragma once

#include <cstddef>
#include <utility>

#include <fit/simd/batch.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace simd {

namespace detail {

/// Elements from..from+width/2-1 of a and of b, in turn: one half of the two registers zipped together.
template <int From, class T, std::size_t... Lane>
inline Batch<T> zip(const Batch<T>& a, const Batch<T>& b, std::index_sequence<Lane...>) {
  using Register = typename Batch<T>::register_type;
  constexpr int width = static_cast<int>(sizeof...(Lane));
  typedef T Lanes __attribute__((vector_size(sizeof(Register))));
  const Lanes x = reinterpret_cast<Lanes>(static_cast<Register>(a)),
              y = reinterpret_cast<Lanes>(static_cast<Register>(b));
  const Lanes zipped = __builtin_shufflevector(x, y, (From + static_cast<int>(Lane) / 2 + (Lane % 2 ? width : 0))...);
  return Batch<T>(reinterpret_cast<Register>(zipped));
}

}  // namespace detail

/// Transposes a matrix of at most `width` rows at `from`, `from_row` apart, and as many columns, into `to`, rows
/// `to_row` apart: a row is filled up with zeros to a whole register. With no counts, they are the whole square.
template <class T, class... Counts>
inline void transpose(const T* from, Index from_row, T* to, Index to_row, Counts... counts) {
  constexpr int n = static_cast<int>(width<T>);
  constexpr auto lanes = std::make_index_sequence<static_cast<std::size_t>(n)>{};
  const Index size[] = {counts..., n, n};
  Batch<T> rows[std::size_t{n}], zipped[std::size_t{n}];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    const T* row = from + i * from_row;
    rows[i] = i >= size[0] ? Batch<T>(T(0)) : size[1] == n ? load(row) : load_part(row, size[1]);
  }
  // Zipping the upper half of the rows with the lower half log2(width) times is the transposition.
#pragma GCC unroll 4
  for (int step = 1; step < n; step *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      zipped[2 * i] = detail::zip<0>(rows[i], rows[i + n / 2], lanes);
      zipped[2 * i + 1] = detail::zip<n / 2>(rows[i], rows[i + n / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = zipped[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if (i < size[1]) store(to + i * to_row, rows[i]);
  }
}

}  // namespace simd
}  // namespace FIT_ABI
}  // namespace fit
