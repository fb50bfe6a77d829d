#include <atomic>
#include <fit/fit.hpp>
#include <thread>

#include "measured.hpp"

namespace {

using fit::Index;

void FmaPeak(benchmark::State& state) {
  double peak = 0;
  for (auto _ : state) peak = measured_peak(static_cast<int>(state.range(0)));
  state.counters["GFLOP/s"] = peak / 1e9;
}
BENCHMARK(FmaPeak)->ArgName("threads")->Arg(1)->Arg(2)->Iterations(1);

/// y [M, N] = x [M, K] weight [N, K]^T, the packing of the weight included.
void Gemm(benchmark::State& state) {
  const Index m = state.range(0), k = state.range(1), n = state.range(2);
  fit::Executor executor(static_cast<int>(state.range(3)));
  fit::Workspace workspace(executor);
  const auto x = values(m * k), weight = values(n * k);
  auto y = values(m * n);
  measure(state, executor.lanes(), gemm_flops(state), [&] {
    fit::kernels::multiply<float>(
        {{.rows = m,
          .columns = n,
          .factors = {{fit::kernels::plain(x.data(), k), fit::kernels::transposed(weight.data(), k), k}},
          .c = y.data(),
          .c_row = n}},
        workspace);
  });
}

/// weight gradient [N, K] += y gradient [M, N]^T x [M, K].
void GemmWeightGradient(benchmark::State& state) {
  const Index m = state.range(0), k = state.range(1), n = state.range(2);
  fit::Executor executor(static_cast<int>(state.range(3)));
  fit::Workspace workspace(executor);
  const auto x = values(m * k), y = values(m * n);
  auto gradient = values(n * k);
  measure(state, executor.lanes(), gemm_flops(state), [&] {
    fit::kernels::multiply<float>(
        {{.rows = n,
          .columns = k,
          .factors = {{fit::kernels::transposed(y.data(), n), fit::kernels::plain(x.data(), k), m}},
          .c = gradient.data(),
          .c_row = k,
          .finish = {.accumulate = true}}},
        workspace);
  });
}

BENCHMARK(Gemm)->Apply(gemm_shapes);
BENCHMARK(GemmWeightGradient)->Apply(gemm_shapes);

struct AttentionCase {
  fit::kernels::AttentionShape shape;
  fit::Buffer<float> q, k, v, o, log_sum;

  explicit AttentionCase(const benchmark::State& state)
      : shape(attention_shape(state)),
        q(values(shape.sequences * shape.queries * shape.width())),
        k(values(shape.sequences * shape.keys * shape.width())),
        v(k),
        o(q),
        log_sum(values(shape.sequences * shape.queries * shape.heads)) {}

