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

/// One head's pointers, rows shape.width() apart.
template <class T>
struct AttentionHead {
  const T *q, *k, *v, *o, *o_gradient, *log_sum;
  T *q_gradient, *k_gradient, *v_gradient;
  std::uint64_t row_number;
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
      tile.a = {head.o_gradient + (first + i) * width, width, 1};
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
    const Batch log_sum(head.log_sum[first + i]), dot(at.dot[first + i]);
    for (Index j = 0; j < padded; j += w) simd::store(weights + j, simd::exp2(simd::load(weights + j) - log_sum));
    if (!shape.dropout) {
      for (Index j = 0; j < padded; j += w) {
        simd::store(scores + j, simd::load(weights + j) * (simd::load(scores + j) - dot));
      }
      continue;
    }
    const std::uint64_t element =
        (head.row_number + static_cast<std::uint64_t>(first + i)) * static_cast<std::uint64_t>(shape.keys) +
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
  constexpr Index key_block = AttentionBackwardScratch<T>::key_block,
                  query_block = AttentionBackwardScratch<T>::query_block;
  const Index width = shape.width(), depth = shape.head_width, row = padded_columns<T>(depth);
  const T scale = static_cast<T>(shape.scale());
  scale_rows(shape.queries, depth, head.q, width, static_cast<T>(shape.scale() * std::numbers::log2e),
             at.queries_scaled, row);
  pack(Operand<T>{head.k, 1, width}, depth, shape.keys, at.keys_transposed);
  pack(Operand<T>{head.v, 1, width}, depth, shape.keys, at.values_transposed);
  pack(Operand<T>{head.q, width, 1}, shape.queries, depth, at.queries);
  pack(Operand<T>{head.k, width, 1}, shape.keys, depth, at.keys);
  pack(Operand<T>{head.o_gradient, width, 1}, shape.queries, depth, at.gradient);
  std::fill_n(at.query_gradient, shape.queries * row, T(0));
  // The gradient of a softmax needs sum_j weight_j gradient_j, which is the output times its gradient.
  for (Index i = 0; i < shape.queries; ++i) {
    simd::Batch<T> dot(T(0));
    for (Index j = 0; j < depth; j += simd::width<T>) {
      dot = simd::fma(simd::load_part(head.o + i * width + j, depth - j),
                      simd::load_part(head.o_gradient + i * width + j, depth - j), dot);
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
    scale_rows(count, depth, at.key_gradient, row, scale, head.k_gradient + key * width, width);
    scale_rows(count, depth, at.value_gradient, row, T(1), head.v_gradient + key * width, width);
  }
  scale_rows(shape.queries, depth, at.query_gradient, row, scale, head.q_gradient, width);
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
  detail::for_heads(heads, shape, workspace.executor(), [&](Index task, int lane) {
    const Index head = task % shape.heads, sequence = task / shape.heads;
    const auto of_queries = [&](auto* data) { return detail::head_of(data, shape, shape.queries, sequence, head); };
    const auto of_keys = [&](auto* data) { return detail::head_of(data, shape, shape.keys, sequence, head); };
    const Index row = task * shape.queries;
    detail::attend_backward(
        shape, detail::AttentionBackwardScratch<T>(memory + lane * scratch, shape),
        detail::AttentionHead<T>{of_queries(tensors.q), of_keys(tensors.k), of_keys(tensors.v), of_queries(tensors.o),
                                 of_queries(gradients.o), tensors.log_sum + row, of_queries(gradients.q),
                                 of_keys(gradients.k), of_keys(gradients.v), static_cast<std::uint64_t>(row)});
  });
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
