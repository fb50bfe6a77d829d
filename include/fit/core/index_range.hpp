#pragma once

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Neighbours of anything that is numbered: leaves, batches, pieces, groups.
struct IndexRange {
  Index first = 0, count = 0;

  Index end() const { return first + count; }
  bool operator==(const IndexRange&) const = default;
};

/// The part of 0 .. count-1 that falls to one of `of`, in order and as even as can be.
constexpr IndexRange share_of(Index count, Index part, Index of) {
  const Index first = count * part / of;
  return {first, count * (part + 1) / of - first};
}

}  // namespace FIT_ABI
}  // namespace fit
