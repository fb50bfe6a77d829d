#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include <fit/core/team.hpp>
#include <fit/training/gradient_tree.hpp>
#include <fit/training/pieces.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// How the pieces of a model's parameters are dealt to the members of a team, in the visitor's order and as even as
/// whole pieces can be: the elements of all parameters, one after the other, are cut where a member's part begins.
class Shards {
 public:
  template <class Model>
  Shards(const Model& model, int members) {
    begins_.push_back(0);
    for_each_parameter(
        [&](const ParameterName&, auto p) {
          for (Index at = 0; at < p.size; at += piece_size)
            begins_.push_back(begins_.back() + std::min(piece_size, p.size - at));
        },
        model);
    const Index all = begins_.back();
    for (Index member = 0; member < members; ++member) {
      const auto first = std::lower_bound(begins_.begin(), begins_.end(), share_of(all, member, members).first);
      pieces_.push_back(first - begins_.begin());
    }
    pieces_.push_back(static_cast<Index>(begins_.size()) - 1);
  }

  /// The first element of a piece, of all elements.
  Index begin_of(Index piece) const { return begins_[static_cast<std::size_t>(piece)]; }
  IndexRange pieces_of(int member) const {
    const auto i = static_cast<std::size_t>(member);
    return {pieces_[i], pieces_[i + 1] - pieces_[i]};
  }
  IndexRange elements_of(int member) const {
    const IndexRange pieces = pieces_of(member);
    return {begin_of(pieces.first), begin_of(pieces.end()) - begin_of(pieces.first)};
  }
  /// The most elements that a member has.
  Index largest() const {
    Index most = 0;
    for (std::size_t i = 0; i + 1 < pieces_.size(); ++i) most = std::max(most, elements_of(static_cast<int>(i)).count);
    return most;
  }

 private:
  std::vector<Index> begins_, pieces_;
};

/// Calls f(pointer to the elements of a parameter, how many, how many elements come before) for all of a range.
template <class Model, class F>
void for_elements(Model& model, const IndexRange& range, F&& f) {
  Index begin = 0;
  for_each_parameter(
      [&](const ParameterName&, auto p) {
        const Index first = std::max(begin, range.first), end = std::min(begin + p.size, range.end());
        if (first < end) f(p.data + (first - begin), end - first, first - range.first);
        begin += p.size;
      },
      model);
}
template <class Model, class T>
void copy_from(const Model& model, const IndexRange& range, T* to) {
  for_elements(model, range, [&](const T* from, Index count, Index at) { std::copy_n(from, count, to + at); });
}
template <class Model, class T>
void copy_into(Model& model, const IndexRange& range, const T* from) {
  for_elements(model, range, [&](T* to, Index count, Index at) { std::copy_n(from + at, count, to); });
}

/// Elements that a member sends at a time to, or receives from, each of the others, of no more than `largest`.
inline Index elements_together(int members, Index largest) {
  return std::min(largest, std::max<Index>(piece_size, (Index{1} << 20) / members));
}

/// Part number k of what a member has, `together` elements at a time.
inline IndexRange part_of(const IndexRange& elements, Index k, Index together) {
  const Index at = std::min(k * together, elements.count);
  return {elements.first + at, std::min(together, elements.count - at)};
}

/// The sum of part of a tree of leaves, a block of elements of it: where(range) gives those of the sum that stands for
/// a range of leaves, or null if that has to be added up. The first summand becomes the sum.
template <class T, class Where>
T* sum_of_tree(const IndexRange& node, Index count, Where&& where) {
  if (T* const found = where(node)) return found;
  const auto [left, right] = halves(node);
  T* const sum = sum_of_tree<T>(left, count, where);
  const T* const other = sum_of_tree<T>(right, count, where);
  for (Index i = 0; i < count; ++i) sum[i] += other[i];
  return sum;
}

