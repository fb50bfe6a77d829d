#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The layer string of a configuration, "(2)4(2)": stages of local blocks, in brackets, and global blocks.
/// Chen and Li, arXiv 2305.12689, section 3.
struct Layers {
  static constexpr std::size_t capacity = 96;
  char text[capacity] = {};
  std::size_t length = 0;

  constexpr Layers() = default;
  template <std::size_t N>
  constexpr Layers(const char (&from)[N]) : length(N - 1) {
    static_assert(N <= capacity, "fit: the layer string is longer than 95 characters");
    for (std::size_t i = 0; i + 1 < N; ++i) text[i] = from[i];
  }

  constexpr std::string_view view() const { return {text, length}; }
};

/// Parts of a model: of a stage, and what is before the first and behind the last.
enum class Part { local, read, condition, global, write, stem, head };

/// What a stage has.
struct StagePlan {
  int local_blocks = 0, global_blocks = 0;
  bool reads =
      false;  ///< its latents read the data, are conditioned where there is a condition, and pass global blocks
  bool writes = false;  ///< and the data read them afterwards, on the way to the next stage
};

enum class LayersError { none, empty, bracket, number, closing, too_many, idle };

/// A layer string taken apart, or what is wrong with it.
struct Plan {
  std::array<StagePlan, Layers::capacity / 3> stages = {};
  std::size_t count = 0;
  LayersError error = LayersError::none;

  constexpr const StagePlan& operator[](std::size_t stage) const { return stages[stage]; }
};

/// One or more stages "(a)b"; a string that ends in a bracket gets a final 0, and every stage but the last needs b > 0.
constexpr Plan plan_of(const Layers& layers) {
  const std::string_view text = layers.view();
  Plan plan;
  std::size_t at = 0;
  const auto fail = [&](LayersError error) {
    plan.error = error;
    return plan;
  };
  const auto number = [&] {
    int value = 0;
    const std::size_t start = at;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
      value = value < 100000 ? 10 * value + (text[at] - '0') : value;
    }
    return at == start ? -1 : value;
  };
  if (text.empty()) return fail(LayersError::empty);
  while (at < text.size()) {
    if (text[at] != '(') return fail(LayersError::bracket);
    ++at;
    StagePlan stage;
    stage.local_blocks = number();
    if (stage.local_blocks < 0) return fail(LayersError::number);
    if (at == text.size() || text[at] != ')') return fail(LayersError::closing);
    ++at;
    stage.global_blocks = at == text.size() ? 0 : number();
    if (stage.global_blocks < 0) return fail(LayersError::number);
    if (stage.local_blocks > 1000 || stage.global_blocks > 1000) return fail(LayersError::too_many);
    stage.reads = stage.global_blocks > 0;
    stage.writes = at < text.size();
    if (stage.writes && !stage.reads) plan.error = LayersError::idle;
    plan.stages[plan.count++] = stage;
  }
  return plan;
}

namespace detail {

/// Refuses a wrong layer string where a model is declared; the compiler quotes the string in this template's argument.
template <Layers layers>
constexpr bool check_layers() {
  constexpr LayersError error = plan_of(layers).error;
  static_assert(error != LayersError::empty, "fit: the layer string is empty; it looks like \"(2)4(2)\"");
  static_assert(error != LayersError::bracket,
                "fit: the layer string needs a '(' where a stage begins, as in \"(2)4(2)\"");
  static_assert(error != LayersError::number, "fit: the layer string needs a number of blocks, as in \"(2)4(2)\"");
  static_assert(error != LayersError::closing,
                "fit: the layer string needs a ')' after the local blocks, as in \"(2)4(2)\"");
  static_assert(error != LayersError::too_many, "fit: the layer string has a stage of more than 1000 blocks");
  static_assert(error != LayersError::idle, "fit: every stage of the layer string but the last needs global blocks");
  return error == LayersError::none;
}

}  // namespace detail

}  // namespace FIT_ABI
}  // namespace fit
