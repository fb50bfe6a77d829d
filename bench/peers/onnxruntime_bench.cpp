// Products, attention and a transformer block as ONNX Runtime runs them.
#include <cstdint>
#include <memory>
#include <utility>

#include "../measured.hpp"
#include "../onnx_runtime.hpp"

namespace {

std::shared_ptr<const onnx::Runtime> runtime() {
  static const auto loaded = std::make_shared<const onnx::Runtime>(FIT_BENCH_ONNXRUNTIME);
  return loaded;
}

/// Measures the session that make() returns; what this ONNX Runtime cannot do is skipped.
template <class Make>
void run(benchmark::State& state, int threads, double flops, Make&& make) {
  try {
    const auto session = make();
    measure(state, threads, flops, [&] { session->run(); });
  } catch (const fit::Error& error) {
    state.SkipWithError(error.what());
  }
}

/// The weight is a constant, which it may pack once.
void Product(benchmark::State& state) {
  const std::int64_t m = state.range(0), k = state.range(1), n = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  onnx::Model model({{"x", {m, k}}});
  model.constant({"w", {k, n}}, 1).node("MatMul", {"x", "w"}, {"y"});
  run(state, threads, gemm_flops(state), [&] {
    return std::make_unique<onnx::Session>(runtime(), model, onnx::Tensor{"y", {m, n}}, threads);
  });
}
BENCHMARK(Product)->Name("Gemm/ONNXRuntime")->Apply(gemm_shapes);

void Attention(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(4));
  run(state, threads, attention_flops(state), [&] {
    return onnx::attention(runtime(), state.range(0), state.range(1), state.range(2), 512, 8, state.range(3) == 1,
                           threads);
  });
}
BENCHMARK(Attention)->Name("Attention/ONNXRuntime")->Apply(attention_shapes);

void Block(benchmark::State& state) {
  constexpr std::int64_t width = block_width, hidden = 4 * width;
  const std::int64_t sequences = state.range(0) / block_length;
  const int threads = static_cast<int>(state.range(1));
  onnx::Model model({{"x", {sequences, block_length, width}}});
  for (const char* name : {"norm1", "norm2", "shift1", "shift2", "out_bias", "fc2_bias"}) {
    model.constant({name, {width}}, 0.5);
  }
  model.constant({"qkv", {width, 3 * width}}, 0.05).constant({"qkv_bias", {3 * width}}, 0.05);
  model.constant({"out", {width, width}}, 0.05);
  model.constant({"fc1", {width, hidden}}, 0.05).constant({"fc1_bias", {hidden}}, 0.05);
  model.constant({"fc2", {hidden, width}}, 0.05);
  const auto linear = [&](const char* from, const char* weight, const char* bias, const char* sums, const char* to) {
    model.node("MatMul", {from, weight}, {sums}).node("Add", {sums, bias}, {to});
  };
  model.node("LayerNormalization", {"x", "norm1", "shift1"}, {"a"}, {{"axis", -1}});
  linear("a", "qkv", "qkv_bias", "b", "c");
  model.node("Split", {"c"}, {"q", "k", "v"}, {{"axis", 2}, {"num_outputs", 3}});
  model.node("MultiHeadAttention", {"q", "k", "v"}, {"d"}, {{"num_heads", block_heads}}, "com.microsoft");
  linear("d", "out", "out_bias", "e", "f");
  model.node("Add", {"x", "f"}, {"g"});
  model.node("LayerNormalization", {"g", "norm2", "shift2"}, {"h"}, {{"axis", -1}});
  linear("h", "fc1", "fc1_bias", "i", "j");
  model.node("Gelu", {"j"}, {"l"});
  linear("l", "fc2", "fc2_bias", "m", "n");
  model.node("Add", {"g", "n"}, {"o"});
  run(state, threads, block_flops(state, false), [&] {
    return std::make_unique<onnx::Session>(runtime(), model, onnx::Tensor{"o", {sequences, block_length, width}},
                                           threads);
  });
}
BENCHMARK(Block)->Name("BlockForward/ONNXRuntime")->Apply(block_shapes);

}  // namespace
