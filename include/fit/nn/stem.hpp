#pragma once

#include <algorithm>

#include <fit/nn/layer_norm.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/positions.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// Positions [Rows, Columns, Width], the same for every run of so many tokens: trained, or the codes of a grid.
template <class T, int Rows, int Columns, int Width, bool learned>
struct PositionTable {
  static constexpr Index size = Index{Rows} * Columns * Width;

  If<learned, Matrix<T, Rows * Columns, Width>> table;

  const T* values() const {
    if constexpr (learned) {
      return table.data();
    } else {
      return position_codes<T>(Rows, Columns, Width);
    }
  }
};

/// What tells the tokens of a group apart.
template <class T, int Tokens, int Width, Positions kind>
using DataPositions =
    PositionTable<T, grid_rows(Tokens, kind), Tokens / grid_rows(Tokens, kind), Width, kind == Positions::learned>;

/// The latents that every example starts from.
template <class T, int Groups, int Latents, int Width, Positions kind>
using LatentPositions = PositionTable<T, Groups, Latents, Width, kind == Positions::learned>;

/// x [runs, Rows, Columns, Width] += positions
template <class T, int Rows, int Columns, int Width, bool learned>
void forward(const PositionTable<T, Rows, Columns, Width, learned>& p, T* x, Index runs, Tape& tape) {
  const T* added = p.values();
  tape.executor().parallel_for(runs, [&](Index run, int) {
    for (Index i = 0; i < p.size; ++i) x[run * p.size + i] += added[i];
  });
}

/// z [runs, Rows, Columns, Width] = positions
template <class T, int Rows, int Columns, int Width, bool learned>
void copy_positions(const PositionTable<T, Rows, Columns, Width, learned>& p, T* z, Index runs) {
  const T* values = p.values();
  for (Index run = 0; run < runs; ++run) std::copy_n(values, p.size, z + run * p.size);
}

/// Adds to `gradient`, of positions that were added or copied; that of x passes.
template <class T, int Rows, int Columns, int Width, bool learned>
void backward(const PositionTable<T, Rows, Columns, Width, learned>& p, const T* x_gradient,
              PositionTable<T, Rows, Columns, Width, learned>& gradient, Index runs, Tape& tape) {
  if constexpr (learned) {
    kernels::add_column_sums<T>({{x_gradient, runs, p.size, gradient.table.data()}}, tape);
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
