#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fit/bench/peak.hpp>
#include <fit/core/memory.hpp>
#include <fit/core/random.hpp>
#include <fit/cost/cost.hpp>
#include <string>
#include <type_traits>
#include <utility>

/// What the entries of fit_bench share with those of its peers.
namespace {

using fit::Index;

/// What BENCHMARK() makes: newer releases of Google Benchmark name it otherwise.
using Entry =
    std::remove_pointer_t<decltype(benchmark::RegisterBenchmark("", std::declval<void (*)(benchmark::State&)>()))>;

/// In memory as tensors have it: on boundaries of lines, and in large pages.
inline fit::Buffer<float> values(Index count) {
  fit::Random random(7);
  auto result = fit::Buffer<float>::uninitialised(count);
  for (Index i = 0; i < count; ++i) result.data()[i] = static_cast<float>(2 * random.uniform() - 1);
  return result;
}

/// FLOP/s of nothing but fused multiply-adds in registers.
inline double measured_peak(int threads) {
  fit::Executor executor(threads);
  return fit::bench::measure_peak(executor);
}

/// Runs an entry's loop and reports its work, in FLOPs counted as cost/meter.hpp says, as a rate and as a share of the
/// peak, which is measured before and after, as processors are shared. Where it has moved, the entry says so. Two calls
/// come before that are not measured: a tape takes its memory in the first and makes it one piece in the second.
template <class Body>
void measure(benchmark::State& state, int threads, double flops, Body&& body) {
  for (int call = 0; call < 2; ++call) body();
  const double before = measured_peak(threads);
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  const double after = measured_peak(threads), moved = after / before - 1;
  const auto rate = [&](double unit) {
    return benchmark::Counter(flops / unit, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["GFLOP/s"] = rate(1e9);
  state.counters["of_peak"] = rate((before + after) / 2);
  if (std::abs(moved) > 0.05) {
    state.SetLabel("the peak moved by " + std::to_string(std::lround(100 * moved)) + " %");
  }
}

/// Products [M, K] x [K, N].
inline void gemm_shapes(Entry* b) {
  b->ArgNames({"M", "K", "N", "threads"})->UseRealTime();
  for (const Index threads : {1, 2}) {
    for (const auto& [m, k, n] : {std::array<Index, 3>{256, 512, 512},
                                  {256, 512, 2048},
                                  {256, 2048, 512},
                                  {4096, 512, 2048},
                                  {6272, 64, 256},
                                  {65536, 256, 1024}}) {
      b->Args({m, k, n, threads});
    }
  }
}
inline double gemm_flops(const benchmark::State& state) {
  return 2.0 * static_cast<double>(state.range(0) * state.range(1) * state.range(2));
}

/// Sequences of queries and keys in 8 heads of 64; `causal` is 1 or 0.
inline void attention_shapes(Entry* b) {
  b->ArgNames({"sequences", "queries", "keys", "causal", "threads"})->UseRealTime();
  for (const Index threads : {1, 2}) {
    b->Args({64, 256, 256, 0, threads})->Args({64, 256, 256, 1, threads})->Args({1, 2048, 2048, 0, threads});
    b->Args({64, 8, 256, 0, threads})->Args({64, 256, 8, 0, threads})->Args({512, 49, 49, 0, threads});
    b->Args({1024, 16, 16, 0, threads});
  }
}
inline fit::kernels::AttentionShape attention_shape(const benchmark::State& state) {
  return {.sequences = state.range(0),
          .queries = state.range(1),
          .keys = state.range(2),
          .heads = 8,
          .head_width = 64,
          .mask = state.range(3) == 1 ? fit::kernels::Mask::causal() : fit::kernels::Mask::none()};
}
/// Of pairs of a query and a key that it sees.
inline double attention_flops(const benchmark::State& state, bool backward = false) {
  const auto shape = attention_shape(state);
  return static_cast<double>((backward ? fit::attention_backward_flops(shape) : fit::attention_flops(shape)).total());
}

/// A transformer block of width 512, 8 heads and 4 times as many hidden units, over groups of 256 tokens.
inline constexpr int block_width = 512, block_heads = 8, block_length = 256;
inline void block_shapes(Entry* b) {
  b->ArgNames({"tokens", "threads"})->UseRealTime()->ArgsProduct({{4096, 16384}, {1, 2}});
}
inline double block_flops(const benchmark::State& state, bool training) {
  const fit::EncoderConfig one{.layers = "(1)",
                               .groups = static_cast<int>(state.range(0)) / block_length,
                               .tokens = block_length,
                               .channels = 1,
                               .latents = 1,
                               .data_dim = block_width,
                               .latent_dim = block_width,
                               .data_heads = block_heads,
                               .latent_heads = block_heads};
  const fit::PartCost local = fit::cost_of(one, 1, {.training = training}).of(fit::Part::local);
  return static_cast<double>((local.forward + local.backward).total());
}

}  // namespace
