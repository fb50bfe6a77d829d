#include <benchmark/benchmark.h>

#include <fit/bench/peak.hpp>
#include <fit/fit.hpp>
#include <map>
#include <vector>

namespace {

using fit::Index;

/// Operations a second of nothing but fused multiply-adds in registers, on as many threads.
double peak(int threads) {
  static std::map<int, double> known;
  const auto [entry, fresh] = known.try_emplace(threads, 0.0);
  if (fresh) {
    fit::Executor executor(threads);
    entry->second = fit::bench::measure_peak(executor);
  }
  return entry->second;
}

/// Reports work done in floating-point operations, counted as cost/meter.hpp says, as a rate and as a share of the peak
/// of this run.
void report(benchmark::State& state, double operations, int threads) {
  state.counters["GFLOP/s"] = benchmark::Counter(operations / 1e9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] =
      benchmark::Counter(operations / peak(threads), benchmark::Counter::kIsIterationInvariantRate);
}

std::vector<float> values(Index count) {
  fit::Random random(7);
  std::vector<float> result(static_cast<std::size_t>(count));
  for (float& value : result) value = static_cast<float>(2 * random.uniform() - 1);
  return result;
}

void FmaPeak(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(peak(threads));
  state.counters["peak_GFLOP/s"] = peak(threads) / 1e9;
}
BENCHMARK(FmaPeak)->ArgName("threads")->Arg(1)->Arg(2)->Iterations(1);

/// y [M, N] = x [M, K] weight [N, K]^T, the packing of the weight included.
void Gemm(benchmark::State& state) {
  const Index m = state.range(0), k = state.range(1), n = state.range(2);
  fit::Executor executor(static_cast<int>(state.range(3)));
  fit::Workspace workspace(executor);
  const auto x = values(m * k), weight = values(n * k);
  auto y = values(m * n);
  for (auto _ : state) {
    fit::kernels::multiply<float>(
        {{.rows = m,
          .columns = n,
          .factors = {{fit::kernels::plain(x.data(), k), fit::kernels::transposed(weight.data(), k), k}},
          .c = y.data(),
          .c_row = n}},
        workspace);
    benchmark::ClobberMemory();
  }
  report(state, 2.0 * static_cast<double>(m * n * k), executor.lanes());
}

/// weight gradient [N, K] += y gradient [M, N]^T x [M, K].
void GemmWeightGradient(benchmark::State& state) {
  const Index m = state.range(0), k = state.range(1), n = state.range(2);
  fit::Executor executor(static_cast<int>(state.range(3)));
  fit::Workspace workspace(executor);
  const auto x = values(m * k), y = values(m * n);
  auto gradient = values(n * k);
  for (auto _ : state) {
    fit::kernels::multiply<float>(
        {{.rows = n,
          .columns = k,
          .factors = {{fit::kernels::transposed(y.data(), n), fit::kernels::plain(x.data(), k), m}},
          .c = gradient.data(),
          .c_row = k,
          .finish = {.accumulate = true}}},
        workspace);
    benchmark::ClobberMemory();
  }
  report(state, 2.0 * static_cast<double>(m * n * k), executor.lanes());
}

void shapes(benchmark::internal::Benchmark* b) {
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
BENCHMARK(Gemm)->Apply(shapes);
BENCHMARK(GemmWeightGradient)->Apply(shapes);

/// Sequences of queries and keys in 8 heads of 64; `causal` is 1 or 0. Only pairs that the mask leaves count.
struct AttentionCase {
  fit::kernels::AttentionShape shape;
  std::vector<float> q, k, v, o, log_sum;

  explicit AttentionCase(const benchmark::State& state)
      : shape{state.range(0),
              state.range(1),
              state.range(2),
              8,
              64,
              state.range(3) == 1 ? fit::kernels::Mask::causal() : fit::kernels::Mask::none()},
        q(values(shape.sequences * shape.queries * shape.width())),
        k(values(shape.sequences * shape.keys * shape.width())),
        v(k),
        o(q),
        log_sum(values(shape.sequences * shape.queries * shape.heads)) {}

  fit::kernels::AttentionTensors<float> tensors() { return {q.data(), k.data(), v.data(), o.data(), log_sum.data()}; }
  double operations() const { return static_cast<double>(fit::attention_flops(shape).total()); }
};

void Attention(benchmark::State& state) {
  AttentionCase c(state);
  fit::Executor executor(static_cast<int>(state.range(4)));
  fit::Workspace workspace(executor);
  for (auto _ : state) {
    fit::kernels::attention(c.shape, c.tensors(), workspace);
    benchmark::ClobberMemory();
  }
  report(state, c.operations(), executor.lanes());
}

void AttentionBackward(benchmark::State& state) {
  AttentionCase c(state);
  fit::Executor executor(static_cast<int>(state.range(4)));
  fit::Workspace workspace(executor);
  const auto o_gradient = c.q;
  auto q_gradient = c.q, k_gradient = c.k, v_gradient = c.v;
  fit::kernels::attention(c.shape, c.tensors(), workspace);
  for (auto _ : state) {
    fit::kernels::attention_backward<float>(
        c.shape, c.tensors(), {o_gradient.data(), q_gradient.data(), k_gradient.data(), v_gradient.data()}, workspace);
    benchmark::ClobberMemory();
  }
  report(state, 2.5 * c.operations(), executor.lanes());
}

void attention_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"sequences", "queries", "keys", "causal", "threads"})->UseRealTime();
  for (const Index threads : {1, 2}) {
    b->Args({64, 256, 256, 0, threads})->Args({64, 256, 256, 1, threads})->Args({1, 2048, 2048, 0, threads});
    b->Args({64, 8, 256, 0, threads})->Args({64, 256, 8, 0, threads})->Args({512, 49, 49, 0, threads});
  }
}
BENCHMARK(Attention)->Apply(attention_shapes);
BENCHMARK(AttentionBackward)->Apply(attention_shapes);

