#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <span>

#include <fit/core/assert.hpp>
#include <fit/core/workspace.hpp>
#include <fit/kernels/attention.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// Heads of an attention; keys and values have one for each `sharing` of them, as in AttentionShape.
struct HeadCounts {
  Index count = 0, width = 0, sharing = 1;

  constexpr Index key_width() const { return count / sharing * width; }
};

/// One query of all heads and the keys and values that it sees, in memory of its own sequence.
template <class T>
struct CachedQuery {
  const T* q = nullptr;       // [heads * head_width]
  const T* keys = nullptr;    // [count, heads / sharing * head_width]
  const T* values = nullptr;  // [count, heads / sharing * head_width]
  Index count = 0;
  T* o = nullptr;  // [heads * head_width]
};

namespace detail {

/// Keys of a piece; part of how the results are rounded, so the same for any number of threads.
inline constexpr Index cached_piece = 128;

/// Where a piece leaves what it found: for every head the highest score and the sum of the weights by it, and the
/// values mixed with these weights.
template <class T>
struct PartialAttention {
  T *peak, *total, *mixed;

  PartialAttention(T* memory, Index heads) : peak(memory), total(memory + heads), mixed(memory + 2 * heads) {}
  static Index size(Index heads, Index head_width) {
    return padded_columns<T>(2 * heads + heads * head_width) + simd::width<T>;
  }
};

/// A query over the few keys of one piece.
template <class T>
void attend_piece(const CachedQuery<T>& piece, const HeadCounts& of, T* scores, const PartialAttention<T>& to) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  const Index heads = of.count, head_width = of.width, width = heads * head_width, key_width = of.key_width();
  const Index count = piece.count;
  FIT_COUNT(attention, 4 * width * count);
  FIT_COUNT(executed, 4 * width * count);
  const T scale = static_cast<T>(std::numbers::log2e / std::sqrt(static_cast<double>(head_width)));
  for (Index key = 0; key < count; ++key) {
    for (Index head = 0; head < heads; ++head) {
      const T* q = piece.q + head * head_width;
      const T* k = piece.keys + key * key_width + head / of.sharing * head_width;
      Batch total(T(0));
      for (Index j = 0; j < head_width; j += w) {
        total = simd::fma(simd::load_part(q + j, head_width - j), simd::load_part(k + j, head_width - j), total);
      }
      scores[head * cached_piece + key] = simd::sum(total) * scale;
    }
  }
  for (Index head = 0; head < heads; ++head) {
    T* row = scores + head * cached_piece;
    std::fill(row + count, row + padded_columns<T>(count), -std::numeric_limits<T>::infinity());
    Batch highest(row[0]), sum(T(0));
    for (Index j = 0; j < count; j += w) highest = simd::max(highest, simd::load(row + j));
    to.peak[head] = simd::maximum(highest);
    for (Index j = 0; j < count; j += w) {
      const Batch weight = simd::exp2(simd::load(row + j) - Batch(to.peak[head]));
      simd::store(row + j, weight);
      sum += weight;
    }
    to.total[head] = simd::sum(sum);
  }
  std::fill_n(to.mixed, width, T(0));
  for (Index key = 0; key < count; key += 4) {
    const Index together = std::min<Index>(4, count - key);
    for (Index head = 0; head < heads; ++head) {
      const T* weight = scores + head * cached_piece + key;
      const T* values = piece.values + key * key_width + head / of.sharing * head_width;
      T* to_mixed = to.mixed + head * head_width;
      for (Index j = 0; j < head_width; j += w) {
        Batch mixed = simd::load_part(to_mixed + j, head_width - j);
        for (Index i = 0; i < together; ++i) {
          mixed = simd::fma(Batch(weight[i]), simd::load_part(values + i * key_width + j, head_width - j), mixed);
        }
        simd::store_part(to_mixed + j, mixed, head_width - j);
      }
    }
  }
}

}  // namespace detail

/// o = softmax(q k^T / sqrt(head_width)) v for single queries over cached keys, each query with its own cache and
/// length. The keys are cut in pieces of a fixed length, which the threads share and whose results are merged in their
/// order: after Sanovar et al., arXiv 2405.10480, and "Flash-Decoding for long-context inference" (Dao et al., 2023).
/// A query without keys gets zeros.
template <class T>
void cached_attention(std::span<const CachedQuery<T>> queries, const HeadCounts& of, Workspace& workspace) {
  using detail::cached_piece, detail::PartialAttention;
  const Index heads = of.count, head_width = of.width;
  FIT_ASSERT(heads >= 0 && head_width >= 1 && of.sharing >= 1 && heads % of.sharing == 0);
  for (const auto& query : queries) {
    FIT_ASSERT(query.count >= 0);
    FIT_ASSERT(heads == 0 || query.o);
    FIT_ASSERT(heads * query.count == 0 || (query.q && query.keys && query.values));
  }
  Executor& executor = workspace.executor();
  const Arena::Scope scope(workspace.arena());
  const auto pieces_of = [](const CachedQuery<T>& query) { return (query.count + cached_piece - 1) / cached_piece; };
  Index pieces = 0, keys = 0;
  for (const auto& query : queries) {
    pieces += pieces_of(query);
    keys += query.count;
  }
  const Index size = PartialAttention<T>::size(heads, head_width);
  const LaneScratch<T> scores(workspace, heads * cached_piece);
  T* partial = workspace.arena().allocate<T>(size * pieces);
  // Where all are small, they are not worth another thread's time.
  const Index together = keys * heads * head_width < (Index{1} << 15) ? std::max<Index>(1, pieces) : 1;
  executor.parallel_for((pieces + together - 1) / together, [&](Index task, int lane) {
    const Index first = task * together, last = first + together;
    Index at = 0;
    for (const auto& query : queries) {
      const Index own = pieces_of(query);
      for (Index piece = std::max(first, at); piece < std::min(last, at + own); ++piece) {
        const Index key = (piece - at) * cached_piece, offset = key * of.key_width();
        detail::attend_piece<T>(
            {query.q, query.keys + offset, query.values + offset, std::min(cached_piece, query.count - key)}, of,
            scores[lane], PartialAttention<T>(partial + piece * size, heads));
      }
      at += own;
    }
  });
  T* found = partial;
  for (const auto& query : queries) {
    const Index own = pieces_of(query);
    std::fill_n(query.o, heads * head_width, T(0));
    for (Index head = 0; head < heads; ++head) {
      T peak = -std::numeric_limits<T>::infinity(), total = 0;
      const auto piece_at = [&](Index i) { return PartialAttention<T>(found + i * size, heads); };
      for (Index i = 0; i < own; ++i) peak = std::max(peak, piece_at(i).peak[head]);
      for (Index i = 0; i < own; ++i) total += piece_at(i).total[head] * std::exp2(piece_at(i).peak[head] - peak);
      for (Index i = 0; i < own; ++i) {
        const T share = std::exp2(piece_at(i).peak[head] - peak) / total;
        const T* mixed = piece_at(i).mixed + head * head_width;
        for (Index j = 0; j < head_width; ++j) query.o[head * head_width + j] += share * mixed[j];
      }
    }
    found += own * size;
  }
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
