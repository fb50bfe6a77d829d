#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <utility>

#include <fit/core/lane_memory.hpp>
#include <fit/core/tape_bytes.hpp>
#include <fit/core/training_options.hpp>
#include <fit/kernels/scratch.hpp>
#include <fit/models/stages.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Floating-point operations. A multiply-add is two; those of matrix products and of attention's scores and mixtures
/// count, elementwise work does not. Attention's way back is 2.5 times its forward, as weights are made again.
struct Flops {
  Index products = 0;
  Index attention = 0;  ///< of pairs of a query and a key that it sees
  Index executed = 0;   ///< of all pairs that the kernels compute, the masked ones in their tiles among them

  constexpr Index total() const { return products + attention; }
  constexpr Flops& operator+=(const Flops& other) {
    products += other.products;
    attention += other.attention;
    executed += other.executed;
    return *this;
  }
  friend constexpr Flops operator+(Flops a, const Flops& b) { return a += b; }
  friend constexpr Flops operator*(Index n, const Flops& a) {
    return {n * a.products, n * a.attention, n * a.executed};
  }
  constexpr bool operator==(const Flops&) const = default;
};

/// FLOPs of attention alone, forward and on the way back, where many threads may compute some scores twice.
template <class T = float>
constexpr Flops attention_flops(const kernels::AttentionShape& shape) {
  return {.attention = 4 * shape.head_width * kernels::attention_pairs(shape),
          .executed = 4 * shape.head_width * kernels::attention_pairs_computed<T>(shape)};
}
template <class T = float>
constexpr Flops attention_backward_flops(const kernels::AttentionShape& shape, int threads = 1) {
  const Index products = kernels::AttentionBackwardPieces<T>(shape, threads).products();
  return {.attention = 10 * shape.head_width * kernels::attention_pairs(shape),
          .executed = 2 * products * shape.head_width * kernels::attention_pairs_computed<T>(shape, true)};
}

/// What a part of a model costs: the stem, the head, or one part of one stage with all its blocks.
struct PartCost {
  Part part = Part::stem;
  Index stage = 0;
  Index blocks = 0;
  Index rows = 0, width = 0;  ///< of what it changes, in a batch
  Index parameters = 0;
  Flops forward, backward;  ///< the way back with what is computed again for it
  Index kept = 0;           ///< bytes left for the way back
};

namespace detail {

/// Members of a team that share the groups of every example, and which of them a meter counts for.
struct Members {
  Index count = 1, own = 0;
};

/// A Tape and kernels that do nothing but count: the layers of layers.hpp take memory from it and compute with it as
/// those of nn/ do. What many equal pieces do is counted from one of them.
template <class T>
class Meter {
 public:
  constexpr Meter(bool recording, const TrainingOptions& options, int threads, const Members& members = {})
      : recording_(recording), options_(options), threads_(threads), members_(members) {}

  constexpr bool recording() const { return recording_; }
  constexpr const TrainingOptions& options() const { return options_; }

  constexpr const Members& members() const { return members_; }
  /// Elements that this member sends.
  template <class Element = T>
  constexpr void send(Index count) {
    if (!quiet_) sent_ += times_ * count * static_cast<Index>(sizeof(Element));
  }
  /// What all members of a team tell each other.
  constexpr void gather() { send<double>(members_.count - 1); }
  constexpr Index sent() const { return sent_; }

  /// Bytes in use at the worst moment of all together, and at that of each.
  constexpr const TapeBytes& peak() const { return peak_; }
  constexpr const TapeBytes& peaks() const { return peaks_; }

  /// Work from now on belongs to this part.
  constexpr PartCost& enter(Part part, Index stage = 0) {
    for (part_ = 0; part_ < count_; ++part_) {
      if (parts_[part_].part == part && parts_[part_].stage == stage) return parts_[part_];
    }
    ++count_;
    parts_[part_].part = part;
    parts_[part_].stage = stage;
    return parts_[part_];
  }
  constexpr std::size_t count() const { return count_; }
  constexpr const PartCost& part(std::size_t i) const { return parts_[i]; }
  /// Whether work from now on is the way back's.
  constexpr void set_backward(bool backward) { backward_ = backward; }

  // As of Tape.

  template <class Element = T>
  static constexpr Index bytes(Index count) {
    constexpr Index unit = alignment;
    return (count * static_cast<Index>(sizeof(Element)) + unit - 1) / unit * unit;
  }

