#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include <fit/core/assert.hpp>
#include <fit/core/work_count.hpp>
#include <fit/core/workspace.hpp>
#include <fit/kernels/micro_kernel.hpp>
#include <fit/kernels/panels.hpp>
#include <fit/simd/math.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// What attention reads and writes.
template <class T>
struct AttentionTensors {
  const T *q, *k, *v;
  T* o;
  T* log_sum = nullptr;  ///< [sequences, heads, queries], or none
};

namespace detail {

template <class T>
void check(const AttentionShape& s, const AttentionTensors<T>& t) {
  FIT_ASSERT(s.sequences >= 0 && s.queries >= 0 && s.keys >= 0 && s.heads >= 0);
  FIT_ASSERT(s.head_width >= 1);
  FIT_ASSERT(s.mask.chunk >= 1 && s.mask.offset >= 0);
  FIT_ASSERT(s.dropout.rate >= 0 && s.dropout.rate < 1);
  const Index heads = s.sequences * s.heads;
  FIT_ASSERT(heads * s.queries == 0 || (t.q && t.o));
  FIT_ASSERT(heads * s.keys == 0 || (t.k && t.v));
  FIT_ASSERT(heads * s.queries * s.keys == 0 || (t.o != t.k && t.o != t.v));
}

/// The part of one head.
template <class T>
AttentionTensors<T> head_of(const AttentionTensors<T>& t, const AttentionShape& shape, Index head) {
  const Index to_queries = shape.offset(head, shape.queries), to_keys = shape.offset(head, shape.keys);
  T* log_sum = t.log_sum ? t.log_sum + head * shape.queries : nullptr;
  return {t.q + to_queries, t.k + to_keys, t.v + to_keys, t.o + to_queries, log_sum};
}

/// Packs [depth, columns] with either stride as panels, whole.
template <class T>
void pack(const Operand<T>& from, Index depth, Index columns, T* panels) {
  for (Index j = 0; j < columns; j += panel_width<T>) {
    pack_panel(Operand<T>{from.data + j * from.column, from.row, from.column}, std::min(panel_width<T>, columns - j), 0,
               depth, panels + j * depth);
  }
}

/// to[i, :] = factor * from[i, :]
template <class T>
void scale_rows(Index rows, Index columns, const T* from, Index from_row, T factor, T* to, Index to_row) {
  const simd::Batch<T> by(factor);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; j += simd::width<T>) {
      simd::store_part(to + i * to_row + j, simd::load_part(from + i * from_row + j, columns - j) * by, columns - j);
    }
  }
}

/// Copies rows next to each other, each filled up with zeros to whole registers.
template <class T>
void copy_rows(Index rows, Index columns, const T* from, Index from_row, T* to) {
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; j += simd::width<T>, to += simd::width<T>) {
      simd::store(to, simd::load_part(from + i * from_row + j, columns - j));
    }
  }
}

/// Scores [keys key .. key + count - 1, a panel of queries first .. first + rows - 1], rows `apart`, become minus
/// infinity where a query does not see the key. Counts `flops` for a width of 1.
template <class T, int Vectors>
void hide_unseen(const AttentionShape& shape, Index first, Index rows, Index key, Index count, T* scores, Index apart,
                 [[maybe_unused]] Index flops) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>, panel = Vectors * w;
  const auto seen_by = [&](Index i) {
    return std::clamp<Index>(shape.mask.visible_keys(first + i, shape.keys) - key, 0, count);
  };
  for (Index i = 0; i < rows; ++i) FIT_COUNT(attention, flops * shape.head_width * seen_by(i));
  const Index all_see = shape.mask.visible_keys(first, shape.keys);
  if (all_see >= key + count) return;
  alignas(alignment) T seen[static_cast<std::size_t>(panel)];
  for (Index i = 0; i < panel; ++i) seen[i] = static_cast<T>(i < rows ? seen_by(i) : count);
  for (Index j = std::max<Index>(0, all_see - key); j < count; ++j) {
    for (int v = 0; v < Vectors; ++v) {
      T* row = scores + j * apart + v * w;
      const auto sees = simd::load(seen + v * w) > Batch(static_cast<T>(j));
      simd::store(row, xsimd::select(sees, simd::load(row), Batch(-std::numeric_limits<T>::infinity())));
    }
  }
}

/// The factors of the drop-out, which are numbered along the keys of a query, on [keys, a panel of queries].
template <class T>
void drop_out(const AttentionShape& shape, Index head, Index first, Index rows, Index key, Index count, T* weights,
              Index apart) {
  T factors[static_cast<std::size_t>(AttentionScratch<T>::key_block)];
  for (Index i = 0; i < rows; ++i) {
    std::fill_n(factors, count, T(1));
    const auto row = static_cast<std::uint64_t>(head * shape.queries + first + i);
    shape.dropout.apply(factors, count, row * static_cast<std::uint64_t>(shape.keys) + static_cast<std::uint64_t>(key));
    for (Index j = 0; j < count; ++j) weights[j * apart + i] *= factors[j];
  }
}

