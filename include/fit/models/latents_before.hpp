#pragma once

#include <algorithm>

#include <fit/models/arguments.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// Sends to the member `by` further on, and receives from the one as far before, where there are such members.
template <class T>
void pass_on(Team& team, T* sent, T* received, Index size, int by) {
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(size);
  const auto there = [&](int member) { return member >= 0 && member < team.size() ? 1u : 0u; };
  const Team::Message to{team.rank() + by, sent, bytes}, from{team.rank() - by, received, bytes};
  team.exchange({&to, there(to.with)}, {&from, there(from.with)});
}

/// What an autoregressive model's groups are written from, [batch, groups, latents, width]: the latents of the
/// group before, zeros for the first. A copy, as the groups' reads change the latents in place. The last ones of a
/// team's member are for the next member's first group.
template <class T>
const T* latents_before(const T* z, Index width, const Sizes& sizes, Tape& tape) {
  const Index group = sizes.latents * width, example = sizes.groups * group;
  T* before = tape.allocate<T>(sizes.batch * example);
  for (Index b = 0; b < sizes.batch; ++b) {
    std::fill_n(before + b * example, group, T(0));
    std::copy_n(z + b * example, example - group, before + b * example + group);
  }
  if (sizes.team) {
    const Arena::Scope scope(tape.arena());
    T* const last = tape.scratch<T>(sizes.batch * group);
    T* const received = zeros<T>(sizes.batch * group, tape);
    for (Index b = 0; b < sizes.batch; ++b) std::copy_n(z + (b + 1) * example - group, group, last + b * group);
    pass_on(*sizes.team, last, received, sizes.batch * group, 1);
    for (Index b = 0; b < sizes.batch; ++b) std::copy_n(received + b * group, group, before + b * example);
  }
  return before;
}

/// The way back: adds what the groups were written from to the gradient of the latents.
template <class T>
void add_latents_before(const T* before_gradient, T* z_gradient, Index width, const Sizes& sizes, Tape& tape) {
  const Index group = sizes.latents * width, example = sizes.groups * group;
  if (sizes.team) {
    const Arena::Scope scope(tape.arena());
    T* const first = tape.scratch<T>(sizes.batch * group);
    T* const received = zeros<T>(sizes.batch * group, tape);
    for (Index b = 0; b < sizes.batch; ++b) std::copy_n(before_gradient + b * example, group, first + b * group);
    pass_on(*sizes.team, first, received, sizes.batch * group, -1);
    for (Index i = 0; i < sizes.batch * group; ++i) {
      z_gradient[(i / group + 1) * example - group + i % group] += received[i];
    }
  }
  for (Index b = 0; b < sizes.batch; ++b) {
    const T* from = before_gradient + b * example + group;
    T* to = z_gradient + b * example;
    for (Index i = 0; i < example - group; ++i) to[i] += from[i];
  }
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
