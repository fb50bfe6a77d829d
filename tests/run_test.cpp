#include <fit/run/epochs.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/run.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;

std::string text_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

/// A matrix that is drawn towards a number which follows from the batch.
struct Point {
  using Scalar = float;
  fit::Matrix<float, 3, 5> weight;
  static void visit(auto&& f, auto&... p) { f("weight", p.weight...); }
};
using State = fit::TrainingState<Point>;

State new_state() {
  State state{.random = fit::Random(3)};
  state.average = state.model;
  return state;
}

double loss_of(const Point& model, Index batch, Point& gradient, fit::Random noise) {
  double loss = 0;
  for (Index i = 0; i < gradient.weight.size(); ++i) {
    const double target = 1 + 0.1 * static_cast<double>(batch % 7) + 0.01 * noise.normal();
    const double off = static_cast<double>(model.weight.data()[i]) - target;
    gradient.weight.data()[i] += static_cast<float>(off);
    loss += off * off / 2;
  }
  return loss;
}

/// Runs to the end, or to a batch at which it is interrupted. Says what it returns.
int run_to(State& state, const fit::RunOptions& options, Index interrupt_at = -1) {
  fit::Workspace workspace;
  Point gradient;
  fit::Run run(state, options);
  while (run.next()) {
    if (run.batch() == interrupt_at) std::raise(SIGINT);
    const double loss = loss_of(state.model, run.batch(), gradient, state.random.split());
    run.update(gradient, loss, workspace, {{"doubled", 2 * loss}});
    if (run.evaluates()) run.evaluated("distance", std::abs(static_cast<double>(run.weights().weight.data()[0]) - 1.3));
  }
  return run.finish();
}

}  // namespace

