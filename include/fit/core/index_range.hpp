#pragma once

#include <algorithm>

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

/// The same where work grows, as much as 0: item i takes 1 + growth * i. Parts are cut where the work before is nearest
/// to what it should be, and have one item at least where there are as many.
constexpr IndexRange share_of(Index count, Index part, Index of, double growth) {
  if (growth == 0) return share_of(count, part, of);
  const auto work = [&](Index items) {
    const auto n = static_cast<double>(items);
    return n + growth * n * (n - 1) / 2;
  };
  const auto cut = [&](Index parts) {
    const double wanted = work(count) * static_cast<double>(parts) / static_cast<double>(of);
    Index least = 0, most = count;  // the most items that are no more work
    while (least < most) {
      const Index middle = most - (most - least) / 2;
      if (work(middle) <= wanted) {
        least = middle;
      } else {
        most = middle - 1;
      }
    }
    if (least < count && work(least + 1) - wanted < wanted - work(least)) ++least;
    return count < of ? least : std::clamp(least, parts, count - of + parts);
  };
  const Index first = cut(part);
  return {first, cut(part + 1) - first};
}

}  // namespace FIT_ABI
}  // namespace fit
