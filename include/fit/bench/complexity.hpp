#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <fit/bench/peak.hpp>
#include <fit/bench/tasks.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Time, operations and memory against the length of a sequence.
namespace bench {

/// Tasks that go through the same sizes: `sizes` tells those of a length, of one sequence, so groups * tokens = length.
struct Curve {
  std::string name;
  std::function<Sizes(Index length)> sizes;
  std::vector<Task> tasks;
};

/// One measurement.
struct Point {
  std::string curve = {};
  Work work = Work::attention;
  Index width = 0;
  bool causal = false;
  Pass pass = Pass::forward;
  Index length = 0;
  Sizes sizes = {};
  double seconds = 0;  ///< the median of several runs, where there was time for them, after one that is not counted
  Flops flops = {};
  Index bytes = 0;
  bool estimated = false;  ///< from the cost model, at the rate of the largest length that ran; else measured

  double tokens_per_second() const { return static_cast<double>(length) / seconds; }
  /// FLOPs a second, over a peak.
  double share_of(double peak) const { return static_cast<double>(flops.total()) / seconds / peak; }
};

/// Bytes that the system says are free, on Linux; elsewhere 4 GiB.
inline Index available_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string name, rest; info >> name; std::getline(info, rest)) {
    Index kilobytes = 0;
    if (name == "MemAvailable:" && info >> kilobytes) return kilobytes * 1024;
  }
  return Index{4} << 30;
}

/// from, 2 from, 4 from ... up to `to`. Throws Error unless 1 <= from <= to.
inline std::vector<Index> doublings(Index from, Index to) {
  require(from >= 1 && from <= to, "lengths must go from a positive number up to one that is not smaller, not from ",
          from, " to ", to);
  std::vector<Index> lengths;
  for (Index length = from;; length *= 2) {
    lengths.push_back(length);
    if (length > to / 2) return lengths;
  }
}

/// The divisor of `length` that is nearest to `wanted`, as a ratio.
inline Index nearest_divisor(Index length, double wanted) {
  Index best = 1;
  const auto distance = [&](Index divisor) { return std::abs(std::log(static_cast<double>(divisor) / wanted)); };
  for (Index divisor = 1; divisor * divisor <= length; ++divisor) {
    if (length % divisor != 0) continue;
    for (const Index candidate : {divisor, length / divisor}) {
      if (distance(candidate) < distance(best)) best = candidate;
    }
  }
  return best;
}

/// What a sweep found. `peak` is in operations a second on all its threads.
struct Results {
  double peak = 0;
  int threads = 1;
  std::vector<Point> points;
};

struct SweepOptions {
  std::vector<Index> lengths = doublings(1000, 1'024'000);  ///< ascending
  double seconds = 15;                                      ///< of a run; what would take longer is not run
  Index memory = available_memory() / 5 * 4;                ///< bytes; nor is what would take more
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  /// Called as soon as a point is known, which is the last of the results so far.
  std::function<void(const Point&, const Results&)> on_point = {};
  std::function<bool()> stop = {};  ///< asked between runs; ends the sweep when it says true
};

