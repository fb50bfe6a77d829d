#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numbers>

#include <fit/kernels/attention.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// The gradient of attention's output, and where to write those of its inputs; each shaped as its tensor.
template <class T>
struct AttentionGradients {
  const T* o;
  T *q, *k, *v;
};

namespace detail {

/// One head, one of all [sequences, heads], and its part of the tensors.
template <class T>
struct AttentionHead {
  Index number;
  AttentionTensors<T> of;
  AttentionGradients<T> gradients;
};

/// Weights and score gradients of rows first..first+rows-1 against keys key..key+count-1, into at.weights, at.scores.
template <class T>
void score_gradients(const AttentionShape& shape, const AttentionBackwardScratch<T>& at, const AttentionHead<T>& head,
                     Index first, Index rows, Index key, Index count) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>, block = AttentionBackwardScratch<T>::key_block;
  const Index width = shape.width(), depth = shape.head_width, q_row = padded_columns<T>(depth);
  const Index padded = padded_columns<T>(count);
  for (Index i = 0; i < rows; i += tile_rows<T>) {
    const Index down = std::min<Index>(tile_rows<T>, rows - i);
    for (Index j = 0; j < count; j += panel_width<T>) {
      const Index wide = padded_columns<T>(std::min(panel_width<T>, shape.keys - key - j));
      Tile<T> tile{.rows = down,
                   .columns = wide,
                   .depth = depth,
                   .a = {at.queries_scaled + (first + i) * q_row, q_row, 1},
                   .b = at.keys_transposed + (key + j) * depth,
                   .b_row = wide,
                   .c = at.weights + i * block + j,
                   .c_row = block};
      multiply_tile(tile, {});
      tile.a = {head.gradients.o + (first + i) * width, width, 1};
      tile.b = at.values_transposed + (key + j) * depth;
      tile.c = at.scores + i * block + j;
      multiply_tile(tile, {});
    }
  }
  for (Index i = 0; i < rows; ++i) {
    T *weights = at.weights + i * block, *scores = at.scores + i * block;
    const Index seen = std::clamp<Index>(shape.mask.visible_keys(first + i, shape.keys) - key, 0, count);
    FIT_COUNT(attention, 10 * depth * seen);
    FIT_COUNT(executed, 10 * depth * count);
    std::fill(weights + seen, weights + padded, -std::numeric_limits<T>::infinity());
    const Batch log_sum(head.of.log_sum[first + i]), dot(at.dot[first + i]);
    for (Index j = 0; j < padded; j += w) simd::store(weights + j, simd::exp2(simd::load(weights + j) - log_sum));
    if (!shape.dropout) {
      for (Index j = 0; j < padded; j += w) {
        simd::store(scores + j, simd::load(weights + j) * (simd::load(scores + j) - dot));
      }
      continue;
    }
    const std::uint64_t element =
        static_cast<std::uint64_t>(head.number * shape.queries + first + i) * static_cast<std::uint64_t>(shape.keys) +
        static_cast<std::uint64_t>(key);
    shape.dropout.apply(scores, count, element);
    for (Index j = 0; j < padded; j += w) {
      simd::store(scores + j, simd::load(weights + j) * (simd::load(scores + j) - dot));
    }
    shape.dropout.apply(weights, count, element);
  }
}

template <class T>
void attend_backward(const AttentionShape& shape, const AttentionBackwardScratch<T>& at, const AttentionHead<T>& head) {
  const auto& [number, of, gradients] = head;
  constexpr Index key_block = AttentionBackwardScratch<T>::key_block,
                  query_block = AttentionBackwardScratch<T>::query_block;
  const Index width = shape.width(), depth = shape.head_width, row = padded_columns<T>(depth);
  const T scale = static_cast<T>(shape.scale());
  scale_rows(shape.queries, depth, of.q, width, static_cast<T>(shape.scale() * std::numbers::log2e), at.queries_scaled,
             row);
  pack(Operand<T>{of.k, 1, width}, depth, shape.keys, at.keys_transposed);
  pack(Operand<T>{of.v, 1, width}, depth, shape.keys, at.values_transposed);
  pack(Operand<T>{of.q, width, 1}, shape.queries, depth, at.queries);
  pack(Operand<T>{of.k, width, 1}, shape.keys, depth, at.keys);
  pack(Operand<T>{gradients.o, width, 1}, shape.queries, depth, at.gradient);
  std::fill_n(at.query_gradient, shape.queries * row, T(0));
  // The gradient of a softmax needs sum_j weight_j gradient_j, which is the output times its gradient.
  for (Index i = 0; i < shape.queries; ++i) {
    simd::Batch<T> dot(T(0));
    for (Index j = 0; j < depth; j += simd::width<T>) {
      dot = simd::fma(simd::load_part(of.o + i * width + j, depth - j),
                      simd::load_part(gradients.o + i * width + j, depth - j), dot);
    }
    at.dot[i] = simd::sum(dot);
  }

  for (Index key = 0; key < shape.keys; key += key_block) {
    const Index count = std::min(key_block, shape.keys - key);
    const Index start = shape.mask.first_query(key);
    std::fill_n(at.key_gradient, count * row, T(0));
    std::fill_n(at.value_gradient, count * row, T(0));
    for (Index first = start; first < shape.queries; first += query_block) {
      const Index rows = std::min(query_block, shape.queries - first);
      score_gradients(shape, at, head, first, rows, key, count);
      multiply_panels<T>(count, row, {at.weights, 1, key_block}, {at.gradient, shape.queries, first, rows},
                         at.value_gradient, true);
      multiply_panels<T>(count, row, {at.scores, 1, key_block}, {at.queries, shape.queries, first, rows},
                         at.key_gradient, true);
      multiply_panels<T>(rows, row, {at.scores, key_block, 1}, {at.keys, shape.keys, key, count},
                         at.query_gradient + first * row, true);
    }
    scale_rows(count, depth, at.key_gradient, row, scale, gradients.k + key * width, width);
    scale_rows(count, depth, at.value_gradient, row, T(1), gradients.v + key * width, width);
  }
  scale_rows(shape.queries, depth, at.query_gradient, row, scale, gradients.q, width);
}

}  // namespace detail

/// The way back through `attention`, from its arguments, the results o and log_sum among them. Weights are made again
/// block by block (Dao et al., arXiv 2205.14135).
template <class T>
void attention_backward(const AttentionShape& shape, const AttentionTensors<T>& tensors,
                        const AttentionGradients<T>& gradients, Workspace& workspace) {
  detail::check(shape, tensors);
  const Index heads = shape.sequences * shape.heads;
  FIT_ASSERT(heads * shape.queries == 0 || (tensors.log_sum && gradients.o && gradients.q));
  FIT_ASSERT(heads * shape.keys == 0 || (gradients.k && gradients.v && gradients.k != gradients.v));
  FIT_ASSERT(heads * shape.queries * shape.keys == 0 || (gradients.o != gradients.k && gradients.o != gradients.v));
  const Arena::Scope scope(workspace.arena());
  const Index scratch = detail::AttentionBackwardScratch<T>::size(shape);
  T* memory = workspace.arena().allocate<T>(scratch * workspace.executor().lanes());
  detail::for_heads(heads, shape, workspace.executor(), [&](Index head, int lane) {
    const Index to_queries = shape.offset(head, shape.queries), to_keys = shape.offset(head, shape.keys);
    detail::attend_backward<T>(
        shape, {memory + lane * scratch, shape},
        {head,
         detail::head_of(tensors, shape, head),
         {gradients.o + to_queries, gradients.q + to_queries, gradients.k + to_keys, gradients.v + to_keys}});
  });
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
