#pragma once

#include <filesystem>
#include <optional>
#include <utility>

#include <fit/io/sharded_checkpoint.hpp>
#include <fit/run/run_base.hpp>
#include <fit/training/gradient_tree.hpp>

namespace fit {
inline namespace FIT_ABI {

/// A training run around a loop of the caller's own:
///
///     fit::Run run(state, {.steps = 1000, .rate = {.peak = 2e-3, .warm_up = 100}, .evaluate_every = 200});
///     while (run.next()) {
///       tape.record({}, state.random.split());
///       const double loss = ...;                    // of batch number run.batch(), with its gradient
///       run.update(gradient, loss, tape);
///       if (run.evaluates()) run.evaluated("accuracy", accuracy_of(run.weights()));
///     }
///     return run.finish();
///
/// The run of a ShardedState is that of a team: all members make the same calls, each of them for batches of its own,
/// and give the same names of values. The first one alone writes files and shows progress, and its clock and scores
/// count.
///
/// Batches follow from their number alone, so a run that was interrupted and is resumed has the bits of one that was
/// not, unless it goes back after that. One that is resumed with other steps, or minutes, goes on at the rates of such
/// a run. Where a loss or a gradient is not finite, the update is left out. After three in a row the run goes back to
/// the state that it saved last, and on with the batches that follow; the third time, it ends with an Error.
template <class State>
class Run : public detail::RunBase {
 public:
  using Model = decltype(State::model);

  /// Loads the state where the options say so, and else saves the first one; that of another run before it becomes
  /// NAME_state_before, and its table NAME_before.csv. Throws Error for options that cannot be, and for files that are
  /// not those of such a run.
  Run(State& state, RunOptions options)
      : RunBase(state.step, state.random, team_of(state), std::move(options)),
        state_(state),
        tree_(options_.leaves, leaves_of(team_.rank())) {
    begin();
  }

  /// Takes the gradient of a batch's mean loss, and what else to log of it. Of an update of several batches all add to
  /// the same gradient; the last one leaves it at zero. Throws Error for names that a log cannot have, or that the run
  /// logs itself, having changed nothing; and as TrainingState::update(), when the batches have been taken and the run
  /// cannot go on. A log that cannot be written is told of on the terminal, and tried again later.
  void update(Model& gradient, double loss, Workspace& workspace, const NamedValues& values = {}) {
    take(loss, values);
    if (options_.leaves > 1 && own_.first + gathered_ == batches_of(tree_.next()).end()) tree_.add(gradient, workspace);
    if (!complete()) return pause();
    const bool finite = end_batches();
    UpdateOptions with = options_.update;
    with.learning_rate = rate_now();
    with.not_finite = NotFinite::skip;
    std::optional<double> norm;
    if (finite) {
      Model& sum = sum_of(gradient, workspace);
      if (options_.accumulate > 1)
        detail::scale_gradient(sum, 1.0 / static_cast<double>(options_.accumulate), workspace);
      norm = state_.update(sum, with, workspace);
    } else {
      set_zero(gradient);
      ++state_.step;
    }
    tree_.clear(finite);
    updated(with.learning_rate, norm);
  }

  /// What to evaluate, and what is saved as the best: the moving average, where there is one, and else the model.
  const Model& weights() const { return state_.weights(); }

 private:
  static constexpr bool of_team = requires(State & state) { state.team(); };
  static Team* team_of(State& state) {
    if constexpr (of_team) return &state.team();
    return nullptr;
  }

  /// The sum of all leaves; of a team, what is this member's of it.
  Model& sum_of(Model& gradient, Workspace& workspace) {
    if (options_.leaves == 1) return gradient;
    if constexpr (of_team) return state_.sum(tree_, workspace);
    return tree_.fragments().front().gradient;
  }

  void save_to(const std::filesystem::path& path, const Metadata& metadata) const override {
    save(path, std::as_const(state_), {.metadata = metadata});
  }
  void load_from(const std::filesystem::path& path) override { load(path, state_); }
  void save_weights_to(const std::filesystem::path& path) const override {
    const Model& of_all = weights();
    team_.lead([&] { save(path, of_all); });
  }

  State& state_;
  GradientTree<Model> tree_;
};

}  // namespace FIT_ABI
}  // namespace fit
