// Compiled twice, for two instruction sets; UNIT is the name of its function.
#include "unit.hpp"

#include <fit/core/executor.hpp>
#include <fit/core/tensor.hpp>
#include <fit/simd/batch.hpp>

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

Found UNIT() {
  constexpr fit::Index rows = 8, columns = 64;
  static_assert(columns % fit::simd::width<float> == 0);
  fit::Tensor<float, 2> x(rows, columns);
  for (fit::Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i);

  fit::Tensor<float, 1> sums(rows);
  fit::Executor executor(2);
  executor.parallel_for(rows, [&](fit::Index row, int) {
    fit::simd::Batch<float> total(0);
    for (fit::Index i = 0; i < columns; i += fit::simd::width<float>) {
      total = fit::simd::fma(fit::simd::load(&x(row, i)), fit::simd::Batch<float>(1), total);
    }
    sums(row) = fit::simd::sum(total);
  });

  double sum = 0;
  for (fit::Index row = 0; row < rows; ++row) sum += static_cast<double>(sums(row));
  return {TEXT(FIT_ABI), static_cast<int>(fit::simd::width<float>), sum};
}
