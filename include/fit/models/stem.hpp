#pragma once

#include <fit/core/parameter.hpp>
#include <fit/models/config.hpp>
#include <fit/nn/layer_norm.hpp>
#include <fit/nn/linear.hpp>
#include <fit/nn/positions.hpp>

namespace fit::inline FIT_ABI::nn {

/// What tells the places in a group apart, the same in all groups: trained, or a code.
template <class T, int Tokens, int Width, Positions positions>
struct DataPositions {
  static constexpr bool learned = positions == Positions::learned;

  If<learned, Matrix<T, Tokens, Width>> data_positions;
  Buffer<T> code = make_code();  ///< [Tokens, Width] of positions that are not learned

  static void visit(auto&& f, auto&... p) { f("data_positions", p.data_positions...); }

  const T* values() const {
    if constexpr (learned) return data_positions.data();
    return code.data();
  }

 private:
  static Buffer<T> make_code() {
    if constexpr (positions == Positions::sin_cos) return line_code<T>(Tokens, Width);
    constexpr int side = fit::detail::integer_root(Tokens);
    if constexpr (positions == Positions::sin_cos_2d) return plane_code<T>(side, side, Width);
    return {};
  }
};

/// x [groups, Tokens, Width] += positions
template <class T, int Tokens, int Width, Positions positions>
void forward(const DataPositions<T, Tokens, Width, positions>& p, T* x, Index groups, Tape& tape) {
  const T* added = p.values();
  tape.executor().parallel_for(groups, [&](Index g, int) {
    T* group = x + g * Tokens * Width;
    for (Index i = 0; i < Tokens * Width; ++i) group[i] += added[i];
  });
}

/// Adds to `gradient`.
template <class T, int Tokens, int Width, Positions positions>
void backward(const T* x_gradient, DataPositions<T, Tokens, Width, positions>& gradient, Index groups, Tape& tape) {
  if constexpr (positions == Positions::learned) {
    kernels::add_column_sums(
        {kernels::ColumnSum<T>{x_gradient, groups, Index{Tokens} * Width, gradient.data_positions.data()}}, tape);
  }
}

/// Data tokens from input tokens: Norm(Dense(input)) + positions.
template <class T, int Tokens, int Channels, int Width, Positions positions>
struct DataStem {
  Linear<T, Width, Channels> stem;
  LayerNorm<T, Width> stem_norm;
  DataPositions<T, Tokens, Width, positions> places;

  static void visit(auto&& f, auto&... p) {
    f("stem", p.stem...);
    f("stem_norm", p.stem_norm...);
    DataPositions<T, Tokens, Width, positions>::visit(f, p.places...);
  }
};

/// x [groups, Tokens, Width] from input [groups, Tokens, Channels], which must stay as it is until backward.
template <class T, int Tokens, int Channels, int Width, Positions positions>
void forward(const DataStem<T, Tokens, Channels, Width, positions>& p, const T* input, T* x, Index groups, Tape& tape) {
  const auto start = tape.mark();
  forward(p.stem, input, x, groups * Tokens, tape);
  forward(p.stem_norm, static_cast<const T*>(x), x, groups * Tokens, tape);
  forward(p.places, x, groups, tape);
  tape.finish(start);
}

/// Writes input_gradient, unless it is null, and adds to `gradient`.
template <class T, int Tokens, int Channels, int Width, Positions positions>
void backward(const DataStem<T, Tokens, Channels, Width, positions>& p, const T* x_gradient, T* input_gradient,
              DataStem<T, Tokens, Channels, Width, positions>& gradient, Index groups, Tape& tape) {
  const auto frame = tape.pop();
  backward(x_gradient, gradient.places, groups, tape);
  T* between = tape.scratch<T>(groups * Tokens * Width);
  std::fill_n(between, groups * Tokens * Width, T(0));
  backward(p.stem_norm, x_gradient, between, gradient.stem_norm, groups * Tokens, tape);
  backward(p.stem, static_cast<const T*>(between), input_gradient, gradient.stem, groups * Tokens, tape);
}

/// The latents that every example starts from, which are their positions.
template <class T, int Groups, int Latents, int Width, Positions positions>
struct LatentStart {
  static constexpr bool learned = positions == Positions::learned;
  static constexpr Index size = Index{Groups} * Latents * Width;

  If<learned, Matrix<T, Groups * Latents, Width>> latent_positions;
  Buffer<T> code = learned ? Buffer<T>() : plane_code<T>(Groups, Latents, Width);  ///< where not learned

  static void visit(auto&& f, auto&... p) { f("latent_positions", p.latent_positions...); }

  const T* values() const {
    if constexpr (learned) return latent_positions.data();
    return code.data();
  }
};

/// z [batch, Groups, Latents, Width]
template <class T, int Groups, int Latents, int Width, Positions positions>
void forward(const LatentStart<T, Groups, Latents, Width, positions>& p, T* z, Index batch) {
  for (Index b = 0; b < batch; ++b) std::copy_n(p.values(), p.size, z + b * p.size);
}

/// Adds to `gradient`.
template <class T, int Groups, int Latents, int Width, Positions positions>
void backward(const T* z_gradient, LatentStart<T, Groups, Latents, Width, positions>& gradient, Index batch,
              Tape& tape) {
  if constexpr (positions == Positions::learned) {
    kernels::add_column_sums(
        {kernels::ColumnSum<T>{z_gradient, batch, gradient.size, gradient.latent_positions.data()}}, tape);
  }
}

}  // namespace fit::inline FIT_ABI::nn
