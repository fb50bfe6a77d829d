#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

#include <fit/core/assert.hpp>
#include <fit/core/work_count.hpp>
#include <fit/core/workspace.hpp>
#include <fit/kernels/dropout.hpp>
#include <fit/kernels/gelu.hpp>
#include <fit/kernels/micro_kernel.hpp>
#include <fit/kernels/panels.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// a b, one summand of a product: a [rows, depth], b [depth, columns], each plain or transposed.
template <class T>
struct Factors {
  Operand<T> a, b;
  Index depth = 0;
};

enum class Activation {
  none,
  gelu,         // activated = gelu(c) and, unless c is the same memory, c = its slope; both dropped out alike
  times_slope,  // c *= slope
};

/// c = row_scale * (sum of the factors + bias), plus c if `accumulate`; then the activation.
template <class T>
struct Product {
  Index rows = 0, columns = 0;
  Factors<T> factors[3] = {};
  int count = 1;
  T* c = nullptr;  // [rows, columns], rows c_row apart
  Index c_row = 0;
  Finish<T> finish = {};
  Activation activation = Activation::none;
  T* activated = nullptr;    // [rows, columns], laid out as c
  const T* slope = nullptr;  // [rows, columns], laid out as c: what gelu made of its c
  Dropout dropout = {};      // of gelu alone
};

/// x [rows, width] as a left or right operand, and its transpose.
template <class T>
Operand<T> plain(const T* data, Index width) {
  return {data, width, 1};
}
template <class T>
Operand<T> transposed(const T* data, Index width) {
  return {data, 1, width};
}

namespace detail {

template <class T>
void check(const Product<T>& p) {
  FIT_ASSERT(p.rows >= 0 && p.columns >= 0);
  FIT_ASSERT(p.count >= 1 && p.count <= 3);
  const bool empty = p.rows == 0 || p.columns == 0;
  FIT_ASSERT(empty || p.c);
  FIT_ASSERT(p.rows <= 1 || p.c_row >= p.columns);
  FIT_ASSERT(!p.finish.row_scale || p.finish.rows_per_scale >= 1);
  FIT_ASSERT(empty || p.activation != Activation::gelu || p.activated);
  FIT_ASSERT(empty || p.activation != Activation::times_slope || (p.slope && p.slope != p.c));
  for (int f = 0; f < p.count; ++f) {
    const auto& [a, b, depth] = p.factors[f];
    FIT_ASSERT(depth >= 0);
    if (empty || depth == 0) continue;
    FIT_ASSERT(a.data && b.data);
    FIT_ASSERT(a.data != p.c && b.data != p.c);
    FIT_ASSERT(p.activation != Activation::gelu || (a.data != p.activated && b.data != p.activated));
    FIT_ASSERT(a.row == 1 || a.column == 1);
    FIT_ASSERT((b.column == 1 && b.row >= p.columns) || (b.row == 1 && b.column >= depth));
  }
}

/// Packs a transposed left operand, of which from.data is the beginning, for a block's tiles one after the other: the
/// elements of a column of a tile side by side, columns padded_columns(tile_rows) apart.
template <class T>
void pack_tiles(const Operand<T>& from, Index rows, Index depth, T* to) {
  constexpr Index w = simd::width<T>, apart = padded_columns<T>(tile_rows<T>), together = 32;
  for (Index first = 0; first < depth; first += together) {
    const Index last = std::min(first + together, depth);
    for (Index i = 0; i < rows; i += tile_rows<T>) {
      const Index down = std::min<Index>(tile_rows<T>, rows - i);
      T* place = to + (i / tile_rows<T> * depth + first) * apart;
      for (Index k = first; k < last; ++k, place += apart) {
        const T* column = from.data + i + k * from.column;
        __builtin_prefetch(column + together * from.column, 0, 2);
        for (Index j = 0; j < down; j += w) simd::store(place + j, simd::load_part(column + j, down - j));
      }
    }
  }
}

/// Copies a tile's rows of a plain left operand to where they do not collide.
template <class T>
Operand<T> copy_tile(const Operand<T>& from, Index rows, Index depth, T* to) {
  constexpr Index line = static_cast<Index>(alignment / sizeof(T)), ahead = 2;
  const Index apart = copied_row<T>(depth);
  for (Index i = 0; i < rows; ++i) {
    const T* row = from.data + i * from.row;
    for (Index k = 0; k < depth; k += line) __builtin_prefetch(row + ahead * from.row + k, 0, 3);
    std::copy_n(row, depth, to + i * apart);
  }
  return {to, apart, 1};
}

/// Asks for what a tile's sums are going to be written to before they are computed: it takes long to get where another
/// thread had it.
template <class T>
void ask_for_tile(const T* c, Index c_row, Index rows, Index columns) {
  constexpr Index line = static_cast<Index>(alignment / sizeof(T));
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; j += line) __builtin_prefetch(c + i * c_row + j, 1, 3);
  }
}

