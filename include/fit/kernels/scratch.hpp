#pragma once

#include <algorithm>
#include <cmath>

#include <fit/kernels/dropout.hpp>
#include <fit/kernels/mask.hpp>
#include <fit/simd/width.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

// How kernels cut their work, and what they take of a workspace for it: known before anything runs, and written here
// once, for the kernels and for who asks what they will cost.

/// The panels of a product's right-hand side: columns from p * panel_width on, row by row; the last one is filled up
/// with zeros to a whole number of vectors.
template <class T>
inline constexpr Index panel_width = 2 * simd::width<T>;

/// Columns that `columns` take up in panels.
template <class T>
constexpr Index padded_columns(Index columns) {
  return (columns + simd::width<T> - 1) / simd::width<T> * simd::width<T>;
}

/// Rows of the largest tile: its sums, two vectors a row, fill the registers but for the operands.
template <class T>
inline constexpr int tile_rows = simd::registers == 32 ? 14 : 6;

/// Elements that a product [rows, columns] takes to pack its right operand [depth, columns], whose strides are given.
/// None where it is read where it is: few tiles would use a packed one again, and its rows lie close enough together
/// not to fall on each other in the caches.
template <class T>
constexpr Index packed_size(Index rows, Index columns, Index depth, Index b_row, Index b_column) {
  const bool direct =
      b_column == 1 && columns % simd::width<T> == 0 && b_row <= 16 * simd::width<T> && rows <= 20 * tile_rows<T>;
  return direct ? 0 : depth * padded_columns<T>(columns);
}

/// Depth that a product of one summand goes through at a time: its right operand is packed as far, and what is packed
/// of a gradient of weights, whose depth are all the rows of a batch, does not grow with them.
inline constexpr Index depth_at_once = 1024;
constexpr Index packed_depth(Index depth, int summands) {
  return summands == 1 ? std::min(depth, depth_at_once) : depth;
}

/// How a product is cut: tiles below each other, and a depth whose rows of a tile's left operand stay in the
/// first-level cache.
inline constexpr Index block_tiles = 8, depth_block = 512;
static_assert(depth_at_once % depth_block == 0);

/// Pieces of depth_block, at a time, in which threads share out the depth of a gradient of weights [rows, columns],
/// whose depth are the rows of a batch; 0 where they share out its elements, as one alone does. Where there are few
/// elements, every thread would read most of what the others have just written, and have in their caches.
constexpr Index depth_pieces(Index rows, Index columns, Index depth, Index lanes) {
  const Index pieces = (depth + depth_block - 1) / depth_block, elements = rows * columns;
  const Index rounds = (pieces + lanes - 1) / lanes;
  if (lanes == 1 || 5 * pieces < 4 * rounds * lanes) return 0;  // threads would wait for the last pieces
  if (elements == 0 || elements > (Index{1} << 17) || 2 * lanes * elements > (Index{1} << 22)) return 0;
  return std::min(pieces, std::max(2 * lanes, (Index{1} << 20) / elements));
}

/// Whether a tile's rows of a plain left operand fall on each other in the first-level cache: on x86 its sets begin
/// anew every 4 KB, and have 8 lines or somewhat more.
template <class T>
constexpr bool rows_collide(Index rows, Index a_row) {
  return std::min<Index>(rows, tile_rows<T>) > 8 && a_row * static_cast<Index>(sizeof(T)) % 4096 == 0;
}

/// How far the rows of such a tile's copy begin from each other.
template <class T>
constexpr Index copied_row(Index depth) {
  return padded_columns<T>(depth) + simd::width<T>;
}

/// Elements that a lane takes to pack what it reads of a left operand [rows, depth], whose strides are given. None
/// where a single panel reads it. Else a block's part of a transposed one, whose columns lie far apart, and on each
/// other in the caches; and a tile's of a plain one whose rows collide.
template <class T>
constexpr Index packed_left_size(Index rows, Index columns, Index depth, Index a_row, Index a_column) {
  if (columns <= panel_width<T>) return 0;
  const Index at_once = std::min(depth_block, depth);
  if (a_column == 1) {
    return rows_collide<T>(rows, a_row) ? std::min<Index>(rows, tile_rows<T>) * copied_row<T>(at_once) : 0;
  }
  const Index tiles = std::min<Index>(block_tiles, (rows + tile_rows<T> - 1) / tile_rows<T>);
  return tiles * at_once * padded_columns<T>(tile_rows<T>);
}