/// body(task, lane) for every task, several at a time where sequences are so short that taking a task would cost as
/// much as doing it.
template <class Body>
void for_heads(Index tasks, const AttentionShape& shape, Executor& executor, Body&& body) {
  const Index together = std::max<Index>(1, 8192 / std::max<Index>(1, shape.queries * shape.keys));
  executor.parallel_for((tasks + together - 1) / together, [&](Index group, int lane) {
    for (Index task = group * together; task < std::min(tasks, (group + 1) * together); ++task) body(task, lane);
  });
}

/// Rows of the next head that are asked for while one is computed: heads lie side by side, so they come too late by
/// themselves. Of longer sequences they do not.
inline constexpr Index rows_asked_for = 64;

/// Asks for rows that lie far apart and are needed soon, in the first-level cache (3) or in the second (2); they may be
/// beyond the end.
template <int Level, class T>
void ask_for_rows(const T* from, Index rows, Index columns, Index row) {
  constexpr Index line = static_cast<Index>(alignment / sizeof(T));
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; j += line) __builtin_prefetch(from + i * row + j, 0, Level);
  }
}

/// How many rows each of the fewest tiles has, so that none is much smaller than the others.
template <class T>
Index even_tile_rows(Index rows) {
  const Index tiles = (rows + tile_rows<T> - 1) / tile_rows<T>;
  return (rows + tiles - 1) / tiles;
}

/// Queries first .. first + rows - 1, at most a panel, of one head, its part of the tensors: online softmax (Milakov
/// and Gimelshein, arXiv 1805.02867) over blocks of keys in base 2. Scores stand transposed, [keys, queries], so that
/// the softmax goes down the keys for a register of queries at a time. Asks for the parts of the head that is `next`.
template <class T, int Vectors>
void attend_panel(const AttentionShape& shape, const AttentionScratch<T>& at, const AttentionTensors<T>& of,
                  const AttentionTensors<T>& next, Index of_head, Index first, Index rows) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>, panel = Vectors * w, block = AttentionScratch<T>::key_block;
  const Index width = shape.width(), head = shape.head_width, padded_head = padded_columns<T>(head);
  const Index end = shape.mask.visible_keys(first + rows - 1, shape.keys);
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const bool copied = AttentionScratch<T>::copies_keys(shape), packed = AttentionScratch<T>::packs_values(shape);
  // Fewer weights than a head has elements are divided by their sum instead of what they mix, which goes to its place.
  const bool direct = end <= std::min(block, head), last = first + rows == shape.queries;
  const Index keys_row = copied ? padded_head : width;
  const Batch scale(static_cast<T>(shape.scale() * std::numbers::log2e));
  alignas(alignment) T by_query[static_cast<std::size_t>(panel)];
  Batch peak[std::size_t{Vectors}], total[std::size_t{Vectors}];  // of unscaled scores; of weights
  for (int v = 0; v < Vectors; ++v) {
    peak[v] = Batch(lowest);
    total[v] = Batch(T(0));
  }
  pack_panel(Operand<T>{of.q + first * width, 1, width}, rows, 0, head, at.queries);
  ask_for_rows<3>(of.o + first * width, rows, head, width);
  ask_for_rows<3>(last ? next.q : of.q + (first + panel) * width, std::min(panel, shape.queries), head, width);

  FIT_COUNT(executed, 4 * head * rows * end);
  for (Index key = 0; key < end; key += block) {
    const Index count = std::min(block, end - key), tile = even_tile_rows<T>(count);
    const T* const keys = copied ? at.keys + key * keys_row : of.k + key * width;
    for (Index j = 0; j < count; j += tile) {
      if (!copied) ask_for_rows<3>(keys + (j + tile) * keys_row, tile, head, keys_row);
      if (last && shape.keys <= rows_asked_for) {
        ask_for_rows<2>(next.k + (key + j) * width, tile, head, width);
        ask_for_rows<2>(next.v + (key + j) * width, tile, head, width);
      }
      multiply_tile<T>({.rows = std::min(tile, count - j),
                        .columns = panel,
                        .depth = head,
                        .a = {keys + j * keys_row, keys_row, 1},
                        .b = at.queries,
                        .b_row = panel,
                        .c = at.scores + j * panel,
                        .c_row = panel},
                       {});
    }
    hide_unseen<T, Vectors>(shape, first, rows, key, count, at.scores, panel, 4);
    bool moved = false;
    for (int v = 0; v < Vectors; ++v) {
      T* scores = at.scores + v * w;
      Batch highest = peak[v], other(lowest);
      Index j = 0;
      for (; j + 2 <= count; j += 2) {
        highest = xsimd::max(highest, simd::load(scores + j * panel));
        other = xsimd::max(other, simd::load(scores + (j + 1) * panel));
      }
      if (j < count) highest = xsimd::max(highest, simd::load(scores + j * panel));
      highest = xsimd::max(highest, other);
      const Batch shift = -(highest * scale);
      Batch sum(T(0));
      for (j = 0; j < count; ++j) {
        const Batch weight = simd::exp2(simd::fma(simd::load(scores + j * panel), scale, shift));
        simd::store(scores + j * panel, weight);
        sum += weight;
      }
      const Batch fade = simd::exp2((peak[v] - highest) * scale);  // 1 where it stays, whatever others do
      total[v] = key == 0 ? sum : simd::fma(total[v], fade, sum);
      moved = moved || xsimd::any(peak[v] != highest);
      peak[v] = highest;
      simd::store(by_query + v * w, fade);
      if (!direct) continue;
      const Batch share = Batch(T(1)) / sum;
      for (j = 0; j < count; ++j) simd::store(scores + j * panel, simd::load(scores + j * panel) * share);
    }
    if (shape.dropout) drop_out(shape, of_head, first, rows, key, count, at.scores, panel);
    for (Index i = 0; moved && key > 0 && i < rows; ++i) {
      T* mixed = at.mixed + i * padded_head;
      scale_rows(1, padded_head, mixed, padded_head, by_query[i], mixed, padded_head);
    }
    T* const mixed = direct ? of.o + first * width : at.mixed;
    const Index mixed_row = direct ? width : padded_head, high = even_tile_rows<T>(rows);
    for (Index i = 0; i < rows; i += high) {
      for (Index j = 0; j < padded_head; j += panel_width<T>) {
        const Index wide = std::min(panel_width<T>, padded_head - j), b_row = packed ? wide : width;
        multiply_tile<T>({.rows = std::min(high, rows - i),
                          .columns = direct ? std::min(wide, head - j) : wide,
                          .depth = count,
                          .a = {at.scores + i, 1, panel},
                          .b = packed ? at.values + j * shape.keys + key * b_row : of.v + key * width + j,
                          .b_row = b_row,
                          .c = mixed + i * mixed_row + j,
                          .c_row = mixed_row},
                         {.accumulate = key > 0});
      }
    }
  }
  if (!direct) {
    for (int v = 0; v < Vectors; ++v) simd::store(by_query + v * w, Batch(T(1)) / total[v]);
    for (Index i = 0; i < rows; ++i) {
      scale_rows(1, head, at.mixed + i * padded_head, padded_head, by_query[i], of.o + (first + i) * width, width);
    }
  }
  if (!of.log_sum) return;
  for (int v = 0; v < Vectors; ++v) {
    simd::store_part(of.log_sum + first + v * w, simd::fma(peak[v], scale, simd::log2(total[v])),
                     std::max<Index>(0, rows - v * w));
  }
}

}  // namespace detail

