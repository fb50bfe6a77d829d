#pragma once

#include <algorithm>

#include <fit/cost/cost.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What a member of a team is: how fast it computes a step, and how fast it sends and receives.
struct MemberSpeed {
  double flops_per_second = 0;  ///< measured in a step of one
  double bits_per_second = 0;
};

/// Seconds of a training step of a team, of the member that has most to do, on paper: as if nothing were sent while it
/// computes, and messages take no time but that of their bytes.
struct StepTime {
  double computing = 0, sending = 0;

  constexpr double seconds() const { return computing + sending; }
};

namespace detail {

/// Bytes that a member sends for gradients to be added up and parameters to be handed round.
constexpr double bytes_of_update(const Cost& cost, Index members) {
  return 2 * static_cast<double>(cost.weights) * static_cast<double>(members - 1) / static_cast<double>(members);
}

constexpr StepTime time_of(double flops, double bytes, const MemberSpeed& speed) {
  require(speed.flops_per_second > 0 && speed.bits_per_second > 0, "a member must compute and send something");
  return {flops / speed.flops_per_second, 8 * bytes / speed.bits_per_second};
}

/// A plain transformer's cost, shared out evenly: all it has is "(N)" local blocks over one group.
template <class T>
constexpr Cost plain_cost(const EncoderConfig& config, Index batch, Index members) {
  const Plan plan = plan_of(config.layers);
  require(config.groups == 1 && plan.count == 1 && !plan[0].reads,
          "a plain transformer has one group, and local blocks alone");
  require(members >= 1 && members <= config.tokens, "a sequence of ", config.tokens,
          " tokens goes to as many members, ", "not ", members);
  return cost_of<T>(config, batch, {.training = true, .by_groups = true});
}
template <class T>
constexpr double bytes_of_tokens(const EncoderConfig& config, Index batch, Index width) {
  return static_cast<double>(batch) * config.tokens * static_cast<double>(width) * sizeof(T);
}

}  // namespace detail

/// Of a FIT whose members share the groups of every example; options.member does not matter. Throws Error as cost_of().
template <class T = float, class Config>
constexpr StepTime shared_step(const Config& config, Index batch, CostOptions options, const MemberSpeed& speed) {
  options.training = true;
  StepTime longest;
  // The last one has no fewer groups than others, but under a mask.
  options.member = detail::trunk_of(config).mask == LatentMask::none ? options.members - 1 : 0;
  do {
    const Cost cost = cost_of<T>(config, batch, options);
    const double bytes = static_cast<double>(cost.sent) + detail::bytes_of_update(cost, options.members);
    const StepTime time = detail::time_of(static_cast<double>(cost.flops().total()), bytes, speed);
    if (time.seconds() > longest.seconds()) longest = time;
  } while (++options.member < options.members);
  return longest;
}

/// Of a plain transformer by ring attention (Liu, Zaharia and Abbeel, arXiv 2310.01889): each member has a part of the
/// tokens, and keys and values go round, on the way back with their gradients. `config` is an encoder of one group and
/// local blocks alone. Throws Error for another one.
template <class T = float>
constexpr StepTime ring_step(const EncoderConfig& config, Index batch, Index members, const MemberSpeed& speed) {
  const Cost cost = detail::plain_cost<T>(config, batch, members);
  const Index blocks = plan_of(config.layers)[0].local_blocks;
  const double passed = static_cast<double>(members - 1) / static_cast<double>(members);
  const double of_keys = detail::bytes_of_tokens<T>(config, batch, 2 * detail::trunk_of(config).data_key_dim());
  const double bytes = static_cast<double>(3 * blocks) * of_keys * passed + detail::bytes_of_update(cost, members);
  return detail::time_of(static_cast<double>(cost.flops().total()) / static_cast<double>(members), bytes, speed);
}

/// Of a plain transformer by Ulysses (Jacobs et al., arXiv 2309.14509): members have a part of the tokens, and for
/// attention all tokens of a part of the heads; queries, keys, values and what attention makes of them change hands,
/// and their gradients. Throws Error for more members than heads, too.
template <class T = float>
constexpr StepTime ulysses_step(const EncoderConfig& config, Index batch, Index members, const MemberSpeed& speed) {
  const Cost cost = detail::plain_cost<T>(config, batch, members);
  require(members <= config.data_heads, "Ulysses deals ", config.data_heads, " heads to as many members, not ",
          members);
  const Index blocks = plan_of(config.layers)[0].local_blocks;
  const double passed = static_cast<double>(members - 1) / static_cast<double>(members);
  const Index width = 2 * config.data_dim + 2 * detail::trunk_of(config).data_key_dim();
  const double of_one = detail::bytes_of_tokens<T>(config, batch, width) / static_cast<double>(members);
  const double bytes = static_cast<double>(2 * blocks) * of_one * passed + detail::bytes_of_update(cost, members);
  return detail::time_of(static_cast<double>(cost.flops().total()) / static_cast<double>(members), bytes, speed);
}

}  // namespace FIT_ABI
}  // namespace fit
