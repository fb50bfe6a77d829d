#pragma once

#include <array>
#include <string>

#include <fit/core/tape.hpp>
#include <fit/core/tensor.hpp>

namespace fit::inline FIT_ABI {

namespace detail {

/// Of the calls that name no tape: one for each thread.
inline Tape& inference_tape() {
  thread_local Tape tape;
  return tape;
}

/// Throws Error unless a tensor has the expected shape; a negative size, called the batch, accepts any.
template <class View, std::size_t Rank>
void require_shape(const char* name, const View& tensor, const std::array<Index, Rank>& expected) {
  bool equal = true;
  for (std::size_t i = 0; i < Rank; ++i) equal = equal && (expected[i] < 0 || tensor.dimension(i) == expected[i]);
  if (equal) return;
  std::string wanted = "[";
  for (std::size_t i = 0; i < Rank; ++i) {
    wanted += (i > 0 ? ", " : "") + (expected[i] < 0 ? std::string("batch") : std::to_string(expected[i]));
  }
  throw Error(concatenate(name, " must have the shape ", wanted, "], not ", shape_text(tensor.dimensions())));
}

/// Scratch memory that starts at zero.
template <class T>
T* zeros(Index count, Tape& tape) {
  T* values = tape.scratch<T>(count);
  std::fill_n(values, count, T(0));
  return values;
}

}  // namespace detail

}  // namespace fit::inline FIT_ABI
