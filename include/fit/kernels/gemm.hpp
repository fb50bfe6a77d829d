#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>

#include <fit/core/workspace.hpp>
#include <fit/kernels/product.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {
namespace detail {

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
