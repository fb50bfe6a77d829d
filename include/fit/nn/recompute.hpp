#pragma once

#include <algorithm>

#include <fit/core/tape.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// What a piece of a model changes in place: a run of data tokens, a run of latents, or both.
template <class T>
struct Tokens {
  T* data = nullptr;
  Index data_size = 0;
  T* latents = nullptr;
  Index latents_size = 0;
};

namespace detail {

template <class T>
struct RecomputeRecord {
  Tokens<T> input;
};

}  // namespace detail

/// Runs `forward(tokens)`. On a tape that records with `recompute`, keeps a copy of the tokens and none of the records.
/// Chen et al., arXiv 1604.06174.
template <class T, class Forward>
void forward_recomputed(const Tokens<T>& tokens, Tape& tape, Forward&& forward) {
  if (!tape.recording() || !tape.options().recompute) return forward(tokens);
  const auto start = tape.mark();
  const auto copy = [&](const T* from, Index size) {
    T* to = tape.allocate<T>(size);
    std::copy_n(from, size, to);
    return to;
  };
  const detail::RecomputeRecord<T> record{{copy(tokens.data, tokens.data_size), tokens.data_size,
                                           copy(tokens.latents, tokens.latents_size), tokens.latents_size}};
  const auto checkpoint = tape.checkpoint();
  forward(tokens);
  tape.rewind(checkpoint);
  tape.finish(start, record);
}

/// The way back: runs `backward()`, after `forward` once more where its records were dropped.
template <class T, class Forward, class Backward>
void backward_recomputed(Tape& tape, Forward&& forward, Backward&& backward) {
  if (!tape.options().recompute) return backward();
  const auto saved = tape.pop<detail::RecomputeRecord<T>>();
  forward(saved->input);
  backward();
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