/// Rows row..row+rows-1 and columns column..column+columns-1 of one product, as far as depth_block of a summand from
/// its k on goes. Right operands are packed where there is a pointer and else read directly. `left` is room to pack the
/// left one, and may hold a transposed one from the block before, of the same rows.
template <class T>
void multiply_block(const Product<T>& product, const T* const* packed, int f, Index k, Index row, Index rows,
                    Index column, Index columns, T* left, bool left_is_packed) {
  const Factors<T>& factors = product.factors[f];
  const Index depth = std::min(depth_block, factors.depth - k);
  const bool first = f == 0 && k == 0, last = f == product.count - 1 && k + depth_block >= factors.depth;
  const Operand<T> whole{factors.a.data + row * factors.a.row + k * factors.a.column, factors.a.row, factors.a.column};
  const bool packs = packed_left_size<T>(rows, product.columns, depth, whole.row, whole.column) > 0;
  const bool is_plain = whole.column == 1, copies = packs && is_plain && columns > panel_width<T>;
  if (packs && !is_plain && !left_is_packed) pack_tiles(whole, rows, depth, left);
  for (Index i = row; i < row + rows; i += tile_rows<T>) {
    const Index down = std::min<Index>(tile_rows<T>, row + rows - i);
    constexpr Index apart = padded_columns<T>(tile_rows<T>);
    Operand<T> a{whole.data + (i - row) * whole.row, whole.row, whole.column};
    if (copies) a = copy_tile(a, down, depth, left);
    if (packs && !is_plain) a = {left + (i - row) / tile_rows<T> * depth * apart, 1, apart};
    Finish<T> finish = product.finish;
    finish.accumulate = finish.accumulate || !first;
    finish.first_row = i;
    for (Index j = column; j < column + columns; j += panel_width<T>) {
      const Index wide = std::min(panel_width<T>, product.columns - j);
      const Index b_row = packed[f] ? padded_columns<T>(wide) : factors.b.row;
      const T* b = packed[f] ? packed[f] + j * factors.depth + k * b_row : factors.b.data + k * b_row + j;
      finish.bias = first && product.finish.bias ? product.finish.bias + j : nullptr;
      T* c = product.c + i * product.c_row + j;
      if (depth == depth_block && !finish.accumulate) ask_for_tile(c, product.c_row, down, wide);
      multiply_tile<T>({.rows = down,
                        .columns = wide,
                        .depth = depth,
                        .a = a,
                        .b = b,
                        .b_row = b_row,
                        .c = c,
                        .c_row = product.c_row},
                       finish);
      FIT_COUNT(products, 2 * down * wide * depth);
      if (!last || product.activation == Activation::none) continue;
      for (Index r = 0; r < down; ++r) {
        const Index at = (i + r) * product.c_row + j;
        if (product.activation == Activation::times_slope) {
          times_slope(product.slope + at, product.c + at, wide);
          continue;
        }
        T* activated = product.activated + at;
        T* slope = product.activated == product.c ? nullptr : product.c + at;
        slope ? gelu_and_slope(slope, activated, wide) : gelu(activated, activated, wide);
        if (!product.dropout) continue;
        const auto element = static_cast<std::uint64_t>((i + r) * product.columns + j);
        product.dropout.apply(activated, wide, element);
        if (slope) product.dropout.apply(slope, wide, element);
      }
    }
  }
}

inline constexpr std::size_t most_products = 8;

/// The blocks of a product: in rows and columns of a grid, and `columns` wide but for the last.
struct BlockGrid {
  Index down = 0, across = 0, columns = 0;
  bool packs_left = false;  ///< whether a block packs all it reads of a left operand

  Index blocks() const { return down * across; }
};

