#pragma once

#include <condition_variable>
#include <cstring>
#include <exception>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <fit/core/team.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

/// Tasks on threads of which one runs at a time, until it exchanges something with the others or ends.
class Turns {
 public:
  /// Tasks first .. first + count - 1 of `all`, which are dealt to the members of a team by share_of().
  Turns(Team& team, int all) : team_(team), all_(all), own_(share_of(all, team.rank(), team.size())) {
    for (Index i = 0; i < own_.count; ++i) tasks_.emplace_back(*this, static_cast<int>(own_.first + i));
  }

  template <class F>
  void run(F&& f) {
    std::vector<std::jthread> threads;
    const auto live = [&](Task& task) {
      wait_for(task, Turn::task);
      try {
        if (!failed_) f(static_cast<Team&>(task), static_cast<Index>(task.number));
      } catch (...) {
        task.failure = std::current_exception();
      }
      task.ended = true;
      pass(task, Turn::others);
    };
    for (Task& task : tasks_) {
      try {
        if (!failed_) threads.emplace_back([&] { live(task); });
      } catch (...) {
        fail();
      }
      task.ended = failed_;
    }
    for (bool going = true; going;) {
      going = false;
      for (Task& task : tasks_) {
        if (task.ended) continue;
        pass(task, Turn::task);
        wait_for(task, Turn::others);
        failed_ = failed_ || task.failure;
        going = going || !task.ended;
      }
      // Once something has failed, whoever still waits for the others is told, and ends as well.
      if (!going || failed_) continue;
      try {
        deliver();
      } catch (...) {
        fail();
      }
    }
    for (const Task& task : tasks_) {
      if (task.failure && !task.told) std::rethrow_exception(task.failure);
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  enum class Turn { others, task };

  struct Task final : Team {
    Task(Turns& all, int its_number) : turns(all), number(its_number) {}

    int rank() const override { return number; }
    int size() const override { return turns.all_; }
    void exchange(std::span<const Message> to, std::span<const Message> from) override {
      sends = to;
      receives = from;
      turns.pass(*this, Turn::others);
      turns.wait_for(*this, Turn::task);
      told = turns.failed_;
      require(!told, "another member of the team has failed");
    }

    Turns& turns;
    int number;
    std::span<const Message> sends, receives;
    Turn turn = Turn::others;
    bool ended = false, told = false;
    std::exception_ptr failure;
  };

  void fail() {
    failure_ = std::current_exception();
    failed_ = true;
  }

  void pass(Task& task, Turn turn) {
    const std::lock_guard lock(mutex_);
    task.turn = turn;
    changed_.notify_all();
  }
  void wait_for(Task& task, Turn turn) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return task.turn == turn; });
  }

  static Team::Message with(int member, Team::Message message) {
    message.with = member;
    return message;
  }
  bool is_own(int task) const { return task >= own_.first && task < own_.end(); }
  int home_of(int task) const {
    int rank = 0;
    while (share_of(all_, rank, team_.size()).end() <= task) ++rank;
    return rank;
  }

  /// Hands over what all tasks have sent: within this member's memory, or through the team, where messages go from task
  /// to task in an order that both sides know.
  void deliver() {
    using Key = std::tuple<int, int, Index>;  // from, to, how many before it
    std::map<Key, Team::Message> sends, receives;
    for (Task& task : tasks_) {
      require(!task.ended, "member ", task.number, " of a team has ended, and others wait for it");
      std::map<int, Index> sent, received;
      for (const auto& message : task.sends) sends[{task.number, message.with, sent[message.with]++}] = message;
      for (const auto& message : task.receives)
        receives[{message.with, task.number, received[message.with]++}] = message;
    }
    std::vector<Team::Message> away, home;
    for (const auto& [key, send] : sends) {
      const int to = std::get<1>(key);
      if (!is_own(to)) {
        away.push_back(with(home_of(to), send));
        continue;
      }
      const auto receive = receives.find(key);
      require(receive != receives.end() && receive->second.bytes == send.bytes && receive->second.rows == send.rows,
              "member ", to, " of a team does not expect the ", send.size(), " bytes that member ", std::get<0>(key),
              " sends");
      for (Index i = 0; i < send.rows; ++i) std::memcpy(receive->second.row(i), send.row(i), send.bytes);
      receives.erase(receive);
    }
    for (const auto& [key, receive] : receives) {
      const int from = std::get<0>(key);
      require(!is_own(from), "member ", from, " of a team does not send the ", receive.size(), " bytes that member ",
              std::get<1>(key), " expects");
      home.push_back(with(home_of(from), receive));
    }
    if (team_.size() > 1) team_.exchange(away, home);
  }

  Team& team_;
  int all_;
  IndexRange own_;
  std::list<Task> tasks_;
  bool failed_ = false;
  std::exception_ptr failure_;  // of an exchange
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace detail

/// Calls f(member, number) for this member's share of `count` tasks, each as a member of a team of `count`: tasks may
/// be more than the members of `team`, and compute the same wherever they are. Those of one member take turns, each
/// running on until it exchanges something; so a task may use what is there for one at a time, such as an executor.
/// Only the calling thread talks to `team`. Throws Error for fewer tasks than members, for messages that nobody expects
/// or sends, and what a task throws, when all have ended.
template <class F>
void take_turns(Team& team, Index count, F&& f) {
  require(count >= team.size(), "a team of ", team.size(), " needs as many tasks, not ", count);
  if (count == team.size()) return void(f(team, Index{team.rank()}));
  detail::Turns(team, static_cast<int>(count)).run(f);
}

}  // namespace FIT_ABI
}  // namespace fit
