#pragma once

#include <csignal>

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

/// While there is one, Ctrl-C (SIGINT) and SIGTERM ask a program to come to an end, and do not end it; asked twice, it
/// ends as without one. Signals belong to the whole program: have one at a time.
class Interrupt {
 public:
  Interrupt() : old_interrupt_(std::signal(SIGINT, note)), old_terminate_(std::signal(SIGTERM, note)) { count() = 0; }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  ~Interrupt() {
    std::signal(SIGINT, old_interrupt_);
    std::signal(SIGTERM, old_terminate_);
  }

  static bool asked() { return count() > 0; }

 private:
  static volatile std::sig_atomic_t& count() {
    static volatile std::sig_atomic_t value = 0;
    return value;
  }
  static void note(int signal) {
    count() = 1;
    std::signal(signal, SIG_DFL);
  }

  void (*old_interrupt_)(int);
  void (*old_terminate_)(int);
};

}  // namespace FIT_ABI
}  // namespace fit
