#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fit/fit.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/run.hpp>

#include "support/list_ops.hpp"
#include "support/markers.hpp"
#include "support/pathfinder.hpp"
#include "support/png.hpp"
#include "support/progress.hpp"
#include "support/results.hpp"
#include "support/token_reader.hpp"

namespace {

using examples::TokenRun;
using fit::Index;

enum class Kind { fit, local, full, latent };
enum class Task { markers, lists, paths, large_paths };
enum class Command { train, evaluate, show };

const std::map<std::string, Kind> kinds{
    {"fit", Kind::fit}, {"local", Kind::local}, {"full", Kind::full}, {"latent", Kind::latent}};
const std::map<std::string, Task> tasks{
    {"markers", Task::markers}, {"lists", Task::lists}, {"paths", Task::paths}, {"large_paths", Task::large_paths}};

struct Options {
  Command command = Command::train;
  Task task = Task::markers;
  Kind kind = Kind::fit;
  std::filesystem::path out = "out";
  Index length = 0, tests = 1000;  // length: 0 for the task's own
  double minutes = 10, rate = 5e-4;
  std::uint64_t seed = 7;
  int threads = 0;
  bool grow = false, resume = false;
};

/// What a task looks like to a model.
struct Shape {
  int channels = 0, answers = 0, group = 0, latents = 0;
  bool picture = false;
};

/// Lists and markers look alike, so that they share their models.
constexpr Shape shape_of(Task task) {
  switch (task) {
    case Task::paths:
      return {4, 2, 16, 2, true};
    case Task::large_paths:
      return {16, 2, 64, 4, true};
    default:
      return {16, 10, 64, 4};
  }
}

/// Four models of like many parameters: FIT; groups by themselves; every token sees every other; latents alone.
constexpr fit::EncoderConfig config_of(Kind kind, const Shape& shape, int length) {
  fit::EncoderConfig c{
      .layers = "(1)2(1)2(1)",
      .groups = fit::any,
      .tokens = shape.group,
      .channels = shape.channels,
      .latents = shape.latents,
      .data_dim = 64,
      .latent_dim = 128,
      .data_heads = 2,
      .latent_heads = 4,
      .latent_positions = shape.picture ? fit::Positions::sin_cos_grid : fit::Positions::shared_sin_cos};
  if (kind == Kind::latent) {
    c.layers = "(0)5(0)";
  } else if (kind != Kind::fit) {
    c.layers = "(6)";
    c.data_dim = 120;
    c.data_heads = 4;
    c.latents = 1;
  }
  if (kind == Kind::full) {
    c.groups = 1;
    c.tokens = length;
    c.data_positions = shape.picture ? fit::Positions::learned : fit::Positions::sin_cos;
    c.latent_positions = fit::Positions::sin_cos;
  }
  return c;
}

struct Batch {
  fit::Tensor<float, 4> input;
  fit::Tensor<std::int32_t, 1> answers;
  std::vector<TokenRun> read;  // one run of tokens for each answer
};

/// One task at one length: how a batch is filled.
struct Source {
  Task task;
  Index length;  // tokens of an example
  fit::Random random;

  examples::Pathfinder paths() const {
    return task == Task::paths ? examples::Pathfinder{} : examples::Pathfinder::large();
  }

