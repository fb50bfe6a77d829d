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

#include "support/checks.hpp"
#include "support/machine.hpp"
#include "support/png.hpp"
#include "support/reach_tasks.hpp"
#include "support/results.hpp"

namespace {

using examples::Task, examples::TaskBatch, examples::TaskSource;
using fit::Index;

enum class Kind { fit, local, full, latent };
enum class Command { train, evaluate, show };

const std::map<std::string, Kind> kinds{
    {"fit", Kind::fit}, {"local", Kind::local}, {"full", Kind::full}, {"latent", Kind::latent}};

struct Options {
  Command command = Command::train;
  Task task = Task::markers;
  Kind kind = Kind::fit;
  std::filesystem::path out = "out";
  Index length = 0, tests = 1000;  // length: 0 for the task's own
  double minutes = 10, pretrain = 0, rate = 5e-4;
  std::uint64_t seed = 7;
  int threads = 0;
  bool grow = false, resume = false;
};

/// Four models of like many parameters: FIT; groups by themselves; every token sees every other; latents alone.
constexpr fit::EncoderConfig config_of(Kind kind, const examples::TaskShape& shape, int length) {
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
    c.data_positions = shape.picture ? fit::Positions::sin_cos_2d : fit::Positions::sin_cos;
    c.latent_positions = fit::Positions::sin_cos;
  }
  return c;
}

/// At longer ones a step of full attention takes a quarter of an hour and more.
constexpr int longest_full = 16384;

/// A head's answers are as many as the channels, of which a task uses its first: the same model denoises.
template <Kind kind, Task task, int length>
using ModelOf =
    examples::TokenReader<config_of(kind, examples::shape_of(task), length), examples::shape_of(task).channels>;

template <class Names, class Value>
std::string name_of(const Names& names, Value value) {
  return std::find_if(names.begin(), names.end(), [&](const auto& entry) { return entry.second == value; })->first;
}

template <class Model>
fit::Grid grid_of(Index length) {
  if (Model::config.latent_positions != fit::Positions::sin_cos_grid) return {};
  const Index side = fit::nn::integer_root(static_cast<int>(length / Model::config.tokens));
  return {.rows = side, .columns = side};
}

/// Mean cross entropy of the answers, or the mean squared error of hidden patches.
double loss_of(const fit::TensorView<const float, 2>& logits, const TaskBatch& batch, fit::Tensor<float, 2>& slopes,
               fit::Tape& tape) {
  if (batch.hidden.size() == 0) return fit::cross_entropy(logits, batch.answers, slopes, tape);
  fit::Mean square;
  for (Index i = 0; i < slopes.size(); ++i) {
    const float off = logits.data()[i] - batch.hidden.data()[i];
    square.add(off * off);
    slopes.data()[i] = 2 * off / static_cast<float>(slopes.size());
  }
  return square.value();
}

/// One part of a trial: a model at one length.
template <class Model>
class Part {
 public:
  Part(const Options& options, Index length, std::string name, fit::Executor& executor)
      : options_(options), length_(length), name_(std::move(name)), tape_(executor) {}

  std::filesystem::path weights() const { return options_.out / (name_ + ".safetensors"); }

  /// From what was learnt before, where there is a file; its head serves at another length. Returns what the program
  /// returns.
  int train(double minutes, const std::filesystem::path& from, bool with_head, bool denoise) {
    fit::TrainingState<Model> state{.model = Model(fit::Random(options_.seed)),
                                    .optimizer = {.options = {.beta2 = 0.98, .weight_decay = 0.05}},
                                    .random = fit::Random(options_.seed + 1)};
    const auto wanted = [&](std::string_view parameter) { return with_head || parameter.starts_with("encoder."); };
    if (!from.empty()) fit::require(fit::load_part(from, state.model, wanted).empty(), from.string(), " lacks some");
    state.average = state.model;
    const Index together = std::clamp<Index>(8192 / length_, 1, 64);         // examples of a pass
    const Index least = examples::shape_of(options_.task).picture ? 32 : 4;  // of an update, about
    fit::Run run(state, {.folder = options_.out,
                         .name = name_,
                         .minutes = minutes,
                         .rate = {.peak = options_.rate, .warm_up = 50},
                         .update = {.average_decay = 0.99},
                         .accumulate = std::max(least, together) / together,
                         .batch = together,
                         .resume = options_.resume});
    const TaskSource source(options_.task, length_, fit::Random(options_.seed + 2), denoise);
    const auto empty = source.batch(together, Model::config.tokens);
    fit::Prefetch<TaskBatch> batches([&](Index number, TaskBatch& batch) { source.fill(number * together, batch); },
                                     run.batch(), empty);
    Model gradient;
    fit::Tensor<float, 2> slopes(empty.answers.size(), Index{Model::answers});
    while (run.next()) {
      const auto& batch = batches.next();
      tape_.record({}, state.random.split());
      const auto logits = state.model.forward(batch.input, batch.read, grid_of<Model>(length_), tape_);
      const double loss = loss_of(logits, batch, slopes, tape_);
      state.model.backward(slopes, gradient, tape_);
      std::vector<std::pair<std::string, double>> values;
      if (batch.hidden.size() == 0) values.emplace_back("accuracy", 100 * fit::accuracy(logits, batch.answers).value());
      run.update(gradient, loss, tape_, values);
    }
    steps_ = state.step;
    seconds_ = run.seconds();
    return run.finish();
  }

