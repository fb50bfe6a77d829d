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
    flag() = false;
    install(SIGINT, old_interrupt());
    install(SIGTERM, old_terminate());
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  ~Interrupt() { restore(); }

  static bool asked() { return flag(); }

 private:
  using Handler = void (*)(int);

  /// Handlers run on any thread.
  static std::atomic<bool>& flag() {
    static_assert(std::atomic<bool>::is_always_lock_free);
    static std::atomic<bool> value = false;
    return value;
  }
  static std::atomic<Handler>& old_interrupt() {
    static_assert(std::atomic<Handler>::is_always_lock_free);
    static std::atomic<Handler> handler = SIG_DFL;
    return handler;
  }
  static std::atomic<Handler>& old_terminate() {
    static std::atomic<Handler> handler = SIG_DFL;
    return handler;
  }
  static void restore() {
    std::signal(SIGINT, old_interrupt());
    std::signal(SIGTERM, old_terminate());
  }
  static void note(int) {
    flag() = true;
    restore();
  }
  static void install(int signal, std::atomic<Handler>& old) {
    old = std::signal(signal, note);
    if (old == SIG_IGN) std::signal(signal, SIG_IGN);
  }
};

}  // namespace FIT_ABI
}  // namespace fit
