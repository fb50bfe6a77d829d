#pragma once

#include <algorithm>

#include <fit/core/executor.hpp>
#include <fit/simd/batch.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// mean [sequences, width] of x [sequences, length, width] over the tokens of each sequence.
template <class T>
void mean_pool(const T* x, T* mean, Index sequences, Index length, Index width, Executor& executor) {
  const T share = T(1) / static_cast<T>(length);
  executor.parallel_for(sequences, [&](Index s, int) {
    T* to = mean + s * width;
    std::fill_n(to, width, T(0));
    for (Index i = 0; i < length; ++i) {
      for (Index j = 0; j < width; ++j) to[j] += x[(s * length + i) * width + j];
    }
    for (Index j = 0; j < width; ++j) to[j] *= share;
  });
}

/// x_gradient [sequences, length, width] = mean_gradient [sequences, width] / length, for every token alike.
template <class T>
void mean_pool_backward(const T* mean_gradient, T* x_gradient, Index sequences, Index length, Index width,
                        Executor& executor) {
  const T share = T(1) / static_cast<T>(length);
  executor.parallel_for(sequences, [&](Index s, int) {
    for (Index i = 0; i < length; ++i) {
      for (Index j = 0; j < width; ++j) x_gradient[(s * length + i) * width + j] = mean_gradient[s * width + j] * share;
    }
  });
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
