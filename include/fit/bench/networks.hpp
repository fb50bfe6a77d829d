#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <fit/models/trunk.hpp>
#include <fit/nn/embedding.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace bench {
namespace detail {

// The models with counts that are chosen at run time, and without positions, which would have to be made for each.

using fit::detail::Chunk;
using fit::detail::Trunk;
using fit::detail::trunk_of;

/// Rules of what a network below can be of.
template <auto c>
constexpr bool check_swept() {
  using Config = std::remove_const_t<decltype(c)>;
  static_assert(std::is_same_v<Config, EncoderConfig> || std::is_same_v<Config, AutoregressiveConfig>,
                "fit: a sweep goes over configurations of encoders and autoregressive decoders");
  if constexpr (std::is_same_v<Config, EncoderConfig>) {
    static_assert(c.extra_tokens == 0, "fit: a sweep goes over configurations without extra tokens");
  }
  return true;
}

/// Random numbers in [-1, 1), which repeat after some ten thousand.
template <class T>
Buffer<T> random_values(Index count) {
  auto values = Buffer<T>::uninitialised(count);
  const Index fresh = std::min<Index>(count, 1 << 14);
  Random random(7);
  for (Index i = 0; i < fresh; ++i) values.data()[i] = static_cast<T>(2 * random.uniform() - 1);
  for (Index i = fresh; i < count; ++i) values.data()[i] = values.data()[i - fresh];
  return values;
}

/// What Encoder computes, without positions, with counts that are chosen at run time.
template <EncoderConfig c, class T>
struct EncoderNetwork {
  using Input = T;
  nn::Linear<T, c.data_dim, c.channels> stem;
  nn::LayerNorm<T, c.data_dim> stem_norm;
  Trunk<T, trunk_of(c)> trunk;
  nn::LayerNorm<T, c.data_dim> data_norm;
  nn::LayerNorm<T, c.latent_dim> latent_norm;

  static void visit(auto&& f, auto&... p) {
    f("stem", p.stem...);
    f("stem_norm", p.stem_norm...);
    f("trunk", p.trunk...);
    f("data_norm", p.data_norm...);
    f("latent_norm", p.latent_norm...);
  }
  static Buffer<T> input(const Sizes& sizes) { return random_values<T>(sizes.data_rows() * c.channels); }

  struct Ends {
    const EncoderNetwork& p;
    const T* input;
    T* data;
    EncoderNetwork* gradient;
    Index tokens;

    Index rows(const Chunk& groups) const { return groups.count * tokens; }
    T* output(const Chunk& groups) const { return groups.of(data, tokens * c.data_dim); }
    void start(const Chunk& groups, T* x, Tape& tape) const {
      nn::forward(p.stem, groups.of(input, tokens * c.channels), x, rows(groups), tape);
      nn::forward<T>(p.stem_norm, x, x, rows(groups), tape);
    }
    void start_backward(const Chunk& groups, const T* x_gradient, Tape& tape) const {
      const Arena::Scope scope(tape.arena());
      T* between = fit::detail::zeros<T>(rows(groups) * c.data_dim, tape);
      nn::backward<T>(p.stem_norm, x_gradient, between, gradient->stem_norm, rows(groups), tape);
      nn::backward<T>(p.stem, between, nullptr, gradient->stem, rows(groups), tape);
    }
    void end(const Chunk& groups, T* x, bool, Tape& tape) const {
      nn::forward<T>(p.data_norm, x, output(groups), rows(groups), tape);
    }
    void end_backward(const Chunk& groups, T* x_gradient, Tape& tape) const {
      std::fill_n(x_gradient, rows(groups) * c.data_dim, T(0));
      nn::backward<T>(p.data_norm, output(groups), x_gradient, gradient->data_norm, rows(groups), tape);
    }
  };

