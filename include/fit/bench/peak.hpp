#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

#include <fit/core/executor.hpp>
#include <fit/simd/batch.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace bench {

/// Floating-point operations a second of nothing but fused multiply-adds in registers, on all threads of an executor:
/// the best of some twenty tries, which take about a tenth of a second.
template <class T = float>
double measure_peak(Executor& executor) {
  using Batch = simd::Batch<T>;
  constexpr int chains = simd::registers / 2;
  constexpr Index rounds = 200'000;
  const int threads = executor.lanes();
  const volatile T numbers[] = {T(0.999), T(0.001)};  // what a compiler cannot see through
  std::vector<T> totals(static_cast<std::size_t>(threads));
  double best = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    executor.parallel_for(threads, [&](Index thread, int) {
      const Batch factor(numbers[0]), summand(numbers[1]);
      Batch sums[chains];
#pragma GCC unroll 16
      for (int i = 0; i < chains; ++i) sums[i] = Batch(static_cast<T>(i));
      for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) sums[i] = simd::fma(sums[i], factor, summand);
      }
      Batch total = sums[0];
#pragma GCC unroll 16
      for (int i = 1; i < chains; ++i) total += sums[i];
      totals[static_cast<std::size_t>(thread)] = simd::sum(total);
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * chains * simd::width<T> * rounds * threads / seconds);
  }
  return best;
}

}  // namespace bench
}  // namespace FIT_ABI
}  // namespace fit