  /// How many answers are right of examples that none was trained on.
  fit::Mean test() {
    Model model;
    fit::load(weights(), model);
    const TaskSource source(options_.task, length_, fit::Random(1, 0));  // which no seed gives
    // Some minutes at most: of full attention an example of 16,384 tokens takes as long as 16 of other models.
    const Index room =
        (Index{1} << 24) / length_ / (options_.kind == Kind::full ? std::max<Index>(1, length_ / 1024) : 1);
    const Index count = std::min(options_.tests, std::max<Index>(60, room));
    fit::Progress progress("testing", count);
    fit::Mean right;
    while (right.count < count) {
      auto batch =
          source.batch(std::min(count - right.count, std::max<Index>(1, 32768 / length_)), Model::config.tokens);
      source.fill(right.count, batch);
      tape_.clear();
      const auto logits = model.forward(batch.input, batch.read, grid_of<Model>(length_), tape_);
      right += fit::accuracy(logits, batch.answers);
      progress.update(right.count);
    }
    progress.finish();
    return right;
  }

  Index steps() const { return steps_; }
  double seconds() const { return seconds_; }

 private:
  const Options& options_;
  Index length_, steps_ = 0;
  double seconds_ = 0;
  std::string name_;
  fit::Tape tape_;
};

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
    case Kind::full:
      break;
  }
  int code = -1;
  constexpr auto lengths = examples::lengths_of<task>();
  const auto at = [&]<int one>() {
    if constexpr (one <= longest_full) {
      if (one == length) code = f(static_cast<ModelOf<Kind::full, task, one>*>(nullptr));
    }
  };
  [&]<std::size_t... i>(std::index_sequence<i...>) { (at.template operator()<lengths[i]>(), ...); }
  (std::make_index_sequence<lengths.size()>());
  fit::require(code >= 0, "there is no model of full attention for ", length, " tokens");
  return code;
}

struct PartPlan {
  std::string name;
  Index length;
  double minutes;
  bool denoise = false;
};

/// Denoises first, if asked to, then trains at the lengths, which share the minutes, each from what was learnt before
/// it; tests at the last.
template <Task task>
int run(const Options& options, const std::vector<Index>& lengths) {
  const std::string model =
      name_of(kinds, options.kind) + (options.pretrain > 0 ? "_pretrained" : "") + (options.grow ? "_grown" : "");
  const std::string name = name_of(examples::tasks, task) + "_" + std::to_string(options.length) + "_" + model;
  std::vector<PartPlan> plan;
  if (options.pretrain > 0) plan.push_back({name + "_denoising", lengths[0], options.pretrain, true});
  for (const Index length : lengths) {
    const std::string at = length == options.length ? "" : "_at_" + std::to_string(length);
    plan.push_back({name + at, length, options.minutes / static_cast<double>(lengths.size())});
  }
  const bool trains = options.command == Command::train;
  if (!trains) plan.erase(plan.begin(), plan.end() - 1);
  const auto table = options.out / "results.csv";
  if (trains) examples::Results{table};  // better wrong now than after hours
  for (const PartPlan& part : plan) {
    // What another trial has left must not be taken for a part of this that has ended.
    const auto state = (options.out / (part.name + "_state")).string();
    std::error_code none;
    if (trains && !options.resume) std::filesystem::rename(state + ".safetensors", state + "_before.safetensors", none);
  }
  fit::Executor executor(examples::threads(options.threads));
  std::filesystem::path learnt;
  Index steps = 0;
  double seconds = 0;
  for (const PartPlan& now : plan) {
    const int code = with_model<task>(options.kind, now.length, [&]<class Model>(Model*) {
      Part<Model> part(options, now.length, now.name, executor);
      std::printf("%s: %td parameters, %td tokens\n", now.name.c_str(), fit::count_parameters(Model()), now.length);
      if (trains) {
        const int ended = part.train(now.minutes, learnt, now.length != lengths[0], now.denoise);
        if (ended != 0) return ended;
        learnt = part.weights();
        steps += part.steps();
        seconds += part.seconds();
      }
      if (&now != &plan.back()) return 0;
      const fit::Mean right = part.test();
      std::printf("%s: %.1f %% of %td right\n", name.c_str(), 100 * right.value(), right.count);
      if (!trains) return 0;
      examples::Results results(table);
      results.add({name_of(examples::tasks, task), now.length, model, seconds / 60, steps,
                   fit::count_parameters(Model()), right.count, 100 * right.value()});
      results.draw(options.out / "results.svg");
      return 0;
    });
    if (code != 0) return code;
  }
  return 0;
}

