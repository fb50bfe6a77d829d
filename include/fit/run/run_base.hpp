#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fit/core/team.hpp>
#include <fit/io/checkpoint.hpp>
#include <fit/run/batch_values.hpp>
#include <fit/run/interrupt.hpp>
#include <fit/run/log.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/progress.hpp>
#include <fit/run/run_options.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// What a run does that does not hang on the type of its model: see Run.
class RunBase {
 public:
  virtual ~RunBase() = default;
  RunBase(const RunBase&) = delete;
  RunBase& operator=(const RunBase&) = delete;

  /// The number of the next batch, from 0: of its examples, and of all that is random about them.
  Index batch() const { return batch_ + own_.first + gathered_; }
  /// The numbers of this and the following batches, for a Prefetch.
  BatchNumbers batches() const {
    return {batch_ / options_.accumulate * own_.count + gathered_, options_.accumulate, own_};
  }
  /// Updates in all; 0 while a run by time does not know yet.
  Index total() const { return total_; }
  double seconds() const { return seconds_; }
  bool interrupted() const { return interrupted_; }
  std::optional<double> best() const { return best_; }
  const RunLog& log() const { return log_; }

  /// Whether there is another batch to take: not after the last step, an interruption, or an early end.
  bool next() {
    if (gathered_ == 0) {
      const bool done = out_of_patience() || (total_ > 0 && step_ >= total_);
      // Not in the middle of what may be a return: the state from before stays good.
      const bool settled = done || skipped_ == 0;
      interrupted_ = interrupted_ || (!done && settled && asked_to_stop());
      const bool over = done || interrupted_;
      if (settled && (save_due_ || (over && saved_step_ != step_))) save_state();
      if (over) return false;
    }
    began_ = Clock::now();
    return true;
  }

  /// Whether an evaluation is due, after an update.
  bool evaluates() const {
    return gathered_ == 0 && step_ > first_step_ && (due(options_.evaluate_every) || step_ == total_);
  }

  /// Takes the score of an evaluation, by which the best weights are kept, and what else to log of it. Returns whether
  /// it is the best so far. A score that is NaN never is.
  bool evaluated(const std::string& name, double score, NamedValues values = {}) {
    score = team_.of_first(score);
    const bool better =
        !std::isnan(score) && (!best_ || (options_.smaller_is_better ? score < *best_ : score > *best_));
    values.insert(values.begin(), {name, score});
    RunLog::check(values);
    std::string line = "step " + std::to_string(step_) + ":";
    for (const auto& [of, value] : values) {
      char text[64];
      std::snprintf(text, sizeof(text), "%s %s %.5g", &of == &values[0].first ? "" : ",", of.c_str(), value);
      line += text;
    }
    note(line + (better ? " (best)" : ""));
    log_.add({step_, seconds_, std::move(values)});
    write_log();
    since_best_ = better ? 0 : since_best_ + 1;
    if (better) {
      best_ = score;
      save_weights_to(file(""));
    }
    if (out_of_patience()) note("no better for " + std::to_string(since_best_) + " evaluations: the run ends");
    save_due_ = true;
    return better;
  }

  /// Leaves the last weights, which are the best as well where none were evaluated, and the log. From here on Ctrl-C is
  /// what it was. What a program returns: 0, or 130 after an interruption.
  int finish() {
    if (progress_) progress_->finish();
    if (interrupted_) note("interrupted after " + std::to_string(step_) + " steps; resume to go on");
    if (!interrupted_) save_weights_to(file("_last"));
    if (!interrupted_ && !best_) save_weights_to(file(""));
    interrupt_.reset();
    write_log();
    return interrupted_ ? 130 : 0;
  }

 protected:
  /// Of a state's steps and random numbers; alone, where there is no team.
  RunBase(Index& step, Random& random, Team* team, RunOptions options)
      : options_(std::move(options)), team_(team ? *team : alone_), log_(prefix()), step_(step), random_(random) {
    check(options_, team_.size());
    own_ = batches_of_member(team_.rank());
    total_ = options_.steps;
  }

  /// Loads the state or saves the first one.
  void begin() {
    bool resumes = false;
    team_.lead([&] {
      std::error_code error;
      std::filesystem::create_directories(options_.folder, error);
      require(!error, options_.folder.string(), ": cannot create this folder: ", error.message());
      const auto saved = std::filesystem::status(file("_state"), error);
      require(saved.type() != std::filesystem::file_type::none, file("_state").string(),
              ": cannot be looked up: ", error.message());
      resumes = options_.resume && std::filesystem::exists(saved);
      if (resumes) return;
      put_aside(file("_state"), file("_state_before"));
      put_aside(prefix().string() + ".csv", prefix().string() + "_before.csv");
    });
    resumes = team_.of_first(resumes);
    if (resumes) {
      resume();
    } else {
      save_state();
    }
    first_step_ = logged_step_ = step_;
    logged_seconds_ = seconds_;
    if (!options_.terminal || !team_.leads()) return;
    progress_ = std::make_unique<Progress>("training", total_, step_, options_.terminal);
    if (resumes) note("resumed after " + std::to_string(step_) + " steps");
  }

