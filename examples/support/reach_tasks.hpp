#pragma once

#include <fit/core/tensor.hpp>
#include <fit/grouping/image.hpp>
#include <fit/nn/positions.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "list_ops.hpp"
#include "markers.hpp"
#include "pathfinder.hpp"
#include "token_reader.hpp"

namespace examples {

using fit::Index;

/// The tasks of the program reach: Markers, ListOps, and Pathfinder at 32 x 32 and at 128 x 128 pixels.
enum class Task { markers, lists, paths, large_paths };

inline const std::map<std::string, Task> tasks{
    {"markers", Task::markers}, {"lists", Task::lists}, {"paths", Task::paths}, {"large_paths", Task::large_paths}};

/// What a task looks like to a model: symbols as one of its channels, or patches of pixels.
struct TaskShape {
  int channels = 0, group = 0, latents = 0;
  bool picture = false;
};

/// Lists and markers look alike, so that they share their models.
constexpr TaskShape shape_of(Task task) {
  if (task == Task::paths) return {4, 16, 2, true};
  if (task == Task::large_paths) return {16, 16, 2, true};
  return {16, 64, 4};
}

/// The lengths at which a task can be tried, in tokens; a model may grow up along them.
template <Task task>
constexpr auto lengths_of() {
  if constexpr (task == Task::markers) return std::array{128, 256, 1024, 4096, 16384, 65536, 163840};
  if constexpr (task == Task::lists) return std::array{256, 1024, 2048};
  if constexpr (task == Task::paths) return std::array{64, 144, 256};
  if constexpr (task == Task::large_paths) return std::array{64, 144, 256, 400, 576, 784, 1024};
}

/// Examples, what is asked of them, and of which tokens.
struct TaskBatch {
  fit::Tensor<float, 4> input;           // [examples, groups, tokens, channels]
  fit::Tensor<std::int32_t, 1> answers;  // of each run of tokens: the answer, or the symbol that was hidden
  fit::Tensor<float, 2> hidden;          // of each run: the patch that was hidden
  std::vector<TokenRun> read;
};

/// A task at one length: how its batches are filled. Denoising hides one of every four tokens, and asks for them:
/// Amos et al., arXiv 2310.02980.
class TaskSource {
 public:
  TaskSource(Task task, Index length, fit::Random random, bool denoise = false)
      : task_(task), length_(length), random_(random), denoise_(denoise) {}

  bool picture() const { return shape_of(task_).picture; }
  Pathfinder paths() const {
    const int patch = fit::nn::integer_root(shape_of(task_).channels);
    const Index side = patch * fit::nn::integer_root(static_cast<int>(length_));
    return (task_ == Task::paths ? Pathfinder{} : Pathfinder::large()).at(side);
  }

  /// Room for examples in groups of so many tokens.
  TaskBatch batch(Index examples, Index group) const {
    const Index channels = shape_of(task_).channels, asked = denoise_ ? length_ / 4 : 1;
    return {fit::Tensor<float, 4>(examples, length_ / group, group, channels),
            fit::Tensor<std::int32_t, 1>(examples * asked),
            fit::Tensor<float, 2>(denoise_ && picture() ? examples * asked : 0, channels),
            std::vector<TokenRun>(static_cast<std::size_t>(examples * asked))};
  }

  /// Fills a batch with examples first, first + 1 and so on.
  void fill(Index first, TaskBatch& batch) const {
    const Index examples = batch.input.dimension(0), asked = batch.answers.size() / examples;
    for (Index i = 0; i < examples; ++i) {
      const auto random = random_.fork(first + i);
      std::vector<std::uint8_t> symbols;
      const auto [answer, read] = write(random, i, symbols, batch);
      if (denoise_) {
        for (Index k = 0; k < asked; ++k)
          hide(4 * k + random_.fork(first + i, k).below(4), i, i * asked + k, symbols, batch);
      } else {
        batch.answers(i) = static_cast<std::int32_t>(answer);
        batch.read[static_cast<std::size_t>(i)] = read;
      }
    }
  }

 private:
  /// Writes example i of a batch; returns its answer and the tokens that it is read from.
  std::pair<Index, TokenRun> write(fit::Random random, Index i, std::vector<std::uint8_t>& symbols,
                                   TaskBatch& batch) const {
    const Index groups = batch.input.dimension(1), tokens = batch.input.dimension(2);
    const Index channels = batch.input.dimension(3);
    float* const input = batch.input.data() + i * length_ * channels;
    TokenRun read{i * length_, length_};
    Index answer = 0;
    if (picture()) {
      const auto drawing = paths();
      fit::Tensor<float, 4> image(1, drawing.side, drawing.side, 1);
      answer = drawing.write(random, image.data());
      const Index patch = fit::nn::integer_root(static_cast<int>(channels));
      const Index side = fit::nn::integer_root(static_cast<int>(tokens)) * patch;
      fit::group_image(image, {.sub_image = {side, side}, .patch = {patch, patch}},
                       fit::TensorView<float, 4>(input, 1, groups, tokens, channels));
      return {answer, read};
    }
    symbols.resize(static_cast<std::size_t>(length_));
    if (task_ == Task::lists) {
      answer = ListOps{length_}.write(random, symbols.data());
    } else {
      std::tie(answer, read.first) = Markers{length_}.write(random, symbols.data());
      read = {i * length_ + read.first, 1};
    }
    std::fill_n(input, length_ * channels, 0.0f);
    for (Index k = 0; k < length_; ++k) input[k * channels + symbols[static_cast<std::size_t>(k)]] = 1;
    return {answer, read};
  }

  /// Hides a token of example i and makes it the answer number `asked`.
  void hide(Index token, Index i, Index asked, const std::vector<std::uint8_t>& symbols, TaskBatch& batch) const {
    const Index channels = batch.input.dimension(3);
    float* const values = batch.input.data() + (i * length_ + token) * channels;
    if (picture()) {
      std::copy_n(values, channels, batch.hidden.data() + asked * channels);
    } else {
      batch.answers(asked) = symbols[static_cast<std::size_t>(token)];
    }
    std::fill_n(values, channels, -1.0f);  // neither a symbol nor black
    batch.read[static_cast<std::size_t>(asked)] = {i * length_ + token, 1};
  }

  Task task_;
  Index length_;
  fit::Random random_;
  bool denoise_;
};

}  // namespace examples
