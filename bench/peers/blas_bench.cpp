// Products as OpenBLAS and oneDNN compute them. The weight's layout is that of a linear layer, [N, K].
#include "../measured.hpp"

#if defined(FIT_BENCH_OPENBLAS)
#include <cblas.h>
#endif
#if defined(FIT_BENCH_ONEDNN)
#include <dnnl.hpp>
#include <unordered_map>
#endif
#include <omp.h>

namespace {

#if defined(FIT_BENCH_OPENBLAS)
template <bool gradient>
void OpenBlas(benchmark::State& state) {
  const int m = static_cast<int>(state.range(0)), k = static_cast<int>(state.range(1)),
            n = static_cast<int>(state.range(2)), threads = static_cast<int>(state.range(3));
  openblas_set_num_threads(threads);
  const auto x = values(Index{m} * k);
  auto weight = values(Index{n} * k), y = values(Index{m} * n);
  measure(state, threads, gemm_flops(state), [&] {
    if (gradient) {
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, m, 1, y.data(), n, x.data(), k, 1, weight.data(), k);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, x.data(), k, weight.data(), k, 0, y.data(), n);
    }
  });
}
BENCHMARK_TEMPLATE(OpenBlas, false)->Name("Gemm/OpenBLAS")->Apply(gemm_shapes);
BENCHMARK_TEMPLATE(OpenBlas, true)->Name("GemmWeightGradient/OpenBLAS")->Apply(gemm_shapes);
#endif

#if defined(FIT_BENCH_ONEDNN)
template <bool gradient>
void OneDnn(benchmark::State& state) {
  const Index m = state.range(0), k = state.range(1), n = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  omp_set_num_threads(threads);
  const auto x = values(m * k);
  auto weight = values(n * k), y = values(m * n);
  measure(state, threads, gemm_flops(state), [&] {
    const dnnl_status_t status = gradient
                                     ? dnnl_sgemm('T', 'N', n, k, m, 1, y.data(), n, x.data(), k, 1, weight.data(), k)
                                     : dnnl_sgemm('N', 'T', m, n, k, 1, x.data(), k, weight.data(), k, 0, y.data(), n);
    if (status != dnnl_success) return state.SkipWithError("oneDNN failed");
  });
}
BENCHMARK_TEMPLATE(OneDnn, false)->Name("Gemm/oneDNN")->Apply(gemm_shapes);
BENCHMARK_TEMPLATE(OneDnn, true)->Name("GemmWeightGradient/oneDNN")->Apply(gemm_shapes);

/// With the weight in a layout of oneDNN's choice, packed before the clock runs.
void OneDnnPacked(benchmark::State& state) {
  using dnnl::memory;
  const Index m = state.range(0), k = state.range(1), n = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  omp_set_num_threads(threads);
  auto x = values(m * k), weight = values(n * k), y = values(m * n);
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  constexpr auto type = memory::data_type::f32;
  const memory::desc source({m, k}, type, memory::format_tag::ab), result({m, n}, type, memory::format_tag::ab);
  const memory::desc plain({k, n}, type, memory::format_tag::ba), any({k, n}, type, memory::format_tag::any);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc how(engine, source, any, result);
#else
  const dnnl::matmul::primitive_desc how({source, any, result}, engine);
#endif
  memory from(plain, engine, weight.data()), packed(how.weights_desc(), engine);
  dnnl::reorder(from, packed).execute(stream, from, packed);
  stream.wait();
  const dnnl::matmul product(how);
  const std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, memory(source, engine, x.data())},
                                                  {DNNL_ARG_WEIGHTS, packed},
                                                  {DNNL_ARG_DST, memory(result, engine, y.data())}};
  measure(state, threads, gemm_flops(state), [&] {
    product.execute(stream, arguments);
    stream.wait();
  });
}
BENCHMARK(OneDnnPacked)->Name("Gemm/oneDNN_packed")->Apply(gemm_shapes);
#endif

}  // namespace