/// Examples to look at.
void show(const Options& options) {
  const fit::Random random(1);
  const TaskSource source(options.task, options.length, random);
  if (source.picture()) {
    const auto drawing = source.paths();
    const int side = static_cast<int>(drawing.side);
    examples::Sheet sheet(8, side, side, 1, "are the dots the ends of one path?", {.scale = 256 / side});
    std::vector<float> pixels(static_cast<std::size_t>(side * side));
    for (Index i = 0; i < 24; ++i) {
      const Index answer = drawing.write(random.fork(i), pixels.data());
      sheet.add(pixels.data(), answer == 1 ? "yes" : "no");
    }
    const auto path = options.out / (name_of(examples::tasks, options.task) + ".png");
    std::filesystem::create_directories(options.out);
    sheet.write(path);
    std::printf("%s shows some.\n", path.string().c_str());
    return;
  }
  std::vector<std::uint8_t> symbols(static_cast<std::size_t>(options.length));
  for (Index i = 0; i < 4; ++i) {
    if (options.task == Task::lists) {
      const examples::ListOps lists{options.length};
      const Index value = lists.write(random.fork(i), symbols.data());
      std::printf("%s\n= %td\n\n", lists.text(symbols.data()).c_str(), value);
      continue;
    }
    const auto [sum, place] = examples::Markers{options.length}.write(random.fork(i), symbols.data());
    for (const int symbol : symbols) std::putchar(symbol < examples::Markers::classes ? '0' + symbol : 'a' + symbol);
    std::printf("\n%td, read at place %td\n\n", sum, place);
  }
}

template <Task task>
int run(Options options) {
  constexpr auto all = examples::lengths_of<task>();
  if (options.length == 0) options.length = task == Task::markers ? 1024 : all.back();
  std::vector<Index> lengths;
  std::string text;
  for (const int length : all) {
    if (length == options.length || (options.grow && length < options.length)) lengths.push_back(length);
    text += " " + std::to_string(length);
  }
  fit::require(!lengths.empty() && lengths.back() == options.length, "this task has lengths of", text, " tokens, not ",
               options.length);
  fit::require(options.kind != Kind::full || options.length <= longest_full, "full attention goes to ", longest_full,
               " tokens, not ", options.length);
  if (options.command == Command::show) return show(options), 0;
  return run<task>(options, lengths);
}

int run(const Options& options) {
  switch (options.task) {
    case Task::markers:
      return run<Task::markers>(options);
    case Task::lists:
      return run<Task::lists>(options);
    case Task::paths:
      return run<Task::paths>(options);
    case Task::large_paths:
      break;
  }
  return run<Task::large_paths>(options);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("How far does a model reach? Tasks made by formula whose answers hang on what lies far apart.");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--task", options.task, "markers, lists, paths, large_paths")
      ->transform(CLI::CheckedTransformer(examples::tasks))
      ->default_str("markers");
  app.add_option("--length", options.length, "tokens of an example; by default the task's own, of markers 1024");
  app.add_option("--out", options.out, "folder of weights, logs, results and pictures")->capture_default_str();
  auto* train = app.add_subcommand("train", "trains a model, tests it, and adds what it came to to OUT/results.csv");
  auto* evaluate = app.add_subcommand("evaluate", "tests a model that was trained with the same options");
  const auto* show = app.add_subcommand("show", "shows examples");
  for (auto* command : {train, evaluate}) {
    command->add_option("--model", options.kind, "fit, local, full, latent")
        ->transform(CLI::CheckedTransformer(kinds))
        ->default_str("fit");
    command->add_flag("--grow", options.grow, "at the task's shorter lengths first, in equal parts of the minutes");
    command
        ->add_option("--pretrain", options.pretrain,
                     "minutes before these in which the model learns to find one of four tokens that is hidden")
        ->check(examples::positive);
    command->add_option("--tests", options.tests, "examples of a test, fewer where they are long")
        ->capture_default_str()
        ->check(examples::positive);
    command->add_option("--threads", options.threads, "threads; 0 is one for each processor")
        ->capture_default_str()
        ->check(examples::not_negative);
  }
  train->add_option("--minutes", options.minutes, "of training")->capture_default_str()->check(examples::positive);
  train->add_option("--rate", options.rate, "highest learning rate")->capture_default_str()->check(examples::positive);
  train->add_option("--seed", options.seed, "of initial values and of examples")->capture_default_str();
  train->add_flag("--resume", options.resume, "go on from the states in the output folder, if there are some");
  CLI11_PARSE(app, argc, argv);
  options.command = evaluate->parsed() ? Command::evaluate : show->parsed() ? Command::show : Command::train;
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "reach: %s\n", error.what());
    return 1;
  }
}
