#pragma once

#include <algorithm>
#include <cmath>
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

/// Rows first .. first + depth - 1 of a matrix that is packed whole as panels, `whole` rows deep.
template <class T>
struct PackedRows {
  const T* panels;
  Index whole, first, depth;
};

/// c [rows, columns], packed, = or += a [rows, depth] . b
template <class T>
void multiply_panels(Index rows, Index columns, const Operand<T>& a, const PackedRows<T>& b, T* c, bool accumulate) {
  const Finish<T> finish{.accumulate = accumulate};
  for (Index i = 0; i < rows; i += tile_rows<T>) {
    const Index down = std::min<Index>(tile_rows<T>, rows - i);
    for (Index j = 0; j < columns; j += panel_width<T>) {
      const Index wide = std::min(panel_width<T>, columns - j), b_row = padded_columns<T>(wide);
      multiply_tile<T>({.rows = down,
                        .columns = wide,
                        .depth = b.depth,
                        .a = {a.data + i * a.row, a.row, a.column},
                        .b = b.panels + j * b.whole + b.first * b_row,
                        .b_row = b_row,
                        .c = c + i * columns + j,
                        .c_row = columns},
                       finish);
    }
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

/// body(task, lane) for every task, several at a time where sequences are so short that taking a task would cost as
/// much as doing it.
template <class Body>
void for_heads(Index tasks, const AttentionShape& shape, Executor& executor, Body&& body) {
  const Index together = std::max<Index>(1, 8192 / std::max<Index>(1, shape.queries * shape.keys));
  executor.parallel_for((tasks + together - 1) / together, [&](Index group, int lane) {
    for (Index task = group * together; task < std::min(tasks, (group + 1) * together); ++task) body(task, lane);
  });
}

/// Rows first .. first + rows - 1, one tile, of one head, its part of the tensors, whose keys and values are packed:
/// online softmax (Milakov and Gimelshein, arXiv 1805.02867) over blocks of keys in base 2.
template <class T>
void attend_tile(const AttentionShape& shape, const AttentionScratch<T>& at, const AttentionTensors<T>& of,
                 Index of_head, Index first, Index rows) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>, block = AttentionScratch<T>::key_block;
  const Index width = shape.width(), head = shape.head_width, padded_head = padded_columns<T>(head);
  const Index end = shape.mask.visible_keys(first + rows - 1, shape.keys);
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  T peak[tile_rows<T>], total[tile_rows<T>];
  std::fill_n(peak, rows, lowest);
  std::fill_n(total, rows, T(0));
  scale_rows(rows, head, of.q + first * width, width, static_cast<T>(shape.scale() * std::numbers::log2e), at.queries,
             padded_head);

  FIT_COUNT(executed, 4 * head * rows * end);
  for (Index key = 0; key < end; key += block) {
    const Index count = std::min(block, end - key), padded = padded_columns<T>(count);
    for (Index j = 0; j < count; j += panel_width<T>) {
      const Index wide = padded_columns<T>(std::min(panel_width<T>, shape.keys - key - j));
      multiply_tile<T>({.rows = rows,
                        .columns = wide,
                        .depth = head,
                        .a = {at.queries, padded_head, 1},
                        .b = at.keys + (key + j) * head,
                        .b_row = wide,
                        .c = at.scores + j,
                        .c_row = block},
                       {});
    }
    for (Index i = 0; i < rows; ++i) {
      T* scores = at.scores + i * block;
      const Index seen = std::clamp<Index>(shape.mask.visible_keys(first + i, shape.keys) - key, 0, count);
      FIT_COUNT(attention, 4 * head * seen);
      std::fill(scores + seen, scores + padded, lowest);
      Batch highest(peak[i]);
      for (Index j = 0; j < padded; j += w) highest = xsimd::max(highest, simd::load(scores + j));
      const T now = simd::maximum(highest);
      Batch sum(T(0));
      for (Index j = 0; j < padded; j += w) {
        const Batch weight = simd::exp2(simd::load(scores + j) - Batch(now));
        simd::store(scores + j, weight);
        sum += weight;
      }
      const T fade = key == 0 ? T(0) : std::exp2(peak[i] - now);
      total[i] = total[i] * fade + simd::sum(sum);
      peak[i] = now;
      if (shape.dropout) {
        const auto row = static_cast<std::uint64_t>(of_head * shape.queries + first + i);
        shape.dropout.apply(scores, count,
                            row * static_cast<std::uint64_t>(shape.keys) + static_cast<std::uint64_t>(key));
      }
      T* mixed = at.mixed + i * padded_head;
      if (key > 0) scale_rows(1, padded_head, mixed, padded_head, fade, mixed, padded_head);
    }
    multiply_panels<T>(rows, padded_head, {at.scores, block, 1}, {at.values, shape.keys, key, count}, at.mixed,
                       key > 0);
  }
  for (Index i = 0; i < rows; ++i) {
    scale_rows(1, head, at.mixed + i * padded_head, padded_head, T(1) / total[i], of.o + (first + i) * width, width);
    if (of.log_sum) of.log_sum[first + i] = peak[i] + std::log2(total[i]);
  }
}

}  // namespace detail

/// o = softmax(q k^T / sqrt(head_width), masked) v for every sequence and head, the scores staying in the cache.
/// log_sum, where it is given, receives log2(sum over keys of 2^(score / ln 2)), [sequences, heads, queries]: all that
/// the way back needs of the softmax. After Dao et al., arXiv 2205.14135. Without keys, o is zero.
template <class T>
void attention(const AttentionShape& shape, const AttentionTensors<T>& tensors, Workspace& workspace) {
  detail::check(shape, tensors);
  constexpr Index query_block = 32 * tile_rows<T>;
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
    const Index end = shape.mask.visible_keys(last - 1, shape.keys);
    const AttentionTensors<T> of = detail::head_of(tensors, shape, head);
    detail::pack(Operand<T>{of.k, 1, shape.width()}, shape.head_width,
                 std::min(shape.keys, (end + panel_width<T> - 1) / panel_width<T> * panel_width<T>), at.keys);
    detail::pack(Operand<T>{of.v, shape.width(), 1}, shape.keys, shape.head_width, at.values);
    for (Index i = first; i < last; i += tile_rows<T>) {
      detail::attend_tile(shape, at, of, head, i, std::min<Index>(tile_rows<T>, last - i));
    }
  });
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