/// Blocks of 112 x 256 suit the caches; smaller ones, down to a tile, where these would take more multiply-adds, or
/// where a packed left operand, which serves all columns of its rows, would be cut in fewer strips than are wanted.
template <class T>
BlockGrid block_grid(const Product<T>& p, Index most, Index strips) {
  Index rows = block_tiles * tile_rows<T>, columns = 8 * panel_width<T>, depth = 0;
  bool packs_left = false;
  for (const auto& [a, b, of_factor] : std::span(p.factors, static_cast<std::size_t>(p.count))) {
    depth += of_factor;
    packs_left =
        packs_left || (a.column != 1 && packed_left_size<T>(p.rows, p.columns, of_factor, a.row, a.column) > 0);
  }
  const auto too_large = [&] { return std::min(rows, p.rows) * std::min(columns, p.columns) * depth > most; };
  const auto halve_rows = [&] { rows = std::max<Index>(tile_rows<T>, rows / 2 / tile_rows<T> * tile_rows<T>); };
  while (packs_left && rows > tile_rows<T> && (too_large() || p.rows <= (strips - 1) * rows)) halve_rows();
  while (columns > panel_width<T> && too_large()) columns /= 2;
  while (rows > tile_rows<T> && too_large()) halve_rows();
  return {(p.rows + rows - 1) / rows, (p.columns + columns - 1) / columns, columns, packs_left};
}

/// A right operand that is packed, in tasks that any thread may do: some rows of a panel or, where rows can be read
/// whole, of a thread's share of the panels, which it may find in its caches again. Of four panels at least, as memory
/// gives shorter pieces slowly, and of eight at most, as panels that begin far apart fall on each other in the caches.
template <class T>
struct Packing {
  Operand<T> from;
  Index depth = 0, columns = 0, rows_of_task = 0, columns_of_task = 0;
  T* panels = nullptr;

  Packing() = default;
  Packing(const Factors<T>& factors, Index all_columns, Index lanes, T* to)
      : from(factors.b), depth(factors.depth), columns(all_columns), columns_of_task(panel_width<T>), panels(to) {
    constexpr Index w = simd::width<T>;
    const Index panels_of_lane = (columns + lanes * panel_width<T> - 1) / (lanes * panel_width<T>);
    if (from.column == 1) columns_of_task *= std::clamp<Index>(panels_of_lane, 4, 8);
    const Index elements = std::clamp<Index>(depth * columns / (2 * lanes), 4096, 32768);
    rows_of_task = (elements / columns_of_task + w - 1) / w * w;
  }
  Index down() const { return (depth + rows_of_task - 1) / rows_of_task; }
  Index tasks() const { return down() * ((columns + columns_of_task - 1) / columns_of_task); }
  void run(Index task) const {
    const Index j = task / down() * columns_of_task, across = std::min(columns_of_task, columns - j);
    const Index first = task % down() * rows_of_task, last = std::min(first + rows_of_task, depth);
    const Operand<T> part{from.data + j * from.column, from.row, from.column};
    if (from.column == 1) {
      pack_rows(part.data, part.row, across, depth, first, last, panels + j * depth);
    } else {
      pack_panel(part, across, first, last, panels + j * depth);
    }
  }
};

