#pragma once

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include <fit/core/team.hpp>
#include <fit/training/pieces.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

/// The halves of a range of leaves whose sums are added for the sum of the range: what is summed in which order follows
/// from the number of leaves alone, wherever they are.
constexpr std::array<IndexRange, 2> halves(const IndexRange& range) {
  return {IndexRange{range.first, range.count / 2}, {range.first + range.count / 2, range.count - range.count / 2}};
}

/// The largest parts of the tree under `node` that hold none but `own` leaves, from left to right.
inline void add_fragments(const IndexRange& node, const IndexRange& own, std::vector<IndexRange>& fragments) {
  if (node.end() <= own.first || own.end() <= node.first) return;
  if (own.first <= node.first && node.end() <= own.end()) return fragments.push_back(node);
  for (const IndexRange& half : halves(node)) add_fragments(half, own, fragments);
}
inline std::vector<IndexRange> fragments_of(Index leaves, const IndexRange& own) {
  std::vector<IndexRange> fragments;
  if (leaves > 0) add_fragments({0, leaves}, own, fragments);
  return fragments;
}

/// Whether two parts of the tree under `node` are the halves of a third.
inline bool are_halves(IndexRange node, const IndexRange& left, const IndexRange& right) {
  while (node.count > 1) {
    const auto [first, second] = halves(node);
    if (first == left && second == right) return true;
    node = left.first < second.first ? first : second;
  }
  return false;
}

/// How many sums there are at once, at most, while leaves are added up in order: of all leaves under a node, or of the
/// `own` ones of some.
constexpr Index most_sums(const IndexRange& node) {
  if (node.count == 1) return 1;
  const auto [left, right] = halves(node);
  return std::max(most_sums(left), 1 + most_sums(right));
}
inline Index most_sums(Index leaves, const IndexRange& own) {
  Index most = 0, before = 0;
  for (const IndexRange& fragment : fragments_of(leaves, own)) most = std::max(most, before++ + most_sums(fragment));
  return most;
}

template <class T>
void add_parameters(const Parameters<T>& sum, const Parameters<const T>& other, Workspace& workspace) {
  for_each_piece(
      workspace,
      [](const Piece& piece, T* to, const T* from) {
        for (Index i = 0; i < piece.size; ++i) to[i] += from[i];
      },
      sum, other);
}
template <class Model>
void add_gradient(Model& sum, const Model& other, Workspace& workspace) {
  add_parameters(Parameters(sum), Parameters(other), workspace);
}

}  // namespace detail

/// Adds the gradients of leaves, parts of a batch or of what is computed for it, along a binary tree that follows from
/// their number alone: the sum has the same bits however the leaves are dealt to the members of a team, in contiguous
/// ranges. Holds the logarithm of the number of its own leaves of gradients at most, and two more.
template <class Model>
class GradientTree {
 public:
  /// A part of the tree, with the sum of its leaves.
  struct Fragment {
    IndexRange leaves;
    Model gradient;
  };

  GradientTree(Index leaves, IndexRange own) : leaves_(leaves), own_(own), next_(own.first) {}

  Index leaves() const { return leaves_; }
  const IndexRange& own() const { return own_; }
  Index next() const { return next_; }  ///< the leaf whose gradient is to be added
  bool complete() const { return next_ == own_.end(); }

  /// Takes the gradient of the next leaf, and leaves zeros, or nothing of one that is moved. Throws Error behind the
  /// last one.
  void add(Model& gradient, Workspace& workspace) {
    require_next();
    Model taken = zero();
    std::swap(taken, gradient);
    add(std::move(taken), workspace);
  }
  void add(Model&& gradient, Workspace& workspace) {
    require_next();
    fragments_.push_back({{next_++, 1}, std::move(gradient)});
    for (std::size_t n; (n = fragments_.size()) > 1;) {
      Fragment &left = fragments_[n - 2], &right = fragments_[n - 1];
      if (!detail::are_halves({0, leaves_}, left.leaves, right.leaves)) break;
      detail::add_gradient(left.gradient, right.gradient, workspace);
      left.leaves.count += right.leaves.count;
      clear(right);
    }
  }

  /// A gradient that is zero, in memory that was used before if there is some.
  Model zero() {
    if (spare_.empty()) return Model();
    Model model = std::move(spare_.back());
    spare_.pop_back();
    return model;
  }

  /// Of a tree that is complete, from left to right; one where all leaves are this member's own.
  std::vector<Fragment>& fragments() { return fragments_; }

  /// Begins again. An update leaves the first of the fragments at zero.
  void clear(bool updated = false) {
    while (fragments_.size() > 1) clear(fragments_.back());
    if (!fragments_.empty()) clear(fragments_.back(), updated);
    next_ = own_.first;
  }

 private:
  void require_next() const { require(!complete(), "a sum over ", own_.count, " leaves is complete"); }

  void clear(Fragment& last, bool is_zero = false) {
    if (!is_zero) set_zero(last.gradient);
    spare_.push_back(std::move(last.gradient));
    fragments_.pop_back();
  }

  Index leaves_;
  IndexRange own_;
  Index next_;
  std::vector<Fragment> fragments_;
  std::vector<Model> spare_;
};

}  // namespace FIT_ABI
}  // namespace fit
