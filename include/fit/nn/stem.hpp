#pragma once

#include <algorithm>

#include <fit/nn/layer_norm.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/positions.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// What tells the tokens of a group apart, [Tokens, Width], the same in every group.
template <class T, int Tokens, int Width, Positions kind>
struct DataPositions {
  static_assert(kind == Positions::learned || kind == Positions::sin_cos || kind == Positions::sin_cos_2d,
                "fit: positions of data tokens must be learned, sin_cos or sin_cos_2d");
  static_assert(kind != Positions::sin_cos_2d || Tokens == 1 ||
                    (grid_rows(Tokens, kind) * grid_rows(Tokens, kind) == Tokens && Width % 2 == 0),
                "fit: sin_cos_2d positions need a square number of tokens and an even width");
  static constexpr Index size = Index{Tokens} * Width;

  If<kind == Positions::learned, Matrix<T, Tokens, Width>> table;

  const T* values() const {
    if constexpr (kind == Positions::learned) {
      return table.data();
    } else {
      constexpr int rows = grid_rows(Tokens, kind);
      return position_codes<T>(rows, Tokens / rows, Width);
    }
  }
};

/// x [groups, Tokens, Width] += positions
template <class T, int Tokens, int Width, Positions kind>
void forward(const DataPositions<T, Tokens, Width, kind>& p, T* x, Index groups, Tape& tape) {
  const T* added = p.values();
  tape.executor().parallel_for(groups, [&](Index group, int) {
    for (Index i = 0; i < p.size; ++i) x[group * p.size + i] += added[i];
  });
}

/// Adds to `gradient`; that of x passes.
template <class T, int Tokens, int Width, Positions kind>
void backward(const DataPositions<T, Tokens, Width, kind>& p, const T* x_gradient,
              DataPositions<T, Tokens, Width, kind>& gradient, Index groups, Tape& tape) {
  if constexpr (kind == Positions::learned) {
    kernels::add_column_sums<T>({{x_gradient, groups, p.size, gradient.table.data()}}, tape);
  }
}

/// The latents that every example starts from, [groups, Latents, Width]. `Groups` is their number where they are
/// learned; else it comes with each call.
template <class T, int Groups, int Latents, int Width, Positions kind>
struct LatentPositions {
  static_assert(kind != Positions::sin_cos_2d && (kind != Positions::sin_cos_grid || Width >= 8),
                "fit: positions of latents must not be sin_cos_2d, and need a width of 8 for sin_cos_grid");
  static_assert(kind != Positions::sin_cos || Groups == 1 || Latents == 1 || Width % 2 == 0,
                "fit: sin_cos positions of groups and slots need an even width");
  static constexpr bool learned = kind == Positions::learned;
  static constexpr Index size = Index{Latents} * Width;  // of a group

  If<learned || is_shared(kind), Matrix<T, (learned ? std::max(1, Groups) : 1) * Latents, Width>> table;

  static CodeAxes axes(Index groups, const Grid& grid) {
    if (kind == Positions::sin_cos) return plane_axes(groups, Latents, Width);
    if (kind == Positions::sin_cos_grid) return grid_axes(grid, Latents, Width);
    if (kind == Positions::shared_sin_cos) return {{{groups, Latents, 0, Width}}};
    return {};
  }
};

/// z [count, Latents, Width] = the positions of groups first .. first + count - 1 out of `groups`.
template <class T, int Groups, int Latents, int Width, Positions kind>
void write_positions(const LatentPositions<T, Groups, Latents, Width, kind>& p, T* z, Index first, Index count,
                     Index groups, const Grid& grid) {
  if constexpr (kind == Positions::learned) {
    std::copy_n(p.table.data() + first * p.size, count * p.size, z);
  } else {
    write_codes(p.axes(groups, grid), first * Latents, count * Latents, z, Width);
  }
  if constexpr (is_shared(kind)) {
    const T* slots = p.table.data();
    for (Index group = 0; group < count; ++group, z += p.size) {
      for (Index i = 0; i < p.size; ++i) z[i] = kind == Positions::shared ? slots[i] : slots[i] + z[i];
    }
  }
}

/// z [batch, groups, Latents, Width] = the positions of each example's groups first .. first + groups - 1 out of `all`.
template <class T, int Groups, int Latents, int Width, Positions kind>
void copy_positions(const LatentPositions<T, Groups, Latents, Width, kind>& p, T* z, Index batch, Index first,
                    Index groups, Index all, const Grid& grid) {
  if (batch > 0) write_positions(p, z, first, groups, all, grid);
  for (Index example = 1; example < batch; ++example) std::copy_n(z, groups * p.size, z + example * groups * p.size);
}

/// Adds to `gradient`, of positions that were copied.
template <class T, int Groups, int Latents, int Width, Positions kind>
void backward(const LatentPositions<T, Groups, Latents, Width, kind>& p, const T* z_gradient,
              LatentPositions<T, Groups, Latents, Width, kind>& gradient, Index batch, Index first, Index groups,
              Tape& tape) {
  if constexpr (kind == Positions::learned) {
    T* const table = gradient.table.data() + first * p.size;
    kernels::add_column_sums<T>({{z_gradient, batch, groups * p.size, table}}, tape);
  }
  if constexpr (is_shared(kind)) {
    kernels::add_column_sums<T>({{z_gradient, batch * groups, p.size, gradient.table.data()}}, tape);
  }
}

/// Data tokens from input tokens: Norm(Dense(input)) + positions.
template <class T, int Tokens, int Channels, int Width, Positions kind>
struct DataStem {
  Linear<T, Width, Channels> stem;
  LayerNorm<T, Width> stem_norm;
  DataPositions<T, Tokens, Width, kind> positions;

  static void visit(auto&& f, auto&... p) {
    f("stem", p.stem...);
    f("stem_norm", p.stem_norm...);
    f("data_positions", p.positions.table...);
  }
};

/// x [groups, Tokens, Width] from input [groups, Tokens, Channels].
template <class T, int Tokens, int Channels, int Width, Positions kind>
void forward(const DataStem<T, Tokens, Channels, Width, kind>& p, const T* input, T* x, Index groups, Tape& tape) {
  const auto start = tape.mark();
  forward(p.stem, input, x, groups * Tokens, tape);
  forward<T>(p.stem_norm, x, x, groups * Tokens, tape);
  forward(p.positions, x, groups, tape);
  tape.finish(start);
}

/// Writes input_gradient, unless it is null, and adds to `gradient`.
template <class T, int Tokens, int Channels, int Width, Positions kind>
void backward(const DataStem<T, Tokens, Channels, Width, kind>& p, const T* x_gradient, T* input_gradient,
              DataStem<T, Tokens, Channels, Width, kind>& gradient, Index groups, Tape& tape) {
  const auto frame = tape.pop();
  backward(p.positions, x_gradient, gradient.positions, groups, tape);
  T* between = tape.scratch<T>(groups * Tokens * Width);
  std::fill_n(between, groups * Tokens * Width, T(0));
  backward(p.stem_norm, x_gradient, between, gradient.stem_norm, groups * Tokens, tape);
  backward<T>(p.stem, between, input_gradient, gradient.stem, groups * Tokens, tape);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
