#pragma once

#include <algorithm>

#include <fit/core/tape.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

namespace detail {

template <class T>
struct RecomputeRecord {
  T* input;
};

}  // namespace detail

/// Runs `forward(x)`, which changes x [size] in place. With `again` on a tape that records, keeps a copy of x and none
/// of the records. Chen et al., arXiv 1604.06174.
template <class T, class Forward>
void forward_recomputed(T* x, Index size, bool again, Tape& tape, Forward&& forward) {
  if (!tape.recording() || !again) return forward(x);
  const auto start = tape.mark();
  T* input = tape.allocate<T>(size);
  std::copy_n(x, size, input);
  {
    const Tape::Recording unrecorded(tape, false);
    forward(x);
  }
  tape.finish(start, detail::RecomputeRecord<T>{input});
}

/// The way back: runs `backward()`, after `forward` once more where its records were not kept.
template <class T, class Forward, class Backward>
void backward_recomputed(bool again, Tape& tape, Forward&& forward, Backward&& backward) {
  if (!again) return backward();
  const auto saved = tape.pop<detail::RecomputeRecord<T>>();
  forward(saved->input);
  backward();
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