/// Rows that add_column_sums() sums before it adds their sum to that of the others, and the elements it takes.
inline constexpr Index column_sums_block = 128;
constexpr Index column_sums_size(Index rows, Index columns) {
  return (rows + column_sums_block - 1) / column_sums_block * columns;
}

/// Rows whose share of the parameters' gradients layer_norm_backward() keeps apart.
inline constexpr Index layer_norm_block = 64;

/// Attention of many heads over many sequences. Queries, and what comes out, are [sequences, queries, heads *
/// head_width], keys and values [sequences, keys, heads / sharing * head_width]: each of their heads serves `sharing`
/// heads of queries that follow each other (Ainslie et al., arXiv 2305.13245, section 2.2).
struct AttentionShape {
  Index sequences = 0, queries = 0, keys = 0, heads = 0, head_width = 0;
  Mask mask = {};
  Dropout dropout = {};  // on the weights, which are numbered as [sequences, heads, queries, keys]
  Index sharing = 1;

  constexpr Index width() const { return heads * head_width; }
  constexpr Index key_heads() const { return heads / sharing; }
  constexpr Index key_width() const { return key_heads() * head_width; }
  /// Where a head, one of all [sequences, heads], begins in [sequences, queries, width]; its rows are width() apart.
  constexpr Index offset(Index head) const { return head / heads * queries * width() + head % heads * head_width; }
  /// The same of a head of keys and values, one of all [sequences, key_heads], in [sequences, keys, key_width].
  constexpr Index key_offset(Index head) const {
    return head / key_heads() * keys * key_width() + head % key_heads() * head_width;
  }
  /// Scores are q . k times this.
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(head_width)); }
};

namespace detail {

/// Memory of one lane of the forward kernel: some panels of queries and a block of keys.
template <class T>
struct AttentionScratch {
  static constexpr Index key_block = 256, panels = 6, most_panels = 8;

  T *keys, *values;       // [key_block, head]
  T* queries;             // panels of queries, transposed, [head, panel] each
  T* scores;              // [key_block, panel]
  T *mixed, *peak, *sum;  // [queries of all panels, head], some panels transposed; [queries of all panels]

  /// Queries that go over the keys together, filled up to whole panels: all where they are few, so that keys are copied
  /// once, else fewer, so that there are pieces for many threads.
  static constexpr Index group(const AttentionShape& shape) {
    const Index panel = padded_columns<T>(std::clamp<Index>(shape.queries, 1, panel_width<T>));
    const Index all = std::max<Index>(1, (shape.queries + panel - 1) / panel);
    return (all <= most_panels ? all : panels) * panel;
  }
  /// Rows of keys are copied next to each other where several panels of queries meet them, and so are values, these
  /// also where their rows are no whole registers.
  static constexpr bool copies_keys(const AttentionShape& shape) { return shape.queries > panel_width<T>; }
  static constexpr bool copies_values(const AttentionShape& shape) {
    return copies_keys(shape) || shape.head_width % simd::width<T> != 0;
  }
  static constexpr Index size(const AttentionShape& shape) { return AttentionScratch(nullptr, shape).size_; }
  constexpr AttentionScratch(T* memory, const AttentionShape& shape) {
    const Index head = padded_columns<T>(shape.head_width), block = std::min(shape.keys, key_block);
    const Index all = group(shape), panel = std::min(all, panel_width<T>);
    const auto take = [&](Index count) {
      T* part = memory ? memory + size_ : nullptr;
      size_ += padded_columns<T>(count);
      return part;
    };
    keys = take(copies_keys(shape) ? block * head : 0);
    values = take(copies_values(shape) ? block * head : 0);
    queries = take(all * shape.head_width);
    scores = take(panel * block);
    mixed = take(all * head);
    for (T** part : {&peak, &sum}) *part = take(all);
  }

 private:
  Index size_ = 0;
};

/// Memory of one lane of the backward kernel: a few panels of queries and a block of keys.
template <class T>
struct AttentionBackwardScratch {
  static constexpr Index key_block = 256, panels = 2;

  T *queries_transposed, *gradient_transposed;  // a panel over queries, [head, panel]
  T *queries, *gradient;                        // [queries of all panels, head]
  T *keys, *values;                             // [key_block, head]
  T *weights, *scores;                          // [key_block, queries of all panels]
  T *key_gradient, *value_gradient;             // [key_block, head]