/// Adds the fragments of a tree that the members of a team have, each the elements that are its own: every member sends
/// every other one that one's elements of its fragments, and adds what it gets in the tree's order. Returns the
/// gradient in whose own elements the sum then is; the others hold no sum.
template <class Model>
Model& add_over(Team& team, const Shards& shards, GradientTree<Model>& tree, Workspace& workspace) {
  using T = typename Model::Scalar;
  const int members = team.size(), rank = team.rank();
  auto& own = tree.fragments();
  if (members == 1) return own.front().gradient;
  const auto leaves_of = [&](int member) { return share_of(tree.leaves(), member, members); };
  std::vector<std::vector<IndexRange>> fragments;  // of each member
  Index count = 0;
  for (int member = 0; member < members; ++member) {
    fragments.push_back(fragments_of(tree.leaves(), leaves_of(member)));
    count += static_cast<Index>(fragments.back().size());
  }
  const Index together = elements_together(members, shards.largest()), own_count = static_cast<Index>(own.size());
  const Arena::Scope scope(workspace.arena());
  T* const out = workspace.arena().allocate<T>((members - 1) * own_count * together);
  T* const in = workspace.arena().allocate<T>(count * together);
  for (Index k = 0; k * together < shards.largest(); ++k) {
    std::vector<Team::Message> sends, receives;
    std::vector<std::pair<IndexRange, T*>> sums;  // of this member's elements
    const IndexRange mine = part_of(shards.elements_of(rank), k, together);
    T *next_out = out, *next_in = in;
    for (int other = 0; other < members; ++other) {
      const auto& theirs = fragments[static_cast<std::size_t>(other)];
      const IndexRange part = part_of(shards.elements_of(other), k, together);
      if (other != rank && part.count > 0) {
        const T* const begin = next_out;
        for (const auto& fragment : own) {
          copy_from(fragment.gradient, part, next_out);
          next_out += part.count;
        }
        sends.push_back({other, const_cast<T*>(begin), sizeof(T) * static_cast<std::size_t>(next_out - begin)});
      }
      if (mine.count == 0) continue;
      T* const begin = next_in;
      for (std::size_t i = 0; i < theirs.size(); ++i) {
        if (other == rank) copy_from(own[i].gradient, mine, next_in);
        sums.emplace_back(theirs[i], next_in);
        next_in += mine.count;
      }
      if (other == rank) continue;
      receives.push_back({other, begin, sizeof(T) * static_cast<std::size_t>(next_in - begin)});
    }
    team.exchange(sends, receives);
    if (mine.count == 0) continue;
    workspace.executor().parallel_for((mine.count + piece_size - 1) / piece_size, [&](Index block, int) {
      const Index at = block * piece_size;
      sum_of_tree<T>({0, tree.leaves()}, std::min(piece_size, mine.count - at), [&](const IndexRange& node) -> T* {
        for (const auto& [leaves, values] : sums) {
          if (leaves == node) return values + at;
        }
        return nullptr;
      });
    });
    copy_into(own.front().gradient, mine, in);
  }
  return own.front().gradient;
}

/// Gives all members of a team the elements that each has.
template <class Model>
void gather_elements(Team& team, const Shards& shards, Model& model, Workspace& workspace) {
  using T = typename Model::Scalar;
  const int members = team.size(), rank = team.rank();
  if (members == 1) return;
  const Index together = elements_together(members, shards.largest());
  const Arena::Scope scope(workspace.arena());
  T* const out = workspace.arena().allocate<T>(together);
  T* const in = workspace.arena().allocate<T>((members - 1) * together);
  for (Index k = 0; k * together < shards.largest(); ++k) {
    std::vector<Team::Message> sends, receives;
    std::vector<std::pair<IndexRange, T*>> parts;
    const IndexRange mine = part_of(shards.elements_of(rank), k, together);
    copy_from(model, mine, out);
    T* next = in;
    for (int other = 0; other < members; ++other) {
      const IndexRange part = part_of(shards.elements_of(other), k, together);
      if (other == rank) continue;
      if (mine.count > 0) sends.push_back({other, out, sizeof(T) * static_cast<std::size_t>(mine.count)});
      if (part.count == 0) continue;
      receives.push_back({other, next, sizeof(T) * static_cast<std::size_t>(part.count)});
      parts.emplace_back(part, next);
      next += part.count;
    }
    team.exchange(sends, receives);
    for (const auto& [part, values] : parts) copy_into(model, part, values);
  }
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
