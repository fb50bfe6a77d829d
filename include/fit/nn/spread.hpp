#pragma once

#include <algorithm>
#include <vector>

#include <fit/core/tape.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// How the rows of a sequence are spread over a team: in units, which are dealt to its members by share_of().
struct Spread {
  Team* team = nullptr;  ///< none: all rows are here
  Index unit = 0, units = 0;
  double growth = 0;  ///< of the work of a unit

  Index rows() const { return unit * units; }
  IndexRange rows_of(int member) const {
    const IndexRange own = share_of(units, member, team->size(), growth);
    return {own.first * unit, own.count * unit};
  }
};

namespace detail {

/// The keys and values of a sequence, of which each member of a team has some.
class SpreadKeys {
 public:
  SpreadKeys(const Spread& spread, bool causal) : spread_(spread), causal_(causal) {}

  IndexRange own() const { return spread_.rows_of(spread_.team->rank()); }
  /// Rows from the beginning of the sequence on that this member's queries see: under a mask none of later members.
  Index seen() const { return causal_ ? own().end() : spread_.rows(); }

  /// Gets what others have of keys and values [seen, width].
  template <class T>
  void gather(T* keys, T* values, Index width) const {
    std::vector<Team::Message> sends, receives;
    for (T* rows : {keys, values}) {
      for (int other = 0; other < spread_.team->size(); ++other) {
        if (other == spread_.team->rank()) continue;
        if (sees(other, spread_.team->rank())) sends.push_back(message(rows, other, own(), width));
        if (sees(spread_.team->rank(), other)) {
          receives.push_back(message(rows, other, spread_.rows_of(other), width));
        }
      }
    }
    spread_.team->exchange(sends, receives);
  }

  /// The way back, from the gradients [seen, width] of this member's queries: gives the others theirs, and makes its
  /// own rows of both [own rows, width] the sums over all queries, in the order of the members.
  template <class T>
  void add_up(T* keys, T* values, Index width, Tape& tape) const {
    const Arena::Scope scope(tape.arena());
    const int rank = spread_.team->rank(), members = spread_.team->size();
    const Index size = own().count * width;
    T* const received = tape.scratch<T>(2 * size * members);
    std::vector<Team::Message> sends, receives;
    for (const bool of_keys : {true, false}) {
      T* const rows = of_keys ? keys : values;
      for (int other = 0; other < members; ++other) {
        T* const place = received + (2 * other + (of_keys ? 0 : 1)) * size;
        if (other == rank) {
          std::copy_n(rows + own().first * width, size, place);
          continue;
        }
        if (sees(rank, other)) sends.push_back(message(rows, other, spread_.rows_of(other), width));
        if (sees(other, rank)) receives.push_back({other, place, sizeof(T) * static_cast<std::size_t>(size)});
      }
    }
    spread_.team->exchange(sends, receives);
    for (const bool of_keys : {true, false}) {
      T* const sum = (of_keys ? keys : values) + own().first * width;
      std::fill_n(sum, size, T(0));
      for (int other = 0; other < members; ++other) {
        if (!sees(other, rank)) continue;
        const T* const from = received + (2 * other + (of_keys ? 0 : 1)) * size;
        for (Index i = 0; i < size; ++i) sum[i] += from[i];
      }
    }
  }

 private:
  bool sees(int member, int other) const { return !causal_ || other <= member; }

  template <class T>
  static Team::Message message(T* rows, int with, const IndexRange& range, Index width) {
    return {with, rows + range.first * width, sizeof(T) * static_cast<std::size_t>(range.count * width)};
  }

  Spread spread_;
  bool causal_;
};

}  // namespace detail
}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
