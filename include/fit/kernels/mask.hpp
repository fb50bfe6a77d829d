#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// first, first + step, ..., `count` of them.
struct Progression {
  Index first = 0, step = 1, count = 0;

  /// How many of them are below a bound.
  constexpr Index below(Index bound) const {
    return bound > first ? std::min(count, (bound - first - 1) / step + 1) : 0;
  }
};

namespace detail {

/// The sum of floor(x / divisor) over a progression, in as many turns as Euclid's algorithm takes.
constexpr Index sum_of_quotients(Progression p, Index divisor) {
  Index sum = 0;
  for (;;) {
    sum += p.count * (p.count - 1) / 2 * (p.step / divisor) + p.count * (p.first / divisor);
    p.step %= divisor;
    p.first %= divisor;
    const Index end = p.step * p.count + p.first;
    if (end < divisor) return sum;
    // Whole points under a line, which are counted by columns, are now counted by rows.
    const Index rows = end / divisor;
    p.first = end % divisor;
    std::swap(p.step, divisor);
    p.count = rows;
  }
}

}  // namespace detail

/// Which keys a query sees: with chunks of c positions, those of its own chunk and of the chunks before it. Causal is
/// c = 1, no mask at all one endless chunk, so one kernel serves the three and skips the tiles nobody sees.
struct Mask {
  Index chunk = std::numeric_limits<Index>::max();
  Index offset = 0;  ///< position of query 0 among the keys, where earlier ones are cached

  static constexpr Mask none() { return {}; }
  static constexpr Mask causal() { return {.chunk = 1}; }
  static constexpr Mask chunk_causal(Index chunk) { return {.chunk = chunk}; }

  /// A query sees keys 0 .. visible-1 of `keys`.
  constexpr Index visible_keys(Index query, Index keys) const {
    const Index before = (query + offset) / chunk;
    return before >= keys / chunk ? keys : (before + 1) * chunk;
  }

  /// The sum of visible_keys() over some queries.
  constexpr Index sum_of_visible_keys(Progression queries, Index keys) const {
    // From some query on, all keys are seen.
    const Index partly = queries.below(keys / chunk * chunk - offset);
    const Progression positions{queries.first + offset, queries.step, partly};
    return (detail::sum_of_quotients(positions, chunk) + partly) * chunk + (queries.count - partly) * keys;
  }
  /// The first query that sees a key.
  constexpr Index first_query(Index key) const { return std::max<Index>(0, key / chunk * chunk - offset); }
};

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
