// Products as Eigen computes them, with its own parallelisation.
#include <Eigen/Core>

#include "../measured.hpp"

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <bool gradient>
void EigenProduct(benchmark::State& state) {
  const Index m = state.range(0), k = state.range(1), n = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  Eigen::setNbThreads(threads);
  auto x = values(m * k), weight = values(n * k), y = values(m * n);
  const Eigen::Map<Matrix> of_x(x.data(), m, k);
  Eigen::Map<Matrix> of_weight(weight.data(), n, k), of_y(y.data(), m, n);
  measure(state, threads, gemm_flops(state), [&] {
    if (gradient) {
      of_weight.noalias() += of_y.transpose() * of_x;
    } else {
      of_y.noalias() = of_x * of_weight.transpose();
    }
  });
}
BENCHMARK_TEMPLATE(EigenProduct, false)->Name("Gemm/Eigen")->Apply(gemm_shapes);
BENCHMARK_TEMPLATE(EigenProduct, true)->Name("GemmWeightGradient/Eigen")->Apply(gemm_shapes);

}  // namespace
