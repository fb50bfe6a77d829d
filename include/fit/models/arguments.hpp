#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <limits>

#include <fit/core/tape.hpp>
#include <fit/core/tensor.hpp>
#include <fit/models/config.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Input that never stands in memory as a whole: made group by group, from pixels of 8 bits, a mapped file, a formula.
template <class T>
struct GroupSource {
  Index batch = 1, groups = 0;  ///< examples, and groups of each
  /// Fills the tokens [count, tokens, channels] of groups first .. first + count - 1 of batch * groups. Asked for each
  /// group several times, and must answer alike.
  std::function<void(Index first, Index count, T* tokens)> fill = {};
  /// Told the gradient by them, where it is given; of each group once.
  std::function<void(Index first, Index count, const T* gradient)> gradient = {};
  Grid grid = {};  ///< how the groups lie, where latent_positions are sin_cos_grid, and only there
};

/// What is made of a model's output, group by group: given that of groups first .. first + count - 1 of batch * groups,
/// returns their share of a loss and, where there is a place for it, writes its gradient by them, shaped alike.
template <class T>
using GroupLoss = std::function<double(Index first, Index count, const T* output, T* gradient)>;

/// How far a pass through a model is. Of a stage there are what its groups do by themselves, Part::local, and then its
/// blocks over the latents, Part::global; the way back meets them in reverse order.
struct PassProgress {
  std::size_t stage;
  Part part;
  bool backward;
  Index done, all;  ///< groups of the batch, or blocks of its examples
};

/// Told after every chunk of groups, and after every block over the latents of some examples.
using Watch = std::function<void(const PassProgress&)>;

namespace detail {

/// Of the calls that name no tape: one for each thread.
inline Tape& inference_tape() {
  thread_local Tape tape;
  return tape;
}

/// Throws Error for examples without groups, or a batch whose largest tensors could not be counted.
template <auto config>
void require_counts(Index batch, Index groups, Index tokens) {
  const Index data = tokens * config.data_dim, latents = Index{config.latents} * config.latent_dim;
  const Index largest = std::max(data, latents) * std::max(4, config.mlp_ratio);  // of a group
  const Index most_groups = std::numeric_limits<Index>::max() / 64 / largest;
  require(groups >= 1 && groups <= most_groups, "an example must have 1 to ", most_groups, " groups, not ", groups);
  const Index most = most_groups / groups;
  require(batch <= most, "a batch of ", batch, " examples is too large to be counted: ", most, " is the most");
}

/// Throws Error where a member of a team would have no group of an example.
inline void require_share(Index groups, const Team& team) {
  require(groups >= team.size(), "a team of ", team.size(), " cannot share the ", groups, " groups of an example");
}

/// How many of an example's groups are a member's, or all without a team. Throws Error where one would have none.
template <auto config>
Index own_groups(Index all, Team* team) {
  if (!team) return all;
  require_share(all, *team);
  return share_of_groups(config, all, team->rank(), team->size()).count;
}

/// What a pass is over: examples of so many groups, or of those that this member of a team has, of a model with
/// config.groups. Throws Error where they are not a member's share.
template <auto config>
Sizes sizes_of(Index batch, Index groups, Index tokens, Team* team) {
  Sizes sizes{batch, groups, tokens, config.latents};
  if (!team) return sizes;
  Index all = config.groups;
  if constexpr (config.groups == any) {
    all = 0;
    for (const Index of_one : team->gather(groups)) all += of_one;
  }
  require_share(all, *team);
  const IndexRange own = share_of_groups(config, all, team->rank(), team->size());
  require(own.count == groups, "member ", team->rank(), " of a team of ", team->size(), " needs its share of ", all,
          " groups, ", own.count, ", not ", groups);
  sizes.team = team;
  sizes.first_group = own.first;
  sizes.example_groups = all;
  sizes.growth = growth_of(config);
  return sizes;
}

/// The same of a source, which has the groups of all members.
template <auto config, class U>
Sizes sizes_of(const GroupSource<U>& source, Index tokens, Team* team) {
  return sizes_of<config>(source.batch, own_groups<config>(source.groups, team), tokens, team);
}

/// The number of groups that an input must have, or -1 for any.
template <auto config>
Index groups_wanted(Team* team) {
  return config.groups == any ? any : own_groups<config>(config.groups, team);
}

/// The sum over a team, in the order of its members.
inline double sum_over(Team* team, double value) {
  if (!team) return value;
  double sum = 0;
  for (const double of_one : team->gather(value)) sum += of_one;
  return sum;
}

/// The same of as many values each, which all members then have.
template <class T>
void sum_over(Team& team, T* values, Index count, Tape& tape) {
  const Arena::Scope scope(tape.arena());
  T* const all = tape.scratch<T>(count * team.size());
  std::copy_n(values, count, all + team.rank() * count);
  team.gather(all, [&](int member) { return IndexRange{member * count, count}; });
  std::copy_n(all, count, values);
  for (Index i = count; i < count * team.size(); ++i) values[i % count] += all[i];
}

/// Throws Error unless a grid is there exactly where the latents' positions need one, and has as many groups.
template <auto config>
void require_grid(const Grid& grid, Index groups) {
  if (config.latent_positions != Positions::sin_cos_grid) {
    return require(grid == Grid{}, "a grid is for latent positions that are sin_cos_grid, unlike this model's");
  }
  const auto& [frames, rows, columns] = grid;
  require(frames >= 0 && rows > 0 && columns > 0 && groups % rows == 0 && groups / rows % columns == 0 &&
              groups / rows / columns == std::max<Index>(1, frames),
          "the grid must have as many groups as an example, ", groups, ", and not be one of ", frames, " frames, ",
          rows, " rows and ", columns, " columns");
}

/// Throws Error for a source that no pass could be over.
template <auto config, class U>
void require_source(const GroupSource<U>& source, Index tokens) {
  require(source.fill != nullptr, "a source of groups needs a function that fills them");
  require(source.batch >= 0, "a batch must not be negative, but is ", source.batch);
  require(config.groups == any || source.groups == config.groups, "the source must give ", config.groups,
          " groups for an example, not ", source.groups);
  require_counts<config>(source.batch, source.groups, tokens);
  require_grid<config>(source.grid, source.groups);
}

/// A tensor in memory of the tape that lasts until it records or is cleared again.
template <class T, class... Counts>
TensorView<T, static_cast<int>(sizeof...(Counts))> output(Tape& tape, Counts... counts) {
  return {tape.output<T>((Index{1} * ... * counts)), Index{counts}...};
}

/// both [count, first_size + second_size] = first [count, first_size] and second [count, second_size] side by side.
template <class T>
void join(const T* first, Index first_size, const T* second, Index second_size, T* both, Index count) {
  for (Index i = 0; i < count; ++i) {
    both = std::copy_n(first + i * first_size, first_size, both);
    both = std::copy_n(second + i * second_size, second_size, both);
  }
}

/// The inverse.
template <class T>
void split(const T* both, T* first, Index first_size, T* second, Index second_size, Index count) {
  for (Index i = 0; i < count; ++i, both += first_size + second_size) {
    std::copy_n(both, first_size, first + i * first_size);
    std::copy_n(both + first_size, second_size, second + i * second_size);
  }
}

/// Scratch memory that starts at zero.
template <class T>
T* zeros(Index count, Tape& tape) {
  T* values = tape.scratch<T>(count);
  std::fill_n(values, count, T(0));
  return values;
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