  /// Example number `number` to place i of the batch.
  void fill(Index number, Index i, Batch& batch) const {
    const auto groups = batch.input.dimension(1), tokens = batch.input.dimension(2),
               channels = batch.input.dimension(3);
    float* const input = batch.input.data() + i * length * channels;
    Index answer = 0;
    TokenRun read{i * length, length};
    if (task == Task::paths || task == Task::large_paths) {
      const auto drawing = paths();
      fit::Tensor<float, 4> image(1, drawing.side, drawing.side, 1);
      answer = drawing.write(random.fork(number), image.data());
      const Index patch = fit::nn::integer_root(static_cast<int>(channels));
      const Index sub_image = fit::nn::integer_root(static_cast<int>(tokens)) * patch;
      fit::group_image(image, {.sub_image = {sub_image, sub_image}, .patch = {patch, patch}},
                       fit::TensorView<float, 4>(input, 1, groups, tokens, channels));
    } else {
      std::vector<std::uint8_t> symbols(static_cast<std::size_t>(length));
      if (task == Task::lists) {
        answer = examples::ListOps{length}.write(random.fork(number), symbols.data());
      } else {
        Index place = 0;
        std::tie(answer, place) = examples::Markers{length}.write(random.fork(number), symbols.data());
        read = {i * length + place, 1};
      }
      std::fill_n(input, length * channels, 0.0f);
      for (Index k = 0; k < length; ++k) input[k * channels + symbols[static_cast<std::size_t>(k)]] = 1;
    }
    batch.answers(i) = static_cast<std::int32_t>(answer);
    batch.read[static_cast<std::size_t>(i)] = read;
  }
};

template <class Model>
Batch batch_of(Index count, Index length) {
  constexpr auto& c = Model::config;
  return {fit::Tensor<float, 4>(count, length / c.tokens, Index{c.tokens}, Index{c.channels}),
          fit::Tensor<std::int32_t, 1>(count), std::vector<TokenRun>(static_cast<std::size_t>(count))};
}

template <class Model>
fit::Grid grid_of(Index length) {
  if (Model::config.latent_positions != fit::Positions::sin_cos_grid) return {};
  const Index side = fit::nn::integer_root(static_cast<int>(length / Model::config.tokens));
  return {.rows = side, .columns = side};
}

double share_right(const fit::TensorView<const float, 2>& logits, const fit::Tensor<std::int32_t, 1>& answers) {
  fit::Mean right;
  for (Index i = 0; i < answers.size(); ++i) {
    const float* const row = &logits(i, 0);
    right.add(std::max_element(row, row + logits.dimension(1)) - row == answers(i));
  }
  return 100 * right.value();
}

template <class Names, class Value>
std::string name_of(const Names& names, Value value) {
  return std::find_if(names.begin(), names.end(), [&](const auto& entry) { return entry.second == value; })->first;
}

/// The lengths at which a task can be tried, in tokens; a model may grow up along them. At the last two of markers a
/// step of full attention takes a quarter of an hour and more, and there is no model for it.
template <Task task>
constexpr auto lengths_of() {
  if constexpr (task == Task::markers) return std::array{128, 256, 1024, 4096, 16384, 65536, 163840};
  if constexpr (task == Task::lists) return std::array{256, 1024, 2048};
  if constexpr (task == Task::paths) return std::array{256};
  if constexpr (task == Task::large_paths) return std::array{1024};
}
constexpr int longest_full = 16384;

/// One model at one length, trained and tested.
template <class Model>
class Trial {
 public:
  Trial(const Options& options, Index length, std::string name, fit::Executor& executor)
      : options_(options), length_(length), name_(std::move(name)), tape_(executor), testing_(executor) {}

  std::filesystem::path weights() const { return options_.out / (name_ + ".safetensors"); }

  /// From weights of another length, where there are some. Returns what the program returns.
  int train(double minutes, const std::filesystem::path& from) {
    fit::TrainingState<Model> state{.model = Model(fit::Random(options_.seed)),
                                    .optimizer = {.options = {.beta2 = 0.98, .weight_decay = 0.05}},
                                    .random = fit::Random(options_.seed + 1)};
    const auto all = [](std::string_view) { return true; };
    if (!from.empty()) fit::require(fit::load_part(from, state.model, all).empty(), from.string(), ": no such model");
    state.average = state.model;
    const Index together = std::clamp<Index>(8192 / length_, 1, 64);  // examples of a pass
    fit::Run run(state, {.folder = options_.out,
                         .name = name_,
                         .minutes = minutes,
                         .rate = {.peak = options_.rate, .warm_up = 50},
                         .update = {.average_decay = 0.99},
                         .accumulate = std::max<Index>(4, together) / together,
                         .batch = together,
                         .resume = options_.resume});
    const Source source{options_.task, length_, fit::Random(options_.seed + 2)};
    fit::Prefetch<Batch> batches(
        [&](Index number, Batch& batch) {
          for (Index i = 0; i < together; ++i) source.fill(number * together + i, i, batch);
        },
        run.batch(), batch_of<Model>(together, length_));
    Model gradient;
    fit::Tensor<float, 2> logits_gradient(together, Index{Model::answers});
    while (run.next()) {
      const auto& batch = batches.next();
      tape_.record({}, state.random.split());
      const auto logits = state.model.forward(batch.input, batch.read, grid_of<Model>(length_), tape_);
      const double loss = fit::cross_entropy(logits, batch.answers, logits_gradient, tape_);
      state.model.backward(logits_gradient, gradient, tape_);
      run.update(gradient, loss, tape_, {{"accuracy", share_right(logits, batch.answers)}});
    }
    steps_ = state.step;
    return run.finish();
  }

