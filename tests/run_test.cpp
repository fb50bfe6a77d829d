#include <fit/fit.hpp>
#include <fit/run/epochs.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/run.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <limits>
#include <locale>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#if FIT_HAS_TERMINAL
#include <fcntl.h>
#include <stdlib.h>
#endif

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index, test::text_of;

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
    if (run.batch() == interrupt_at) std::raise(SIGTERM);
    const double loss = loss_of(state.model, run.batch(), gradient, state.random.split());
    run.update(gradient, loss, workspace, {{"doubled", 2 * loss}});
    // The best one is neither the first nor the last.
    if (run.evaluates()) run.evaluated("distance", std::abs(static_cast<double>(state.step - 28)));
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
  CHECK_THROWS_WITH(order(-1), "the places of an order begin with 0, not -1");
}

TEST_CASE("batches are made ahead, in order, by any number of threads", "[run]") {
  for (const int threads : {1, 3}) {
    for (const int ahead : {1, 4}) {
      std::atomic<Index> newest = -1;
      fit::Prefetch<std::vector<Index>> batches(
          [&](Index number, std::vector<Index>& batch) {
            fit::require(batch.size() == 2, "a batch is not like the first");
            batch[0] = number;
            batch[1] = number * number;
            for (Index seen = newest; seen < number && !newest.compare_exchange_weak(seen, number);) {
            }
          },
          5, {0, 0}, ahead, threads);
      for (Index i = 5; i < 200; ++i) {
        while (newest < i + ahead - 1) std::this_thread::yield();
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
  CHECK_THROWS_WITH((fit::BatchNumbers(0, 4, {2, 0})), "who takes batches needs some of every 4");
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
  CHECK_THROWS_AS(log.add({1, 1, {{"a", 1}, {"b", 1}, {"a", 1}}}), fit::Error);
  for (const char* step : {"1e300", "nan", "1.5", "-"}) {
    std::ofstream(folder / "bad.csv", std::ios::trunc) << "step,seconds,loss\n" << step << ",2,3\n";
    CHECK(test::contains(test::error_of([&] { fit::RunLog(folder / "bad").read(5); }), "not the log of a run"));
  }
}

TEST_CASE("a log is the same in any locale, and one that cannot be read stays as it is", "[run]") {
  struct Grouped : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const test::TemporaryFolder folder;
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Grouped));
  fit::RunLog log(folder / "log");
  log.add({1'234'567, 0.5, {{"loss", 0.25}}});
  log.write();
  fit::RunLog again(folder / "log");
  again.read(2'000'000);
  std::locale::global(before);
  CHECK(text_of(folder / "log.csv") == "step,seconds,loss\n1234567,0.5,0.25\n");
  CHECK(text_of(folder / "log.jsonl") == "{\"step\": 1234567, \"seconds\": 0.5, \"loss\": 0.25}\n");
  REQUIRE(again.rows().size() == 1);
  CHECK(again.rows()[0].step == 1'234'567);
  std::filesystem::create_directory(folder / "folder.csv");
  CHECK(test::contains(test::error_of([&] { fit::RunLog(folder / "folder").read(5); }), "not a regular file"));
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
  CHECK(fit::SafetensorsFile(folder / "whole" / "model_state.safetensors").metadata().at("run.best") == "2");
  // Rows of the log without what differs in time.
  const auto table = [](const std::filesystem::path& path) {
    fit::RunLog log(path);
    log.read(1000);
    std::vector<std::pair<std::string, double>> values;
    for (const auto& row : log.rows()) {
      for (const auto& value : row.values) {
        if (value.first != "examples_per_second") values.push_back(value);
      }
    }
    return values;
  };
  for (const Index stop : {Index{0}, Index{1}, Index{29}, Index{30}, Index{47}, Index{62}}) {
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
    // Where no mean was cut in two.
    if (state.step % 4 != 0) continue;
    CHECK(table(options.folder / "model") == table(folder / "whole" / "model"));
    fit::RunLog log(options.folder / "model");
    log.read(1000);
    double seconds = 0;
    for (const auto& row : log.rows()) {
      if (row.values.back().first != "examples_per_second") continue;
      CHECK(row.values.back().second == Approx(4 * 2 / (row.seconds - seconds)));
      seconds = row.seconds;
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

TEST_CASE("a classifier that is interrupted in the middle of an epoch ends with the same bits", "[run]") {
  constexpr static fit::EncoderConfig config{.layers = "(1)1(1)",
                                             .groups = 2,
                                             .tokens = 4,
                                             .channels = 3,
                                             .latents = 2,
                                             .data_dim = 8,
                                             .latent_dim = 16,
                                             .data_heads = 2,
                                             .latent_heads = 2};
  using Model = fit::Classifier<config, 3>;
  constexpr Index examples = 22, batch_size = 4;  // five and a half batches
  struct Batch {
    fit::Tensor<float, 4> x{batch_size, Index{2}, Index{4}, Index{3}};
    fit::Tensor<std::int32_t, 1> labels{batch_size};
  };
  const test::TemporaryFolder folder;
  const auto train = [&](const char* name, Index interrupt_at, bool resume) {
    fit::Executor executor(2);
    fit::Tape tape(executor);
    fit::TrainingState<Model> state{.model = Model(fit::Random(1)), .random = fit::Random(2)};
    state.average = state.model;
    Model gradient;
    fit::Tensor<float, 2> slopes(batch_size, Index{3});
    fit::Run run(state, {.folder = folder / name,
                         .steps = 14,
                         .rate = {.peak = 0.01, .warm_up = 3},
                         .batch = batch_size,
                         .resume = resume,
                         .terminal = nullptr});
    const fit::Epochs order(examples, fit::Random(3));
    fit::Prefetch<Batch> batches(
        [&](Index number, Batch& batch) {
          for (Index i = 0; i < batch_size; ++i) {
            fit::Random example = fit::Random(4).fork(order(number * batch_size + i));
            for (Index j = 0; j < 24; ++j) batch.x.data()[24 * i + j] = static_cast<float>(example.normal());
            batch.labels.data()[i] = static_cast<std::int32_t>(example.below(3));
          }
        },
        run.batches());
    while (run.next()) {
      if (run.batch() == interrupt_at) std::raise(SIGINT);
      const Batch& batch = batches.next();
      tape.record({.drop_path = 0.2f, .drop_units = 0.1f}, state.random.split());
      const auto logits = state.model.forward(batch.x, tape);
      const double loss = fit::cross_entropy(logits, batch.labels, slopes, tape);
      state.model.backward(slopes, gradient, tape);
      run.update(gradient, loss, tape);
    }
    return run.finish();
  };
  const auto old = std::signal(SIGINT, SIG_DFL);  // who runs in the background ignores it
  CHECK(train("whole", -1, false) == 0);
  CHECK(train("parts", 2, false) == 130);
  CHECK(train("parts", 8, true) == 130);
  CHECK(train("parts", -1, true) == 0);
  std::signal(SIGINT, old);
  for (const char* file : {"model.safetensors", "model_last.safetensors"}) {
    CHECK(text_of(folder / "parts" / file) == text_of(folder / "whole" / file));
  }
}

TEST_CASE("a run is the loop that it stands for", "[run]") {
  const test::TemporaryFolder folder;
  const fit::LearningRate rate{.peak = 0.05, .warm_up = 3, .floor = 0.01, .decay = fit::Decay::linear};
  const double infinite = std::numeric_limits<double>::infinity();
  const fit::UpdateOptions update{.clip = infinite, .average_decay = 0.5};
  State state = new_state();
  state.optimizer.options.epsilon = 0.1;  // so that Adam does not take every length of a gradient for the same
  State expected = state;
  fit::Workspace workspace;
  Point gradient;
  fit::Run run(state, {.folder = folder / "",
                       .steps = 20,
                       .rate = rate,
                       .update = update,
                       .accumulate = 2,
                       .batch = 3,
                       .log_every = 5,
                       .terminal = nullptr});
  double losses = 0, seconds = 0;
  while (run.next()) {
    const Index batch = run.batch();
    const double loss = loss_of(state.model, batch, gradient, state.random.split());
    losses += loss;
    run.update(gradient, loss, workspace, {{"twice", 2 * loss}});
    if (batch % 2 == 0) continue;
    for (const Index of : {batch - 1, batch}) loss_of(expected.model, of, gradient, expected.random.split());
    for (Index i = 0; i < gradient.weight.size(); ++i) gradient.weight.data()[i] *= 0.5f;
    fit::UpdateOptions with = update;
    with.learning_rate = rate(expected.step, 20);
    expected.update(gradient, with, workspace);
    REQUIRE(test::same_bits(test::values_of(state.model), test::values_of(expected.model)));
    REQUIRE(test::same_bits(test::values_of(run.weights()), test::values_of(*expected.average)));
    if (state.step % 5 != 0) continue;
    const auto& values = run.log().rows().back().values;
    REQUIRE(values.size() == 4);
    CHECK(values[0] == std::pair<std::string, double>("loss", losses / 10));
    CHECK(values[1] == std::pair<std::string, double>("twice", 2 * losses / 10));
    CHECK(values[2] == std::pair<std::string, double>("rate", with.learning_rate));
    CHECK(values[3].first == "examples_per_second");
    CHECK(values[3].second == Approx(5 * 2 * 3 / (run.seconds() - seconds)));
    seconds = run.seconds();
    losses = 0;
  }
  CHECK(run.finish() == 0);
  CHECK(state.step == 20);
  // Nothing was evaluated: the last weights are the best.
  CHECK(text_of(folder / "model.safetensors") == text_of(folder / "model_last.safetensors"));
  CHECK(test::contains(test::error_of([&] { run.update(gradient, 1, workspace); }), "after its last step"));
}

TEST_CASE("patience is not lost with an interruption", "[run]") {
  const test::TemporaryFolder folder;
  fit::RunOptions options{.folder = folder / "", .steps = 90, .evaluate_every = 10, .patience = 3, .terminal = nullptr};
  const auto run_until = [&](Index interrupt_at) {
    State state = new_state();
    fit::Workspace workspace;
    Point gradient;
    fit::Run run(state, options);
    while (run.next()) {
      if (run.batch() == interrupt_at) std::raise(SIGTERM);
      run.update(gradient, loss_of(state.model, run.batch(), gradient, fit::Random(1)), workspace);
      if (run.evaluates()) run.evaluated("score", -static_cast<double>(state.step));
    }
    return std::pair(state.step, run.finish());
  };
  CHECK(run_until(25) == std::pair(Index{26}, 130));
  options.resume = true;
  CHECK(run_until(-1) == std::pair(Index{40}, 0));
  CHECK(run_until(-1) == std::pair(Index{40}, 0));  // it has ended
  options.batch = 7;
  State kept = new_state();
  CHECK(
      test::contains(test::error_of([&] { fit::Run run(kept, options); }), "run.examples was 1, and cannot become 7"));
  CHECK(kept.step == 0);
  CHECK(test::same_bits(test::values_of(kept.model), test::values_of(Point())));
  // What is there is put aside by a run that does not go on from it.
  options.resume = false;
  CHECK(run_until(5).second == 130);
  CHECK(fit::SafetensorsFile(folder / "model_state_before.safetensors").metadata().at("state.step") == "40");
  CHECK(std::filesystem::file_size(folder / "model_before.csv") > std::filesystem::file_size(folder / "model.csv"));
}

TEST_CASE("a run by minutes counts all batches of an update", "[run]") {
  const test::TemporaryFolder folder;
  State state = new_state();
  fit::Workspace workspace;
  fit::Run run(state, {.folder = folder / "", .minutes = 0.02, .accumulate = 4, .terminal = nullptr});
  Point gradient;
  while (run.total() == 0 && run.next()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    run.update(gradient, loss_of(state.model, run.batch(), gradient, fit::Random(1)), workspace);
  }
  CHECK(run.total() > 0);
  CHECK(run.total() <= 1200 / 12 + 3);  // of which an update takes 12 ms or more
}

TEST_CASE("a run by steps that has not begun becomes one by minutes", "[run]") {
  const test::TemporaryFolder folder;
  State state = new_state();
  fit::RunOptions options{.folder = folder / "", .steps = 1000, .terminal = nullptr};
  { fit::Run run(state, options); }
  options.steps = 0;
  options.minutes = 1;
  options.resume = true;
  fit::Run run(state, options);
  CHECK(run.total() == 0);
}

TEST_CASE("an interruption after the last step changes nothing", "[run]") {
  const test::TemporaryFolder folder;
  State state = new_state();
  fit::Workspace workspace;
  Point gradient;
  fit::Run run(state, {.folder = folder / "", .steps = 3, .terminal = nullptr});
  while (run.next()) {
    run.update(gradient, loss_of(state.model, run.batch(), gradient, fit::Random(1)), workspace);
    if (run.evaluates()) std::raise(SIGTERM);
  }
  CHECK(run.finish() == 0);
}

TEST_CASE("an interruption after an update that is left out, and a last one, lose no step", "[run]") {
  const test::TemporaryFolder folder;
  const auto steps_saved = [&](Index interrupt_at, Index left_out) {
    State state = new_state();
    fit::Workspace workspace;
    Point gradient;
    fit::Run run(state, {.folder = folder / "", .steps = 20, .terminal = nullptr});
    while (run.next()) {
      const Index batch = run.batch();
      if (batch == interrupt_at) std::raise(SIGTERM);
      const double loss = loss_of(state.model, batch, gradient, fit::Random(1));
      run.update(gradient, batch == left_out ? std::nan("") : loss, workspace);
    }
    CHECK(run.finish() == (interrupt_at >= 0 ? 130 : 0));
    return fit::SafetensorsFile(folder / "model_state.safetensors").metadata().at("state.step");
  };
  CHECK(steps_saved(7, 7) == "9");
  CHECK(steps_saved(7, 5) == "8");
  CHECK(steps_saved(-1, 19) == "20");
}

TEST_CASE("a run goes on where its log cannot be written, and does not resume with numbers that cannot be", "[run]") {
  const test::TemporaryFolder folder;
  State state = new_state();
  fit::Workspace workspace;
  Point gradient;
  {
    fit::Run run(state, {.folder = folder / "", .steps = 12, .log_every = 1, .terminal = nullptr});
    std::filesystem::remove(folder / "model.csv");
    std::filesystem::create_directories(folder / "model.csv" / "in the way");
    for (Index i = 0; i < 11; ++i) {
      REQUIRE(run.next());
      run.update(gradient, loss_of(state.model, run.batch(), gradient, fit::Random(1)), workspace);
    }
    CHECK(state.step == 11);
    std::filesystem::remove_all(folder / "model.csv");
    REQUIRE(run.next());
    run.update(gradient, loss_of(state.model, run.batch(), gradient, fit::Random(1)), workspace);
    CHECK_FALSE(run.next());
    CHECK(run.finish() == 0);
    CHECK(run.log().rows().size() == 12);
    CHECK(test::contains(text_of(folder / "model.csv"), "\n12,"));
  }
  const auto file = folder / "model_state.safetensors";
  const fit::Metadata good = fit::SafetensorsFile(file).metadata();
  for (const char* key : {"run.batch", "run.total", "run.since_best", "run.returns", "run.seconds"}) {
    fit::Metadata wrong = good;
    wrong[key] = "-1";
    std::erase_if(wrong, [](const auto& entry) { return !entry.first.starts_with("run."); });
    fit::save(file, state, {.metadata = wrong});
    CHECK(test::contains(test::error_of([&] {
                           fit::Run(state, {.folder = folder / "", .steps = 12, .resume = true, .terminal = nullptr});
                         }),
                         key));
  }
}

namespace {
std::atomic<int> signals_seen = 0;
}

TEST_CASE("signals are what they were before and after", "[run]") {
  const auto old = std::signal(SIGTERM, [](int) { ++signals_seen; });
  const auto old_interrupt = std::signal(SIGINT, SIG_IGN);
  {
    const fit::Interrupt interrupt;
    CHECK_FALSE(fit::Interrupt::asked());
    std::raise(SIGINT);
    CHECK_FALSE(fit::Interrupt::asked());
    std::raise(SIGTERM);
    CHECK(fit::Interrupt::asked());
    CHECK(signals_seen == 0);
    std::raise(SIGINT);
    std::raise(SIGTERM);
    CHECK(signals_seen == 1);
  }
  std::signal(SIGINT, old_interrupt);
  std::signal(SIGTERM, old);
  std::signal(SIGTERM, [](int) { ++signals_seen; });
  { const fit::Interrupt again; }
  std::raise(SIGTERM);
  CHECK(signals_seen == 2);
  std::signal(SIGTERM, old);
}

TEST_CASE("progress is a line now and then where there is no terminal", "[run]") {
  std::FILE* const file = std::tmpfile();
  REQUIRE(file);
  {
    fit::Progress progress("training", 0, 4, file);
    progress.update(5, {{"loss", 0.123456}, {"kind", "a"}});
    progress.set_total(8);
    progress.update(6);  // too soon
    progress.note("step 6: a note");
    progress.update(8, {{"loss", 2.0}});
  }
  std::rewind(file);
  std::string text;
  for (int c; (c = std::fgetc(file)) != EOF;) text += static_cast<char>(c);
  std::fclose(file);
  CHECK(std::regex_replace(text, std::regex("\\d+:\\d\\d:\\d\\d"), "TIME") ==
        "training  5  loss 0.1235  kind a  TIME elapsed\nstep 6: a note\n"
        "training  8/8  loss 2  TIME elapsed\n");
}

#if FIT_HAS_TERMINAL
TEST_CASE("progress is one line that is written over on a terminal", "[run]") {
  const int device = ::posix_openpt(O_RDWR | O_NOCTTY);
  const char* name = device >= 0 && ::grantpt(device) == 0 && ::unlockpt(device) == 0 ? ::ptsname(device) : nullptr;
  std::FILE* const terminal = name ? std::fopen(name, "w") : nullptr;
  if (!terminal) return;  // a system without terminals
  const winsize size{.ws_row = 24, .ws_col = 60, .ws_xpixel = 0, .ws_ypixel = 0};
  REQUIRE(::ioctl(device, TIOCSWINSZ, &size) == 0);
  {
    fit::Progress progress("training", 4, 0, terminal);
    progress.update(1, {{"loss", 0.5}});
    progress.note("step 2: a note");
    progress.update(4, {{"a long name", "that has no place any more on this line"}});
  }
  std::fclose(terminal);
  std::string seen;
  char text[1000];
  for (ssize_t length; (length = ::read(device, text, sizeof(text))) > 0;) {
    seen.append(text, static_cast<std::size_t>(length));
  }
  ::close(device);
  CHECK(std::regex_replace(seen, std::regex("\\d:\\d\\d:\\d\\d"), "h:mm:ss") ==
        "\rtraining [=====>              ] 1/4  loss 0.5  h:mm:ss elap\x1b[K\r\nstep 2: a note\r\n"
        "\rtraining [====================] 4/4  a long name that has n\x1b[K\r\n");
}
#endif

TEST_CASE("a long log is drawn by means of its rows", "[run]") {
  const test::TemporaryFolder folder;
  fit::RunLog log(folder / "log");
  for (Index i = 0; i < 1000; ++i) log.add({i, static_cast<double>(i), {{"value", static_cast<double>(2 * i)}}});
  const auto figure = log.figure();
  REQUIRE(figure.charts.size() == 2);
  const auto& points = figure.charts[0].series[0].points;
  REQUIRE(points.size() == 334);
  CHECK(points[1].x == Approx(4));
  CHECK(points[1].y == Approx(8));
  CHECK(log.rows().size() == 1000);
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
    std::set<std::uint64_t> drawn;
    while (run.next()) {
      CHECK(drawn.insert(state.random.split().bits()).second);
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

  // What falls due meanwhile is saved when updates are finite again.
  state = new_state();
  const auto late = run_with([](Index batch) { return batch >= 29 && batch < 32 ? 1 : 0; }, state);
  CHECK(late[30] == late[28]);
  CHECK(late[31] == late[19]);

  state = new_state();
  const std::string error = test::error_of([&] { run_with([](Index batch) { return batch >= 24 ? 1 : 0; }, state); });
  CHECK(test::contains(error, "step 33: 3 updates in a row were not finite again, after 2 returns"));
  // What was saved in between is not of the time when all went wrong, and the log has all of it.
  CHECK(fit::SafetensorsFile(folder / "model_state.safetensors").metadata().at("state.step") == "30");
  fit::RunLog log(folder / "model");
  log.read(1000);
  CHECK(log.rows().back().step == 30);

  // Returns are counted over interruptions, and a batch that is bad alone spoils what it is gathered with.
  const auto gathered = [&](Index interrupt_at, bool resume) {
    fit::Workspace workspace;
    Point gradient;
    State of_run = new_state();
    fit::Run run(of_run, {.folder = folder / "gathered",
                          .steps = 60,
                          .accumulate = 2,
                          .save_every = 5,
                          .resume = resume,
                          .terminal = nullptr});
    float last = 0;
    while (run.next()) {
      if (run.batch() == interrupt_at) std::raise(SIGTERM);
      const Index step = run.batch() / 2;
      const bool is_bad = step % 20 >= 12 && step % 20 < 15 && run.batch() % 2 == 0;
      const double loss = loss_of(of_run.model, run.batch(), gradient, fit::Random(1));
      run.update(gradient, is_bad ? std::nan("") : loss, workspace);
      const float now = of_run.model.weight.data()[0];
      if (step % 20 == 12 && run.batch() % 2 == 0) CHECK(now == last);
      last = now;
    }
    return run.finish();
  };
  CHECK(gathered(90, false) == 130);
  CHECK(test::contains(test::error_of([&] { gathered(-1, true); }), "after 2 returns"));
}

TEST_CASE("a run by time fixes its steps by the speed of the first ones, and keeps to them", "[run]") {
  const test::TemporaryFolder folder;
  fit::RunOptions options{.folder = folder / "", .minutes = 2.0 / 60, .terminal = nullptr};
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
        std::raise(SIGTERM);
      }
    }
    CHECK(run.finish() == 130);
  }
  CHECK(planned > state.step);
  CHECK(planned <= 405);
  options.resume = true;
  State resumed = new_state();
  CHECK(run_to(resumed, options) == 0);
  CHECK(resumed.step == planned);
  options.minutes = 2.4 / 60;
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
  refused({.steps = 3, .rate = {.peak = std::nan("")}}, "rates of a run must be finite, not nan");
  refused({.steps = 3, .update = {.clip = -1}}, "not -1");
  refused({.steps = 3, .update = {.average_decay = 1.5}}, "not 1.5");
  refused({.name = "a/b", .steps = 3}, "the name of a run must be that of a file");
}

TEST_CASE("a value with a name that cannot be logged leaves a run as it was", "[run]") {
  const test::TemporaryFolder folder;
  State state = new_state();
  fit::Workspace workspace;
  Point gradient;
  fit::Run run(state, {.folder = folder / "", .steps = 3, .terminal = nullptr});
  REQUIRE(run.next());
  loss_of(state.model, run.batch(), gradient, fit::Random(1));
  const Point before = gradient;
  const auto refused = [&](const fit::NamedValues& values, const char* why) {
    CHECK(test::contains(test::error_of([&] { run.update(gradient, 1, workspace, values); }), why));
    CHECK(state.step == 0);
    CHECK(run.batch() == 0);
    CHECK(test::same_bits(test::values_of(gradient), test::values_of(before)));
  };
  refused({{"my value", 1}}, "cannot be called");
  refused({{"a", 1}, {"a", 2}}, "two values of a log are called a");
  refused({{"rate", 1}}, "a run logs its own rate");
  run.update(gradient, 1, workspace, {{"a", 1}});
  CHECK(state.step == 1);
  CHECK(test::contains(test::error_of([&] { run.evaluated("my value", 1); }), "cannot be called"));
  CHECK_FALSE(run.best());
}
