#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <fit/core/team.hpp>
#include <fit/run/log.hpp>
#include <fit/training/metrics.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

/// Losses of batches and what else is logged of them: kept until the end of their update, and then part of the means
/// that make a row of the log.
class BatchValues {
 public:
  void keep(double loss, const NamedValues& values) {
    numbers_.push_back(loss);
    names_.emplace_back("loss");
    for (const auto& [name, value] : values) {
      numbers_.push_back(value);
      names_.push_back(name);
    }
  }

  /// Adds what all members of a team kept to the means, the batches in order; range_of(member) is which of an update's
  /// batches are one's own. Returns whether all losses are finite; of a batch whose loss is not, nothing counts.
  bool take(Team& team, const std::function<IndexRange(int member)>& range_of) {
    if (team.size() > 1) gather(team, range_of);
    bool all_finite = true, finite = true;
    for (std::size_t i = 0; i < numbers_.size(); ++i) {
      const std::string& name = names_[i % names_.size()];
      if (name == "loss") finite = std::isfinite(numbers_[i]);
      all_finite = all_finite && finite;
      if (finite) mean_of(name).add(numbers_[i]);
    }
    numbers_.clear();
    names_.clear();
    return all_finite;
  }

  /// Calls f(name, mean) for what there is since clear().
  template <class F>
  void for_means(F&& f) const {
    for (const auto& [name, mean] : means_) {
      if (mean.count > 0) f(name, mean.value());
    }
  }
  void clear() {
    for (auto& [name, mean] : means_) mean = {};
  }

 private:
  /// The numbers of all members' batches, and the names of one batch.
  void gather(Team& team, const std::function<IndexRange(int)>& range_of) {
    const IndexRange own = range_of(team.rank());
    const auto count = static_cast<Index>(numbers_.size()), width = count / own.count;
    Index batches = 0;
    for (const auto& [numbers, of_one] : team.gather(std::array{count, own.count})) {
      require(numbers == width * of_one, "all batches of a team must have the same values to log");
      batches += of_one;
    }
    names_.resize(static_cast<std::size_t>(width));
    std::vector<double> all(static_cast<std::size_t>(width * batches));
    std::copy(numbers_.begin(), numbers_.end(), all.begin() + width * own.first);
    team.gather(all.data(), [&](int member) {
      const IndexRange range = range_of(member);
      return IndexRange{width * range.first, width * range.count};
    });
    numbers_ = std::move(all);
  }

  Mean& mean_of(const std::string& name) {
    for (auto& [own, mean] : means_) {
      if (own == name) return mean;
    }
    return means_.emplace_back(name, Mean()).second;
  }

  std::vector<double> numbers_;  // of the batches of this update, the loss of each first
  std::vector<std::string> names_;
  std::vector<std::pair<std::string, Mean>> means_;
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
