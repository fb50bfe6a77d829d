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
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <list>
#include <map>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <fit/core/team.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The processes that mpirun has started, as a team; one that is started without it is a team of one. While it lives,
/// MPI is there, which begins and ends once in a program; so make one, where main() begins:
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
    for (auto& [rows, type] : types_) MPI_Type_free(&type);
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
    finish(start(sends, receives));
  }

  Index start(std::span<const Message> sends, std::span<const Message> receives) override {
    Exchange& now = exchanges_.emplace_back();
    now.number = ++started_;
    for (const Message& message : receives) {
      for_parts(message, [&](std::byte* data, int count, MPI_Datatype type) {
        now.expected.push_back({message.with, count, type});
        check(MPI_Irecv(data, count, type, message.with, tag, comm_, &now.requests.emplace_back()), "MPI_Irecv");
      });
    }
    for (const Message& message : sends) {
      for_parts(message, [&](std::byte* data, int count, MPI_Datatype type) {
        check(MPI_Isend(data, count, type, message.with, tag, comm_, &now.requests.emplace_back()), "MPI_Isend");
      });
    }
    now.statuses.resize(now.requests.size());
    return now.number;
  }

  void finish(Index started) override {
    const auto found = std::find_if(exchanges_.begin(), exchanges_.end(),
                                    [&](const Exchange& exchange) { return exchange.number == started; });
    require(found != exchanges_.end(), "no exchange of number ", started, " is under way");
    // MPI_Waitall may keep a processor that another process of this machine could use.
    for (unsigned polls = 0; !test(*found); ++polls) {
      if (polls > 100) std::this_thread::yield();
    }
    for (std::size_t i = 0; i < found->expected.size(); ++i) {
      const auto& [with, count, type] = found->expected[i];
      int came = 0, bytes = 0;
      check(MPI_Type_size(type, &bytes), "MPI_Type_size");
      check(MPI_Get_elements(&found->statuses[i], type, &came), "MPI_Get_elements");
      require(came == count * bytes, "process ", with, " sent ", came, " bytes where ", count * bytes,
              " were expected");
    }
    exchanges_.erase(found);
  }

  void poll() override {
    const auto now = std::chrono::steady_clock::now();
    if (exchanges_.empty() || now - polled_ < std::chrono::microseconds(50)) return;
    polled_ = now;
    for (Exchange& exchange : exchanges_) test(exchange);
  }

 private:
  struct Expected {
    int with, count;
    MPI_Datatype type;
  };
  struct Exchange {
    Index number = 0;
    std::vector<MPI_Request> requests;
    std::vector<MPI_Status> statuses;
    std::vector<Expected> expected;
    bool done = false;
  };

  /// Whether all of it has arrived; MPI goes on with it while it looks.
  static bool test(Exchange& exchange) {
    int done = exchange.done || exchange.requests.empty();
    if (!done) {
      const auto count = static_cast<int>(exchange.requests.size());
      check(MPI_Testall(count, exchange.requests.data(), &done, exchange.statuses.data()), "MPI_Testall");
    }
    return exchange.done = done != 0;
  }

  static constexpr int tag = 0x666974 & 0x7fff;  // MPI grants tags up to 32,767

  void begin(int* argc, char*** argv) {
    int initialised = 0, provided = 0;
    MPI_Initialized(&initialised);
    require(!initialised, "MPI was initialised before: a program has one fit::World in its life");
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

  /// f(data, count, type): MPI counts in an int.
  template <class F>
  void for_parts(const Message& message, F&& f) {
    constexpr std::size_t most = std::size_t{1} << 30;
    if (message.rows == 1) {
      std::size_t at = 0;
      do {
        const std::size_t bytes = std::min(most, message.bytes - at);
        f(message.row(0) + at, static_cast<int>(bytes), MPI_BYTE);
        at += bytes;
      } while (at < message.bytes);
      return;
    }
    require(message.bytes <= most, "a row of ", message.bytes, " bytes is more than MPI counts");
    const auto together = static_cast<Index>(most / std::max<std::size_t>(1, message.bytes));
    for (Index at = 0; at < message.rows; at += together) {
      f(message.row(at), 1, type_of(std::min(together, message.rows - at), message.bytes, message.apart));
    }
  }

  /// MPI's type of rows of bytes, made once.
  MPI_Datatype type_of(Index rows, std::size_t bytes, std::size_t apart) {
    MPI_Datatype& type = types_.try_emplace({rows, bytes, apart}, MPI_DATATYPE_NULL).first->second;
    if (type == MPI_DATATYPE_NULL) {
      check(MPI_Type_create_hvector(static_cast<int>(rows), static_cast<int>(bytes), static_cast<MPI_Aint>(apart),
                                    MPI_BYTE, &type),
            "MPI_Type_create_hvector");
      check(MPI_Type_commit(&type), "MPI_Type_commit");
    }
    return type;
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, neighbours_ = 1;  // processes on this machine
  int exceptions_ = std::uncaught_exceptions();
  Index started_ = 0;
  std::list<Exchange> exchanges_;  // under way
  std::map<std::tuple<Index, std::size_t, std::size_t>, MPI_Datatype> types_;
  std::chrono::steady_clock::time_point polled_{};
};

}  // namespace FIT_ABI
}  // namespace fit
