#pragma once

// Bindings for C++ that MPI gave up in 2012, and that warn.
#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <limits>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <fit/core/team.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The processes that mpirun has started, as a team; one that is started without it is a team of one. While it lives,
/// MPI is there; have one at a time, where main() begins:
///
///     int main(int argc, char** argv) {
///       fit::World world(argc, argv);
///       return world.run([&] { return train(world); });
///     }
///
/// Only the thread that made it may use it.
class World final : public Team {
 public:
  /// Throws Error when MPI cannot be initialised, or was before.
  World(int& argc, char**& argv) { begin(&argc, &argv); }
  World() { begin(nullptr, nullptr); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// While an exception is on its way it ends all processes: others may wait for this one.
  ~World() {
    if (std::uncaught_exceptions() > exceptions_) abort("an exception");
    MPI_Comm_free(&comm_);
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  /// How many threads a process may have here, so that all processes of this machine have as many as it has processors;
  /// at least 1.
  int threads() const { return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / neighbours_); }

  /// Returns what f returns. When it throws, says which process fails and why, and ends all of them.
  template <class F>
  int run(F&& f) {
    try {
      return f();
    } catch (const std::exception& error) {
      abort(error.what());
    } catch (...) {
      abort("an exception");
    }
  }

  void exchange(std::span<const Message> sends, std::span<const Message> receives) override {
    requests_.clear();
    for (const Message& message : receives) {
      for_parts(message, [&](std::byte* data, int bytes) {
        check(MPI_Irecv(data, bytes, MPI_BYTE, message.with, tag, comm_, &requests_.emplace_back()), "MPI_Irecv");
      });
    }
    for (const Message& message : sends) {
      for_parts(message, [&](std::byte* data, int bytes) {
        check(MPI_Isend(data, bytes, MPI_BYTE, message.with, tag, comm_, &requests_.emplace_back()), "MPI_Isend");
      });
    }
    statuses_.resize(requests_.size());
    int done = 0;
    const auto count = static_cast<int>(requests_.size());
    // MPI_Waitall may keep a processor that another process of this machine could use.
    for (int polls = 0; count > 0 && !done; ++polls) {
      check(MPI_Testall(count, requests_.data(), &done, statuses_.data()), "MPI_Testall");
      if (!done && polls > 100) std::this_thread::yield();
    }
    for (std::size_t i = 0, k = 0; i < receives.size(); ++i) {
      for_parts(receives[i], [&](std::byte*, int bytes) {
        int came = 0;
        check(MPI_Get_count(&statuses_[k++], MPI_BYTE, &came), "MPI_Get_count");
        require(came == bytes, "process ", receives[i].with, " sent ", came, " bytes where ", bytes, " were expected");
      });
    }
  }

 private:
  static constexpr int tag = 0x666974 & 0x7fff;  // MPI grants tags up to 32,767

  void begin(int* argc, char*** argv) {
    int initialised = 0, provided = 0;
    MPI_Initialized(&initialised);
    require(!initialised, "MPI was initialised before: a program has one fit::World at a time");
    require(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) == MPI_SUCCESS, "MPI cannot be initialised");
    require(provided >= MPI_THREAD_FUNNELED, "this MPI cannot be used by a program with threads");
    require(MPI_Comm_dup(MPI_COMM_WORLD, &comm_) == MPI_SUCCESS, "MPI cannot make a communicator");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    MPI_Comm machine = MPI_COMM_NULL;
    check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
    MPI_Comm_size(machine, &neighbours_);
    MPI_Comm_free(&machine);
  }

  static void check(int code, const char* call) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw Error(concatenate(call, ": ", std::string_view(text, static_cast<std::size_t>(length))));
  }

  [[noreturn]] void abort(const char* why) const {
    std::fflush(stdout);
    std::fprintf(stderr, "process %d of %d fails, and ends the others: %s\n", rank_, size_, why);
    std::fflush(stderr);
    MPI_Abort(comm_, 1);
    std::terminate();  // MPI_Abort does not return
  }

  /// MPI counts bytes in an int.
  template <class F>
  static void for_parts(const Message& message, F&& f) {
    constexpr std::size_t most = std::size_t{1} << 30;
    std::size_t at = 0;
    do {
      const std::size_t bytes = std::min(most, message.bytes - at);
      f(static_cast<std::byte*>(message.data) + at, static_cast<int>(bytes));
      at += bytes;
    } while (at < message.bytes);
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, neighbours_ = 1;  // processes on this machine
  int exceptions_ = std::uncaught_exceptions();
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
};

}  // namespace FIT_ABI
}  // namespace fit