  /// The way back, from the outputs as their own gradients, where `gradient` is given.
  void run(const T* input, EncoderNetwork* gradient, const Sizes& sizes, Tape& tape) const {
    const Index size = sizes.data_rows() * c.data_dim, latent_size = sizes.latent_rows() * c.latent_dim;
    T* data = tape.output<T>(size);
    T* latents = tape.output<T>(latent_size);
    const Ends ends{*this, input, data, gradient, sizes.tokens};
    const auto start = tape.mark();
    T* x = gradient ? tape.allocate<T>(size) : data;
    std::fill_n(latents, latent_size, T(0));
    trunk.forward(ends, x, latents, {}, sizes, tape);
    nn::forward<T>(latent_norm, latents, latents, sizes.latent_rows(), tape);
    tape.finish(start);
    if (!gradient) return;

    const auto frame = tape.pop();
    T* z_gradient = fit::detail::zeros<T>(latent_size, tape);
    nn::backward<T>(latent_norm, latents, z_gradient, gradient->latent_norm, sizes.latent_rows(), tape);
    trunk.backward(ends, x, z_gradient, {}, gradient->trunk, sizes, tape);
  }
};

/// What AutoregressiveDecoder computes, without positions and cross entropy, likewise.
template <AutoregressiveConfig c, class T>
struct DecoderNetwork {
  using Input = std::int32_t;
  nn::Embedding<T, c.vocabulary, c.data_dim> embedding;
  Trunk<T, trunk_of(c)> trunk;
  nn::LayerNorm<T, c.data_dim> data_norm;
  If<!c.shared_embedding, nn::Embedding<T, c.vocabulary, c.data_dim>> output_embedding;
  If<c.output_bias, Vector<T, c.vocabulary>> output_bias;

  static void visit(auto&& f, auto&... p) {
    f("token_embedding", p.embedding...);
    f("trunk", p.trunk...);
    f("data_norm", p.data_norm...);
    f("output_embedding", p.output_embedding...);
    f("output_bias", p.output_bias...);
  }
  static auto& output_table(auto& network) {
    if constexpr (c.shared_embedding) {
      return network.embedding.weight;
    } else {
      return network.output_embedding.weight;
    }
  }
  kernels::Product<T> logits_product(const T* normed, T* logits, Index rows) const {
    const T* bias = nullptr;
    if constexpr (c.output_bias) bias = output_bias.data();
    return nn::output_product(output_table(*this), bias, normed, logits, rows);
  }
  static Buffer<std::int32_t> input(const Sizes& sizes) {
    Buffer<std::int32_t> ids(sizes.data_rows());
    Random random(7);
    for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>(random.below(c.vocabulary));
    return ids;
  }

  struct Ends {
    const DecoderNetwork& p;
    const std::int32_t* ids;
    T* all_logits;  // null on the way back, which goes at once, so that they never stand all together
    DecoderNetwork* gradient;
    Index tokens;

    Index rows(const Chunk& groups) const { return groups.count * tokens; }
    void start(const Chunk& groups, T* x, Tape& tape) const {
      nn::forward(p.embedding, groups.of(ids, tokens), x, rows(groups), tape);
    }
    void start_backward(const Chunk& groups, const T* x_gradient, Tape& tape) const {
      nn::backward<T>(p.embedding, x_gradient, gradient->embedding, rows(groups), tape);
    }
    void end(const Chunk& groups, T* x, bool again, Tape& tape) const {
      if (again && !all_logits) return;
      const Tape::Recording recording(tape, gradient != nullptr);
      const Arena::Scope scope(tape.arena());
      const Index piece = std::min(rows(groups), fit::detail::logit_rows(c.vocabulary));
      T* normed = tape.scratch<T>(rows(groups) * c.data_dim);
      nn::forward<T>(p.data_norm, x, normed, rows(groups), tape);
      if (all_logits) {
        T* logits = groups.of(all_logits, tokens * c.vocabulary);
        kernels::multiply({p.logits_product(normed, logits, rows(groups))}, tape);
        return;
      }
      T* logits = tape.scratch<T>(piece * c.vocabulary);
      T* normed_gradient = tape.scratch<T>(piece * c.data_dim);
      for (Index first = 0; first < rows(groups); first += piece) {
        const Index count = std::min(piece, rows(groups) - first);
        T* of_piece = normed + first * c.data_dim;
        kernels::multiply({p.logits_product(of_piece, logits, count)}, tape);
        kernels::multiply({nn::input_product(output_table(p), logits, normed_gradient, count),
                           nn::weight_product(output_table(*gradient), of_piece, logits, count)},
                          tape);
        if constexpr (c.output_bias) {
          kernels::add_column_sums<T>({{logits, count, c.vocabulary, gradient->output_bias.data()}}, tape);
        }
        std::copy_n(normed_gradient, count * c.data_dim, of_piece);
      }
      std::fill_n(x, rows(groups) * c.data_dim, T(0));
      nn::backward<T>(p.data_norm, normed, x, gradient->data_norm, rows(groups), tape);
    }
    void end_backward(const Chunk&, T*, Tape&) const {}
  };