/// The products, each of a depth that goes through at once.
template <class T>
void multiply_at_once(std::span<const Product<T>> products, Workspace& workspace) {
  Executor& executor = workspace.executor();
  const Index lanes = executor.lanes();
  const Arena::Scope scope(workspace.arena());
  T* packed[most_products][3] = {};
  std::array<Packing<T>, 3 * most_products> packings;
  std::size_t count = 0;
  Index packs = 0, work = 0, left = 0;
  for (std::size_t p = 0; p < products.size(); ++p) {
    const Product<T>& product = products[p];
    for (int f = 0; f < product.count; ++f) {
      const auto& [a, b, depth] = product.factors[f];
      work += product.rows * product.columns * depth;
      left = std::max(left, packed_left_size<T>(product.rows, product.columns, depth, a.row, a.column));
      const Index room = packed_size<T>(product.rows, product.columns, depth, b.row, b.column);
      if (room == 0) continue;
      packed[p][f] = workspace.arena().allocate<T>(room);
      packings[count] = {product.factors[f], product.columns, lanes, packed[p][f]};
      packs += packings[count++].tasks();
    }
  }
  const LaneScratch<T> room_left(workspace, left);
  executor.parallel_for(packs, [&](Index task, int) {
    const Packing<T>* packing = packings.data();
    for (; task >= packing->tasks(); ++packing) task -= packing->tasks();
    packing->run(task);
  });

  // No block is so much of the work that others would wait long for who comes to it last: of products side by side,
  // some have much larger ones. How the elements are dealt to blocks does not touch how each is summed.
  const Index shares = (products.size() == 1 ? 4 : 8) * lanes;
  const Index most = lanes == 1 || work < (Index{1} << 18) ? work : work / shares;
  Index slices = 0;
  BlockGrid grids[most_products];
  for (std::size_t p = 0; p < products.size(); ++p) {
    grids[p] = block_grid(products[p], most, most == work ? 1 : 4 * lanes);
    slices = std::max(slices, grids[p].blocks());
  }
  // A task is the same share of every product, so that a thread goes on with the rows or columns it had before.
  executor.parallel_for(slices, [&](Index slice, int lane) {
    for (std::size_t p = 0; p < products.size(); ++p) {
      const Product<T>& product = products[p];
      const auto& [down, across, columns, packs_left] = grids[p];
      const Index blocks = grids[p].blocks();
      const Index tiles = (product.rows + tile_rows<T> - 1) / tile_rows<T>;
      // Blocks of the same rows go together where that saves packing and leaves enough to share out. A thread goes
      // through as few columns as it can where these are what there is more of.
      const bool wide = packs_left && (lanes == 1 || down >= 2 * lanes);
      const bool by_columns = !packs_left && product.columns > product.rows;
      const Index units = wide ? down : blocks, each = wide ? across : 1;
      for (Index unit = units * slice / slices; unit < units * (slice + 1) / slices; ++unit) {
        for (int f = 0; f < product.count; ++f) {
          for (Index k = 0; k == 0 || k < product.factors[f].depth; k += depth_block) {
            for (Index block = unit * each; block < (unit + 1) * each; ++block) {
              const Index i = by_columns ? block % down : block / across;
              const Index j = by_columns ? block / down : block % across;
              const Index row = tiles * i / down * tile_rows<T>, column = j * columns;
              const Index end = std::min(product.rows, tiles * (i + 1) / down * tile_rows<T>);
              multiply_block(product, packed[p], f, k, row, end - row, column,
                             std::min(columns, product.columns - column), room_left[lane], block > unit * each);
            }
          }
        }
      }
    }
  });
}

/// Pieces of its depth, at a time, that threads share out; 0 where they share out its elements.
template <class T>
Index pieces_dealt(const Product<T>& p, Index lanes) {
  const auto& [a, b, depth] = p.factors[0];
  const bool adds = p.finish.accumulate && !p.finish.bias && !p.finish.row_scale && p.activation == Activation::none;
  return adds && p.count == 1 && a.row == 1 && a.column != 1 ? depth_pieces(p.rows, p.columns, depth, lanes) : 0;
}

/// A product of one summand, of a piece of its depth alone.
template <class T>
Product<T> piece_of(Product<T> product, Index piece, T* sums) {
  auto& [a, b, depth] = product.factors[0];
  const Index k = piece * depth_block;
  a.data += k * a.column;
  b.data += k * b.row;
  depth = std::min(depth - k, depth_block);
  product.c = sums;
  product.c_row = product.columns;
  product.finish = {};
  return product;
}

/// A product of one summand, with room to pack its operands in.
template <class T>
void multiply_alone(const Product<T>& product, T* left, T* right) {
  const auto& [a, b, depth] = product.factors[0];
  const Index rows = product.rows, columns = product.columns;
  const T* packed[1] = {};
  if (packed_size<T>(rows, columns, depth, b.row, b.column) > 0) {
    const Packing<T> packing(product.factors[0], columns, 1, right);
    for (Index task = 0; task < packing.tasks(); ++task) packing.run(task);
    packed[0] = packing.panels;
  }
  constexpr Index strip = block_tiles * tile_rows<T>;
  for (Index row = 0; row < rows; row += strip) {
    multiply_block<T>(product, packed, 0, 0, row, std::min(strip, rows - row), 0, columns, left, false);
  }
}