TEST_CASE("every epoch is a permutation of its own", "[run]") {
  for (const Index count : {1, 2, 3, 4, 5, 7, 16, 17, 100, 1000}) {
    const fit::Epochs order(count, fit::Random(5));
    std::vector<Index> last;
    for (Index epoch = 0; epoch < 3; ++epoch) {
      std::vector<Index> examples;
      for (Index i = 0; i < count; ++i) examples.push_back(order(epoch * count + i));
      CHECK(std::set<Index>(examples.begin(), examples.end()).size() == examples.size());
      CHECK(*std::min_element(examples.begin(), examples.end()) == 0);
      CHECK(*std::max_element(examples.begin(), examples.end()) == count - 1);
      if (count >= 16) CHECK(examples != last);
      last = examples;
    }
    CHECK(order(0) == fit::Epochs(count, fit::Random(5))(0));
  }
  // Every example comes first about as often as any other.
  const fit::Epochs order(10, fit::Random(1));
  std::vector<int> first(10);
  for (Index epoch = 0; epoch < 10'000; ++epoch) ++first[static_cast<std::size_t>(order(10 * epoch))];
  for (const int times : first) CHECK(std::abs(times - 1000) < 150);
  CHECK_THROWS_AS(fit::Epochs(0, fit::Random(1)), fit::Error);
}

TEST_CASE("batches are made ahead, in order, by any number of threads", "[run]") {
  for (const int threads : {1, 3}) {
    for (const int ahead : {1, 4}) {
      std::atomic<Index> newest = -1;
      fit::Prefetch<std::vector<Index>> batches(
          [&](Index number, std::vector<Index>& batch) {
            REQUIRE(batch.size() == 2);
            batch[0] = number;
            batch[1] = number * number;
            for (Index seen = newest; seen < number && !newest.compare_exchange_weak(seen, number);) {
            }
          },
          5, {0, 0}, ahead, threads);
      for (Index i = 5; i < 200; ++i) {
        const std::vector<Index>& batch = batches.next();
        CHECK(batch == std::vector<Index>{i, i * i});
        CHECK(newest <= i + ahead);
      }
    }
  }
}

TEST_CASE("what goes wrong with a batch is said when it is wanted, and the next one comes", "[run]") {
  fit::Prefetch<Index> batches([](Index number, Index& batch) {
    fit::require(number != 2, "no batch ", number);
    batch = number;
  });
  CHECK(batches.next() == 0);
  CHECK(batches.next() == 1);
  CHECK_THROWS_WITH(batches.next(), "no batch 2");
  CHECK(batches.next() == 3);
  CHECK_THROWS_AS((fit::Prefetch<Index>([](Index, Index&) {}, 0, 0, 0)), fit::Error);
}

TEST_CASE("a log is a table, lines and a picture, and is read again", "[run]") {
  const test::TemporaryFolder folder;
  fit::RunLog log(folder / "log");
  log.add({10, 0.5, {{"loss", 0.1}, {"rate", 1e-3}}});
  log.add({20, 1.25, {{"loss", std::nan("")}, {"accuracy", 0.75}}});
  log.add({30, 2, {{"loss", 1e-300}}});
  log.write();
  CHECK(text_of(folder / "log.csv") ==
        "step,seconds,loss,rate,accuracy\n10,0.5,0.1,0.001,\n20,1.25,nan,,0.75\n30,2,1e-300,,\n");
  CHECK(text_of(folder / "log.jsonl") ==
        "{\"step\": 10, \"seconds\": 0.5, \"loss\": 0.1, \"rate\": 0.001}\n"
        "{\"step\": 20, \"seconds\": 1.25, \"loss\": null, \"accuracy\": 0.75}\n"
        "{\"step\": 30, \"seconds\": 2, \"loss\": 1e-300}\n");
  CHECK(test::contains(text_of(folder / "log.svg"), "accuracy"));
  fit::RunLog again(folder / "log");
  again.read(20);
  CHECK(again.rows().size() == 2);
  again.add({30, 2, {{"loss", 1e-300}}});
  const std::string before = text_of(folder / "log.csv");
  again.write();
  CHECK(text_of(folder / "log.csv") == before);
  fit::RunLog none(folder / "none");
  none.read(5);
  CHECK(none.rows().empty());
  std::ofstream(folder / "bad.csv") << "a,b\n1,2\n";
  CHECK(test::contains(test::error_of([&] { fit::RunLog(folder / "bad").read(5); }), "not the log of a run"));
  std::ofstream(folder / "bad.csv", std::ios::trunc) << "step,seconds,loss\n1,2,3\n2,x,3\n";
  CHECK(test::contains(test::error_of([&] { fit::RunLog(folder / "bad").read(5); }), "not the log of a run"));
  for (const char* name : {"", "a,b", "a\"b", "step", "a b"}) CHECK_THROWS_AS(log.add({1, 1, {{name, 1}}}), fit::Error);
}

TEST_CASE("a run that is interrupted and resumed has the bits of one that was not", "[run]") {
  const test::TemporaryFolder folder;
  fit::RunOptions options{.folder = folder / "whole",
                          .steps = 40,
                          .rate = {.peak = 0.05, .warm_up = 5, .decay = fit::Decay::linear},
                          .accumulate = 2,
                          .evaluate_every = 15,
                          .log_every = 4,
                          .smaller_is_better = true,
                          .terminal = nullptr};
  State whole = new_state();
  CHECK(run_to(whole, options) == 0);
  CHECK(whole.step == 40);
  for (const Index stop : {Index{0}, Index{1}, Index{29}, Index{30}, Index{47}}) {
    INFO("interrupted at batch " << stop);
    options.folder = folder / std::to_string(stop);
    options.resume = true;  // where there is nothing yet, from the beginning
    State state = new_state();
    CHECK(run_to(state, options, stop) == 130);
    CHECK(state.step == stop / 2 + 1);
    State resumed = new_state();
    CHECK(run_to(resumed, options) == 0);
    CHECK(test::same_bits(test::values_of(resumed.model), test::values_of(whole.model)));
    CHECK(test::same_bits(test::values_of(*resumed.average), test::values_of(*whole.average)));
    for (const char* file : {"model.safetensors", "model_last.safetensors"}) {
      CHECK(text_of(options.folder / file) == text_of(folder / "whole" / file));
    }
  }
  const auto rows = [](const std::filesystem::path& path) {
    const std::string text = text_of(path);
    return std::count(text.begin(), text.end(), '\n');
  };
  CHECK(rows(folder / "whole" / "model.csv") == 1 + 10 + 3);  // the names; every 4 steps; at 15, 30 and 40
  // Once more, there is nothing left to do.
  State done = new_state();
  CHECK(run_to(done, options) == 0);
  CHECK(done.step == 40);
  options.steps = 44;
  CHECK(run_to(done, options) == 0);
  CHECK(done.step == 44);
}

TEST_CASE("the best weights are kept, and a run without better ones ends", "[run]") {
  const test::TemporaryFolder folder;
  const double scores[] = {0.5, 0.7, std::nan(""), 0.6, 0.9, 0.8, 0.8, 0.8, 1};
  State state = new_state();
  fit::Workspace workspace;
  Point gradient;
  fit::Run run(
      state,
      {.folder = folder / "", .name = "kept", .steps = 90, .evaluate_every = 10, .patience = 3, .terminal = nullptr});
  std::size_t evaluations = 0;
  std::vector<float> best;
  while (run.next()) {
    run.update(gradient, loss_of(state.model, run.batch(), gradient, fit::Random(1)), workspace);
    if (!run.evaluates()) continue;
    const double score = scores[evaluations++];
    const bool better = run.evaluated("score", score);
    CHECK(better == (score == 0.5 || score == 0.7 || score == 0.9));
    if (better) best = test::values_of(run.weights());
  }
  CHECK(run.finish() == 0);
  CHECK(evaluations == 8);
  CHECK(run.best() == 0.9);
  CHECK(state.step == 80);
  Point kept;
  fit::load(folder / "kept.safetensors", kept);
  CHECK(test::same_bits(test::values_of(kept), best));
  fit::load(folder / "kept_last.safetensors", kept);
  CHECK(test::same_bits(test::values_of(kept), test::values_of(*state.average)));
}

TEST_CASE("updates that are not finite are left out; after some in a row a run goes back, but not for ever", "[run]") {
  const test::TemporaryFolder folder;
  const auto run_with = [&](auto&& bad, State& state) {
    fit::Workspace workspace;
    Point gradient;
    fit::Run run(state, {.folder = folder / "", .steps = 60, .save_every = 10, .terminal = nullptr});
    std::vector<float> seen;
    while (run.next()) {
      const double loss = loss_of(state.model, run.batch(), gradient, fit::Random(1));
      const int what = bad(run.batch());
      if (what == 2) gradient.weight.data()[3] = std::numeric_limits<float>::infinity();
      run.update(gradient, what == 1 ? std::nan("") : loss, workspace);
      for (Index i = 0; i < gradient.weight.size(); ++i) CHECK(gradient.weight.data()[i] == 0);
      seen.push_back(state.model.weight.data()[0]);
    }
    return seen;
  };
  State state = new_state();
  const auto one = run_with([](Index batch) { return batch == 14 ? 1 : batch == 16 ? 2 : 0; }, state);
  CHECK(state.step == 60);
  CHECK(one[14] == one[13]);
  CHECK(one[15] != one[14]);
  CHECK(one[16] == one[15]);

  state = new_state();
  const auto three =
      run_with([](Index batch) { return batch >= 24 && batch < 27 ? 1 + static_cast<int>(batch % 2) : 0; }, state);
  CHECK(state.step == 60);
  CHECK(three[25] == three[23]);
  CHECK(three[26] == three[19]);  // what was saved after 20 steps
  CHECK(three[27] != three[26]);

  state = new_state();
  const std::string error = test::error_of([&] { run_with([](Index batch) { return batch >= 24 ? 1 : 0; }, state); });
  CHECK(test::contains(error, "step 33: 3 updates in a row were not finite again, after 2 returns"));
}

TEST_CASE("a run by time fixes its steps by the speed of the first ones, and keeps to them", "[run]") {
  const test::TemporaryFolder folder;
  fit::RunOptions options{.folder = folder / "", .minutes = 0.5 / 60, .terminal = nullptr};
  State state = new_state();
  Index planned = 0;
  {
    fit::Workspace workspace;
    Point gradient;
    fit::Run run(state, options);
    CHECK(run.total() == 0);
    while (run.next()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      run.update(gradient, loss_of(state.model, run.batch(), gradient, fit::Random(1)), workspace);
      if (run.total() > 0 && planned == 0) {
        planned = run.total();
        std::raise(SIGINT);
      }
    }
    CHECK(run.finish() == 130);
  }
  CHECK(planned > state.step);
  CHECK(planned <= 105);
  options.resume = true;
  State resumed = new_state();
  CHECK(run_to(resumed, options) == 0);
  CHECK(resumed.step == planned);
  options.minutes = 0.6 / 60;
  CHECK(run_to(resumed, options) == 0);
  CHECK(resumed.step > planned);
}

TEST_CASE("a run says what is wrong with its options", "[run]") {
  const test::TemporaryFolder folder;
  const auto refused = [&](fit::RunOptions options, const char* why) {
    options.folder = folder / "new";
    State state;
    CHECK(test::contains(test::error_of([&] { fit::Run run(state, options); }), why));
    CHECK_FALSE(std::filesystem::exists(folder / "new"));
  };
  refused({}, "needs steps or minutes, not 0 and 0");
  refused({.steps = 3, .minutes = 2}, "needs steps or minutes, not 3 and 2");
  refused({.steps = -3}, "needs steps or minutes");
  refused({.steps = 3, .accumulate = 0}, "must be at least 1, not 0, 1 and 10");
  refused({.steps = 3, .evaluate_every = -1}, "must not be negative");
  refused({.name = "a/b", .steps = 3}, "the name of a run must be that of a file");
}
