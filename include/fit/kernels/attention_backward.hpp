#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numbers>
#include <utility>

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

/// One head of queries, one of all [sequences, heads], and its part of the tensors.
template <class T>
struct AttentionHead {
  Index number;
  const T *q, *o, *log_sum, *o_gradient;
  T* q_gradient;

  AttentionHead(const AttentionTensors<T>& t, const AttentionGradients<T>& g, const AttentionShape& shape, Index head)
      : number(head),
        q(t.q + shape.offset(head)),
        o(t.o + shape.offset(head)),
        log_sum(t.log_sum + head * shape.queries),
        o_gradient(g.o + shape.offset(head)),
        q_gradient(g.q + shape.offset(head)) {}
};

/// A block of keys and values, key .. key + count - 1, and where their gradients are summed up, rows `row` apart.
template <class T>
struct KeyBlock {
  Index key, count, row;
  const T *keys, *values;
  T *key_gradient, *value_gradient;
  bool begun = false;  ///< whether there are sums yet
};

/// Weights and gradients of scores of a panel of queries, first .. first + rows - 1, against the first `count` keys of
/// a block: transposed as forward, in columns column .. of at.weights and at.scores.
template <class T, int Vectors>
void score_gradients(const AttentionShape& shape, const AttentionBackwardScratch<T>& at, const AttentionHead<T>& head,
                     const KeyBlock<T>& block, Index first, Index rows, Index count, Index column,
                     [[maybe_unused]] Index flops) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>, panel = Vectors * w;
  const Index width = shape.width(), depth = shape.head_width, key = block.key;
  const Index apart = AttentionBackwardScratch<T>::group(shape);
  const T* o_gradient = head.o_gradient + first * width;
  T *const weights = at.weights + column, *const scores = at.scores + column;
  pack_panel(Operand<T>{head.q + first * width, 1, width}, rows, 0, depth, at.queries_transposed);
  pack_panel(Operand<T>{o_gradient, 1, width}, rows, 0, depth, at.gradient_transposed);
  // The gradient of a softmax needs sum_j weight_j gradient_j, which is the output times its gradient.
  alignas(alignment) T by_query[static_cast<std::size_t>(panel)] = {};
  for (Index i = 0; i < rows; ++i) {
    Batch dot(T(0));
    for (Index j = 0; j < depth; j += w) {
      dot = simd::fma(simd::load_part(head.o + (first + i) * width + j, depth - j),
                      simd::load_part(o_gradient + i * width + j, depth - j), dot);
    }
    by_query[i] = simd::sum(dot);
  }
  multiply_rows(count, panel, depth, {block.keys, block.row, 1}, at.queries_transposed, panel, weights, apart, false);
  multiply_rows(count, panel, depth, {block.values, block.row, 1}, at.gradient_transposed, panel, scores, apart, false);
  hide_unseen<T, Vectors>(shape, first, rows, key, count, weights, apart, flops);
  const auto each = [&](auto&& body) {
    for (int v = 0; v < Vectors; ++v) {
      const Batch log_sum = simd::load_part(head.log_sum + first + v * w, std::max<Index>(0, rows - v * w));
      const Batch dot = simd::load(by_query + v * w);
      for (Index j = 0; j < count; ++j) body(weights + j * apart + v * w, scores + j * apart + v * w, log_sum, dot);
    }
  };
  const Batch scale(static_cast<T>(shape.scale())), scale_of_2(static_cast<T>(shape.scale() * std::numbers::log2e));
  const auto weight_of = [&](const T* score, const Batch& log_sum) {
    return simd::exp2(simd::fma(simd::load(score), scale_of_2, -log_sum));
  };
  const auto gradient_of = [&](const Batch& weight, const Batch& score, const Batch& dot) {
    return weight * (score - dot) * scale;
  };
  if (!shape.dropout) {
    return each([&](T* weight, T* score, const Batch& log_sum, const Batch& dot) {
      const Batch now = weight_of(weight, log_sum);
      simd::store(weight, now);
      simd::store(score, gradient_of(now, simd::load(score), dot));
    });
  }
  drop_out(shape, head.number, first, rows, key, count, scores, apart);
  each([&](T* weight, T* score, const Batch& log_sum, const Batch& dot) {
    const Batch now = weight_of(weight, log_sum);
    simd::store(weight, now);
    simd::store(score, gradient_of(now, simd::load(score), dot));
  });
  drop_out(shape, head.number, first, rows, key, count, weights, apart);
}