void LayerNorm(benchmark::State& state) {
  const Index rows = state.range(0), width = state.range(1);
  fit::Executor executor(static_cast<int>(state.range(2)));
  const auto x = values(rows * width), weight = values(width);
  auto y = x;
  for (auto _ : state) {
    fit::kernels::layer_norm<float>({x.data(), weight.data(), weight.data(), y.data()}, rows, width, executor);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * rows * width * 8);
}
BENCHMARK(LayerNorm)->ArgNames({"rows", "width", "threads"})->UseRealTime()->ArgsProduct({{4096}, {64, 512}, {1, 2}});

template <bool training>
void Block(benchmark::State& state) {
  constexpr Index width = 512, length = 256;
  const Index sequences = state.range(0) / length;
  fit::Executor executor(static_cast<int>(state.range(1)));
  fit::Tape tape(executor);
  fit::nn::Block<float, width, 8, 4> block, gradient;
  fit::nn::initialise(block, fit::Random(7));
  auto x = values(sequences * length * width);
  const auto input = x;
  for (auto _ : state) {
    std::copy(input.begin(), input.end(), x.begin());
    if (training) {
      tape.record();
    } else {
      tape.clear();
    }
    fit::nn::forward(block, x.data(), sequences, length, fit::kernels::Mask::none(), {fit::Random(1)}, tape);
    if (training) fit::nn::backward(block, x.data(), gradient, sequences, length, tape);
    benchmark::ClobberMemory();
  }
  const fit::EncoderConfig one{.layers = "(1)",
                               .groups = static_cast<int>(sequences),
                               .tokens = length,
                               .channels = 1,
                               .latents = 1,
                               .data_dim = width,
                               .latent_dim = width,
                               .data_heads = 8,
                               .latent_heads = 8};
  const auto local = fit::cost_of(one, 1, {.training = training}).of(fit::Part::local);
  report(state, static_cast<double>((local.forward + local.backward).total()), executor.lanes());
}
BENCHMARK_TEMPLATE(Block, false)
    ->Name("BlockForward")
    ->ArgNames({"tokens", "threads"})
    ->UseRealTime()
    ->ArgsProduct({{4096, 16384}, {1, 2}});
BENCHMARK_TEMPLATE(Block, true)
    ->Name("BlockForwardBackward")
    ->ArgNames({"tokens", "threads"})
    ->UseRealTime()
    ->ArgsProduct({{4096, 16384}, {1, 2}});

// The encoder of examples/classify_images.cpp, and a wider one.
constexpr fit::EncoderConfig small{.layers = "(1)1(1)1",
                                   .groups = 7,
                                   .tokens = 7,
                                   .channels = 16,
                                   .latents = 2,
                                   .data_dim = 64,
                                   .latent_dim = 128,
                                   .data_heads = 2,
                                   .latent_heads = 4};
constexpr fit::EncoderConfig wide{.layers = "(2)2(2)",
                                  .groups = 16,
                                  .tokens = 256,
                                  .channels = 48,
                                  .latents = 16,
                                  .data_dim = 256,
                                  .latent_dim = 512,
                                  .data_heads = 4,
                                  .latent_heads = 8};

template <fit::EncoderConfig config, bool training>
void Encoder(benchmark::State& state) {
  const Index batch = state.range(0);
  fit::Executor executor(static_cast<int>(state.range(1)));
  fit::Tape tape(executor);
  const fit::Encoder<config> encoder(fit::Random(7));
  fit::Encoder<config> gradient;
  fit::Tensor<float, 4> input(batch, Index{config.groups}, Index{config.tokens}, Index{config.channels});
  const auto from = values(input.size());
  std::copy(from.begin(), from.end(), input.data());
  for (auto _ : state) {
    if constexpr (training) {
      tape.record();
      const auto [data, latents] = encoder.forward(input, tape);
      encoder.backward({.data = data, .latents = latents}, gradient, tape);
    } else {
      benchmark::DoNotOptimize(encoder(input, tape));
    }
  }
  state.SetItemsProcessed(state.iterations() * batch);
  report(state, static_cast<double>(fit::cost<config>(batch, {.training = training}).flops().total()),
         executor.lanes());
}
BENCHMARK_TEMPLATE(Encoder, small, false)
    ->Name("SmallEncoderForward")
    ->ArgNames({"batch", "threads"})
    ->UseRealTime()
    ->ArgsProduct({{128}, {1, 2}});
