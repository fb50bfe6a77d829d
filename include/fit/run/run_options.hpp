#pragma once

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>

#include <fit/training/learning_rate.hpp>
#include <fit/training/state.hpp>

namespace fit {
inline namespace FIT_ABI {

/// How a training run goes, and what it leaves: FOLDER/NAME.safetensors, the best weights; NAME_last.safetensors, the
/// last ones; NAME_state.safetensors, to go on from; and the log, NAME.csv, .svg and .jsonl.
struct RunOptions {
  std::filesystem::path folder = "out";
  std::string name = "model";
  Index steps = 0;            ///< updates of the model in all; or
  double minutes = 0;         ///< as many as fit into this time, evaluations aside, by the speed of the first ones
  LearningRate rate = {};     ///< of an update
  UpdateOptions update = {};  ///< but for its learning rate, and what to do about a gradient that is not finite
  Index accumulate = 1;       ///< batches whose gradients are averaged for an update
  /// Parts of an update's batches that are summed by themselves; their sums are added along a tree, for which up to the
  /// logarithm of as many gradients are held. With as many leaves, runs of a team have the same bits whatever its size,
  /// which is at most that.
  Index leaves = 1;
  Index batch = 1;           ///< examples of a batch, for the speed that is shown
  Index evaluate_every = 0;  ///< updates; 0 for at the end only
  Index save_every = 0;      ///< updates; 0 for with every evaluation, or every 1,000 where there is but the last
  Index log_every = 10;      ///< updates of which a row of the log is the mean
  Index patience = 0;        ///< evaluations without a better score after which a run ends early; 0 for any number
  bool smaller_is_better = false;
  bool resume = false;           ///< go on from the state, if there is one
  std::FILE* terminal = stdout;  ///< for progress; null for none
};

namespace detail {

/// Throws Error for options that cannot be those of a run of so many members.
inline void check(const RunOptions& o, int members) {
  require((o.steps > 0) != (o.minutes > 0) && o.steps >= 0 && o.minutes >= 0 && std::isfinite(o.minutes),
          "a run needs steps or minutes, not ", o.steps, " and ", o.minutes);
  require(o.accumulate >= 1 && o.batch >= 1 && o.log_every >= 1,
          "accumulate, batch and log_every of a run must be at least 1, not ", o.accumulate, ", ", o.batch, " and ",
          o.log_every);
  require(o.leaves >= 1 && o.leaves <= o.accumulate, "leaves of a run must be 1 to its ", o.accumulate,
          " batches of an update, not ", o.leaves);
  require(members <= o.leaves, "a team of ", members, " needs a run of as many leaves, not ", o.leaves);
  require(o.evaluate_every >= 0 && o.save_every >= 0 && o.patience >= 0,
          "evaluate_every, save_every and patience of a run must not be negative");
  require(std::isfinite(o.rate.peak) && std::isfinite(o.rate.floor), "the rates of a run must be finite, not ",
          o.rate.peak, " and ", o.rate.floor);
  check_largest_norm(o.update.clip);
  check_average_decay(o.update.average_decay);
  require(!o.name.empty() && o.name.find('/') == o.name.npos, "the name of a run must be that of a file, not \"",
          o.name, "\"");
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
