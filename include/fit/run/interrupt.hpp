#pragma once

#include <atomic>
#include <csignal>

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

/// While there is one, Ctrl-C (SIGINT) and SIGTERM ask a program to come to an end, and do not end it; asked twice, it
/// ends as without one. What the program ignored before stays ignored. Signals belong to the whole program: have one at
/// a time.
class Interrupt {
 public:
  Interrupt() {
    flag() = false;
    old_interrupt_ = install(SIGINT);
    old_terminate_ = install(SIGTERM);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  ~Interrupt() {
    std::signal(SIGINT, old_interrupt_);
    std::signal(SIGTERM, old_terminate_);
  }

  static bool asked() { return flag(); }

 private:
  using Handler = void (*)(int);

  /// Handlers run on any thread.
  static std::atomic<bool>& flag() {
    static_assert(std::atomic<bool>::is_always_lock_free);
    static std::atomic<bool> value = false;
    return value;
  }
  static void note(int signal) {
    flag() = true;
    std::signal(signal, SIG_DFL);
  }
  static Handler install(int signal) {
    const Handler old = std::signal(signal, note);
    if (old == SIG_IGN) std::signal(signal, SIG_IGN);
    return old;
  }

  Handler old_interrupt_, old_terminate_;
};

}  // namespace FIT_ABI
}  // namespace fit
