#pragma once

#include <atomic>
#include <csignal>

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

/// While there is one, the first Ctrl-C (SIGINT) or SIGTERM asks a program to come to an end, and does not end it; the
/// next one, of either, does what it did before. What the program ignored stays ignored. Signals belong to the whole
/// program: have one at a time.
class Interrupt {
 public:
  Interrupt() {
    asked_ = false;
    install(SIGINT, old_interrupt_);
    install(SIGTERM, old_terminate_);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  ~Interrupt() { restore(); }

  static bool asked() { return asked_; }

 private:
  using Handler = void (*)(int);

  static void install(int signal, std::atomic<Handler>& old) {
    old = std::signal(signal, note);
    if (old == SIG_IGN) std::signal(signal, SIG_IGN);
  }
  static void note(int) {
    asked_ = true;
    restore();
  }
  static void restore() {
    std::signal(SIGINT, old_interrupt_);
    std::signal(SIGTERM, old_terminate_);
  }

  // Handlers run on any thread.
  static inline std::atomic<bool> asked_ = false;
  static inline std::atomic<Handler> old_interrupt_ = SIG_DFL, old_terminate_ = SIG_DFL;
  static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<Handler>::is_always_lock_free);
};

}  // namespace FIT_ABI
}  // namespace fit