  /// Takes what is to be logged of a batch whose gradient is there.
  void take(double loss, const NamedValues& values) {
    require(total_ == 0 || step_ < total_, "a run is updated after its last step, ", total_);
    RunLog::check(values);
    for (const auto& [name, value] : values) {
      require(name != "loss" && name != "rate" && name != "examples_per_second" && name != "skipped",
              "a run logs its own ", name);
    }
    values_.keep(loss, values);
    ++gathered_;
  }

  /// Whether that was the last batch of an update.
  bool complete() const { return gathered_ == own_.count; }

  /// Until the next batch of the update.
  void pause() { update_seconds_ += since(began_); }

  /// Ends the batches of an update. Returns whether all losses were finite.
  bool end_batches() {
    const bool finite = values_.take(team_, [&](int member) { return batches_of_member(member); });
    gathered_ = 0;
    batch_ += options_.accumulate;
    return finite;
  }

  double rate_now() const { return options_.rate(step_, total_ > 0 ? total_ : std::numeric_limits<Index>::max()); }

  /// After an update at a rate, whose gradient had a norm unless a loss was not finite.
  void updated(double rate, const std::optional<double>& norm) {
    skipped_ = norm && std::isfinite(*norm) ? 0 : skipped_ + 1;
    if (skipped_ > 0) leave_out(norm ? "gradient" : "loss");
    const double taken = team_.of_first(std::exchange(update_seconds_, 0) + since(began_));
    seconds_ += taken;
    if (total_ == 0) plan(taken);
    if (skipped_ >= most_skipped) go_back();
    show(rate);
    save_due_ = save_due_ || due(save_every()) || step_ == total_;
  }

  IndexRange leaves_of(int member) const { return share_of(options_.leaves, member, team_.size()); }
  /// Of an update.
  IndexRange batches_of(Index leaf) const { return share_of(options_.accumulate, leaf, options_.leaves); }
  IndexRange batches_of_member(int member) const {
    const IndexRange leaves = leaves_of(member);
    const Index first = batches_of(leaves.first).first;
    return {first, batches_of(leaves.end() - 1).end() - first};
  }

  const RunOptions options_;
  Solo alone_;
  Team& team_;
  IndexRange own_;  // batches of an update
  Index gathered_ = 0;

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int most_skipped = 3, most_returns = 2;
  static constexpr Index least_timed = 5, untimed = 2;

  static double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

  virtual void save_to(const std::filesystem::path& path, const Metadata& metadata) const = 0;
  virtual void load_from(const std::filesystem::path& path) = 0;
  virtual void save_weights_to(const std::filesystem::path& path) const = 0;

  std::filesystem::path prefix() const { return options_.folder / options_.name; }
  std::filesystem::path file(const char* what) const {
    return options_.folder / (options_.name + what + ".safetensors");
  }

  /// Whether some member is.
  bool asked_to_stop() {
    const auto asked = team_.gather(Interrupt::asked() ? 1 : 0);
    return std::find(asked.begin(), asked.end(), 1) != asked.end();
  }

  void write_log() {
    team_.lead([&] { log_.write(); });
  }

  /// Renames a file, if there is one.
  static void put_aside(const std::filesystem::path& from, const std::filesystem::path& to) {
    std::error_code error;
    std::filesystem::rename(from, to, error);
    require(!error || error == std::errc::no_such_file_or_directory, from.string(), ": cannot be renamed to ",
            to.string(), ": ", error.message());
  }

  bool due(Index every) const { return every > 0 && step_ % every == 0; }
  Index save_every() const {
    return options_.save_every > 0 ? options_.save_every : options_.evaluate_every > 0 ? 0 : 1000;
  }
  bool out_of_patience() const { return options_.patience > 0 && since_best_ >= options_.patience; }

  void note(const std::string& text) {
    if (progress_) progress_->note(text);
  }

  void leave_out(const char* what) {
    ++left_out_;
    note("step " + std::to_string(step_) + ": the " + what + " is not finite, and the update left out");
  }

  static Index steps_in(double seconds, double each) {
    return static_cast<Index>(std::clamp(seconds / each, 0.0, 0x1p53));
  }

  /// Fixes the number of steps of a run by time, once enough of them were timed.
  void plan(double taken) {
    if (timed_++ < untimed) return;
    timed_seconds_ += taken;
    const Index count = timed_ - untimed;
    const double budget = 60 * options_.minutes;
    if (count < least_timed && seconds_ < budget / 4) return;
    if (timed_seconds_ < budget / 50 && count < 50) return;
    total_ = step_ + steps_in(budget - seconds_, timed_seconds_ / static_cast<double>(count));
    save_due_ = true;
    if (progress_) progress_->set_total(total_);
    note(concatenate(total_, " steps fit into ", options_.minutes, " minutes"));
  }

