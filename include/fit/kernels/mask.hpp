#pragma once

#include <algorithm>
#include <limits>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

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

  /// The first query that sees a key.
  constexpr Index first_query(Index key) const { return std::max<Index>(0, key / chunk * chunk - offset); }
};

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
