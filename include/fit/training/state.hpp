#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include <fit/core/random.hpp>
#include <fit/training/adamw.hpp>
#include <fit/training/clip.hpp>
#include <fit/training/ema.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What to do about a gradient whose norm is not finite: throw Error, or leave the step out, as the norm tells.
enum class NotFinite { error, skip };

/// How a step of training goes.
struct UpdateOptions {
  double learning_rate = 1e-3;
  double clip = 1;  ///< the largest norm that a gradient keeps; infinity for any
  /// Of the moving average, which follows the model more closely at first: the decay is at most (1 + n) / (10 + n) in
  /// step n, the first being 0.
  double average_decay = 0.999;
  NotFinite not_finite = NotFinite::error;

  double decay_in(Index step) const {
    const auto done = static_cast<double>(step);
    return std::min(average_decay, (1 + done) / (10 + done));
  }
};

/// All that a training run needs to go on where it stopped, to the bit, but for the options of the optimiser, which are
/// the program's: save it and load it as one would a model.
template <class Model>
struct TrainingState {
  using Scalar = typename Model::Scalar;

  Model model = {};
  std::optional<Model> average = {};  ///< the moving average of the parameters, if there shall be one: begin from model
  AdamW<Model> optimizer = {};
  Index step = 0;
  Random random{0};

  static void visit(auto&& f, auto&... p) {
    f("model", p.model...);
    f("average", p.average...);
    f("first_moment", p.optimizer.first_moment...);
    f("second_moment", p.optimizer.second_moment...);
  }

  /// The moving average, where there is one, and else the model.
  const Model& weights() const { return average ? *average : model; }

  /// What follows the way back of each step: clips the gradient, changes the model and its average, counts the step,
  /// and sets the gradient to zero for the next one. Returns the gradient's norm before it was clipped, frozen
  /// parameters left out. Where that is not finite, model, moments and average stay; a step that is skipped counts.
  ///
  /// Throws Error for wrong options, having changed nothing, and, if they say so, for a norm that is not finite, having
  /// set the gradient to zero.
  double update(Model& gradient, const UpdateOptions& options, Workspace& workspace) {
    detail::check_largest_norm(options.clip);
    detail::check_average_decay(options.average_decay);
    optimizer.prepare(model, options.learning_rate);
    optimizer.zero_frozen(gradient);
    const double norm = clip_gradient(gradient, options.clip, workspace);
    if (std::isfinite(norm)) {
      optimizer.step(model, gradient, options.learning_rate, workspace);
      if (average) update_average(*average, model, options.decay_in(step), workspace);
    }
    set_zero(gradient);
    require(std::isfinite(norm) || options.not_finite == NotFinite::skip, "the norm of the gradient in step ", step,
            " is not finite");
    ++step;
    return norm;
  }
};

}  // namespace FIT_ABI
}  // namespace fit