  /// The share of examples that none was trained on, in percent, whose answer is right.
  double test() {
    Model model;
    fit::load(weights(), model);
    const Source source{options_.task, length_, fit::Random(1)};
    const Index count = std::min(options_.tests, std::max<Index>(200, (Index{1} << 24) / length_));
    fit::Progress progress("testing", count);
    fit::Mean right;
    while (right.count < count) {
      auto batch = batch_of<Model>(std::min(count - right.count, std::max<Index>(1, 32768 / length_)), length_);
      for (Index i = 0; i < batch.answers.size(); ++i) source.fill(right.count + i, i, batch);
      testing_.clear();
      const auto logits = model.forward(batch.input, batch.read, grid_of<Model>(length_), testing_);
      right.add(share_right(logits, batch.answers), batch.answers.size());
      progress.update(right.count);
    }
    progress.finish();
    return right.value();
  }

  Index steps() const { return steps_; }

 private:
  const Options& options_;
  Index length_, steps_ = 0;
  std::string name_;
  fit::Tape tape_, testing_;
};

template <Kind kind, Task task, int length>
using ModelOf = examples::TokenReader<config_of(kind, shape_of(task), length), shape_of(task).answers>;

/// Calls f with a model of the kind, null; that of full attention is another one at every length.
template <Task task, class F>
int with_model(Kind kind, Index length, F&& f) {
  switch (kind) {
    case Kind::fit:
      return f(static_cast<ModelOf<Kind::fit, task, 0>*>(nullptr));
    case Kind::local:
      return f(static_cast<ModelOf<Kind::local, task, 0>*>(nullptr));
    case Kind::latent:
      return f(static_cast<ModelOf<Kind::latent, task, 0>*>(nullptr));
    default:
      break;
  }
  int code = 0;
  constexpr auto lengths = lengths_of<task>();
  const auto at = [&]<int one>() {
    if constexpr (one <= longest_full) {
      if (one == length) code = f(static_cast<ModelOf<Kind::full, task, one>*>(nullptr));
    }
  };
  [&]<std::size_t... i>(std::index_sequence<i...>) { (at.template operator()<lengths[i]>(), ...); }
  (std::make_index_sequence<lengths.size()>());
  return code;
}

/// Trains at the lengths, which share the minutes, each from what was learnt before it; tests at the last.
template <Task task>
int train(const Options& options, const std::vector<Index>& lengths, fit::Executor& executor) {
  std::filesystem::path learnt;
  for (const Index length : lengths) {
    const std::string name = name_of(tasks, task) + "_" + std::to_string(options.length) + "_" +
                             name_of(kinds, options.kind) +
                             (length == options.length ? "" : "_at_" + std::to_string(length));
    const int code = with_model<task>(options.kind, length, [&]<class Model>(Model*) {
      Trial<Model> trial(options, length, name, executor);
      std::printf("%s: %td parameters, %td tokens\n", name.c_str(), fit::count_parameters(Model()), length);
      if (options.command == Command::train) {
        const int ended = trial.train(options.minutes / static_cast<double>(lengths.size()), learnt);
        if (ended != 0) return ended;
        learnt = trial.weights();
      }
      if (length != options.length) return 0;
      const double right = trial.test();
      std::printf("%s: %.2f %% right\n", name.c_str(), right);
      if (options.command != Command::train) return 0;
      examples::Results results(options.out / "results.csv");
      results.add({name_of(tasks, task), length, name_of(kinds, options.kind), options.minutes, trial.steps(),
                   fit::count_parameters(Model()), right});
      results.draw(options.out / "results.svg");
      return 0;
    });
    if (code != 0) return code;
  }
  return 0;
}

/// Examples to look at.
void show(const Options& options, Index length) {
  const fit::Random random(1);
  if (options.task == Task::paths || options.task == Task::large_paths) {
    const auto drawing = Source{options.task, length, random}.paths();
    const int side = static_cast<int>(drawing.side);
    examples::Sheet sheet(8, side, side, 1, "are the dots the ends of one path?", {.scale = 128 / side * 2});
    std::vector<float> pixels(static_cast<std::size_t>(side * side));
    for (Index i = 0; i < 24; ++i) {
      const Index answer = drawing.write(random.fork(i), pixels.data());
      sheet.add(pixels.data(), answer == 1 ? "yes" : "no");
    }
    const auto path = options.out / (name_of(tasks, options.task) + ".png");
    std::filesystem::create_directories(options.out);
    sheet.write(path);
    std::printf("%s shows some.\n", path.string().c_str());
    return;
  }
  std::vector<std::uint8_t> symbols(static_cast<std::size_t>(length));
  for (Index i = 0; i < 4; ++i) {
    if (options.task == Task::lists) {
      const examples::ListOps lists{length};
      const Index value = lists.write(random.fork(i), symbols.data());
      std::printf("%s\n= %td\n\n", lists.text(symbols.data()).c_str(), value);
    } else {
      const auto [sum, place] = examples::Markers{length}.write(random.fork(i), symbols.data());
      for (Index k = 0; k < length; ++k) {
        const int symbol = symbols[static_cast<std::size_t>(k)];
        std::putchar(symbol < examples::Markers::classes ? '0' + symbol : 'a' + symbol);
      }
      std::printf("\n%td, read at place %td\n\n", sum, place);
    }
  }
}

template <Task task>
int run(Options options) {
  if (options.length == 0) options.length = task == Task::markers ? 1024 : lengths_of<task>().back();
  std::vector<Index> lengths;
  std::string all;
  for (const int length : lengths_of<task>()) {
    if (length == options.length || (options.grow && length < options.length)) lengths.push_back(length);
    all += " " + std::to_string(length);
  }
  fit::require(!lengths.empty() && lengths.back() == options.length, "this task has lengths of", all, " tokens, not ",
               options.length);
  fit::require(options.kind != Kind::full || options.length <= longest_full, "full attention goes to ", longest_full,
               " tokens, not ", options.length);
  if (options.command == Command::show) return show(options, options.length), 0;
  fit::Executor executor(examples::threads(options.threads));
  return train<task>(options, lengths, executor);
}

int run(const Options& options) {
  switch (options.task) {
    case Task::markers:
      return run<Task::markers>(options);
    case Task::lists:
      return run<Task::lists>(options);
    case Task::paths:
      return run<Task::paths>(options);
    default:
      return run<Task::large_paths>(options);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("How far does a model reach? Tasks made by formula whose answers hang on what lies far apart.");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--task", options.task, "markers, lists, paths, large_paths")
      ->transform(CLI::CheckedTransformer(tasks))
      ->default_str("markers");
  app.add_option("--length", options.length, "tokens of an example; by default the task's own, of markers 1024");
  app.add_option("--model", options.kind, "fit, local, full, latent")
      ->transform(CLI::CheckedTransformer(kinds))
      ->default_str("fit");
  app.add_option("--out", options.out, "folder of weights, logs and results")->capture_default_str();
  app.add_option("--threads", options.threads, "threads; 0 is one for each processor")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--tests", options.tests, "examples of a test, fewer where they are long")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  auto* train = app.add_subcommand("train", "trains a model, tests it, and adds what it came to to OUT/results.csv");
  train->add_option("--minutes", options.minutes, "of training")->capture_default_str()->check(CLI::PositiveNumber);
  train->add_option("--rate", options.rate, "highest learning rate")->capture_default_str()->check(CLI::PositiveNumber);
  train->add_option("--seed", options.seed, "of initial values and of examples")->capture_default_str();
  train->add_flag("--grow", options.grow, "train at the task's shorter lengths first, in equal parts of the minutes");
  train->add_flag("--resume", options.resume, "go on from the state in the output folder, if there is one");
  const auto* evaluate = app.add_subcommand("evaluate", "tests a model that was trained");
  const auto* show = app.add_subcommand("show", "shows examples");
  CLI11_PARSE(app, argc, argv);
  options.command = evaluate->parsed() ? Command::evaluate : show->parsed() ? Command::show : Command::train;
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "reach: %s\n", error.what());
    return 1;
  }
}
