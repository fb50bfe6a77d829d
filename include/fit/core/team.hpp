#pragma once

#include <cstddef>
#include <exception>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <fit/core/index_range.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Members that compute one thing together, each with memory of its own: processes of an MPI program (World,
/// fit/distributed/world.hpp), or tasks of one (take_turns, core/turns.hpp). All of them call the same functions of a
/// team in the same order, from one thread each: exchange() also where a member has nothing to send or receive.
class Team {
 public:
  /// Bytes to or from a member, never to oneself: rows of them, `apart` bytes from one to the next. What one member
  /// sends another is received in the order in which it is sent, by messages of as many rows and bytes.
  struct Message {
    int with;
    void* data;
    std::size_t bytes;  // of a row
    Index rows = 1;
    std::size_t apart = 0;

    std::size_t size() const { return static_cast<std::size_t>(rows) * bytes; }
    std::byte* row(Index i) const { return static_cast<std::byte*>(data) + static_cast<std::size_t>(i) * apart; }
  };

  virtual ~Team() = default;

  virtual int rank() const = 0;  ///< of this member, 0 .. size-1
  virtual int size() const = 0;
  bool leads() const { return rank() == 0; }

  /// Sends and receives, and returns when all has arrived. Throws Error when that cannot be.
  virtual void exchange(std::span<const Message> sends, std::span<const Message> receives) = 0;

  /// The same in two parts, between which the caller computes: start() returns what finish() wants to be told, and
  /// until that returns the data are let alone. Messages go on when poll() is called now and then. All three throw
  /// Error as exchange(), and after an exception in between the process must end, as World::run() lets it. Here start()
  /// does all.
  virtual Index start(std::span<const Message> sends, std::span<const Message> receives) {
    exchange(sends, receives);
    return 0;
  }
  virtual void finish([[maybe_unused]] Index started) {}
  virtual void poll() {}

  /// Makes whole an array of which every member has a part: range_of(member) of its elements.
  template <class T, class RangeOf>
  void gather(T* data, RangeOf&& range_of) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto message = [&](int with, const IndexRange& range) {
      return Message{with, data + range.first, sizeof(T) * static_cast<std::size_t>(range.count)};
    };
    std::vector<Message> sends, receives;
    for (int other = 0; other < size(); ++other) {
      if (other == rank()) continue;
      sends.push_back(message(other, range_of(rank())));
      receives.push_back(message(other, range_of(other)));
    }
    exchange(sends, receives);
  }

  /// The values of all members, by rank.
  template <class T>
  std::vector<T> gather(const T& value) {
    static_assert(!std::is_same_v<T, bool>, "fit: a vector of bool has no elements to send");
    std::vector<T> all(static_cast<std::size_t>(size()), value);
    gather(all.data(), [](int member) { return IndexRange{member, 1}; });
    return all;
  }

  /// Makes the bytes of all members those of the first.
  void broadcast(void* data, std::size_t bytes) {
    const Message from_first{0, data, bytes};
    if (!leads()) return exchange({}, {&from_first, 1});
    std::vector<Message> sends;
    for (int other = 1; other < size(); ++other) sends.push_back({other, data, bytes});
    exchange(sends, {});
  }
  template <class T>
  T of_first(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    broadcast(&value, sizeof(T));
    return value;
  }
  std::string of_first(std::string text) {
    text.resize(of_first(text.size()));
    broadcast(text.data(), text.size());
    return text;
  }

  /// What only the first member does, such as files: calls f there. When it throws, the first member does, and the
  /// others throw Error.
  template <class F>
  void lead(F&& f) {
    std::string error;
    std::exception_ptr thrown;
    if (leads()) {
      try {
        f();
      } catch (const std::exception& caught) {
        thrown = std::current_exception();
        error = caught.what();
      } catch (...) {
        thrown = std::current_exception();
      }
      if (thrown && error.empty()) error = "the first member of the team failed";
    }
    error = of_first(error);
    if (thrown) std::rethrow_exception(thrown);
    require(error.empty(), error);
  }
};

/// What a program without a team has in its place.
class Solo final : public Team {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void exchange(std::span<const Message> sends, std::span<const Message> receives) override {
    require(sends.empty() && receives.empty(), "a team of one has nobody to exchange with");
  }
};

/// Some members of a team, `stride` apart, as a team of their own, in which its members alone may call.
class Subteam final : public Team {
 public:
  /// Throws Error unless the caller is one of them.
  Subteam(Team& team, int first, int count, int stride = 1)
      : team_(team), first_(first), count_(count), stride_(stride) {
    const int place = team.rank() - first;
    require(count > 0 && stride > 0 && place >= 0 && place % stride == 0 && place / stride < count && first >= 0 &&
                first + (count - 1) * stride < team.size(),
            "member ", team.rank(), " of ", team.size(), " is none of ", count, " from ", first, " on, ", stride,
            " apart");
  }

  int rank() const override { return (team_.rank() - first_) / stride_; }
  int size() const override { return count_; }
  void exchange(std::span<const Message> sends, std::span<const Message> receives) override {
    team_.exchange(renamed(sends), renamed(receives));
  }
  Index start(std::span<const Message> sends, std::span<const Message> receives) override {
    return team_.start(renamed(sends), renamed(receives));
  }
  void finish(Index started) override { team_.finish(started); }
  void poll() override { team_.poll(); }

 private:
  std::vector<Message> renamed(std::span<const Message> messages) const {
    std::vector<Message> all(messages.begin(), messages.end());
    for (Message& message : all) message.with = first_ + stride_ * message.with;
    return all;
  }

  Team& team_;
  int first_, count_, stride_;
};

}  // namespace FIT_ABI
}  // namespace fit