  fit::kernels::AttentionTensors<float> tensors() { return {q.data(), k.data(), v.data(), o.data(), log_sum.data()}; }
};

void Attention(benchmark::State& state) {
  AttentionCase c(state);
  fit::Executor executor(static_cast<int>(state.range(4)));
  fit::Workspace workspace(executor);
  measure(state, executor.lanes(), attention_flops(state),
          [&] { fit::kernels::attention(c.shape, c.tensors(), workspace); });
}

void AttentionBackward(benchmark::State& state) {
  AttentionCase c(state);
  fit::Executor executor(static_cast<int>(state.range(4)));
  fit::Workspace workspace(executor);
  const auto o_gradient = c.q;
  auto q_gradient = c.q, k_gradient = c.k, v_gradient = c.v;
  fit::kernels::attention(c.shape, c.tensors(), workspace);
  measure(state, executor.lanes(), attention_flops(state, true), [&] {
    fit::kernels::attention_backward<float>(
        c.shape, c.tensors(), {o_gradient.data(), q_gradient.data(), k_gradient.data(), v_gradient.data()}, workspace);
  });
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
  constexpr Index width = block_width, length = block_length;
  const Index sequences = state.range(0) / length;
  fit::Executor executor(static_cast<int>(state.range(1)));
  fit::Tape tape(executor);
  fit::nn::Block<float, block_width, block_heads, 4> block, gradient;
  fit::nn::initialise(block, fit::Random(7));
  auto x = values(sequences * length * width);
  const auto input = x;
  measure(state, executor.lanes(), block_flops(state, training), [&] {
    std::copy_n(input.data(), input.size(), x.data());
    if (training) {
      tape.record();
    } else {
      tape.clear();
    }
    fit::nn::forward(block, x.data(), sequences, length, fit::kernels::Mask::none(), {fit::Random(1)}, tape);
    if (training) fit::nn::backward(block, x.data(), gradient, sequences, length, tape);
  });
}
BENCHMARK_TEMPLATE(Block, false)->Name("BlockForward")->Apply(block_shapes);
BENCHMARK_TEMPLATE(Block, true)->Name("BlockForwardBackward")->Apply(block_shapes);

// An encoder of 49 patches of 4 x 4 pixels, and a wider one.
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

/// A thread that takes a processor from whoever else wants it.
class BusyLoop {
 public:
  BusyLoop() = default;
  BusyLoop(const BusyLoop&) = delete;
  BusyLoop& operator=(const BusyLoop&) = delete;
  ~BusyLoop() {
    ended_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> ended_ = false;
  std::thread thread_{[this] {
    while (!ended_) {
    }
  }};
};

template <fit::EncoderConfig config, bool training>
void Encoder(benchmark::State& state) {
  const Index batch = state.range(0);
  fit::Executor executor(static_cast<int>(state.range(1)));
  fit::Tape tape(executor);
  const fit::Encoder<config> encoder(fit::Random(7));
  fit::Encoder<config> gradient;
  fit::Tensor<float, 4> input(batch, Index{config.groups}, Index{config.tokens}, Index{config.channels});
  const auto from = values(input.size());
  std::copy_n(from.data(), from.size(), input.data());
  measure(state, executor.lanes(),
          static_cast<double>(fit::cost<config>(batch, {.training = training}).flops().total()), [&] {
            if constexpr (training) {
              tape.record();
              const auto [data, latents] = encoder.forward(input, tape);
              encoder.backward({.data = data, .latents = latents}, gradient, tape);
            } else {
              benchmark::DoNotOptimize(encoder(input, tape));
            }
          });
  state.SetItemsProcessed(state.iterations() * batch);
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

/// The small encoder's step where another program keeps one processor busy.
void BesideBusyLoop(benchmark::State& state) {
  const BusyLoop neighbour;
  Encoder<small, true>(state);
}
BENCHMARK(BesideBusyLoop)
    ->Name("SmallEncoderForwardBackwardBesideBusyLoop")
    ->ArgNames({"batch", "threads"})
    ->UseRealTime()
    ->ArgsProduct({{128}, {1, 2}});

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
    std::copy_n(from.data(), from.size(), x0.data());
    std::reverse_copy(from.data(), from.data() + from.size(), noise.data());
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
  measure(state, executor.lanes(), static_cast<double>(fit::cost<denoiser>(size).forward.total()), [&] {
    benchmark::DoNotOptimize(
        fit::sample(model, options, size, fit::TensorView<const float, 2>(batch.condition), noise, tape));
  });
  state.SetItemsProcessed(state.iterations() * size);
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
  const auto cost = fit::cost<denoiser>(size, {.training = true});
  measure(state, executor.lanes(), static_cast<double>(cost.flops().total() + cost.forward.total() / 2), [&] {
    benchmark::DoNotOptimize(loss(model, batch.x0, batch.noise, batch.times,
                                  fit::TensorView<const float, 2>(batch.condition), gradient, tape));
  });
  state.SetItemsProcessed(state.iterations() * size);
}
BENCHMARK(DenoisingStep)->ArgNames({"batch", "threads"})->UseRealTime()->ArgsProduct({{64}, {1, 2}});
BENCHMARK(DiffusionTrainingStep)->ArgNames({"batch", "threads"})->UseRealTime()->ArgsProduct({{64}, {1, 2}});

}  // namespace