namespace detail {

inline double seconds_of(Job& job) {
  const auto start = std::chrono::steady_clock::now();
  job.run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The median of at least three runs over a fiftieth of `most` seconds, of fewer where three would take more than
/// `most`, of one at the least. Another one before them, which is not counted, brings memory in. Negative when it was
/// stopped before there was one.
inline double median_seconds(Job& job, double most, const std::function<bool()>& stop) {
  const auto stopped = [&] { return stop && stop(); };
  std::vector<double> times;
  double spent = 0;
  if (!stopped()) job.run();
  while (!stopped()) {
    times.push_back(seconds_of(job));
    spent += times.back();
    if (spent + times.back() >= most || (times.size() >= 3 && spent > most / 50)) break;
  }
  if (times.empty()) return -1;
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

inline void check(const Curve& curve) {
  require(curve.sizes && !curve.tasks.empty(), "curve ", curve.name, " needs sizes and at least one task");
  for (const Task& task : curve.tasks) {
    require(task.expect && task.prepare && !task.passes.empty(), "a task of curve ", curve.name,
            " needs passes, and functions for what to expect and what to run");
  }
  require(curve.name.find_first_of(",\"\n") == std::string::npos,
          "the name of a curve must not have commas, quotes or new lines, as it goes into a table: ", curve.name);
}

inline void check(const Curve& curve, Index length) {
  // Attention's operations, fourteen for each number and pair of tokens in some dozen layers, are counted in 64 bits.
  for (const Task& task : curve.tasks) {
    const auto pairs = static_cast<double>(length) * static_cast<double>(length);
    require(pairs * static_cast<double>(task.width) <= 0x1p54, "the operations of curve ", curve.name,
            " cannot be counted at a length of ", length, " and a width of ", task.width, ": shorten one of them");
  }
  const Sizes sizes = curve.sizes(length);
  require(sizes.batch == 1 && sizes.groups >= 1 && sizes.tokens >= 1 && sizes.latents >= 1, "curve ", curve.name,
          " needs a batch of 1 with at least 1 group, token and latent, not ", sizes.batch, ", ", sizes.groups, ", ",
          sizes.tokens, " and ", sizes.latents, ", at a length of ", length);
  require(sizes.groups * sizes.tokens == length, "curve ", curve.name, " makes ", sizes.groups, " groups of ",
          sizes.tokens, " tokens of a length of ", length, ": choose lengths that it divides");
  for (const Task& task : curve.tasks) {
    for (const Pass pass : task.passes) {
      const Expected expected = task.expect(sizes, pass, 1);  // the cost model refuses what it cannot count
      require(expected.flops.total() > 0 && expected.bytes > 0, "a task of curve ", curve.name,
              " has nothing to do at a length of ", length);
    }
  }
}

}  // namespace detail

/// A configuration of the user's own: its attention, and the whole model, trained with these options. `sizes` takes the
/// place of its counts.
template <auto config, class T = float>
Curve curve(std::string name, std::function<Sizes(Index length)> sizes, const TrainingOptions& options = {}) {
  return {std::move(name), std::move(sizes), {attention_task<config, T>(), model_task<config, T>(options)}};
}

/// Runs the tasks of all curves at all lengths. What would take too long or too much memory, or finds none, is
/// estimated from the cost model, with time and memory in proportion to the largest length that ran before; where none
/// has, at a quarter of the peak. Throws Error before anything runs when there is nothing to do, when lengths do not
/// ascend from one or more, when a curve cannot divide one, lacks something, or has the name and work of another.
inline Results sweep(const std::vector<Curve>& curves, const SweepOptions& options = {}) {
  require(!curves.empty() && !options.lengths.empty(), "a sweep needs at least one curve and one length");
  for (std::size_t i = 0; i < options.lengths.size(); ++i) {
    require(options.lengths[i] > (i == 0 ? 0 : options.lengths[i - 1]), "lengths must be positive and ascend, but ",
            options.lengths[i], " follows ", i == 0 ? 0 : options.lengths[i - 1]);
  }
  require(options.seconds > 0 && std::isfinite(options.seconds), "a point needs some time, not ", options.seconds,
          " seconds");
  require(options.memory > 0, "a memory limit must be positive, not ", options.memory);
  std::set<std::tuple<std::string, Work, Index, bool>> lines;
  for (const Curve& curve : curves) {
    detail::check(curve);
    for (const Task& task : curve.tasks) {
      require(lines.emplace(curve.name, task.work, task.width, task.causal).second, "two curves are called ",
              curve.name, ", with the same work, width and mask");
    }
    for (const Index length : options.lengths) detail::check(curve, length);
  }
  Executor executor(options.threads);
  Results results{0, options.threads, {}};
  for (const Curve& curve : curves) {
    for (const Task& task : curve.tasks) {
      for (const Pass pass : task.passes) {
        // A neighbour on the machine can hide a part of the peak, and then leave it alone.
        results.peak = std::max(results.peak, measure_peak(executor));
        double rate = results.peak / 4, memory_ratio = 1;
        for (const Index length : options.lengths) {
          if (options.stop && options.stop()) return results;
          Point point{.curve = curve.name,
                      .work = task.work,
                      .width = task.width,
                      .causal = task.causal,
                      .pass = pass,
                      .length = length,
                      .sizes = curve.sizes(length)};
          const Expected expected = task.expect(point.sizes, pass, options.threads);
          const double flops = static_cast<double>(expected.flops.total()), bytes = static_cast<double>(expected.bytes);
          point.flops = expected.flops;
          point.estimated = true;
          if (flops / rate <= options.seconds && bytes * memory_ratio <= static_cast<double>(options.memory)) {
            try {
              const auto job = task.prepare(point.sizes, pass, executor);
              point.seconds = detail::median_seconds(*job, options.seconds, options.stop);
              if (point.seconds < 0) return results;
              point.bytes = job->bytes();
              point.estimated = false;
              rate = flops / point.seconds;
              memory_ratio = static_cast<double>(point.bytes) / bytes;
            } catch (const std::bad_alloc&) {  // then it is as if the limit had said so
            }
          }
          if (point.estimated) {
            point.seconds = flops / rate;
            point.bytes = static_cast<Index>(bytes * memory_ratio);
          }
          results.points.push_back(point);
          if (options.on_point) options.on_point(point, results);
        }
      }
    }
  }
  return results;
}

}  // namespace bench
}  // namespace FIT_ABI
}  // namespace fit
