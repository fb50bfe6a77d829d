#pragma once

#include <algorithm>
#include <cmath>

#include <fit/core/assert.hpp>
#include <fit/kernels/column_sums.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// Added to the variance under the root.
inline constexpr double layer_norm_epsilon = 1e-6;

/// What a layer norm reads and writes, and what it keeps for the way back where there are pointers to it.
template <class T>
struct LayerNormTensors {
  const T *x, *weight, *bias;
  T* y;                            ///< may be x
  T* normalised = nullptr;         ///< [rows, width], z
  T* inverse_deviation = nullptr;  ///< [rows], 1 / sqrt(variance + 1e-6)
};

/// What the way back reads, and what it adds to: the gradients of x and of the parameters.
template <class T>
struct LayerNormGradients {
  const T *normalised, *inverse_deviation, *weight;
  const T* y;  ///< the gradient of y
  T* x;        ///< the gradient of x
  T *weight_gradient, *bias_gradient;
};

/// y = weight * z + bias with z = (x - mean) / sqrt(variance + 1e-6), over each of `rows` rows of `width`; the variance
/// is the biased one. Ba, Kiros and Hinton, arXiv 1607.06450.
template <class T>
void layer_norm(const LayerNormTensors<T>& t, Index rows, Index width, Executor& executor) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  FIT_ASSERT(rows >= 0 && width >= 1);
  FIT_ASSERT(rows == 0 || (t.x && t.weight && t.bias && t.y));
  const Index block = std::max<Index>(1, 8192 / std::max<Index>(width, 1)), whole = width / w * w;
  executor.parallel_for((rows + block - 1) / block, [&](Index task, int) {
    for (Index i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      const T* from = t.x + i * width;
      Batch total(T(0));
      for (Index j = 0; j < whole; j += w) total += simd::load(from + j);
      T sum = simd::sum(total);
      for (Index j = whole; j < width; ++j) sum += from[j];
      const T mean = sum / static_cast<T>(width);
      Batch squares(T(0));
      for (Index j = 0; j < whole; j += w) {
        const Batch off = simd::load(from + j) - Batch(mean);
        squares = simd::fma(off, off, squares);
      }
      T square = simd::sum(squares);
      for (Index j = whole; j < width; ++j) square += (from[j] - mean) * (from[j] - mean);
      const T inverse = T(1) / std::sqrt(square / static_cast<T>(width) + static_cast<T>(layer_norm_epsilon));
      if (t.inverse_deviation) t.inverse_deviation[i] = inverse;
      for (Index j = 0; j < width; j += w) {
        const Index count = width - j;
        const Batch z = (simd::load_part(from + j, count) - Batch(mean)) * Batch(inverse);
        if (t.normalised) simd::store_part(t.normalised + i * width + j, z, count);
        const Batch result = simd::fma(z, simd::load_part(t.weight + j, count), simd::load_part(t.bias + j, count));
        simd::store_part(t.y + i * width + j, result, count);
      }
    }
  });
}

/// The way back: x += inverse_deviation * (g - mean(g) - z * mean(g z)) with g = weight * y,
/// weight_gradient += sum over rows of y * z, bias_gradient += sum over rows of y.
template <class T>
void layer_norm_backward(const LayerNormGradients<T>& t, Index rows, Index width, Workspace& workspace) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  FIT_ASSERT(rows >= 0 && width >= 1);
  FIT_ASSERT(t.weight && t.weight_gradient && t.bias_gradient && t.weight_gradient != t.bias_gradient);
  FIT_ASSERT(rows == 0 || (t.normalised && t.inverse_deviation && t.y && t.x && t.x != t.y));
  const Arena::Scope scope(workspace.arena());
  const Index block = layer_norm_block, blocks = (rows + block - 1) / block;
  // Each block of rows leaves its share of both parameter gradients, which are then summed in order.
  T* partial = workspace.arena().allocate<T>(blocks * 2 * width);
  workspace.executor().parallel_for(blocks, [&](Index task, int) {
    T *to_weight = partial + task * 2 * width, *to_bias = to_weight + width;
    std::fill_n(to_weight, 2 * width, T(0));
    for (Index i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      const T *z = t.normalised + i * width, *dy = t.y + i * width;
      T* dx = t.x + i * width;
      Batch total(T(0)), product(T(0));
      for (Index j = 0; j < width; j += w) {
        const Index count = width - j;
        const Batch zj = simd::load_part(z + j, count), dyj = simd::load_part(dy + j, count);
        const Batch g = dyj * simd::load_part(t.weight + j, count);
        total += g;
        product = simd::fma(g, zj, product);
        simd::store_part(to_weight + j, simd::fma(dyj, zj, simd::load_part(to_weight + j, count)), count);
        simd::store_part(to_bias + j, dyj + simd::load_part(to_bias + j, count), count);
      }
      const Batch mean(simd::sum(total) / static_cast<T>(width)), slope(simd::sum(product) / static_cast<T>(width));
      const Batch inverse(t.inverse_deviation[i]);
      for (Index j = 0; j < width; j += w) {
        const Index count = width - j;
        const Batch g = simd::load_part(dy + j, count) * simd::load_part(t.weight + j, count);
        const Batch change = (g - mean - simd::load_part(z + j, count) * slope) * inverse;
        simd::store_part(dx + j, simd::load_part(dx + j, count) + change, count);
      }
    }
  });
  T* sums = workspace.arena().allocate<T>(2 * width);
  std::fill_n(sums, 2 * width, T(0));
  add_column_sums({ColumnSum<T>{partial, blocks, 2 * width, sums}}, workspace);
  for (Index j = 0; j < width; ++j) {
    t.weight_gradient[j] += sums[j];
    t.bias_gradient[j] += sums[width + j];
  }
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
