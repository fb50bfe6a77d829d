#include <fit/core/tensor.hpp>
#include <fit/version.hpp>

fit::Tensor<float, 2> ones(int rows, int columns);

int main() {
  const fit::Tensor<float, 2> x = ones(2, 3);
  const fit::Tensor<float, 0> sum = x.eigen().sum();
  return sum() == 6.0f ? 0 : 1;
}