/// o = softmax(q k^T / sqrt(head_width), masked) v for every sequence and head, the scores staying in the cache.
/// log_sum, where it is given, receives log2(sum over keys of 2^(score / ln 2)), [sequences, heads, queries]: all that
/// the way back needs of the softmax. After Dao et al., arXiv 2205.14135. Without keys, o is zero.
template <class T>
void attention(const AttentionShape& shape, const AttentionTensors<T>& tensors, Workspace& workspace) {
  detail::check(shape, tensors);
  constexpr Index query_block = 14 * panel_width<T>;
  if (shape.keys == 0) {
    std::fill_n(tensors.o, shape.sequences * shape.queries * shape.width(), T(0));
    return;
  }
  const Arena::Scope scope(workspace.arena());
  const Index scratch = detail::AttentionScratch<T>::size(shape);
  T* memory = workspace.arena().allocate<T>(scratch * workspace.executor().lanes());
  const Index blocks = (shape.queries + query_block - 1) / query_block;
  detail::for_heads(shape.sequences * shape.heads * blocks, shape, workspace.executor(), [&](Index task, int lane) {
    const Index block = task % blocks, head = task / blocks;
    const detail::AttentionScratch<T> at(memory + lane * scratch, shape);
    const Index first = block * query_block, last = std::min(first + query_block, shape.queries);
    const AttentionTensors<T> of = detail::head_of(tensors, shape, head);
    const Index after = std::min(head + 1, shape.sequences * shape.heads - 1);
    const AttentionTensors<T> next = detail::head_of(tensors, shape, after);
    if (at.copies_keys(shape)) {
      const Index end = shape.mask.visible_keys(last - 1, shape.keys);
      detail::copy_rows(end, shape.head_width, of.k, shape.width(), at.keys);
    }
    if (at.packs_values(shape)) {
      detail::pack(Operand<T>{of.v, shape.width(), 1}, shape.keys, shape.head_width, at.values);
    }
    for (Index i = first; i < last; i += panel_width<T>) {
      const Index rows = std::min(panel_width<T>, last - i);
      if (padded_columns<T>(rows) == simd::width<T>) {
        detail::attend_panel<T, 1>(shape, at, of, next, head, i, rows);
      } else {
        detail::attend_panel<T, 2>(shape, at, of, next, head, i, rows);
      }
    }
  });
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
