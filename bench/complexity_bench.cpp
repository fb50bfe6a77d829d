#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <fit/bench/report.hpp>
#include <map>
#include <string>

#include "complexity_curves.hpp"

namespace {

/// Attention of a curve over its lengths. Each length's counter "exponent" is fitted over the upper half of the lengths
/// up to it, so the last one's is what attention_complexity reports.
void run(benchmark::State& state, const fit::bench::Curve& curve, fit::bench::Pass pass,
         std::map<fit::Index, double>& times) {
  const fit::Index length = state.range(0);
  fit::Executor executor;
  const auto job = curve.tasks.front().prepare(curve.sizes(length), pass, executor);
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) job->run();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  times[length] = spent.count() / static_cast<double>(state.iterations());
  std::vector<fit::plot::Point> points;
  for (const auto& [at, seconds] : times) {
    if (at <= length) points.push_back({static_cast<double>(at), seconds});
  }
  if (const auto exponent = fit::bench::fit_exponent(points)) state.counters["exponent"] = exponent->value;
  state.SetComplexityN(length);
}

const bool registered = [] {
  for (const fit::bench::Curve& curve : complexity_curves<256>(false)) {
    if (curve.name != "full" && curve.name != "fit") continue;
    const bool full = curve.name == "full";
    for (const auto pass : {fit::bench::Pass::forward, fit::bench::Pass::forward_backward}) {
      const std::string name = std::string("Complexity/") + curve.name + "/" + fit::bench::name_of(pass);
      auto* of = benchmark::RegisterBenchmark(
          name.c_str(), [curve, pass, times = std::map<fit::Index, double>()](benchmark::State& state) mutable {
            run(state, curve, pass, times);
          });
      of->ArgName("length")->UseRealTime()->Unit(benchmark::kMillisecond);
      for (const fit::Index length : fit::bench::doublings(1000, full ? 16'000 : 128'000)) of->Arg(length);
      if (full) {
        of->Complexity(benchmark::oNSquared);
      } else {
        of->Complexity([](benchmark::IterationCount n) { return std::pow(static_cast<double>(n), 4.0 / 3); });
      }
    }
  }
  return true;
}();

}  // namespace
