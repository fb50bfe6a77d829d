#pragma once

#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <fit/core/tape.hpp>
#include <fit/core/turns.hpp>
#include <fit/training/gradient_exchange.hpp>
#include <fit/training/gradient_tree.hpp>
#include <fit/training/sharded_state.hpp>

namespace fit {
inline namespace FIT_ABI {

/// How a training step is cut: a batch in parts, and the groups of each part's examples in shares.
struct LeafCounts {
  Index parts = 1, shares = 1;

  /// How many leaves there are. Throws Error for no parts, no shares, and more than can be counted.
  Index leaves() const {
    require(parts >= 1 && shares >= 1 && parts <= std::numeric_limits<Index>::max() / shares,
            "leaves are at least 1 part of at least 1 share, and as many as can be counted, not ", parts, " parts of ",
            shares, " shares");
    return parts * shares;
  }
};

/// How often a pass over a leaf goes back through a trunk. Once, and if it adds nothing to the trunk's gradient
/// afterwards, gradients may change hands stage by stage while those of earlier stages are computed: where all members
/// have one leaf. That takes as much memory again as the weights, at most.
enum class GoesBack { often, once };

/// A training step over leaves: the shares of all parts, dealt to the members of a team, at least one to each. What a
/// step computes follows from these two numbers, not from the team.
///
///     fit::Leaves<Model> leaves(world, {.shares = 4}, executor);
///     const double loss = leaves.pass([&](fit::Tape& tape, Model& gradient, Index part) {
///       return state.model.loss(source_of(part), loss, gradient, tape, options, random.fork(part));
///     });
///     leaves.update(state, {.learning_rate = 1e-3});
///
/// Every leaf has a tape and a gradient; those of one member take turns.
template <class Model>
class Leaves {
 public:
  /// The team and the executor must outlive it. Throws Error for fewer leaves than members.
  Leaves(Team& team, LeafCounts counts, Executor& executor)
      : team_(team), counts_(counts), workspace_(executor), tree_(counts.leaves(), own(team, counts)) {
    require(counts.leaves() >= team.size(), "a team of ", team.size(), " needs as many leaves, not ", counts.parts,
            " parts of ", counts.shares, " shares");
    for (Index i = 0; i < own(team, counts).count; ++i) tapes_.emplace_back(executor);
  }

  /// The tapes of this member's leaves, for Tape::reserve().
  std::vector<Tape>& tapes() { return tapes_; }

  /// Calls pass(tape, gradient, part) for this member's leaves; it returns the loss of its part, which is the same for
  /// all of its shares, and adds the loss's gradient. Returns the mean over the parts, the same for all members. Throws
  /// Error for a pass that goes back more often than it is said to.
  template <class Pass>
  double pass(Pass&& pass, GoesBack goes_back = GoesBack::often) {
    tree_.clear();
    summed_ = goes_back == GoesBack::once && team_.size() > 1 && tree_.leaves() == team_.size();
    const Index first = tree_.next();
    std::vector<Model> gradients;
    for (std::size_t i = 0; i < tapes_.size(); ++i) gradients.push_back(tree_.zero());
    double mean = 0;
    take_turns(team_, tree_.leaves(), [&](Team& task, Index leaf) {
      const Index part = leaf / counts_.shares;
      Subteam sharing(task, static_cast<int>(part * counts_.shares), static_cast<int>(counts_.shares));
      const auto own = static_cast<std::size_t>(leaf - first);
      const Joined joined(tapes_[own], sharing);
      const double loss =
          summed_ ? exchanging(pass, tapes_[own], gradients[own], part) : pass(tapes_[own], gradients[own], part);
      const auto losses = task.gather(loss);
      mean = 0;
      for (Index i = 0; i < counts_.parts; ++i) mean += losses[static_cast<std::size_t>(i * counts_.shares)];
      mean /= static_cast<double>(counts_.parts);
    });
    for (Model& gradient : gradients) tree_.add(std::move(gradient), workspace_);
    return mean;
  }

  /// What follows a pass: State::update() with the mean of the parts' gradients. Returns its norm. Throws Error without
  /// a pass and for wrong options, having changed nothing, and as State::update(), after which there has been no pass.
  double update(ShardedState<Model>& state, const UpdateOptions& options) {
    require(tree_.complete(), "an update of leaves follows a pass, and there is none since the last one");
    state.prepare(options);
    double norm;
    try {
      Model& sum = summed_ ? tree_.fragments().front().gradient : state.sum(tree_, workspace_);
      if (counts_.parts > 1) detail::scale_gradient(sum, 1.0 / static_cast<double>(counts_.parts), workspace_);
      norm = state.update(sum, options, workspace_);
    } catch (...) {
      tree_.clear();
      throw;
    }
    tree_.clear(true);
    return norm;
  }

 private:
  /// A tape speaks for a team, and tells of gradients, no longer than a pass takes.
  struct Joined {
    Joined(Tape& its, Team& team) : tape(its) { tape.join(&team); }
    Joined(const Joined&) = delete;
    Joined& operator=(const Joined&) = delete;
    ~Joined() {
      tape.join(nullptr);
      tape.when_finished(nullptr);
    }
    Tape& tape;
  };

  /// A pass whose gradient is summed over the team as it comes.
  template <class Pass>
  double exchanging(Pass& pass, Tape& tape, Model& gradient, Index part) {
    const detail::Shards shards(gradient, team_.size());
    detail::GradientExchange<Model> sum(team_, shards, gradient, workspace_);
    const BetweenPieces polls([this] { team_.poll(); });
    tape.when_finished([&](const void* elements, Index count) { sum.add(elements, count); });
    const double loss = pass(tape, gradient, part);
    sum.finish();
    return loss;
  }

  static IndexRange own(const Team& team, const LeafCounts& counts) {
    return share_of(counts.leaves(), team.rank(), team.size());
  }

  Team& team_;
  LeafCounts counts_;
  Workspace workspace_;
  GradientTree<Model> tree_;
  std::vector<Tape> tapes_;
  bool summed_ = false;  // by the pass itself
};

}  // namespace FIT_ABI
}  // namespace fit