/// Which gradients are wanted: those of keys (and values) from one on to another, those of queries, or both.
struct GradientPart {
  Index head, head_end;  ///< of all [sequences, heads]; they share keys
  Index key, key_end, query, query_end;
  bool of_keys, of_queries;
};

/// One head over a block of keys.
template <class T>
void attend_backward(const AttentionShape& shape, const AttentionBackwardScratch<T>& at, const AttentionHead<T>& head,
                     const GradientPart& part, KeyBlock<T>& block) {
  const Index width = shape.width(), depth = shape.head_width, row = padded_columns<T>(depth);
  const Index group = AttentionBackwardScratch<T>::group(shape), key = block.key;
  const bool direct = AttentionBackwardScratch<T>::in_place(shape);
  const Index first_seeing = shape.mask.first_query(key) / group * group;
  for (Index first = std::max(part.query, first_seeing); first < part.query_end; first += group) {
    const Index rows = std::min(group, shape.queries - first);
    const Index seen = std::min(block.count, shape.mask.visible_keys(first + rows - 1, shape.keys) - key);
    if (seen <= 0) continue;
    FIT_COUNT(executed, (part.of_keys && part.of_queries ? 10 : part.of_keys ? 8 : 6) * depth * seen * rows);
    for (Index i = 0; i < rows; i += panel_width<T>) {
      const Index down = std::min(panel_width<T>, rows - i), flops = part.of_keys ? 10 : 0;
      if (padded_columns<T>(down) == simd::width<T>) {
        score_gradients<T, 1>(shape, at, head, block, first + i, down, seen, i, flops);
      } else {
        score_gradients<T, 2>(shape, at, head, block, first + i, down, seen, i, flops);
      }
    }
    if (part.of_keys) {
      const T *queries = head.q + first * width, *gradient = head.o_gradient + first * width;
      if (!direct) {
        copy_rows(rows, depth, queries, width, at.queries);
        copy_rows(rows, depth, gradient, width, at.gradient);
        queries = at.queries;
        gradient = at.gradient;
      }
      const Index apart = direct ? width : row;
      multiply_rows(seen, row, rows, {at.weights, group, 1}, gradient, apart, block.value_gradient, block.row,
                    block.begun);
      multiply_rows(seen, row, rows, {at.scores, group, 1}, queries, apart, block.key_gradient, block.row, block.begun);
      if (!block.begun) {
        for (T* sums : {block.key_gradient, block.value_gradient}) {
          for (Index i = seen; i < block.count; ++i) std::fill_n(sums + i * block.row, row, T(0));
        }
        block.begun = true;
      }
    }
    if (part.of_queries) {
      multiply_rows(rows, depth, seen, {at.scores, 1, group}, block.keys, block.row, head.q_gradient + first * width,
                    width, key > 0);
    }
  }
}

template <class T>
void attend_backward(const AttentionShape& shape, const AttentionBackwardScratch<T>& at,
                     const AttentionTensors<T>& tensors, const AttentionGradients<T>& gradients,
                     const GradientPart& part) {
  using Scratch = AttentionBackwardScratch<T>;
  const Index width = shape.key_width(), depth = shape.head_width, row = padded_columns<T>(depth);
  const Index to_keys = shape.key_offset(part.head / shape.sharing);
  const bool direct = AttentionBackwardScratch<T>::in_place(shape);
  for (Index key = part.key; key < part.key_end; key += Scratch::key_block) {
    const Index count = std::min(Scratch::key_block, shape.keys - key), place = to_keys + key * width;
    KeyBlock<T> block{
        key, count, width, tensors.k + place, tensors.v + place, gradients.k + place, gradients.v + place};
    if (!direct) {
      copy_rows(count, depth, block.keys, width, at.keys);
      copy_rows(count, depth, block.values, width, at.values);
      block = {key, count, row, at.keys, at.values, at.key_gradient, at.value_gradient};
    }
    for (Index head = part.head; head < part.head_end; ++head) {
      attend_backward(shape, at, AttentionHead<T>(tensors, gradients, shape, head), part, block);
    }
    if (!part.of_keys) continue;
    for (const auto& [sums, to] : {std::pair{block.key_gradient, gradients.k}, {block.value_gradient, gradients.v}}) {
      if (!block.begun) {
        for (Index i = 0; i < count; ++i) std::fill_n(to + place + i * width, depth, T(0));
      } else if (!direct) {
        scale_rows(count, depth, sums, row, T(1), to + place, width);
      }
    }
  }
}

}  // namespace detail

