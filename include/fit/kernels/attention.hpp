#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include <fit/core/assert.hpp>
#include <fit/core/index_range.hpp>
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
  FIT_ASSERT(s.head_width >= 1 && s.sharing >= 1 && s.heads % s.sharing == 0);
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
  const Index to_queries = shape.offset(head), to_keys = shape.key_offset(head / shape.sharing);
  T* log_sum = t.log_sum ? t.log_sum + head * shape.queries : nullptr;
  return {t.q + to_queries, t.k + to_keys, t.v + to_keys, t.o + to_queries, log_sum};
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

/// to[i, :] = factors[i] * from[:, i], whose rows have whole registers.
template <class T>
void scale_transposed(Index rows, Index columns, const T* from, Index from_row, const T* factors, T* to, Index to_row) {
  constexpr Index w = simd::width<T>;
  alignas(alignment) T square[static_cast<std::size_t>(w * w)];
  for (Index i = 0; i < rows; i += w) {
    for (Index j = 0; j < columns; j += w) {
      const Index across = std::min(w, columns - j);
      simd::transpose(from + j * from_row + i, from_row, square, w, across, w);
      for (Index r = 0; r < std::min(w, rows - i); ++r) {
        simd::store_part(to + (i + r) * to_row + j, simd::load(square + r * w) * simd::Batch<T>(factors[i + r]),
                         across);
      }
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

/// body(task, lane) for every task, of so many heads or a part of them, several at a time where sequences are so short
/// that taking a task would cost as much as doing it. To read and write a row of a head costs about as much as sixteen
/// pairs of a query and a key.
template <class Body>
void for_heads(Index tasks, Index heads, const AttentionShape& shape, Executor& executor, Body&& body) {
  const Index work = heads * (shape.queries * shape.keys + 16 * (shape.queries + shape.keys));
  const Index together = std::max<Index>(1, 8192 / std::max<Index>(1, work));
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

/// How many rows each of the fewest tiles has, so that none is much smaller than the others; of one row or more.
template <class T>
Index even_tile_rows(Index rows) {
  FIT_ASSERT(rows >= 1);
  const Index tiles = (rows + tile_rows<T> - 1) / tile_rows<T>;
  return (rows + tiles - 1) / tiles;
}

/// c [high, wide], rows c_row apart, = or += a [high, deep] . b [deep, wide], whose rows are padded to whole registers.
template <class T>
void multiply_rows(Index high, Index wide, Index deep, const Operand<T>& a, const T* b, Index b_row, T* c, Index c_row,
                   bool accumulate) {
  for (Index i = 0, down = even_tile_rows<T>(high); i < high; i += down) {
    for (Index j = 0; j < wide; j += panel_width<T>) {
      multiply_tile<T>({.rows = std::min(down, high - i),
                        .columns = std::min(panel_width<T>, wide - j),
                        .depth = deep,
                        .a = {a.data + i * a.row, a.row, a.column},
                        .b = b + j,
                        .b_row = b_row,
                        .c = c + i * c_row + j,
                        .c_row = c_row},
                       {.accumulate = accumulate});
    }
  }
}

/// Scores [count, panel] of as many keys become weights 2^(scale (score - highest)), summed up: highest, [panel], is
/// the highest score so far. A function of its own, whose constants then stay in registers.
template <class T, int Vectors>
[[gnu::noinline]] void weigh(T* scores, Index count, simd::Batch<T> scale, simd::Batch<T>* highest,
                             simd::Batch<T>* sums) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>, panel = Vectors * w;
  Batch peak[std::size_t{Vectors}], other[std::size_t{Vectors}], sum[std::size_t{Vectors}], shift[std::size_t{Vectors}];
  for (int v = 0; v < Vectors; ++v) peak[v] = other[v] = highest[v];
  Index j = 0;
  for (; j + 2 <= count; j += 2) {
    for (int v = 0; v < Vectors; ++v) {
      peak[v] = simd::max(peak[v], simd::load(scores + j * panel + v * w));
      other[v] = simd::max(other[v], simd::load(scores + (j + 1) * panel + v * w));
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    if (j < count) peak[v] = simd::max(peak[v], simd::load(scores + j * panel + v * w));
    highest[v] = simd::max(peak[v], other[v]);
    shift[v] = -(highest[v] * scale);
    sum[v] = Batch(T(0));
  }
  for (j = 0; j < count; ++j) {
    for (int v = 0; v < Vectors; ++v) {
      T* score = scores + j * panel + v * w;
      const Batch weight = simd::exp2(simd::fma(simd::load(score), scale, shift[v]));
      simd::store(score, weight);
      sum[v] += weight;
    }
  }
  for (int v = 0; v < Vectors; ++v) sums[v] = sum[v];
}

/// One head, and the part of the tensors that is its own.
template <class T>
struct AttentionTask {
  const AttentionShape& shape;
  Index head;
  AttentionTensors<T> of;
  AttentionTensors<T> next;  ///< of the head that comes after it
};

/// A panel of queries, first .. first + rows - 1, at most, over keys key .. key + count - 1, the beginning of at.keys
/// and at.values where they are there: a block of the online softmax (Milakov and Gimelshein, arXiv 1805.02867), in
/// base 2. Scores stand transposed, [keys, queries], so that the softmax goes down the keys for a register of queries
/// at a time. What is kept from block to block is in column `column` of its memory and the following ones.
template <class T, int Vectors>
void attend(const AttentionTask<T>& task, const AttentionScratch<T>& at, Index first, Index rows, Index column,
            Index key, Index count) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>, panel = Vectors * w;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const auto& [shape, of_head, of, next] = task;
  const Index width = shape.width(), key_width = shape.key_width();
  const Index head = shape.head_width, padded_head = padded_columns<T>(head);
  const bool copied = AttentionScratch<T>::copies_keys(shape);
  const Index end = shape.mask.visible_keys(first + rows - 1, shape.keys), seen = std::min(count, end - key);
  if (seen <= 0) return;
  // Fewer weights than a head has elements are divided by their sum instead of what they mix, which goes to its place.
  const bool begins = key == 0, ends = key + seen == end, direct = begins && ends && seen <= head;
  const bool last = first + rows == shape.queries;
  const Batch scale(static_cast<T>(shape.scale() * std::numbers::log2e));
  alignas(alignment) T by_query[static_cast<std::size_t>(panel)];
  T* const queries = at.queries + column * head;
  T *const peaks = at.peak + column, *const sums = at.sum + column;
  if (begins) {
    pack_panel(Operand<T>{of.q + first * width, 1, width}, rows, 0, head, queries);
    ask_for_rows<3>(of.o + first * width, rows, head, width);
    ask_for_rows<3>(last ? next.q : of.q + (first + panel) * width, std::min(panel, shape.queries), head, width);
  }

  FIT_COUNT(executed, 4 * head * rows * seen);
  const T* const keys = copied ? at.keys : of.k + key * key_width;
  const Index keys_row = copied ? padded_head : key_width, tile = even_tile_rows<T>(seen);
  for (Index j = 0; j < seen; j += tile) {
    if (!copied) ask_for_rows<3>(keys + (j + tile) * keys_row, tile, head, keys_row);
    if (last && shape.keys <= rows_asked_for) {
      ask_for_rows<2>(next.k + j * key_width, tile, head, key_width);
      ask_for_rows<2>(next.v + j * key_width, tile, head, key_width);
    }
    multiply_tile<T>({.rows = std::min(tile, seen - j),
                      .columns = panel,
                      .depth = head,
                      .a = {keys + j * keys_row, keys_row, 1},
                      .b = queries,
                      .b_row = panel,
                      .c = at.scores + j * panel,
                      .c_row = panel},
                     {});
  }
  hide_unseen<T, Vectors>(shape, first, rows, key, seen, at.scores, panel, 4);
  bool moved = false;
  Batch weight[std::size_t{Vectors}], highest[std::size_t{Vectors}];
  for (int v = 0; v < Vectors; ++v) highest[v] = begins ? Batch(lowest) : simd::load(peaks + v * w);
  weigh<T, Vectors>(at.scores, seen, scale, highest, weight);
  for (int v = 0; v < Vectors; ++v) {
    if (direct) {
      const Batch share = Batch(T(1)) / weight[v];
      for (Index j = v * w; j < seen * panel; j += panel) {
        simd::store(at.scores + j, simd::load(at.scores + j) * share);
      }
    } else if (!begins) {
      const Batch peak = simd::load(peaks + v * w);
      const Batch fade = simd::exp2((peak - highest[v]) * scale);  // 1 where it stays, whatever others do
      weight[v] = simd::fma(simd::load(sums + v * w), fade, weight[v]);
      simd::store(by_query + v * w, fade);
      moved = moved || xsimd::any(peak != highest[v]);
    }
    simd::store(peaks + v * w, highest[v]);
    simd::store(sums + v * w, weight[v]);
  }
  if (shape.dropout) drop_out(shape, of_head, first, rows, key, seen, at.scores, panel);
  // What two registers full of queries mix stands transposed until all keys have been met, [head, panel]: its tiles go
  // over the values once.
  const bool transposed = Vectors == 2 && !direct && head * panel <= rows * padded_head;
  const bool values_copied = AttentionScratch<T>::copies_values(shape);
  const T* const values = values_copied ? at.values : of.v + key * key_width;
  const Index values_row = values_copied ? padded_head : key_width;
  T* const mixed = direct ? of.o + first * width : at.mixed + column * padded_head;
  const Index mixed_row = direct ? width : transposed ? panel : padded_head;
  if (transposed) {
    for (Index i = 0; moved && i < head * panel; i += w) {
      simd::store(mixed + i, simd::load(mixed + i) * simd::load(by_query + i % panel));
    }
    multiply_rows(head, panel, seen, {values, 1, values_row}, at.scores, panel, mixed, mixed_row, !begins);
  } else {
    for (Index i = 0; moved && i < rows; ++i) {
      scale_rows(1, padded_head, mixed + i * mixed_row, 0, by_query[i], mixed + i * mixed_row, 0);
    }
    const Index across = direct ? head : padded_head;
    multiply_rows(rows, across, seen, {at.scores, 1, panel}, values, values_row, mixed, mixed_row, !begins);
  }
  if (!ends) return;
  for (int v = 0; v < Vectors; ++v) {
    const Batch sum = simd::load(sums + v * w);
    simd::store(by_query + v * w, Batch(T(1)) / sum);
    if (!of.log_sum) continue;
    simd::store_part(of.log_sum + first + v * w, simd::fma(simd::load(peaks + v * w), scale, simd::log2(sum)),
                     std::max<Index>(0, rows - v * w));
  }
  if (direct) return;
  T* const o = of.o + first * width;
  if (transposed) return scale_transposed(rows, head, mixed, panel, by_query, o, width);
  for (Index i = 0; i < rows; ++i) scale_rows(1, head, mixed + i * mixed_row, 0, by_query[i], o + i * width, 0);
}

/// Queries first .. end - 1 of a head over all its keys, a block of these at a time.
template <class T>
void attend(const AttentionTask<T>& task, const AttentionScratch<T>& at, Index first, Index end) {
  using Scratch = AttentionScratch<T>;
  const AttentionShape& shape = task.shape;
  const Index width = shape.key_width(), head = shape.head_width;
  const Index seen = shape.mask.visible_keys(end - 1, shape.keys);
  for (Index key = 0; key < seen; key += Scratch::key_block) {
    const Index count = std::min(Scratch::key_block, seen - key);
    if (Scratch::copies_keys(shape)) copy_rows(count, head, task.of.k + key * width, width, at.keys);
    if (Scratch::copies_values(shape)) copy_rows(count, head, task.of.v + key * width, width, at.values);
    for (Index i = first; i < end; i += panel_width<T>) {
      // Of a single block nothing has to stay, and the same memory stays in the first-level cache.
      const Index rows = std::min(panel_width<T>, end - i), column = count == seen ? 0 : i - first;
      if (padded_columns<T>(rows) == simd::width<T>) {
        attend<T, 1>(task, at, i, rows, column, key, count);
      } else {
        attend<T, 2>(task, at, i, rows, column, key, count);
      }
    }
  }
}

}  // namespace detail

/// o = softmax(q k^T / sqrt(head_width), masked) v for every sequence and head, the scores staying in the cache.
/// log_sum, where it is given, receives log2(sum over keys of 2^(score / ln 2)), [sequences, heads, queries]: all that
/// the way back needs of the softmax. After Dao et al., arXiv 2205.14135. Without keys, o is zero. Of some heads alone,
/// of all [sequences, heads], reads and writes nothing of others; there must be keys then.
template <class T>
void attention(const AttentionShape& shape, const AttentionTensors<T>& tensors, Workspace& workspace,
               const IndexRange& heads) {
  detail::check(shape, tensors);
  FIT_ASSERT(heads.first >= 0 && heads.count >= 0 && heads.end() <= shape.sequences * shape.heads);
  FIT_ASSERT(shape.keys > 0 || heads.count == shape.sequences * shape.heads);
  if (shape.keys == 0) {
    std::fill_n(tensors.o, shape.sequences * shape.queries * shape.width(), T(0));
    return;
  }
  const LaneScratch<T> memory(workspace, detail::AttentionScratch<T>::size(shape));
  const Index group = detail::AttentionScratch<T>::group(shape);
  const Index groups = (shape.queries + group - 1) / group;
  detail::for_heads(heads.count * groups, 1, shape, workspace.executor(), [&](Index index, int lane) {
    const Index head = heads.first + index / groups, first = index % groups * group;
    const detail::AttentionTask<T> task{shape, head, detail::head_of(tensors, shape, head),
                                        detail::head_of(tensors, shape, std::min(head + 1, heads.end() - 1))};
    detail::attend<T>(task, {memory[lane], shape}, first, std::min(first + group, shape.queries));
  });
}
template <class T>
void attention(const AttentionShape& shape, const AttentionTensors<T>& tensors, Workspace& workspace) {
  attention(shape, tensors, workspace, {0, shape.sequences * shape.heads});
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