  void show(double rate) {
    // As the means: of the updates since the last row.
    const double examples = static_cast<double>((step_ - logged_step_) * options_.batch * options_.accumulate);
    const double speed = examples / (seconds_ - logged_seconds_);
    if (progress_) {
      std::vector<Field> fields;
      values_.for_means([&](const std::string& name, double mean) { fields.emplace_back(name, mean); });
      fields.emplace_back("rate", rate, 3);
      fields.emplace_back("examples/s", speed);
      progress_->update(step_, fields);
    }
    if (!due(options_.log_every) && step_ != total_) return;
    RunLog::Row row{step_, seconds_};
    values_.for_means([&](const std::string& name, double mean) { row.values.emplace_back(name, mean); });
    values_.clear();
    if (left_out_ > 0) row.values.emplace_back("skipped", std::exchange(left_out_, 0));
    row.values.emplace_back("rate", rate);
    row.values.emplace_back("examples_per_second", speed);
    log_.add(std::move(row));
    logged_step_ = step_;
    logged_seconds_ = seconds_;
    const auto now = Clock::now();
    if (now - log_written_ < std::chrono::seconds(2)) return;
    log_written_ = now;
    if (!team_.leads()) return;
    try {
      log_.write();
    } catch (const Error& error) {
      note(error.what());
    }
  }

  void go_back() {
    skipped_ = 0;
    write_log();
    require(++returns_ <= most_returns, "step ", step_, ": ", most_skipped,
            " updates in a row were not finite again, after ", most_returns, " returns to an earlier state");
    const Index step = step_;
    const Random random = random_;
    load_from(file("_state"));
    note("step " + std::to_string(step) + ": back to the weights of step " + std::to_string(step_));
    step_ = step;
    random_ = random;
  }

  void save_state() {
    Metadata metadata;
    metadata["run.total"] = std::to_string(total_);
    metadata["run.examples"] = std::to_string(options_.batch);
    metadata["run.accumulate"] = std::to_string(options_.accumulate);
    metadata["run.minutes"] = shortest_text(options_.minutes);
    metadata["run.batch"] = std::to_string(batch_);
    metadata["run.seconds"] = shortest_text(seconds_);
    metadata["run.returns"] = std::to_string(returns_);
    metadata["run.since_best"] = std::to_string(since_best_);
    if (best_) metadata["run.best"] = shortest_text(*best_);
    save_to(file("_state"), metadata);
    write_log();
    saved_step_ = step_;
    save_due_ = false;
  }

  /// What a run's state has besides that of training.
  struct Saved {
    Index batch, total, since_best;
    int returns;
    double seconds, minutes, best;
    bool has_best;
  };

  /// Throws Error where it is that of another run.
  Saved read_saved(const SafetensorsFile& saved) const {
    for (const auto& [key, now] :
         {std::pair{"run.examples", options_.batch}, {"run.accumulate", options_.accumulate}}) {
      const auto then = number_in<Index>(saved, key);
      require(then == now, file("_state").string(), ": ", key, " was ", then, ", and cannot become ", now);
    }
    const bool has_best = saved.metadata().contains("run.best");
    const auto number = [&]<class Number>(const char* key, Number most) {
      const auto value = number_in<Number>(saved, key);
      require(value >= 0 && value <= most, file("_state").string(), ": ", key,
              " must be finite and not negative, but is ", value);
      return value;
    };
    constexpr Index most = std::numeric_limits<Index>::max();
    constexpr double largest = std::numeric_limits<double>::max();
    return {.batch = number("run.batch", most),
            .total = number("run.total", most),
            .since_best = number("run.since_best", most),
            .returns = number("run.returns", std::numeric_limits<int>::max()),
            .seconds = number("run.seconds", largest),
            .minutes = number("run.minutes", largest),
            .best = has_best ? number_in<double>(saved, "run.best") : 0,
            .has_best = has_best};
  }

  void resume() {
    Saved saved{};
    team_.lead([&] {
      const SafetensorsFile state(file("_state"));
      saved = read_saved(state);
      log_.read(number_in<Index>(state, "state.step"));
    });
    saved = team_.of_first(saved);
    load_from(file("_state"));
    batch_ = saved.batch;
    seconds_ = saved.seconds;
    if (options_.minutes > 0) {
      total_ = saved.total;
      const bool changed = saved.minutes != options_.minutes;
      if (changed) total_ = 0;
      if (changed && step_ > 0 && seconds_ > 0) {
        total_ = std::max(step_, steps_in(60 * options_.minutes, seconds_ / static_cast<double>(step_)));
      }
    }
    returns_ = saved.returns;
    since_best_ = saved.since_best;
    if (saved.has_best) best_ = saved.best;
    saved_step_ = step_;
  }

  RunLog log_;
  Index& step_;
  Random& random_;
  BatchValues values_;
  std::optional<Interrupt> interrupt_{std::in_place};
  std::unique_ptr<Progress> progress_;
  Index batch_ = 0, total_ = 0, first_step_ = 0, logged_step_ = 0, saved_step_ = -1, since_best_ = 0, timed_ = 0;
  double seconds_ = 0, logged_seconds_ = 0, update_seconds_ = 0, timed_seconds_ = 0;
  bool interrupted_ = false, save_due_ = false;
  int skipped_ = 0, left_out_ = 0, returns_ = 0;  // in a row; since the last row of the log; in all
  std::optional<double> best_;
  Clock::time_point began_, log_written_;
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
