#pragma once

#include <algorithm>
#include <cmath>

#include <fit/nn/layer_norm.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/positions.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// What tells the tokens of a group apart, the same in all groups: trained, for `Tokens` of them, or a code.
template <class T, int Tokens, int Width, Positions kind>
struct DataPositions {
  If<kind == Positions::learned, Matrix<T, Tokens, Width>> data_positions;

  static void visit(auto&& f, auto&... p) { f("data_positions", p.data_positions...); }

  /// [tokens, Width]
  const T* values(Index tokens) const {
    if constexpr (kind == Positions::learned) {
      return data_positions.data();
    } else {
      const Index rows = kind == Positions::sin_cos_2d ? static_cast<Index>(std::sqrt(tokens)) : 1;
      return position_codes<T>(rows, tokens / rows, Width);
    }
  }
};

/// x [groups, tokens, Width] += positions
template <class T, int Tokens, int Width, Positions kind>
void forward(const DataPositions<T, Tokens, Width, kind>& p, T* x, Index groups, Index tokens, Tape& tape) {
  const T* added = p.values(tokens);
  tape.executor().parallel_for(groups, [&](Index g, int) {
    T* group = x + g * tokens * Width;
    for (Index i = 0; i < tokens * Width; ++i) group[i] += added[i];
  });
}

/// Adds to `gradient`; that of x passes.
template <class T, int Tokens, int Width, Positions kind>
void backward(const DataPositions<T, Tokens, Width, kind>&, const T* x_gradient,
              DataPositions<T, Tokens, Width, kind>& gradient, Index groups, Index tokens, Tape& tape) {
  if constexpr (kind == Positions::learned) {
    kernels::add_column_sums<T>({{x_gradient, groups, tokens * Width, gradient.data_positions.data()}}, tape);
  }
}

/// x [rows, Width] += the positions of tokens first .. first + rows - 1 of a group of `tokens`.
template <class T, int Tokens, int Width, Positions kind>
void step(const DataPositions<T, Tokens, Width, kind>& p, T* x, Index first, Index rows, Index tokens) {
  const T* added = p.values(tokens) + first * Width;
  for (Index i = 0; i < rows * Width; ++i) x[i] += added[i];
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
    DataPositions<T, Tokens, Width, kind>::visit(f, p.positions...);
  }
};

/// x [groups, tokens, Width] from input [groups, tokens, Channels].
template <class T, int Tokens, int Channels, int Width, Positions kind>
void forward(const DataStem<T, Tokens, Channels, Width, kind>& p, const T* input, T* x, Index groups, Index tokens,
             Tape& tape) {
  const auto start = tape.mark();
  forward(p.stem, input, x, groups * tokens, tape);
  forward<T>(p.stem_norm, x, x, groups * tokens, tape);
  forward(p.positions, x, groups, tokens, tape);
  tape.finish(start);
}

/// Writes input_gradient, unless it is null, and adds to `gradient`.
template <class T, int Tokens, int Channels, int Width, Positions kind>
void backward(const DataStem<T, Tokens, Channels, Width, kind>& p, const T* x_gradient, T* input_gradient,
              DataStem<T, Tokens, Channels, Width, kind>& gradient, Index groups, Index tokens, Tape& tape) {
  const auto frame = tape.pop();
  backward(p.positions, x_gradient, gradient.positions, groups, tokens, tape);
  T* between = tape.scratch<T>(groups * tokens * Width);
  std::fill_n(between, groups * tokens * Width, T(0));
  backward(p.stem_norm, x_gradient, between, gradient.stem_norm, groups * tokens, tape);
  backward<T>(p.stem, between, input_gradient, gradient.stem, groups * tokens, tape);
}

/// The latents that every example starts from, which are their positions: trained, `Rows` of them, or the code of
/// group and slot.
template <class T, int Rows, int Width, Positions kind>
struct LatentPositions {
  If<kind == Positions::learned, Matrix<T, Rows, Width>> latent_positions;

  static void visit(auto&& f, auto&... p) { f("latent_positions", p.latent_positions...); }

  /// [groups, latents, Width]
  const T* values(Index groups, Index latents) const {
    if constexpr (kind == Positions::learned) {
      return latent_positions.data();
    } else {
      return position_codes<T>(groups, latents, Width);
    }
  }
};

/// z [batch, groups, latents, Width]
template <class T, int Rows, int Width, Positions kind>
void forward(const LatentPositions<T, Rows, Width, kind>& p, T* z, Index batch, Index groups, Index latents, Tape&) {
  const Index size = groups * latents * Width;
  const T* start = p.values(groups, latents);
  for (Index b = 0; b < batch; ++b) std::copy_n(start, size, z + b * size);
}

/// Adds to `gradient`.
template <class T, int Rows, int Width, Positions kind>
void backward(const LatentPositions<T, Rows, Width, kind>&, const T* z_gradient,
              LatentPositions<T, Rows, Width, kind>& gradient, Index batch, Index groups, Index latents, Tape& tape) {
  if constexpr (kind == Positions::learned) {
    kernels::add_column_sums<T>({{z_gradient, batch, groups * latents * Width, gradient.latent_positions.data()}},
                                tape);
  }
}

/// z [latents, Width], those of one of `groups` groups.
template <class T, int Rows, int Width, Positions kind>
void step(const LatentPositions<T, Rows, Width, kind>& p, T* z, Index group, Index groups, Index latents) {
  std::copy_n(p.values(groups, latents) + group * latents * Width, latents * Width, z);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