/// The products whose depth threads share out. Sums of pieces are added in the order in which one thread adds them.
template <class T>
void multiply_by_depth(std::span<const Product<T>> products, Workspace& workspace) {
  struct Deep {
    const Product<T>* product;
    Index together;
    T* sums;  // [together, rows, columns]
  };
  const Index lanes = workspace.executor().lanes();
  const Arena::Scope scope(workspace.arena());
  std::array<Deep, most_products> deep;
  std::size_t count = 0;
  Index left = 0, right = 0, rounds = 0;
  for (const Product<T>& p : products) {
    const Index together = pieces_dealt(p, lanes);
    if (together == 0) continue;
    const auto& [a, b, depth] = p.factors[0];
    deep[count++] = {&p, together, workspace.arena().allocate<T>(together * p.rows * p.columns)};
    left = std::max(left, packed_left_size<T>(p.rows, p.columns, depth, a.row, a.column));
    right = std::max(right, packed_size<T>(p.rows, p.columns, depth_block, b.row, b.column));
    rounds = std::max(rounds, (depth + together * depth_block - 1) / (together * depth_block));
  }
  if (count == 0) return;
  const LaneScratch<T> rooms(workspace, left + right);
  for (Index round = 0; round < rounds; ++round) {
    const auto pieces = [&](const Deep& d) {
      const Index all = (d.product->factors[0].depth + depth_block - 1) / depth_block;
      return std::clamp<Index>(all - round * d.together, 0, d.together);
    };
    Index slices = 0, tasks = 0;
    for (std::size_t i = 0; i < count; ++i) {
      slices = std::max(slices, pieces(deep[i]));
      tasks += deep[i].product->rows;
    }
    // A task is the same share of every product, so that a thread has the rows of a batch that it had before.
    workspace.executor().parallel_for(slices, [&](Index slice, int lane) {
      for (std::size_t i = 0; i < count; ++i) {
        const auto& [product, together, sums] = deep[i];
        const Index now = pieces(deep[i]), size = product->rows * product->columns;
        for (Index n = now * slice / slices; n < now * (slice + 1) / slices; ++n) {
          multiply_alone(piece_of(*product, round * together + n, sums + n * size), rooms[lane], rooms[lane] + left);
        }
      }
    });
    workspace.executor().parallel_for(tasks, [&](Index row, int) {
      const Deep* of = deep.data();
      for (; row >= of->product->rows; ++of) row -= of->product->rows;
      const Index columns = of->product->columns, apart = of->product->rows * columns, now = pieces(*of);
      T* const c = of->product->c + row * of->product->c_row;
      for (Index n = 0; n < now; ++n) {
        const T* const sums = of->sums + n * apart + row * columns;
        for (Index j = 0; j < columns; ++j) c[j] += sums[j];
      }
    });
  }
}

/// What is left of a product of one summand from k on, as far as it goes through at once.
template <class T>
Product<T> part_of(Product<T> product, Index k) {
  auto& [a, b, depth] = product.factors[0];
  const bool last = depth <= k + depth_at_once;
  a.data += k * a.column;
  b.data += k * b.row;
  depth = std::min(depth - k, depth_at_once);
  if (k > 0) {
    product.finish.accumulate = true;
    product.finish.bias = nullptr;
  }
  if (!last) product.activation = Activation::none;
  return product;
}

}  // namespace detail

/// Computes up to 8 products side by side; none may read or write what another one writes. Every element is summed in
/// the order of the depth, whatever the threads and the other products. Takes room for packed operands, and for sums of
/// pieces, from the workspace and gives it back.
template <class T>
void multiply(std::span<const Product<T>> products, Workspace& workspace) {
  require(products.size() <= detail::most_products, "multiply takes at most ", detail::most_products, " products, not ",
          products.size());
  for (const Product<T>& product : products) detail::check(product);
  const Index lanes = workspace.executor().lanes();
  std::array<Product<T>, detail::most_products> parts;
  for (Index k = 0;; k += depth_at_once) {
    std::size_t count = 0;
    for (const Product<T>& product : products) {
      if (product.rows == 0 || product.columns == 0 || detail::pieces_dealt(product, lanes) > 0) continue;
      const Index depth = product.factors[0].depth;
      if (packed_depth(depth, product.count) < depth) {
        if (k < depth) parts[count++] = detail::part_of(product, k);
      } else if (k == 0) {
        parts[count++] = product;
      }
    }
    if (count == 0) break;
    detail::multiply_at_once(std::span<const Product<T>>(parts.data(), count), workspace);
  }
  detail::multiply_by_depth(products, workspace);
}

template <class T>
void multiply(std::initializer_list<Product<T>> products, Workspace& workspace) {
  multiply(std::span<const Product<T>>(products.begin(), products.size()), workspace);
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
