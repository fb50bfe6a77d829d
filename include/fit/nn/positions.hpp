#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Where tokens get their positions from.
enum class Positions {
  learned,         ///< a trained array
  sin_cos,         ///< the sine and cosine code of a line; of latents, that of their group and their slot in it
  sin_cos_2d,      ///< data tokens only: the code of a square
  sin_cos_grid,    ///< latents only, as all below: the code of the group's place in a Grid, and of the slot
  shared,          ///< an array trained for the slots, the same in all groups
  shared_sin_cos,  ///< the same plus the code of the groups' line
};

/// How the groups of a picture lie, row by row, or those of a video, frame by frame: what sin_cos_grid needs to know.
struct Grid {
  Index frames = 0;  ///< 0 of a picture, whose code has no part for them
  Index rows = 0, columns = 0;

  bool operator==(const Grid&) const = default;
};

namespace nn {

/// The largest whole number whose square is at most n.
constexpr int integer_root(int n) {
  int root = 0;
  while ((root + 1) * (root + 1) <= n) ++root;
  return root;
}

/// Rows of the grid whose code `tokens` data tokens get.
constexpr int grid_rows(int tokens, Positions kind) {
  return kind == Positions::sin_cos_2d ? std::max(1, integer_root(tokens)) : 1;
}

/// Whether latents have a trained array of the slots of one group.
constexpr bool is_shared(Positions kind) { return kind == Positions::shared || kind == Positions::shared_sin_cos; }

/// One of the waves that make up the code of a coordinate in `width` numbers: angles coordinate /
/// 10000^(2 floor(k/2) / width), the even k as sines, then the odd k as cosines. After Vaswani et al., arXiv
/// 1706.03762, section 3.5, without their interleaving.
struct Wave {
  double rate;
  bool sine;
  Index at;  // in the code

  Wave(Index k, Index width)
      : rate(std::pow(10000.0, -2.0 * static_cast<double>(k / 2) / static_cast<double>(width))),
        sine(k % 2 == 0),
        at(sine ? k / 2 : (width + 1) / 2 + k / 2) {}
  double operator()(double coordinate) const {
    return sine ? std::sin(coordinate * rate) : std::cos(coordinate * rate);
  }
};

/// An axis along which tokens lie: `count` places, each of `inner` tokens that follow each other, then the first place
/// again. Its code takes `width` numbers of a token's, from `first` on.
struct CodeAxis {
  Index count = 1, inner = 1, first = 0, width = 0;
};
using CodeAxes = std::array<CodeAxis, 4>;

/// Rows and columns: the row's code in the first half of the width, which must be even, the column's in the second. One
/// row or column is a line, whose code takes the whole width.
inline CodeAxes plane_axes(Index rows, Index columns, Index width) {
  if (rows == 1 || columns == 1) return {{{rows * columns, 1, 0, width}}};
  return {{{rows, columns, 0, width / 2}, {columns, 1, width / 2, width / 2}}};
}

/// (Frame), row, column and slot: as wide as each other, of an even width, but for the slot's, which gets the rest.
inline CodeAxes grid_axes(const Grid& grid, Index slots, Index width) {
  const Index part = grid.frames > 0 ? width / 8 * 2 : width / 6 * 2, row = grid.frames > 0 ? part : 0;
  return {{{grid.frames, grid.rows * grid.columns * slots, 0, row},
           {grid.rows, grid.columns * slots, row, part},
           {grid.columns, slots, row + part, part},
           {slots, 1, row + 2 * part, width - row - 2 * part}}};
}

/// codes [count, width] of tokens first .. first + count - 1, computed in double and rounded once; the places of an
/// axis are stretched to [0, 1000].
template <class T>
void write_codes(const CodeAxes& axes, Index first, Index count, T* codes, Index width) {
  for (const CodeAxis& axis : axes) {
    if (axis.width == 0) continue;
    const Index period = axis.count * axis.inner, fresh = std::min(count, period);
    const double stretch = axis.count > 1 ? 1000.0 / static_cast<double>(axis.count - 1) : 0.0;
    for (Index k = 0; k < axis.width; ++k) {
      const Wave wave(k, axis.width);
      for (Index i = first; i < first + fresh; i = (i / axis.inner + 1) * axis.inner) {
        const double coordinate = static_cast<double>(i / axis.inner % axis.count) * stretch;
        codes[(i - first) * width + axis.first + wave.at] = static_cast<T>(wave(coordinate));
      }
    }
    for (Index i = 1; i < count; ++i) {
      const bool follows = (first + i) % axis.inner != 0;
      if (!follows && i < period) continue;
      std::copy_n(codes + (follows ? i - 1 : i - period) * width + axis.first, axis.width,
                  codes + i * width + axis.first);
    }
  }
}

/// Codes of a plane, [rows * columns, width].
template <class T>
Buffer<T> make_codes(Index rows, Index columns, Index width) {
  Buffer<T> codes(rows * columns * width);
  write_codes(plane_axes(rows, columns, width), 0, rows * columns, codes.data(), width);
  return codes;
}

/// The same, made at the first call for these sizes, then shared by all and never changed.
template <class T>
const T* position_codes(Index rows, Index columns, Index width) {
  static std::mutex mutex;
  static std::map<std::array<Index, 3>, Buffer<T>> table;
  const std::lock_guard lock(mutex);
  Buffer<T>& codes = table[{rows, columns, width}];
  if (codes.size() == 0) codes = make_codes<T>(rows, columns, width);
  return codes.data();
}

}  // namespace nn

}  // namespace FIT_ABI
}  // namespace fit
