#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include <fit/core/assert.hpp>
#include <fit/core/executor.hpp>
#include <fit/simd/math.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// What cross entropy reads and writes.
template <class T>
struct CrossEntropyTensors {
  const T* logits;              // [rows, classes]
  const std::int32_t* targets;  // [rows], in 0 .. classes-1
  T* losses;                    // [rows]
  T* gradient = nullptr;        // [rows, classes], or none; may be the logits
};

/// losses[i] = ln(sum_j exp(logits[i, j])) - logits[i, targets[i]], in nats, and, where there is a gradient,
/// gradient = scale * (softmax(logits) - one-hot(targets)).
template <class T>
void cross_entropy(const CrossEntropyTensors<T>& t, T scale, Index rows, Index classes, Executor& executor) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  constexpr T log2_e = T(std::numbers::log2e), ln_2 = T(std::numbers::ln2);
  FIT_ASSERT(rows == 0 || (rows > 0 && t.logits && t.targets && t.losses));
  FIT_ASSERT(rows == 0 || classes >= 1);
  const Index block = std::max<Index>(1, 4096 / std::max<Index>(classes, 1));
  executor.parallel_for((rows + block - 1) / block, [&](Index task, int) {
    for (Index i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      const T* row = t.logits + i * classes;
      const Index target = t.targets[i];
      FIT_ASSERT(target >= 0 && target < classes);
      const T chosen = row[target];
      T highest = row[0];
      for (Index j = 1; j < classes; ++j) highest = std::max(highest, row[j]);
      const Batch shift(highest), base(log2_e);
      Batch total(T(0));
      T tail = T(0);
      for (Index j = 0; j < classes; j += w) {
        const Batch weight = simd::exp2((simd::load_part(row + j, classes - j) - shift) * base);
        if (t.gradient) simd::store_part(t.gradient + i * classes + j, weight, classes - j);
        if (classes - j >= w) {
          total += weight;
        } else {
          for (Index k = 0; k < classes - j; ++k) tail += weight.get(static_cast<std::size_t>(k));
        }
      }
      const T sum = simd::sum(total) + tail;
      t.losses[i] = std::log2(sum) * ln_2 + highest - chosen;
      if (!t.gradient) continue;
      T* to = t.gradient + i * classes;
      const T factor = scale / sum;
      for (Index j = 0; j < classes; ++j) to[j] *= factor;
      to[target] -= scale;
    }
  });
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
