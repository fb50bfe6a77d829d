#pragma once

#include <algorithm>
#include <vector>

#include <fit/core/tape.hpp>
#include <fit/kernels/attention_backward.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// How the rows of a sequence are spread over a team: in units whose work grows, which are dealt by share_of().
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

/// The keys and values of a sequence, [rows, heads, head_width] each, of which each member of a team has some rows.
/// They change hands by parts of their heads: one is on its way while another one is computed. How many parts there are
/// follows from what all members know.
class SpreadKeys {
 public:
  /// The shape's heads and mask count, whatever its queries and keys are.
  SpreadKeys(const Spread& spread, const kernels::AttentionShape& shape)
      : spread_(spread),
        causal_(shape.mask.chunk != kernels::Mask::none().chunk),
        heads_(shape.key_heads()),
        head_width_(shape.head_width) {}

  Team& team() const { return *spread_.team; }
  IndexRange own() const { return spread_.rows_of(rank()); }
  /// Rows from the beginning of the sequence on that this member's queries see: under a mask none of later members.
  Index seen() const { return causal_ ? own().end() : spread_.rows(); }
  Index width() const { return heads_ * head_width_; }

  /// Of so little that sending it is mostly waiting, one.
  Index parts() const {
    constexpr Index worth_a_message = 16384;  // elements
    const Index of_member = spread_.rows() / spread_.team->size() * width();
    return std::clamp<Index>(of_member / worth_a_message, 1, std::min<Index>(4, heads_));
  }
  IndexRange heads_of(Index part) const { return share_of(heads_, part, parts()); }

  /// Begins to get what others have of keys and values [seen, width].
  template <class T>
  void start_gather(T* keys, T* values) {
    for (Index part = 0; part < parts(); ++part) {
      start([&](int other, auto& sends, auto& receives) {
        for (T* rows : {keys, values}) {
          if (sees(other, rank())) sends.push_back(message(part, rows, other, own()));
          if (sees(rank(), other)) receives.push_back(message(part, rows, other, spread_.rows_of(other)));
        }
      });
    }
  }
  /// When it returns a part is there.
  void finish(Index part) const { spread_.team->finish(started_[static_cast<std::size_t>(part)]); }

  /// Elements that add_up() wants for what it gets.
  Index received_size() const { return 2 * own().count * width() * spread_.team->size(); }

  /// The way back, a part after the other: begins to give others their gradients [seen, width] by this member's
  /// queries.
  template <class T>
  void start_sum(Index part, T* keys, T* values, T* received) {
    start([&](int other, auto& sends, auto& receives) {
      for (const bool of_keys : {true, false}) {
        if (sees(rank(), other)) {
          sends.push_back(message(part, of_keys ? keys : values, other, spread_.rows_of(other)));
        }
        if (sees(other, rank())) {
          receives.push_back(message(part, place(received, other, of_keys), other, {0, own().count}));
        }
      }
    });
  }
  /// Makes this member's own rows of both the sums over all queries, in the order of the members.
  template <class T>
  void add_up(T* keys, T* values, T* received) const {
    for (Index part = 0; part < parts(); ++part) finish(part);
    const Index size = own().count * width();
    for (const bool of_keys : {true, false}) {
      T* const sum = (of_keys ? keys : values) + own().first * width();
      std::copy_n(sum, size, place(received, rank(), of_keys));
      std::fill_n(sum, size, T(0));
      for (int other = 0; other < spread_.team->size(); ++other) {
        if (!sees(other, rank())) continue;
        const T* const from = place(received, other, of_keys);
        for (Index i = 0; i < size; ++i) sum[i] += from[i];
      }
    }
  }

 private:
  int rank() const { return spread_.team->rank(); }
  bool sees(int member, int other) const { return !causal_ || other <= member; }

  /// add(other, sends, receives) for all others.
  template <class Add>
  void start(Add&& add) {
    std::vector<Team::Message> sends, receives;
    for (int other = 0; other < spread_.team->size(); ++other) {
      if (other != rank()) add(other, sends, receives);
    }
    started_.push_back(spread_.team->start(sends, receives));
  }

  /// Some heads of some rows.
  template <class T>
  Team::Message message(Index part, T* rows, int with, const IndexRange& range) const {
    const IndexRange heads = heads_of(part);
    return {with, rows + range.first * width() + heads.first * head_width_,
            sizeof(T) * static_cast<std::size_t>(heads.count * head_width_), range.count,
            sizeof(T) * static_cast<std::size_t>(width())};
  }

  template <class T>
  T* place(T* received, int other, bool of_keys) const {
    return received + (2 * other + (of_keys ? 0 : 1)) * own().count * width();
  }

  Spread spread_;
  bool causal_;
  Index heads_, head_width_;
  std::vector<Index> started_;
};

/// Calls compute(heads of keys, parts that they come in) one after the other, for several parts at once where one by
/// itself would leave threads without work: fits(heads) says whether so many heads are enough.
template <class Fits, class Compute>
void for_parts(const SpreadKeys& spread, Index all, Fits&& fits, Compute&& compute) {
  for (Index first = 0, part = 0; part < spread.parts(); ++part) {
    const Index begin = spread.heads_of(first).first, end = spread.heads_of(part).end();
    if (end < all && !(fits(end - begin) && fits(all - end))) continue;
    compute(IndexRange{begin, end - begin}, IndexRange{first, part + 1 - first});
    first = part + 1;
  }
}

/// Attention whose keys and values [seen, width] come from other members.
template <class T>
void attend_spread(SpreadKeys& spread, const kernels::AttentionShape& shape, T* keys, T* values,
                   const kernels::AttentionTensors<T>& tensors, Tape& tape) {
  spread.start_gather(keys, values);
  const BetweenPieces polls([&team = spread.team()] { team.poll(); });
  const Index of_head = kernels::attention_pieces<T>(shape) / shape.key_heads(), lanes = tape.executor().lanes();
  for_parts(
      spread, shape.key_heads(), [&](Index heads) { return heads * of_head >= lanes; },
      [&](const IndexRange& heads, const IndexRange& parts) {
        for (Index part = parts.first; part < parts.end(); ++part) spread.finish(part);
        kernels::attention(shape, tensors, tape, {heads.first * shape.sharing, heads.count * shape.sharing});
      });
}

/// The way back.
template <class T>
void attend_spread_backward(SpreadKeys& spread, const kernels::AttentionShape& shape,
                            const kernels::AttentionTensors<T>& tensors,
                            const kernels::AttentionGradients<T>& gradients, Tape& tape) {
  const Arena::Scope scope(tape.arena());
  T* const received = tape.scratch<T>(spread.received_size());
  const auto products = [&](Index heads) {
    return kernels::AttentionBackwardPieces<T>(shape, heads, tape.executor().lanes()).products();
  };
  const BetweenPieces polls([&team = spread.team()] { team.poll(); });
  for_parts(
      spread, shape.key_heads(),
      [&](Index heads) { return shape.keys > 0 && products(heads) == products(shape.key_heads()); },
      [&](const IndexRange& heads, const IndexRange& parts) {
        kernels::attention_backward(shape, tensors, gradients, tape, heads);
        for (Index part = parts.first; part < parts.end(); ++part) {
          spread.start_sum(part, gradients.k, gradients.v, received);
        }
      });
  spread.add_up(gradients.k, gradients.v, received);
}

}  // namespace detail
}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
