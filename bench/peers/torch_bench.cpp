// Attention and a transformer block as PyTorch's C++ library computes them, forward and back.
#include <torch/torch.h>

#include <cmath>

#include "../measured.hpp"

extern "C" [[gnu::weak]] void openblas_set_num_threads(int);

namespace {

/// Its products may be those of OpenBLAS, which counts its own threads.
void set_threads(int threads) {
  at::set_num_threads(threads);
  if (openblas_set_num_threads) openblas_set_num_threads(threads);
}

/// [sequences, length, heads * width] as [sequences, heads, length, width].
torch::Tensor by_heads(const torch::Tensor& x, std::int64_t heads) {
  return x.reshape({x.size(0), x.size(1), heads, -1}).transpose(1, 2);
}

/// The mask holds minus infinity where a key is not seen; undefined, all are.
torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, std::int64_t heads,
                     const torch::Tensor& mask) {
  const torch::Tensor queries = by_heads(q, heads) / std::sqrt(static_cast<double>(q.size(2) / heads));
  torch::Tensor scores = queries.matmul(by_heads(k, heads).transpose(2, 3));
  if (mask.defined()) scores = scores + mask;
  return scores.softmax(-1).matmul(by_heads(v, heads)).transpose(1, 2).reshape(q.sizes());
}

struct AttentionCase {
  torch::Tensor q, k, v, mask;

  AttentionCase(const benchmark::State& state, bool gradient) {
    const auto options = torch::TensorOptions().requires_grad(gradient);
    q = torch::randn({state.range(0), state.range(1), 512}, options);
    k = torch::randn({state.range(0), state.range(2), 512}, options);
    v = torch::randn({state.range(0), state.range(2), 512}, options);
    if (state.range(3) == 1) mask = torch::full({state.range(1), state.range(2)}, -INFINITY).triu(1);
  }
  torch::Tensor run() const { return attend(q, k, v, 8, mask); }
};

void Attention(benchmark::State& state) {
  const torch::NoGradGuard no_gradient;
  const int threads = static_cast<int>(state.range(4));
  set_threads(threads);
  const AttentionCase c(state, false);
  measure(state, threads, attention_flops(state), [&] { benchmark::DoNotOptimize(c.run()); });
}
BENCHMARK(Attention)->Name("Attention/PyTorch")->Apply(attention_shapes);

/// Its forward pass is not timed.
void AttentionBackward(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(4));
  set_threads(threads);
  const AttentionCase c(state, true);
  const torch::Tensor o = c.run(), gradient = torch::ones_like(o);
  measure(state, threads, attention_flops(state, true), [&] {
    benchmark::DoNotOptimize(torch::autograd::grad({o}, {c.q, c.k, c.v}, {gradient}, true));
  });
}
BENCHMARK(AttentionBackward)->Name("AttentionBackward/PyTorch")->Apply(attention_shapes);

struct TorchBlock : torch::nn::Module {
  torch::nn::LayerNorm norm1, norm2;
  torch::nn::Linear qkv, out, fc1, fc2;

  TorchBlock()
      : norm1(torch::nn::LayerNormOptions({block_width})),
        norm2(torch::nn::LayerNormOptions({block_width})),
        qkv(block_width, 3 * block_width),
        out(block_width, block_width),
        fc1(block_width, 4 * block_width),
        fc2(4 * block_width, block_width) {
    register_module("norm1", norm1);
    register_module("norm2", norm2);
    register_module("qkv", qkv);
    register_module("out", out);
    register_module("fc1", fc1);
    register_module("fc2", fc2);
  }
  torch::Tensor forward(torch::Tensor x) {
    const auto parts = qkv(norm1(x)).chunk(3, -1);
    x = x + out(attend(parts[0], parts[1], parts[2], block_heads, {}));
    return x + fc2(torch::gelu(fc1(norm2(x))));
  }
};

template <bool training>
void Block(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(1));
  set_threads(threads);
  TorchBlock block;
  const torch::Tensor x = torch::randn({state.range(0) / block_length, block_length, block_width},
                                       torch::TensorOptions().requires_grad(training)),
                      gradient = torch::ones_like(x);
  const torch::AutoGradMode recorded(training);
  measure(state, threads, block_flops(state, training), [&] {
    torch::Tensor y = block.forward(x);
    if (training) y.backward(gradient);
    benchmark::DoNotOptimize(y);
  });
}
BENCHMARK_TEMPLATE(Block, false)->Name("BlockForward/PyTorch")->Apply(block_shapes);
BENCHMARK_TEMPLATE(Block, true)->Name("BlockForwardBackward/PyTorch")->Apply(block_shapes);

}  // namespace