  /// The way back, from the logits as their own gradients, where `gradient` is given.
  void run(const std::int32_t* ids, DecoderNetwork* gradient, const Sizes& sizes, Tape& tape) const {
    const Index z_size = sizes.latent_rows() * c.latent_dim;
    T* logits = gradient ? nullptr : tape.output<T>(sizes.data_rows() * c.vocabulary);
    const Ends ends{*this, ids, logits, gradient, sizes.tokens};
    const auto start = tape.mark();
    T* x = tape.allocate<T>(sizes.data_rows() * c.data_dim);
    T* z = tape.allocate<T>(z_size);
    std::fill_n(z, z_size, T(0));
    trunk.forward(ends, x, z, {}, sizes, tape);
    tape.finish(start);
    if (!gradient) return;

    const auto frame = tape.pop();
    T* z_gradient = fit::detail::zeros<T>(z_size, tape);
    trunk.backward(ends, x, z_gradient, {}, gradient->trunk, sizes, tape);
  }
};

/// The stages alone.
template <auto c, class T>
struct StagesNetwork {
  static_assert(check_swept<c>());

  using Input = T;
  Trunk<T, trunk_of(c)> trunk;

  static void visit(auto&& f, auto&... p) { f("trunk", p.trunk...); }
  static Buffer<T> input(const Sizes& sizes) { return random_values<T>(sizes.data_rows() * c.data_dim); }

  /// Data tokens come and go as they are.
  struct Ends {
    const T* input;
    Index size;

    void start(const Chunk& groups, T* x, Tape&) const { std::copy_n(groups.of(input, size), groups.count * size, x); }
    void start_backward(const Chunk&, const T*, Tape&) const {}
    void end(const Chunk&, T*, bool, Tape&) const {}
    void end_backward(const Chunk&, T*, Tape&) const {}
  };

  /// The way back, from what comes out as its own gradient, where `gradient` is given.
  void run(const T* input, StagesNetwork* gradient, const Sizes& sizes, Tape& tape) const {
    const Index z_size = sizes.latent_rows() * c.latent_dim;
    T* x = tape.output<T>(sizes.data_rows() * c.data_dim);
    T* z = tape.output<T>(z_size);
    std::fill_n(z, z_size, T(0));
    const Ends ends{input, sizes.tokens * c.data_dim};
    trunk.forward(ends, x, z, {}, sizes, tape);
    if (gradient) trunk.backward(ends, x, z, {}, gradient->trunk, sizes, tape);
  }
};

template <class T, auto c>
auto model_network() {
  static_assert(check_swept<c>());
  if constexpr (std::is_same_v<decltype(c), const EncoderConfig>) {
    return std::type_identity<EncoderNetwork<c, T>>();
  } else {
    return std::type_identity<DecoderNetwork<c, T>>();
  }
}

}  // namespace detail
}  // namespace bench
}  // namespace FIT_ABI
}  // namespace fit
