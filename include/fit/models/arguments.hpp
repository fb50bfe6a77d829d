#pragma once

#include <algorithm>
#include <limits>

#include <fit/core/tape.hpp>
#include <fit/core/tensor.hpp>
#include <fit/models/config.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// Of the calls that name no tape: one for each thread.
inline Tape& inference_tape() {
  thread_local Tape tape;
  return tape;
}

/// Throws Error for a batch whose largest tensors, of this many elements for each example, could not be counted.
inline void require_batch(Index batch, Index largest) {
  const Index most = std::numeric_limits<Index>::max() / 64 / largest;
  require(batch <= most, "a batch of ", batch, " examples is too large to be counted: ", most, " is the most");
}

/// Elements of the largest tensor that an example takes inside.
template <auto config>
constexpr Index largest_tensor(Index tokens) {
  const Index data = tokens * config.data_dim, latents = Index{config.latents} * config.latent_dim;
  return config.groups * std::max(data, latents) * std::max(4, config.mlp_ratio);
}

/// A tensor in memory of the tape that lasts until it records or is cleared again.
template <class T, class... Counts>
TensorView<T, static_cast<int>(sizeof...(Counts))> output(Tape& tape, Counts... counts) {
  return {tape.output<T>((Index{1} * ... * counts)), Index{counts}...};
}

/// both [count, first_size + second_size] = first [count, first_size] and second [count, second_size] side by side.
template <class T>
void join(const T* first, Index first_size, const T* second, Index second_size, T* both, Index count) {
  for (Index i = 0; i < count; ++i) {
    both = std::copy_n(first + i * first_size, first_size, both);
    both = std::copy_n(second + i * second_size, second_size, both);
  }
}

/// The inverse.
template <class T>
void split(const T* both, T* first, Index first_size, T* second, Index second_size, Index count) {
  for (Index i = 0; i < count; ++i, both += first_size + second_size) {
    std::copy_n(both, first_size, first + i * first_size);
    std::copy_n(both + first_size, second_size, second + i * second_size);
  }
}

/// Scratch memory that starts at zero.
template <class T>
T* zeros(Index count, Tape& tape) {
  T* values = tape.scratch<T>(count);
  std::fill_n(values, count, T(0));
  return values;
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