  template <class Element = T>
  constexpr void allocate(Index count) {
    grow(recording_ ? records_ : arena_, bytes<Element>(count));
  }
  template <class Element = T>
  constexpr void scratch(Index count) {
    grow(arena_, bytes<Element>(count));
  }
  template <class Element = T>
  constexpr void output(Index count) {
    grow(outputs_, bytes<Element>(count));
  }
  /// Of a kernel, for every thread; one such allocation at a time.
  constexpr void lanes(Index count) {
    lanes_ = bytes(count) * threads_;
    if (!quiet_) peaks_.lanes = std::max(peaks_.lanes, LaneMemory::room_of(bytes(count)) * threads_);
    observe();
  }
  constexpr Index mark() const { return recording_ ? records_ : arena_; }
  /// `record` is the size of the layer's record.
  constexpr void finish(Index start, std::size_t record = 1) {
    if (!recording_) {
      arena_ = start;
    } else {
      starts_[depth_++] = start;
      grow(records_, entry_bytes(record));
    }
  }
  static constexpr Index entry_bytes(std::size_t record) {
    constexpr std::size_t header = 2 * sizeof(void*) + 3 * sizeof(std::size_t);
    return bytes<char>(static_cast<Index>((header + record + alignof(void*) - 1) / alignof(void*) * alignof(void*)));
  }

  /// Gives back records and scratch at its end.
  class Frame {
   public:
    constexpr Frame(Meter& meter, Index records) : meter_(meter), records_(records), arena_(meter.arena_) {}
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    constexpr ~Frame() {
      meter_.records_ = records_;
      meter_.arena_ = arena_;
      meter_.lanes_ = 0;
      meter_.above_ = 0;
    }

   private:
    Meter& meter_;
    Index records_, arena_;
  };
  constexpr Frame pop() { return Frame(*this, starts_[--depth_]); }
  constexpr Frame scope() { return Frame(*this, records_); }

  /// Work of body() counts so many times.
  template <class Body>
  constexpr void times(Index count, Body&& body) {
    times_ *= count;
    body();
    times_ /= count;
  }
  /// Scratch of body() is given back when it ends.
  template <class Body>
  constexpr void in_scope(Body&& body) {
    const Index start = arena_;
    body();
    arena_ = start;
  }
  /// `count` equal pieces one after the other, each of them forward().
  template <class Forward>
  constexpr void repeat(Index count, Forward&& forward) {
    if (count <= 0) return;
    const std::size_t depth = depth_;
    const Index start = records_;
    if (recording_ && count > 1) {
      quietly(forward);
      records_ = start + (count - 1) * (records_ - start);
      depth_ = depth;
    }
    times(count, forward);
    depth_ = depth;
  }
  /// The way back through them.
  template <class Forward, class Backward>
  constexpr void repeat_backward(Index count, Forward&& forward, Backward&& backward) {
    if (count <= 0) return;
    const std::size_t depth = depth_;
    const Index above = std::exchange(above_, 0), end = records_ - above;
    records_ = end;
    quietly(forward);
    const Index each = records_ - end;
    depth_ = depth;
    records_ = end - each;
    quietly(forward);
    above_ = above;
    records_ = end + above;
    times(count, backward);
    depth_ = depth;
    if (each == 0) return;  // nothing was recorded, so nothing was given back
    above_ = 0;
    records_ = end - count * each;
  }
  /// Says that so many more bytes of the records lie above the last of the pieces that now go back.
  constexpr void add_above(Index bytes) { above_ += bytes; }
  /// What add_above() has said and no piece has taken yet, for pieces that record themselves again above all of it.
  constexpr Index take_above() { return std::exchange(above_, 0); }

  /// As of nn/recompute.hpp.
  template <class Forward>
  constexpr void forward_recomputed(Index size, bool again, Forward&& forward) {
    if (!recording_ || !again) return forward();
    const Index start = mark();
    allocate(size);
    record(false, forward);
    finish(start, sizeof(void*));
  }
  template <class Forward, class Backward>
  constexpr void backward_recomputed(bool again, Forward&& forward, Backward&& backward) {
    if (!again) return backward();
    const Frame saved = pop();
    above_ = 0;
    forward();
    backward();
  }
  /// Runs body() recording or not, as Tape::Recording.
  template <class Body>
  constexpr void record(bool recording, Body&& body) {
    const bool before = std::exchange(recording_, recording);
    body();
    recording_ = before;
  }
  /// The same, of records that are gone when it ends: they do not count as kept.
  template <class Body>
  constexpr void record_briefly(bool recording, Body&& body) {
    const bool before = std::exchange(brief_, true);
    record(recording, body);
    brief_ = before;
  }

