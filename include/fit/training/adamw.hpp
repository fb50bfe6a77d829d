#pragma once

#include <cmath>

#include <fit/training/pieces.hpp>

namespace fit::inline FIT_ABI {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  /// Shrinks matrices (rank 2 and above) by learning rate * weight_decay a step; norms and biases are left alone.
  double weight_decay = 0.01;
};

/// Adam with decoupled weight decay. Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
/// Its state is its members, to be saved and restored as they are.
template <class Model>
struct AdamW {
  using T = typename Model::T;

  AdamWOptions options = {};
  Model first_moment = {}, second_moment = {};
  Index steps = 0;

  /// One step of the given learning rate: changes the model and the moments. Throws Error when the rate is not finite.
  void step(Model& model, const Model& gradient, double learning_rate, Workspace& workspace) {
    require(std::isfinite(learning_rate), "the learning rate must be finite, not ", learning_rate);
    ++steps;
    const auto count = static_cast<double>(steps);
    const T rate = static_cast<T>(learning_rate / (1 - std::pow(options.beta1, count)));
    const T correction = static_cast<T>(1 / std::sqrt(1 - std::pow(options.beta2, count)));
    const T beta1 = static_cast<T>(options.beta1), beta2 = static_cast<T>(options.beta2);
    const T rest1 = static_cast<T>(1 - options.beta1), rest2 = static_cast<T>(1 - options.beta2);
    const T epsilon = static_cast<T>(options.epsilon);
    const T shrink = static_cast<T>(1 - learning_rate * options.weight_decay);
    for_each_piece(
        [&](const auto& piece, Index) {
          T* parameter = piece.data[0];
          const T* slope = piece.data[1];
          T *m = piece.data[2], *v = piece.data[3];
          const T keep = piece.rank >= 2 ? shrink : T(1);
          for (Index i = 0; i < piece.size; ++i) {
            m[i] = beta1 * m[i] + rest1 * slope[i];
            v[i] = beta2 * v[i] + rest2 * slope[i] * slope[i];
            parameter[i] = keep * parameter[i] - rate * m[i] / (std::sqrt(v[i]) * correction + epsilon);
          }
        },
        workspace, model, gradient, first_moment, second_moment);
  }
};

}  // namespace fit::inline FIT_ABI
