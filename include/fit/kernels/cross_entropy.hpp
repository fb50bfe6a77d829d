#pragma once

#include <cstdint>

#include <fit/core/executor.hpp>
#include <fit/simd/math.hpp>

namespace fit::inline FIT_ABI::kernels {

/// losses[i] = ln(sum_j exp(logits[i, j])) - logits[i, targets[i]], in nats, and, unless `gradient` is null,
/// gradient = scale * (softmax(logits) - one-hot(targets)); gradient may be logits. Targets are in 0 .. classes-1.
template <class T>
void cross_entropy(const T* logits, const std::int32_t* targets, T* losses, T* gradient, T scale, Index rows,
                   Index classes, Executor& executor) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  constexpr T log2_e = T(1.4426950408889634), ln_2 = T(0.6931471805599453);
  const Index block = std::max<Index>(1, 4096 / std::max<Index>(classes, 1));
  executor.parallel_for((rows + block - 1) / block, [&](Index task, int) {
    for (Index i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      const T* row = logits + i * classes;
      const Index target = targets[i];
      const T chosen = row[target];
      T highest = row[0];
      for (Index j = 1; j < classes; ++j) highest = std::max(highest, row[j]);
      const Batch shift(highest), base(log2_e);
      Batch total(T(0));
      T tail = T(0);
      for (Index j = 0; j < classes; j += w) {
        const Batch weight = simd::exp2((simd::load_part(row + j, classes - j) - shift) * base);
        if (gradient) simd::store_part(gradient + i * classes + j, weight, classes - j);
        if (classes - j >= w) {
          total += weight;
        } else {
          for (Index k = 0; k < classes - j; ++k) tail += weight.get(static_cast<std::size_t>(k));
        }
      }
      const T sum = simd::sum(total) + tail;
      losses[i] = std::log2(sum) * ln_2 + highest - chosen;
      if (!gradient) continue;
      T* to = gradient + i * classes;
      const T factor = scale / sum;
      for (Index j = 0; j < classes; ++j) to[j] *= factor;
      to[target] -= scale;
    }
  });
}

}  // namespace fit::inline FIT_ABI::kernels
