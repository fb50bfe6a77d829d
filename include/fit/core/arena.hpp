#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Aligned last-in-first-out memory. It grows by blocks while it must, never moving what it has handed out. When a
/// first run is over, consolidate() makes one block of them, and a second run that needs no more allocates nothing.
class Arena {
 public:
  /// A point to rewind to.
  struct Mark {
    std::size_t block = 0, used = 0, total = 0;
  };

  /// Gives back, when its life ends, what was allocated during it.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), start_(arena.mark()) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() { arena_.rewind(start_); }

   private:
    Arena& arena_;
    Mark start_;
  };

  /// Bytes in use, and the most that ever were at once: of one arena, or of several that count into the same.
  struct Usage {
    std::size_t now = 0, peak = 0;

    void add(std::size_t bytes) {
      now += bytes;
      peak = std::max(peak, now);
    }
  };

  /// Also counts what it hands out in `joint`, which must outlive it and stay where it is.
  explicit Arena(Usage* joint = nullptr) : joint_(joint) {}
  /// What was handed out stays where it is; the other arena is left empty. What it held now counts where this one does.
  Arena(Arena&& other) noexcept { *this = std::move(other); }
  Arena& operator=(Arena&& other) noexcept {
    if (this == &other) return *this;
    rewind({});
    blocks_ = std::exchange(other.blocks_, {});
    peak_ = std::exchange(other.peak_, 0);
    const Mark top = other.top_;
    other.rewind({});
    top_ = top;
    if (joint_) joint_->add(top_.total);
    return *this;
  }

  /// Uninitialised memory for `count` trivial elements, aligned to `fit::alignment` bytes. Throws Error when the count
  /// is negative or its bytes cannot be counted; std::bad_alloc when memory runs out.
  template <class T>
  T* allocate(Index count) {
    static_assert(std::is_trivially_copyable_v<T>, "fit: an arena holds trivial elements only");
    require(count >= 0 && static_cast<std::size_t>(count) <= largest / sizeof(T), "an arena cannot hold ", count,
            " elements");
    return reinterpret_cast<T*>(
        take((static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment));
  }

  Mark mark() const { return top_; }

  /// Gives back all that was allocated after the mark.
  void rewind(const Mark& mark) {
    if (joint_) joint_->now -= top_.total - mark.total;
    top_ = mark;
  }

  /// Makes one block of so many bytes, at least, of what there is. Does nothing while something is in use. Throws
  /// std::bad_alloc when memory runs out, and then holds nothing.
  void reserve(std::size_t bytes) {
    if (top_.total > 0 || (blocks_.size() == 1 && size_of(0) >= bytes) || bytes == 0) return;
    blocks_.clear();
    top_ = {};
    add_block(bytes);
  }

  /// Where nothing is in use, replaces several blocks by one that is large enough for the most that ever was. Where
  /// memory runs out, it is left to the next allocate() to say so.
  void consolidate() noexcept {
    if (blocks_.size() <= 1) return;
    try {
      reserve(peak_);
    } catch (const std::bad_alloc&) {
    }
  }

  /// Bytes held, and the most that were ever in use at once.
  std::size_t capacity() const {
    std::size_t total = 0;
    for (std::size_t i = 0; i < blocks_.size(); ++i) total += size_of(i);
    return total;
  }
  std::size_t peak() const { return peak_; }

 private:
  static constexpr std::size_t smallest_step = std::size_t{1} << 16, largest_step = std::size_t{1} << 30;
  static constexpr std::size_t largest = std::numeric_limits<std::size_t>::max() / 2 - alignment;

  [[gnu::noinline]] std::byte* take(std::size_t bytes) {
    Mark at = top_;
    while (at.block < blocks_.size() && at.used + bytes > size_of(at.block)) {
      ++at.block;
      at.used = 0;
    }
    if (at.block == blocks_.size()) add_block(std::max({bytes, std::min(2 * capacity(), largest_step), smallest_step}));
    std::byte* memory = blocks_[at.block].data() + at.used;
    top_ = {at.block, at.used + bytes, at.total + bytes};
    peak_ = std::max(peak_, top_.total);
    if (joint_) joint_->add(bytes);
    return memory;
  }
  std::size_t size_of(std::size_t block) const { return static_cast<std::size_t>(blocks_[block].size()); }
  void add_block(std::size_t bytes) { blocks_.push_back(Buffer<std::byte>::uninitialised(static_cast<Index>(bytes))); }

  std::vector<Buffer<std::byte>> blocks_;
  Mark top_;
  std::size_t peak_ = 0;
  Usage* joint_ = nullptr;
};

}  // namespace FIT_ABI
}  // namespace fit
