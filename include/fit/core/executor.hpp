#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <fit/core/memory.hpp>

#include <unsupported/Eigen/CXX11/ThreadPool>

namespace fit {
inline namespace FIT_ABI {

/// While it lives, the thread that made it calls f() before every index of a loop that it runs: to look after something
/// that goes on meanwhile. One inside another takes its place.
class BetweenPieces {
 public:
  explicit BetweenPieces(std::function<void()> f) : f_(std::move(f)), outer_(std::exchange(now_, this)) {}
  BetweenPieces(const BetweenPieces&) = delete;
  BetweenPieces& operator=(const BetweenPieces&) = delete;
  ~BetweenPieces() { now_ = outer_; }

 private:
  friend class Executor;
  static void call() {
    if (now_) now_->f_();
  }

  std::function<void()> f_;
  BetweenPieces* outer_;
  static inline constinit thread_local BetweenPieces* now_ = nullptr;
};

/// Runs loops on the calling thread and the threads of an Eigen thread pool, its own or the user's.
///
/// Every thread begins with a share of its own of the indices, with two threads the same part of every loop, as what it
/// wrote in the last loop may still be in its caches; then it takes from the shares of the others. So which thread runs
/// which index is open, and results must not depend on it; the library's kernels cut their work in the same pieces for
/// any number of threads. One loop runs at a time: a loop that is started while another one runs, from another thread
/// or from inside a body, runs on the thread that started it. An Executor must outlive its loops and, like every Eigen
/// pool, must not be destroyed by one of the pool's own threads. A thread of its own that has to share its processor
/// with another program sits loops out for a while: whoever waits for it would be slower than without it.
class Executor {
 public:
  /// As many threads as the machine has, or `threads`, the calling one among them. Throws Error below one, and what
  /// the system throws when it cannot start them.
  explicit Executor(int threads = processors()) {
    require(threads >= 1, "an executor needs at least 1 thread, not ", threads);
    if (threads > 1) {
      missing_ = threads - 1;
      owned_ = std::make_unique<Eigen::ThreadPoolTempl<Environment>>(threads - 1, Environment{{}, &missing_});
      pool_ = owned_.get();
    }
    prepare();
  }

  /// The calling thread and the threads of a pool, which must outlive the executor.
  explicit Executor(Eigen::ThreadPoolInterface& pool) : pool_(&pool) { prepare(); }

  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  ~Executor() {
    patience_ = 0;
    while (scheduled_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

  /// Number of threads a loop may run on; lanes count from zero up to it.
  int lanes() const { return pool_ ? pool_->NumThreads() + 1 : 1; }

  /// Calls body(index, lane) for every index in 0 .. count-1. Calls with equal lanes never overlap in time, so memory
  /// may be set aside by lane. The first exception of a body is thrown again here when the loop has ended.
  template <class Body>
  void parallel_for(Index count, Body&& body) {
    auto call = [&body](Index index, int lane) { body(index, lane); };
    loop(count, &call,
         [](void* target, Index index, int lane) { (*static_cast<decltype(call)*>(target))(index, lane); });
  }

 private:
  using Call = void (*)(void* body, Index index, int lane);

  [[gnu::noinline]] void loop(Index count, void* body, Call call_once) {
    // A pointer that the compiler does not see through, so that there is one copy of the body: in a second one, for the
    // loop on one thread, it might fuse sums and products differently.
    const volatile Call hidden = call_once;
    const Call call = hidden;
    const int helpers = static_cast<int>(std::min<Index>(count, lanes()) - 1);
    if (helpers <= 0 || busy_.exchange(true, std::memory_order_acquire)) {
      for (Index i = 0; i < count; ++i) {
        BetweenPieces::call();
        call(body, i, 0);
      }
      return;
    }
    next_lane_.store(1, std::memory_order_relaxed);
    shares_in_use_ = helpers + 1;
    for (int lane = 0; lane < shares_in_use_; ++lane) {
      Share& share = shares_[static_cast<std::size_t>(lane)];
      share.next.store(count * lane / shares_in_use_, std::memory_order_relaxed);
      share.end = count * (lane + 1) / shares_in_use_;
    }
    body_ = body;
    call_ = call;
    const std::uint64_t loop = (state_.load(std::memory_order_relaxed) & loop_mask) + loop_step;
    state_.store(loop | open_bit, std::memory_order_release);
    for (int alive = scheduled_.load(std::memory_order_acquire); alive < helpers; ++alive) {
      scheduled_.fetch_add(1, std::memory_order_relaxed);
      try {
        pool_->Schedule([this] { attend(); });  // small enough for std::function to hold without allocating
      } catch (...) {                           // one helper less
        scheduled_.fetch_sub(1, std::memory_order_relaxed);
      }
    }
    run(0);
    // A helper that has not come by now finds the loop closed, so a pool with other work to do cannot hold us up.
    state_.fetch_and(~open_bit, std::memory_order_acq_rel);
    for (unsigned spins = 0; (state_.load(std::memory_order_acquire) & helper_mask) != 0; ++spins) {
      if (spins % 1024 == 1023) {
        std::this_thread::yield();
      } else {
        pause();
      }
    }
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    busy_.store(false, std::memory_order_release);
    if (failure) std::rethrow_exception(failure);
  }

  static int processors() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

  void prepare() {
    // Waiting helps nobody where there are more threads than processors.
    if (lanes() > processors()) patience_ = 64;
    shares_ = std::vector<Share>(static_cast<std::size_t>(lanes()));
  }

  /// Starts the threads of our pool, and lets none begin before all are there: where one cannot be started, Eigen
  /// destroys the pool and waits for those that run already.
  struct Environment : Eigen::StlThreadEnvironment {
    std::atomic<int>* missing;  // below zero: one could not be started

    EnvThread* CreateThread(std::function<void()> life) {
      const auto tell = [this](int now) {
        missing->store(now);
        missing->notify_all();
      };
      try {
        auto* thread = StlThreadEnvironment::CreateThread([missing = missing, life = std::move(life)] {
          int now;
          while ((now = missing->load()) > 0) missing->wait(now);
          if (now == 0) life();
        });
        tell(missing->load() - 1);
        return thread;
      } catch (...) {
        tell(-1);
        throw;
      }
    }
  };

  // state_: the loop's number, whether helpers may still join, and how many are inside.
  static constexpr std::uint64_t helper_mask = 0xffff, open_bit = 0x10000, loop_step = 0x20000;
  static constexpr std::uint64_t loop_mask = ~(loop_step - 1);

  /// A helper's life: it joins loops as they come, and returns to the pool when none has come for a while. Waking a
  /// thread costs more than many a loop takes.
  void attend() {
    std::uint64_t helped = 0;
    Presence presence;
    for (int idle = 0; idle < patience_; ++idle) {
      const std::uint64_t state = state_.load(std::memory_order_acquire);
      if ((state & open_bit) != 0 && (state & loop_mask) != helped) {
        helped = state & loop_mask;
        help(helped);
        idle = 0;
        if (owned_) presence.rest_where_disturbed(patience_);
      } else {
        pause();
      }
    }
    scheduled_.fetch_sub(1, std::memory_order_release);
  }

  /// How much of its time a thread that never waits has had a processor.
  class Presence {
   public:
    /// Sleeps where that was less than three quarters: longer each time, until it was more, or `patience` is zero.
    void rest_where_disturbed([[maybe_unused]] const std::atomic<int>& patience) {
#if defined(CLOCK_THREAD_CPUTIME_ID)
      using namespace std::chrono_literals;
      const auto now = Clock::now();
      if (now - since_ < 20ms) return;
      // Where others have less than a quarter of a processor, whatever disturbs is a thread of this program, as one
      // that makes batches, and nothing is won by resting.
      const auto took = now - since_, others = processors() * took - (time_of(CLOCK_PROCESS_CPUTIME_ID) - all_before_);
      const bool present = 4 * others < took || 4 * (time_of(CLOCK_THREAD_CPUTIME_ID) - ran_before_) > 3 * took;
      pause_ = present ? 40ms : std::min(2 * pause_, 640ms);
      if (!present) {
        while (patience > 0 && Clock::now() - now < pause_) std::this_thread::sleep_for(5ms);
      }
      since_ = Clock::now();
      ran_before_ = time_of(CLOCK_THREAD_CPUTIME_ID);
      all_before_ = time_of(CLOCK_PROCESS_CPUTIME_ID);
#endif
    }

   private:
    using Clock = std::chrono::steady_clock;

#if defined(CLOCK_THREAD_CPUTIME_ID)
    static std::chrono::nanoseconds time_of(clockid_t clock) {
      timespec time{};
      clock_gettime(clock, &time);
      return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
    }

    Clock::time_point since_ = Clock::now();
    std::chrono::nanoseconds ran_before_ = time_of(CLOCK_THREAD_CPUTIME_ID);
    std::chrono::nanoseconds all_before_ = time_of(CLOCK_PROCESS_CPUTIME_ID);
    std::chrono::milliseconds pause_{40};
#endif
  };

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // which takes about as long as the other, as yield does not
#endif
  }

  void help(std::uint64_t loop) {
    std::uint64_t state = state_.load(std::memory_order_acquire);
    do {
      if ((state & (loop_mask | open_bit)) != (loop | open_bit)) return;
    } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel));
    run(next_lane_.fetch_add(1, std::memory_order_relaxed));
    state_.fetch_sub(1, std::memory_order_acq_rel);
  }

  void run(int lane) {
    try {
      for (int turn = 0; turn < shares_in_use_; ++turn) {
        Share& share = shares_[static_cast<std::size_t>((lane + turn) % shares_in_use_)];
        for (Index i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
          BetweenPieces::call();
          call_(body_, i, lane);
        }
      }
    } catch (...) {
      for (Share& share : shares_) share.next.store(share.end, std::memory_order_relaxed);
      const std::lock_guard lock(failure_mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  struct alignas(alignment) Share {
    std::atomic<Index> next{0};
    Index end = 0;
  };

  std::atomic<int> missing_{0};
  std::unique_ptr<Eigen::ThreadPoolTempl<Environment>> owned_;
  Eigen::ThreadPoolInterface* pool_ = nullptr;
  std::atomic<bool> busy_{false};
  std::vector<Share> shares_;
  int shares_in_use_ = 0;
  alignas(alignment) std::atomic<std::uint64_t> state_{0};
  std::atomic<int> next_lane_{1};
  std::atomic<int> scheduled_{0};
  std::atomic<int> patience_{4000};
  void* body_ = nullptr;
  Call call_ = nullptr;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

/// The executor of calls that name none: one thread for each of the machine's processors, made at the first use.
inline Executor& default_executor() {
  static Executor executor;
  return executor;
}

}  // namespace FIT_ABI
}  // namespace fit