BENCHMARK_TEMPLATE(Encoder, small, true)
    ->Name("SmallEncoderForwardBackward")
    ->ArgNames({"batch", "threads"})
    ->UseRealTime()
    ->ArgsProduct({{128}, {1, 2}});
BENCHMARK_TEMPLATE(Encoder, wide, false)
    ->Name("WideEncoderForward")
    ->ArgNames({"batch", "threads"})
    ->UseRealTime()
    ->ArgsProduct({{1}, {1, 2}});
BENCHMARK_TEMPLATE(Encoder, wide, true)
    ->Name("WideEncoderForwardBackward")
    ->ArgNames({"batch", "threads"})
    ->UseRealTime()
    ->ArgsProduct({{1}, {1, 2}});

// That of examples/generate_images.cpp.
constexpr fit::DiffusionConfig denoiser{.layers = "(2)2(2)2(2)",
                                        .groups = 4,
                                        .tokens = 49,
                                        .channels = 4,
                                        .latents = 8,
                                        .data_dim = 64,
                                        .latent_dim = 128,
                                        .data_heads = 2,
                                        .latent_heads = 4,
                                        .output_channels = 4,
                                        .condition_channels = 10,
                                        .self_conditioning = fit::SelfConditioning::latent};
using Denoiser = fit::DiffusionDecoder<denoiser>;

/// Images with noise, and what a denoiser is told of them.
struct DiffusionBatch {
  fit::Tensor<float, 4> x0, noise;
  fit::Tensor<double, 1> times;
  fit::Tensor<float, 2> condition;

  explicit DiffusionBatch(Index size)
      : x0(size, Index{denoiser.groups}, Index{denoiser.tokens}, Index{denoiser.channels}),
        noise(x0),
        times(size),
        condition(size, Index{denoiser.condition_channels}) {
    const auto from = values(x0.size());
    std::copy(from.begin(), from.end(), x0.data());
    std::copy(from.rbegin(), from.rend(), noise.data());
    for (Index i = 0; i < size; ++i) {
      times(i) = (static_cast<double>(i) + 0.5) / static_cast<double>(size);
      condition(i, i % denoiser.condition_channels) = 1;
    }
  }
};

/// One step of sampling without guidance.
void DenoisingStep(benchmark::State& state) {
  const Index size = state.range(0);
  fit::Executor executor(static_cast<int>(state.range(1)));
  fit::Tape tape(executor);
  const Denoiser model(fit::Random(7));
  const DiffusionBatch batch(size);
  const fit::SampleOptions options{.steps = 1, .prediction = fit::Prediction::v, .batch = size};
  const auto noise = [&](Index, Index, fit::TensorView<float, 4> to) {
    std::copy_n(batch.noise.data(), to.size(), to.data());
  };
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        fit::sample(model, options, size, fit::TensorView<const float, 2>(batch.condition), noise, tape));
  }
  state.SetItemsProcessed(state.iterations() * size);
  report(state, static_cast<double>(fit::cost<denoiser>(size).forward.total()), executor.lanes());
}

/// Loss and gradient, with a first pass for the previous latents of half the batch; no optimiser.
void DiffusionTrainingStep(benchmark::State& state) {
  const Index size = state.range(0);
  fit::Executor executor(static_cast<int>(state.range(1)));
  fit::Tape tape(executor);
  const Denoiser model(fit::Random(7));
  Denoiser gradient;
  const DiffusionBatch batch(size);
  fit::DiffusionLoss<Denoiser> loss({.prediction = fit::Prediction::v,
                                     .loss_on = fit::LossOn::velocity,
                                     .self_conditioning_rate = 0.5,
                                     .condition_drop = 0.1});
  for (auto _ : state) {
    benchmark::DoNotOptimize(loss(model, batch.x0, batch.noise, batch.times,
                                  fit::TensorView<const float, 2>(batch.condition), gradient, tape));
  }
  state.SetItemsProcessed(state.iterations() * size);
  const auto cost = fit::cost<denoiser>(size, {.training = true});
  report(state, static_cast<double>(cost.flops().total() + cost.forward.total() / 2), executor.lanes());
}
BENCHMARK(DenoisingStep)->ArgNames({"batch", "threads"})->UseRealTime()->ArgsProduct({{64}, {1, 2}});
BENCHMARK(DiffusionTrainingStep)->ArgNames({"batch", "threads"})->UseRealTime()->ArgsProduct({{64}, {1, 2}});

}  // namespace
