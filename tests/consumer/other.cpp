#include <fit/core/tensor.hpp>

fit::Tensor<float, 2> ones(int rows, int columns) {
  fit::Tensor<float, 2> x(rows, columns);
  x.setConstant(1);
  return x;
}
