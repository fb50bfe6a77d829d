#include <benchmark/benchmark.h>

#include <chrono>
#include <fit/fit.hpp>
#include <map>

namespace {

using fit::Index;

/// Bytes a second that plain reading reaches on as many threads, over more memory than caches hold.
double measure_bandwidth(int threads) {
  using Batch = fit::simd::Batch<float>;
  constexpr Index piece = Index{1} << 18, pieces = 512;  // half a GiB
  fit::Executor executor(threads);
  fit::Buffer<float> memory(piece * pieces);
  double best = 0;
  for (int repeat = 0; repeat < 8; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    executor.parallel_for(pieces, [&](Index i, int) {
      Batch sums[8];
      for (Batch& sum : sums) sum = Batch(0.0f);
      const float* from = memory.data() + i * piece;
      for (Index j = 0; j < piece; j += 8 * fit::simd::width<float>) {
        for (int s = 0; s < 8; ++s) sums[s] += fit::simd::load(from + j + s * fit::simd::width<float>);
      }
      for (Batch& sum : sums) benchmark::DoNotOptimize(sum);
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, static_cast<double>(piece * pieces) * 4 / seconds);
  }
  return best;
}

double bandwidth(int threads) {
  static std::map<int, double> known;
  const auto [entry, fresh] = known.try_emplace(threads, 0.0);
  if (fresh) entry->second = measure_bandwidth(threads);
  return entry->second;
}

constexpr fit::AutoregressiveConfig fit_config{.layers = "(2)2(2)",
                                               .groups = 640,
                                               .tokens = 256,
                                               .latents = 8,
                                               .data_dim = 512,
                                               .latent_dim = 512,
                                               .data_heads = 8,
                                               .latent_heads = 8,
                                               .data_positions = fit::Positions::sin_cos,
                                               .latent_positions = fit::Positions::sin_cos,
                                               .vocabulary = 256};
/// As wide and as deep, but one group.
constexpr fit::AutoregressiveConfig plain_config{.layers = "(6)",
                                                 .groups = 1,
                                                 .tokens = 163'840,
                                                 .latents = 1,
                                                 .data_dim = 512,
                                                 .latent_dim = 8,
                                                 .data_heads = 8,
                                                 .latent_heads = 1,
                                                 .data_positions = fit::Positions::sin_cos,
                                                 .latent_positions = fit::Positions::sin_cos,
                                                 .vocabulary = 256};
/// With two heads of keys and values for its eight.
constexpr fit::AutoregressiveConfig shared_config = [] {
  auto c = plain_config;
  c.data_key_heads = 2;
  return c;
}();

/// Bytes of weights and caches that `count` ids from a position on have to touch, ends of groups dealt to their ids.
double bytes_of_ids(const fit::AutoregressiveConfig& c, Index position, Index count) {
  double bytes = 0;
  for (Index i = position; i < position + count; ++i) {
    const fit::GenerationReads reads = fit::generation_reads_of(c, i);
    bytes += static_cast<double>(reads.weights + reads.caches) + static_cast<double>(reads.group_end) / c.tokens;
  }
  return bytes;
}

/// Ids drawn one by one, the greedy way, from a position on.
template <fit::AutoregressiveConfig config>
void Generation(benchmark::State& state) {
  using Decoder = fit::AutoregressiveDecoder<config>;
  const Index position = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  fit::Executor executor(threads);
  static const Decoder decoder(fit::Random(7));
  fit::Generator generator(decoder, 1, executor);
  // As if so many ids had been there already: what they were does not change what the next one costs.
  auto sequences = generator.sequences();
  auto& sequence = sequences[0];
  sequence.ids.assign(static_cast<std::size_t>(position), 1);
  sequence.processed = position;
  const auto& shapes = sequence.layout->shapes;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    for (Index j = 0; j < sequence.rows_in_use(i) * shapes[i].width; ++j) {
      sequence.cache(i)[j] = static_cast<float>(j % 17) * 0.01f;
    }
  }
  generator.restore(std::move(sequences));
  for (auto _ : state) benchmark::DoNotOptimize(generator.next({.temperature = 0}, fit::Random(1)));
  state.SetItemsProcessed(state.iterations());
  state.counters["of_bandwidth"] = benchmark::Counter(
      bytes_of_ids(config, position, state.iterations()) / bandwidth(threads), benchmark::Counter::kIsRate);
  state.counters["GB/s"] = bandwidth(threads) / 1e9;
}

BENCHMARK_TEMPLATE(Generation, fit_config)
    ->Name("GenerationFIT")
    ->ArgNames({"position", "threads"})
    ->UseRealTime()
    ->Iterations(fit_config.tokens)  // a group with its end
    ->ArgsProduct({{1024, 16384, 131072}, {1, 2}});
BENCHMARK_TEMPLATE(Generation, plain_config)
    ->Name("GenerationPlain")
    ->ArgNames({"position", "threads"})
    ->UseRealTime()
    ->Iterations(16)
    ->ArgsProduct({{1024, 16384, 131072}, {1, 2}});
BENCHMARK_TEMPLATE(Generation, shared_config)
    ->Name("GenerationPlainSharedKeys")
    ->ArgNames({"position", "threads"})
    ->UseRealTime()
    ->Iterations(16)
    ->ArgsProduct({{1024, 16384, 131072}, {1, 2}});

}  // namespace
