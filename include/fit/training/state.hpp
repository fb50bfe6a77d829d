#pragma once

#include <fit/core/random.hpp>
#include <fit/training/adamw.hpp>

namespace fit::inline FIT_ABI {

/// All that a training run needs to go on where it stopped, to the bit: save it and load it as one would a model.
template <class Model>
struct TrainingState {
  using T = typename Model::T;

  Model model = {};
  Model average = {};  ///< the moving average of the parameters
  AdamW<Model> optimizer = {};
  Index step = 0;
  Random random{0};

  static void visit(auto&& f, auto&... p) {
    f("model", p.model...);
    f("average", p.average...);
    f("first_moment", p.optimizer.first_moment...);
    f("second_moment", p.optimizer.second_moment...);
  }
};

}  // namespace fit::inline FIT_ABI