  // As of kernels.

  struct Factors {
    Index depth, b_row, b_column;
    bool a_transposed = false;
  };
  struct Product {
    Index rows, columns;
    Factors factors[3];
    int count = 1;
  };
  constexpr void multiply(std::initializer_list<Product> products) {
    const auto pieces = [&](const Product& p) {
      const bool dealt = p.count == 1 && p.factors[0].a_transposed && p.rows > 1;
      return dealt ? kernels::depth_pieces(p.rows, p.columns, p.factors[0].depth, threads_) : 0;
    };
    const auto left_of = [](const Product& p, const Factors& of, Index depth) {
      return kernels::packed_left_size<T>(p.rows, p.columns, depth, of.a_transposed ? 1 : of.depth,
                                          of.a_transposed ? p.rows : 1);
    };
    const auto right_of = [](const Product& p, const Factors& of, Index depth) {
      return kernels::packed_size<T>(p.rows, p.columns, depth, of.b_row, of.b_column);
    };
    for (const bool by_depth : {false, true}) {
      const Frame frame = scope();
      Index left = 0, right = 0;
      for (const Product& p : products) {
        if (by_depth != (pieces(p) > 0)) continue;
        if (by_depth) {
          scratch(pieces(p) * p.rows * p.columns);
          right = std::max(right, right_of(p, p.factors[0], kernels::depth_block));
        }
        for (int f = 0; f < p.count; ++f) {
          const Factors& of = p.factors[f];
          const Index depth = kernels::packed_depth(of.depth, p.count);
          if (!by_depth) scratch(right_of(p, of, depth));
          left = std::max(left, left_of(p, of, depth));
          work({.products = 2 * p.rows * p.columns * of.depth});
        }
      }
      lanes(left + right);
    }
  }
  constexpr void attention(const kernels::AttentionShape& shape) {
    const Frame frame = scope();
    lanes(kernels::detail::AttentionScratch<T>::size(shape));
    work(attention_flops<T>(shape));
  }
  constexpr void attention_backward(const kernels::AttentionShape& shape) {
    const Frame frame = scope();
    lanes(kernels::detail::AttentionBackwardScratch<T>::size(shape));
    work(attention_backward_flops<T>(shape, threads_));
  }
  struct ColumnSum {
    Index rows, columns;
  };
  constexpr void add_column_sums(std::initializer_list<ColumnSum> jobs) {
    const Frame frame = scope();
    Index room = 0;
    for (const ColumnSum& job : jobs) room += kernels::column_sums_size(job.rows, job.columns);
    scratch(room);
  }
  constexpr void layer_norm_backward(Index rows, Index width) {
    const Frame frame = scope();
    const Index blocks = (rows + kernels::layer_norm_block - 1) / kernels::layer_norm_block;
    scratch(blocks * 2 * width);
    scratch(2 * width);
    add_column_sums({{blocks, 2 * width}});
  }

 private:
  static constexpr std::size_t most_parts = 5 * Plan{}.stages.size() + 2;

  constexpr void grow(Index& memory, Index by) {
    memory += by;
    if (&memory == &records_ && !quiet_ && !backward_ && !brief_) parts_[part_].kept += times_ * by;
    observe();
  }
  constexpr void observe() {
    if (quiet_) return;
    const TapeBytes now{records_, arena_, outputs_, lanes_};
    if (now.total() > peak_.total()) peak_ = now;
    peaks_.records = std::max(peaks_.records, now.records);
    peaks_.scratch = std::max(peaks_.scratch, now.scratch);
    peaks_.outputs = std::max(peaks_.outputs, now.outputs);
  }
  constexpr void work(const Flops& flops) {
    if (quiet_) return;
    (backward_ ? parts_[part_].backward : parts_[part_].forward) += times_ * flops;
  }
  template <class Body>
  constexpr void quietly(Body& body) {
    const bool quiet = std::exchange(quiet_, true);
    body();
    quiet_ = quiet;
  }
  bool recording_, backward_ = false, quiet_ = false, brief_ = false;
  TrainingOptions options_;
  int threads_;
  Members members_;
  Index sent_ = 0;
  Index records_ = 0, arena_ = 0, outputs_ = 0, lanes_ = 0, above_ = 0, times_ = 1;
  TapeBytes peak_, peaks_;
  std::array<Index, 64> starts_ = {};
  std::size_t depth_ = 0, part_ = 0, count_ = 0;
  std::array<PartCost, most_parts> parts_ = {};
};

}  // namespace detail

}  // namespace FIT_ABI
}  // namespace fit
