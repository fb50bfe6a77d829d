#pragma once

#include <fit/models/encoder.hpp>

#include <algorithm>
#include <array>
#include <span>

namespace examples {

using fit::Index;

/// Data tokens that follow each other in a batch, counted through all its examples.
struct TokenRun {
  Index first = 0, count = 1;
};

/// An encoder whose answers are read from data tokens: a linear head on the mean of one run of them for each answer.
template <fit::EncoderConfig c, int count_of_answers>
struct TokenReader {
  using Scalar = float;
  static constexpr fit::EncoderConfig config = c;
  static constexpr int answers = count_of_answers;
  static constexpr Index width = c.data_dim;

  fit::Encoder<c> encoder;
  fit::nn::Linear<float, answers, c.data_dim> head;

  TokenReader() = default;
  explicit TokenReader(fit::Random random) { fit::nn::initialise(*this, random); }

  static void visit(auto&& f, auto&... p) {
    f("encoder", p.encoder...);
    f("head", p.head...);
  }

  /// Logits [runs, answers], on the tape. The input and the runs must stay as they are until backward().
  fit::TensorView<const float, 2> forward(fit::TensorView<const float, 4> input, std::span<const TokenRun> from,
                                          const fit::Grid& grid, fit::Tape& tape) const {
    const auto count = static_cast<Index>(from.size());
    const fit::TensorView<float, 2> logits(tape.output<float>(count * answers), count, Index{answers});
    const auto start = tape.mark();
    const auto data = encoder.forward({.input = input, .grid = grid}, tape).data;
    float* const means = tape.allocate<float>(count * width);
    tape.executor().parallel_for(count, [&](Index i, int) {
      const auto& [first, tokens] = from[static_cast<std::size_t>(i)];
      float* const mean = means + i * width;
      std::fill_n(mean, width, 0.0f);
      const float* value = data.data() + first * width;
      for (Index token = 0; token < tokens; ++token) {
        for (Index j = 0; j < width; ++j) mean[j] += *value++;
      }
      for (Index j = 0; j < width; ++j) mean[j] /= static_cast<float>(tokens);
    });
    fit::nn::forward<float>(head, means, logits.data(), count, tape);
    tape.finish(start, Record{from, {data.dimension(0), data.dimension(1)}});
    return logits;
  }

  /// The way back from the gradient of the logits: adds to `gradient`. No token may be in two runs.
  void backward(fit::TensorView<const float, 2> logits_gradient, TokenReader& gradient, fit::Tape& tape) const {
    const auto saved = tape.pop<Record>();
    const auto count = static_cast<Index>(saved->from.size());
    float* const means = tape.scratch<float>(count * width);
    fit::nn::backward<float>(head, logits_gradient.data(), means, gradient.head, count, tape);
    const auto [batch, groups] = saved->counts;
    const Index rows = batch * groups * config.tokens;
    float* const data = tape.scratch<float>(rows * width);
    std::fill_n(data, rows * width, 0.0f);
    tape.executor().parallel_for(count, [&](Index i, int) {
      const auto& [first, tokens] = saved->from[static_cast<std::size_t>(i)];
      float* value = data + first * width;
      for (Index token = 0; token < tokens; ++token) {
        for (Index j = 0; j < width; ++j) *value++ = means[i * width + j] / static_cast<float>(tokens);
      }
    });
    encoder.backward({.data = fit::TensorView<const float, 4>(data, batch, groups, Index{config.tokens}, width)},
                     gradient.encoder, tape);
  }

 private:
  struct Record {
    std::span<const TokenRun> from;
    std::array<Index, 2> counts;  // examples, groups of each
  };
};

}  // namespace examples
