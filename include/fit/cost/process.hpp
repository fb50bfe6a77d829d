#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include <fit/cost/cost.hpp>
#include <fit/training/leaves.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What a process holds in a training step over leaves, in bytes. Parameters are dealt to processes in pieces of 8,192,
/// so that what is of its part alone is right to within one of them.
struct ProcessCost {
  Index weights = 0;
  Index gradients = 0;
  Index optimiser = 0;                 ///< moments and, where one is kept, the average, of its part of the parameters
  Index exchange = 0;                  ///< gradients and parameters on their way, at most
  std::vector<TapeBytes> arenas = {};  ///< of each of its tapes, for Tape::reserve()

  Index tapes() const {
    Index bytes = 0;
    for (const TapeBytes& arena : arenas) bytes += arena.total();
    return bytes;
  }
  Index peak() const { return weights + gradients + optimiser + exchange + tapes(); }
};

namespace detail {

/// Throws Error unless process number `process` has some of the leaves.
inline IndexRange leaves_of(Index leaves, int processes, int process) {
  require(processes >= 1 && process >= 0 && process < processes && leaves >= processes, "process ", process, " of ",
          processes, " has none of ", leaves, " leaves");
  return share_of(leaves, process, processes);
}

/// Of what its part of the parameters is in.
template <class T>
void add_sharded(ProcessCost& cost, const Cost& of_leaf, Index leaves, int processes, int process) {
  cost.weights = of_leaf.weights;
  cost.optimiser = of_leaf.optimiser / processes;
  if (processes == 1) return;
  const auto fragments = [&](int of) { return std::ssize(fragments_of(leaves, share_of(leaves, of, processes))); };
  Index all = 0;
  for (int other = 0; other < processes; ++other) all += fragments(other);
  const Index part = of_leaf.parameters / processes + piece_size;
  cost.exchange = static_cast<Index>(sizeof(T)) * elements_together(processes, part) *
                  std::max<Index>(processes, (processes - 1) * fragments(process) + all);
}

}  // namespace detail

/// Of a process with Leaves and a ShardedState: tapes and gradients of each of its leaves. `batch` is that of a part;
/// options.training, .members and .member do not matter. Throws Error as cost_of(), and for a process without leaves.
template <class T = float, class Config>
ProcessCost process_cost_of(const Config& config, Index batch, const LeafCounts& counts, int processes, int process,
                            CostOptions options = {}, GoesBack goes_back = GoesBack::often) {
  const Index leaves = counts.leaves();
  const IndexRange own = detail::leaves_of(leaves, processes, process);
  require(counts.shares <= std::numeric_limits<int>::max(), "an example's shares must be an int, not ", counts.shares);
  options.training = true;
  options.members = static_cast<int>(counts.shares);
  ProcessCost cost;
  for (Index leaf = own.first; leaf < own.end(); ++leaf) {
    options.member = static_cast<int>(leaf % counts.shares);
    const Cost of_leaf = cost_of<T>(config, batch, options);
    cost.gradients += of_leaf.gradients;
    cost.arenas.push_back(of_leaf.arenas);
    if (leaf == own.first) detail::add_sharded<T>(cost, of_leaf, leaves, processes, process);
  }
  // Its part of the largest stage of all processes' gradients, which may have all of its part.
  if (goes_back == GoesBack::once && processes > 1 && leaves == processes) {
    cost.exchange = std::max(cost.exchange, cost.weights + processes * detail::piece_size * Index{sizeof(T)});
  }
  return cost;
}

/// Of a process with a Run and its `leaves`: the tape and the gradient of a batch, and sums of leaves before it. Throws
/// Error as process_cost_of().
template <class T = float, class Config>
ProcessCost run_cost_of(const Config& config, Index batch, Index leaves, int processes, int process,
                        CostOptions options = {}) {
  const IndexRange own = detail::leaves_of(leaves, processes, process);
  options.training = true;
  const Cost of_batch = cost_of<T>(config, batch, options);
  ProcessCost cost{.gradients = of_batch.gradients * (leaves > 1 ? 1 + detail::most_sums(leaves, own) : 1),
                   .arenas = {of_batch.arenas}};
  detail::add_sharded<T>(cost, of_batch, leaves, processes, process);
  return cost;
}

}  // namespace FIT_ABI
}  // namespace fit
