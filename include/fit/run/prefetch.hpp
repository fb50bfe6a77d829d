#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <fit/core/error.hpp>
#include <fit/core/index_range.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The numbers of batches that follow each other: first, first + 1 and so on, or of every `all` batches the `own` ones.
class BatchNumbers {
 public:
  BatchNumbers(Index first = 0) : start_(first) {}
  /// From place `start` of one's own batches on. Throws Error where none is one's own.
  BatchNumbers(Index start, Index all, const IndexRange& own) : start_(start), all_(all), own_(own) {
    require(own.count >= 1, "who takes batches needs some of every ", all);
  }

  /// The number of a batch by its place, from 0.
  Index operator()(Index place) const {
    const Index at = start_ + place;
    return at / own_.count * all_ + own_.first + at % own_.count;
  }

 private:
  Index start_, all_ = 1;
  IndexRange own_{0, 1};
};

/// Batches that threads of its own make while others are used. make(number, batch) fills a batch for one of the
/// numbers; what it makes must follow from the number alone, as several threads may call it at once.
template <class Batch>
class Prefetch {
 public:
  using Make = std::function<void(Index number, Batch& batch)>;

  /// `ahead` batches are made in advance, and wait. Each begins as a copy of `like`, and then as what was there before.
  /// Throws Error unless `ahead` and `threads` are positive.
  explicit Prefetch(Make make, const BatchNumbers& numbers = {}, const Batch& like = {}, int ahead = 2, int threads = 1)
      : make_(std::move(make)), numbers_(numbers) {
    require(ahead >= 1 && threads >= 1, "batches need at least 1 that waits and 1 thread, not ", ahead, " and ",
            threads);
    for (int i = 0; i <= ahead; ++i) slots_.push_back({like, -1, {}});
    for (int i = 0; i < threads; ++i) {
      workers_.emplace_back([this](std::stop_token stop) { work(stop); });
    }
  }
  Prefetch(const Prefetch&) = delete;
  Prefetch& operator=(const Prefetch&) = delete;

  /// The next batch, which is there until the next call. Throws what make() threw for it.
  Batch& next() {
    std::unique_lock lock(mutex_);
    const Index place = next_++;
    changed_.notify_all();  // the one before it is free
    Slot& slot = slot_of(place);
    changed_.wait(lock, [&] { return slot.place == place; });
    if (slot.failure) std::rethrow_exception(std::exchange(slot.failure, {}));
    return slot.batch;
  }

 private:
  struct Slot {
    Batch batch;
    Index place;  // that it was made for
    std::exception_ptr failure;
  };

  Slot& slot_of(Index place) { return slots_[static_cast<std::size_t>(place) % slots_.size()]; }

  void work(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    for (;;) {
      // The batch in use, next_ - 1, and those that wait have a slot each.
      changed_.wait(lock, stop, [&] { return claimed_ + 1 < next_ + static_cast<Index>(slots_.size()); });
      if (stop.stop_requested()) return;
      const Index place = claimed_++;
      Slot& slot = slot_of(place);
      lock.unlock();
      std::exception_ptr failure;
      try {
        make_(numbers_(place), slot.batch);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      slot.failure = failure;
      slot.place = place;
      changed_.notify_all();
    }
  }

  Make make_;
  BatchNumbers numbers_;
  Index next_ = 0, claimed_ = 0;  // places
  std::vector<Slot> slots_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::jthread> workers_;  // last, so that they end before what they use
};

}  // namespace FIT_ABI
}  // namespace fit