  /// Queries that go together, filled up to whole registers.
  static constexpr Index group(const AttentionShape& shape) {
    return padded_columns<T>(std::clamp<Index>(shape.queries, 1, panels * panel_width<T>));
  }
  /// Whether rows are read, and gradients summed up, where they are: a single group of queries does not come back to
  /// few keys often enough for copies next to each other to be worth it.
  static constexpr bool in_place(const AttentionShape& shape) {
    return std::max(shape.queries, shape.keys) <= panels * panel_width<T> && shape.head_width % simd::width<T> == 0;
  }
  static constexpr Index size(const AttentionShape& shape) { return AttentionBackwardScratch(nullptr, shape).size_; }
  constexpr AttentionBackwardScratch(T* memory, const AttentionShape& shape) {
    const Index head = padded_columns<T>(shape.head_width), all = group(shape);
    const Index panel = std::min(all, panel_width<T>), block = std::min(shape.keys, key_block);
    const auto take = [&](Index count) {
      T* part = memory ? memory + size_ : nullptr;
      size_ += padded_columns<T>(count);
      return part;
    };
    for (T** part : {&queries_transposed, &gradient_transposed}) *part = take(panel * head);
    const Index copies = in_place(shape) ? 0 : head;
    for (T** part : {&queries, &gradient}) *part = take(all * copies);
    for (T** part : {&keys, &values, &key_gradient, &value_gradient}) *part = take(block * copies);
    for (T** part : {&weights, &scores}) *part = take(block * all);
  }

 private:
  Index size_ = 0;
};

}  // namespace detail

/// Pieces that attention's work is cut in: some panels of a head's queries each.
template <class T>
constexpr Index attention_pieces(const AttentionShape& shape) {
  const Index group = detail::AttentionScratch<T>::group(shape);
  return shape.sequences * shape.heads * ((shape.queries + group - 1) / group);
}

/// The same of the way back, on so many threads. Heads of keys by themselves are the least work, but there may be too
/// few of them: then the gradients of a block of keys are a piece, and those of a group of queries another one, for
/// which scores are computed once more, 7 products instead of 5. Sums have the same order in both.
template <class T>
struct AttentionBackwardPieces {
  Index heads, blocks, groups;  ///< blocks of keys, and groups of queries that share them, that a head is cut in
  bool whole;                   ///< heads by themselves

  constexpr AttentionBackwardPieces(const AttentionShape& shape, int threads)
      : AttentionBackwardPieces(shape, shape.sequences * shape.key_heads(), threads) {}
  /// Of some heads of keys alone.
  constexpr AttentionBackwardPieces(const AttentionShape& shape, Index key_heads, int threads) {
    using Scratch = detail::AttentionBackwardScratch<T>;
    const Index group = Scratch::group(shape);
    heads = key_heads;
    blocks = (shape.keys + Scratch::key_block - 1) / Scratch::key_block;
    groups = (shape.queries + group - 1) / group * shape.sharing;
    const Index lanes = std::max(1, threads), rounds = (heads + lanes - 1) / lanes;
    whole = 7 * heads >= 5 * rounds * lanes || blocks + groups / shape.sharing <= 2;
  }
  constexpr Index count() const { return whole ? heads : heads * (blocks + groups); }
  /// Products that a pair of a query and a key takes part in.
  constexpr Index products() const { return whole ? 5 : 7; }
};

/// Pairs of a query and a key that it sees, over all sequences and heads.
constexpr Index attention_pairs(const AttentionShape& s) {
  return s.sequences * s.heads * s.mask.sum_of_visible_keys({.count = s.queries}, s.keys);
}
/// Pairs that are computed: groups of queries, a panel or, on the way back, some of them, go over all that one of the
/// group sees.
template <class T>
constexpr Index attention_pairs_computed(const AttentionShape& s, bool backward = false) {
  const Index group = panel_width<T> * (backward ? detail::AttentionBackwardScratch<T>::panels : 1);
  const Index whole = s.queries / group, rest = s.queries % group;
  const Index of_rest = rest > 0 ? rest * s.mask.visible_keys(s.queries - 1, s.keys) : 0;
  return s.sequences * s.heads *
         (group * s.mask.sum_of_visible_keys({.first = group - 1, .step = group, .count = whole}, s.keys) + of_rest);
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