/// The way back through `attention`, from its arguments, the results o and log_sum among them. Weights are made again
/// block by block (Dao et al., arXiv 2205.14135). Of some heads of keys alone, of all [sequences, key heads], and those
/// of queries that share them, reads and writes nothing of others; there must be keys then.
template <class T>
void attention_backward(const AttentionShape& shape, const AttentionTensors<T>& tensors,
                        const AttentionGradients<T>& gradients, Workspace& workspace, const IndexRange& key_heads) {
  detail::check(shape, tensors);
  const Index heads = shape.sequences * shape.heads;
  FIT_ASSERT(key_heads.first >= 0 && key_heads.count >= 0 && key_heads.end() <= shape.sequences * shape.key_heads());
  FIT_ASSERT(shape.keys > 0 || key_heads.count == shape.sequences * shape.key_heads());
  FIT_ASSERT(heads * shape.queries == 0 || (tensors.log_sum && gradients.o && gradients.q));
  FIT_ASSERT(heads * shape.keys == 0 || (gradients.k && gradients.v && gradients.k != gradients.v));
  FIT_ASSERT(heads * shape.queries * shape.keys == 0 || (gradients.o != gradients.k && gradients.o != gradients.v));
  FIT_ASSERT(heads * shape.queries == 0 || gradients.o != gradients.q);
  if (shape.keys == 0) {
    std::fill_n(gradients.q, heads * shape.queries * shape.head_width, T(0));
    return;
  }
  const LaneScratch<T> memory(workspace, detail::AttentionBackwardScratch<T>::size(shape));
  const AttentionBackwardPieces<T> pieces(shape, key_heads.count, workspace.executor().lanes());
  const Index block = detail::AttentionBackwardScratch<T>::key_block;
  const Index group = detail::AttentionBackwardScratch<T>::group(shape);
  const Index each = pieces.count() / std::max<Index>(1, pieces.heads), of_head = pieces.groups / shape.sharing;
  detail::for_heads(
      pieces.count(), pieces.whole ? shape.sharing : 1, shape, workspace.executor(), [&](Index piece, int lane) {
        const Index first = (key_heads.first + piece / each) * shape.sharing, part = piece % each;
        const Index by_queries = part - pieces.blocks;
        detail::GradientPart wanted{first, first + shape.sharing, 0, shape.keys, 0, shape.queries, true, true};
        if (!pieces.whole && by_queries < 0) {
          wanted.key = part * block;
          wanted.key_end = std::min(wanted.key + block, shape.keys);
          wanted.of_queries = false;
        } else if (!pieces.whole) {
          wanted.head = first + by_queries / of_head;
          wanted.head_end = wanted.head + 1;
          wanted.query = by_queries % of_head * group;
          wanted.query_end = std::min(wanted.query + group, shape.queries);
          wanted.of_keys = false;
        }
        detail::attend_backward<T>(shape, {memory[lane], shape}, tensors, gradients, wanted);
      });
}
template <class T>
void attention_backward(const AttentionShape& shape, const AttentionTensors<T>& tensors,
                        const AttentionGradients<T>& gradients, Workspace& workspace) {
  attention_backward(shape, tensors, gradients, workspace, {0, shape.sequences * shape.key_heads()});
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
