#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>

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

namespace detail {

/// Calls body(count, i), with a constant count of rows, for rows first..end-1: for some side by side where rows are
/// short, so that none waits for its own sums; longer ones would fall on each other in the caches.
template <class T, class Body>
void for_rows_together(Index first, Index end, Index width, Body&& body) {
  constexpr Index together = 4;
  Index i = first;
  if (width * static_cast<Index>(sizeof(T)) <= 1024) {
    for (; i + together <= end; i += together) body(std::integral_constant<Index, together>{}, i);
  }
  for (; i < end; ++i) body(std::integral_constant<Index, 1>{}, i);
}

/// Some rows of layer_norm(), from row i on.
template <class T, Index Rows>
void normalise_rows(const LayerNormTensors<T>& t, Index i, Index width) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  const Index whole = width / w * w;
  const T* const from = t.x + i * width;
  Batch sums[std::size_t{Rows}];
  T mean[std::size_t{Rows}], inverse[std::size_t{Rows}];
  for (Batch& sum : sums) sum = Batch(T(0));
  for (Index j = 0; j < whole; j += w) {
#pragma GCC unroll 4
    for (Index r = 0; r < Rows; ++r) sums[r] += simd::load(from + r * width + j);
  }
#pragma GCC unroll 4
  for (Index r = 0; r < Rows; ++r) {
    T sum = simd::sum(sums[r]);
    for (Index j = whole; j < width; ++j) sum += from[r * width + j];
    mean[r] = sum / static_cast<T>(width);
    sums[r] = Batch(T(0));
  }
  for (Index j = 0; j < whole; j += w) {
#pragma GCC unroll 4
    for (Index r = 0; r < Rows; ++r) {
      const Batch off = simd::load(from + r * width + j) - Batch(mean[r]);
      sums[r] = simd::fma(off, off, sums[r]);
    }
  }
#pragma GCC unroll 4
  for (Index r = 0; r < Rows; ++r) {
    T square = simd::sum(sums[r]);
    for (Index j = whole; j < width; ++j) square += (from[r * width + j] - mean[r]) * (from[r * width + j] - mean[r]);
    inverse[r] = T(1) / std::sqrt(square / static_cast<T>(width) + static_cast<T>(layer_norm_epsilon));
    if (t.inverse_deviation) t.inverse_deviation[i + r] = inverse[r];
  }
  for (Index j = 0; j < width; j += w) {
    const Index count = width - j;
    const Batch weight = simd::load_part(t.weight + j, count), bias = simd::load_part(t.bias + j, count);
#pragma GCC unroll 4
    for (Index r = 0; r < Rows; ++r) {
      const Index at = (i + r) * width + j;
      const Batch z = (simd::load_part(t.x + at, count) - Batch(mean[r])) * Batch(inverse[r]);
      if (t.normalised) simd::store_part(t.normalised + at, z, count);
      simd::store_part(t.y + at, simd::fma(z, weight, bias), count);
    }
  }
}

/// Some rows of layer_norm_backward(), from row i on, whose share of the parameters' gradients is added to to_weight
/// and to_bias.
template <class T, Index Rows>
void normalise_rows_backward(const LayerNormGradients<T>& t, Index i, Index width, T* to_weight, T* to_bias) {
  using Batch = simd::Batch<T>;
  constexpr Index w = simd::width<T>;
  Batch total[std::size_t{Rows}], product[std::size_t{Rows}];
#pragma GCC unroll 4
  for (Index r = 0; r < Rows; ++r) total[r] = product[r] = Batch(T(0));
  for (Index j = 0; j < width; j += w) {
    const Index count = width - j;
    const Batch weight = simd::load_part(t.weight + j, count);
    Batch of_weight = simd::load_part(to_weight + j, count), of_bias = simd::load_part(to_bias + j, count);
#pragma GCC unroll 4
    for (Index r = 0; r < Rows; ++r) {
      const Index at = (i + r) * width + j;
      const Batch z = simd::load_part(t.normalised + at, count), dy = simd::load_part(t.y + at, count);
      const Batch g = dy * weight;
      total[r] += g;
      product[r] = simd::fma(g, z, product[r]);
      of_weight = simd::fma(dy, z, of_weight);
      of_bias = dy + of_bias;
    }
    simd::store_part(to_weight + j, of_weight, count);
    simd::store_part(to_bias + j, of_bias, count);
  }
  T mean[std::size_t{Rows}], slope[std::size_t{Rows}];
#pragma GCC unroll 4
  for (Index r = 0; r < Rows; ++r) {
    mean[r] = simd::sum(total[r]) / static_cast<T>(width);
    slope[r] = simd::sum(product[r]) / static_cast<T>(width);
  }
  for (Index j = 0; j < width; j += w) {
    const Index count = width - j;
    const Batch weight = simd::load_part(t.weight + j, count);
#pragma GCC unroll 4
    for (Index r = 0; r < Rows; ++r) {
      const Index at = (i + r) * width + j;
      const Batch z = simd::load_part(t.normalised + at, count), dy = simd::load_part(t.y + at, count);
      const Batch change = simd::fma(z, Batch(-slope[r]), simd::fma(dy, weight, Batch(-mean[r])));
      const Batch inverse(t.inverse_deviation[i + r]);
      simd::store_part(t.x + at, simd::fma(change, inverse, simd::load_part(t.x + at, count)), count);
    }
  }
}

}  // namespace detail

/// y = weight * z + bias with z = (x - mean) / sqrt(variance + 1e-6), over each of `rows` rows of `width`; the variance
/// is the biased one. Ba, Kiros and Hinton, arXiv 1607.06450.
template <class T>
void layer_norm(const LayerNormTensors<T>& t, Index rows, Index width, Executor& executor) {
  FIT_ASSERT(rows >= 0 && width >= 1);
  FIT_ASSERT(rows == 0 || (t.x && t.weight && t.bias && t.y));
  const Index block = std::max<Index>(1, 8192 / std::max<Index>(width, 1));
  executor.parallel_for((rows + block - 1) / block, [&](Index task, int) {
    detail::for_rows_together<T>(task * block, std::min(rows, (task + 1) * block), width,
                                 [&](auto count, Index i) { detail::normalise_rows<T, count()>(t, i, width); });
  });
}

/// The way back: x += inverse_deviation * (g - mean(g) - z * mean(g z)) with g = weight * y,
/// weight_gradient += sum over rows of y * z, bias_gradient += sum over rows of y.
template <class T>
void layer_norm_backward(const LayerNormGradients<T>& t, Index rows, Index width, Workspace& workspace) {
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
    detail::for_rows_together<T>(task * block, std::min(rows, (task + 1) * block), width, [&](auto count, Index i) {
      detail::normalise_rows_backward<T, count()>(t, i, width, to_weight, to_bias);
    });
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
