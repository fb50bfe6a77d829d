#pragma once

#include <algorithm>

#include <fit/models/config.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// Sequences that go through together: groups first .. first + count - 1 of batch * groups, or examples of the batch.
struct Chunk {
  Index first, count;
  Index number;  ///< of the first, among the groups of all members of a team, or among the examples

  /// Where they begin in a tensor with `each` elements for a sequence; null stays null.
  template <class T>
  T* of(T* data, Index each) const {
    return data ? data + first * each : nullptr;
  }
};

/// All sequences, some at a time: of rows of neighbours, as a chunk does not go on from one row to the next.
class Chunks {
 public:
  Chunks(Index rows, Index in_a_row, Index together, const Sizes& numbering = {})
      : neighbours_(in_a_row), each_(together), of_row_((in_a_row + together - 1) / together), numbering_(numbering) {
    sequences = rows * in_a_row;
    count = rows * of_row_;
  }

  Chunk operator[](Index k) const {
    const Index at = k % of_row_ * each_, first = k / of_row_ * neighbours_ + at;
    return {first, std::min(each_, neighbours_ - at), numbering_.number_of(first)};
  }

  Index sequences, count;  ///< in all, and chunks of them

 private:
  Index neighbours_, each_, of_row_;
  Sizes numbering_;
};

/// Groups, two thousand tokens at a time; those of a team within their example, as only there numbers follow each
/// other.
inline Chunks groups_of(const Sizes& s) {
  const Index rows = s.team ? s.batch : 1;
  return {rows, s.all_groups() / std::max<Index>(1, rows), sequences_together(s.tokens), s};
}
/// Examples, two thousand latents at a time; those of a team one by one.
inline Chunks examples_of(const Sizes& s) {
  return {1, s.batch, s.team ? 1 : sequences_together(s.groups * s.latents)};
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
