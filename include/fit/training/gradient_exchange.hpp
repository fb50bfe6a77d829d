#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <fit/core/team.hpp>
#include <fit/training/shards.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// The sum of a team's gradients, one of each member, along the tree of as many leaves: part by part, each on its way
/// while later ones are computed. As add_over(), it leaves the sum in what is this member's own. For all members, which
/// add the same parts in the same order.
template <class Model>
class GradientExchange {
 public:
  using T = typename Model::Scalar;

  /// All of them must outlive it.
  GradientExchange(Team& team, const Shards& shards, Model& gradient, Workspace& workspace)
      : team_(team), shards_(shards), workspace_(workspace) {
    Index begin = 0;
    for_each_parameter(
        [&](const ParameterName&, auto p) {
          parameters_.push_back({p.data, begin, p.size});
          begin += p.size;
        },
        gradient);
    sent_.resize(parameters_.size());
  }

  /// A parameter whose gradient is whole; null ends a part. Throws Error for one that was added before: it was not.
  void add(const void* elements, Index size) {
    if (!elements) return exchange();
    std::size_t number = 0;
    while (number < parameters_.size() && parameters_[number].data != elements) ++number;
    require(number < parameters_.size() && parameters_[number].size == size,
            "a pass adds to another gradient than the one that it was given");
    require(!sent_[number], "a pass that goes back once has gone back through a trunk again");
    sent_[number] = true;
    part_.push_back(parameters_[number]);
  }

  /// Adds what has not been, and ends.
  void finish() {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (!sent_[i]) part_.push_back(parameters_[i]);
    }
    exchange();
    add_up();
  }

 private:
  /// Elements of one parameter, or some of them.
  struct Run {
    T* data;
    Index begin, size;  // of all elements
  };
  /// A part that is on its way: this member's own of it, and what others have of that.
  struct Pending {
    Index started = 0;
    std::vector<Run> own;
    Index size = 0;
    T* received = nullptr;  // [members, size]
  };

  static std::optional<Run> common(const Run& run, const IndexRange& range) {
    const Index begin = std::max(run.begin, range.first), end = std::min(run.begin + run.size, range.end());
    if (begin >= end) return std::nullopt;
    return Run{run.data + (begin - run.begin), begin, end - begin};
  }
  static Team::Message message(int with, T* data, Index size) {
    return {with, data, sizeof(T) * static_cast<std::size_t>(size)};
  }

  void exchange() {
    add_up();
    memory_.emplace(workspace_.arena());
    const int members = team_.size(), rank = team_.rank();
    Pending now;
    std::vector<Team::Message> sends, receives;
    for (const Run& run : part_) {
      if (const auto own = common(run, shards_.elements_of(rank))) {
        now.own.push_back(*own);
        now.size += own->size;
      }
      for (int other = 0; other < members; ++other) {
        if (other == rank) continue;
        if (const auto theirs = common(run, shards_.elements_of(other))) {
          sends.push_back(message(other, theirs->data, theirs->size));
        }
      }
    }
    part_.clear();
    now.received = workspace_.arena().template allocate<T>(now.size * members);
    for (int other = 0; other < members; ++other) {
      T* to = now.received + other * now.size;
      for (const Run& run : now.own) {
        if (other == rank) {
          std::copy_n(run.data, run.size, to);
        } else {
          receives.push_back(message(other, to, run.size));
        }
        to += run.size;
      }
    }
    now.started = team_.start(sends, receives);
    pending_ = std::move(now);
  }

  /// The sum of the part that is on its way.
  void add_up() {
    if (!pending_) return;
    team_.finish(pending_->started);
    const auto& [started, own, size, all] = *pending_;
    workspace_.executor().parallel_for(
        (size + piece_size - 1) / piece_size, [&, size = size, all = all](Index block, int) {
          const Index first = block * piece_size;
          sum_of_tree<T>({0, team_.size()}, std::min(piece_size, size - first), [&](const IndexRange& node) -> T* {
            return node.count == 1 ? all + node.first * size + first : nullptr;
          });
        });
    const T* from = all;  // the first leaf's, which became the sum
    for (const Run& run : own) {
      std::copy_n(from, run.size, run.data);
      from += run.size;
    }
    pending_.reset();
    memory_.reset();
  }

  Team& team_;
  const Shards& shards_;
  Workspace& workspace_;
  std::vector<Run> parameters_;
  std::vector<bool> sent_;
  std::vector<Run> part_;
  std::optional<Arena::Scope> memory_;  // of what is on its way
  std::optional<Pending> pending_;
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
