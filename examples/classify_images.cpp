#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

#include <CLI/CLI.hpp>
#include <fit/fit.hpp>
#include <fit/run/epochs.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/run.hpp>

#include "support/checks.hpp"
#include "support/fashion.hpp"
#include "support/png.hpp"
#include "support/processes.hpp"

namespace {

using fit::Index;

constexpr int classes = examples::fashion_classes;
using Model = examples::FashionClassifier;

struct Options {
  std::filesystem::path data = "/usr/share/datasets/fashion-mnist", out = "out", from;
  double minutes = 3;
  Index steps = 0;  // instead of minutes, as epochs are
  int epochs = 0, threads = 0;
  examples::ImageChanges changes;
  Index batch = 128, leaves = 0;
  double rate = 2e-3;
  std::uint64_t seed = 7;
  bool resume = false, freeze = false;
};

/// An encoder that was trained before stays, or learns at a tenth of the rate of the new head.
template <bool freeze>
fit::ParameterTreatment treat_encoder(std::string_view name, std::size_t rank) {
  auto treatment = fit::usual_treatment(name, rank);
  if (!name.starts_with("encoder.")) return treatment;
  treatment.frozen = freeze;
  treatment.rate = 0.1;
  return treatment;
}

void say_what_comes(const Options& options, Index steps, Index images, int processes, int threads) {
  constexpr const auto& config = examples::classifier_config;
  std::printf("%td parameters, %td training images in %d groups of %d tokens, %d threads",
              fit::count_parameters(Model()), images, config.groups, config.tokens, threads);
  if (processes > 1) std::printf(" in each of %d processes", processes);
  std::printf(": ");
  if (steps > 0) {
    std::printf("%td steps.\n", steps);
  } else {
    std::printf("this takes about %g minutes, and seconds for tests between.\n", options.minutes);
  }
}

int run(const Options& options, fit::Team& team) {
  const auto data = examples::load_fashion(options.data);
  const Index held_out = data.train.images.count / 20, count = data.train.images.count - held_out,
              steps_per_epoch = count / options.batch;
  fit::require(steps_per_epoch > 0, "the data set has ", count, " images to train on, fewer than a batch");
  const Index steps = options.epochs > 0 ? steps_per_epoch * options.epochs : options.steps;
  const Index leaves = std::max<Index>(options.leaves, team.size()), leaf = options.batch / leaves;
  fit::require(leaf * leaves == options.batch, "a batch of ", options.batch, " images cannot be cut into ", leaves,
               " leaves of like size");
  fit::Executor executor(options.threads);
  fit::Tape tape(executor), testing(executor);
  Model initial{fit::Random(options.seed)};
  fit::AdamWOptions optimizer{.beta2 = 0.98, .weight_decay = 0.05};
  if (!options.from.empty()) {
    const auto fresh =
        fit::load_part(options.from, initial, [](std::string_view name) { return name.starts_with("encoder."); });
    fit::require(fresh.empty(), options.from.string(), ": no trained encoder, it lacks ",
                 fresh.empty() ? "" : fresh[0]);
    optimizer.rule = options.freeze ? treat_encoder<true> : treat_encoder<false>;
  }
  fit::ShardedState<Model> state(team, std::move(initial), optimizer, fit::Random(options.seed + 1), true);
  fit::Run run(state, {.folder = options.out,
                       .name = "classifier",
                       .steps = steps,
                       .minutes = steps > 0 ? 0 : options.minutes,
                       .rate = {.peak = options.rate, .warm_up = 100},
                       .update = {.average_decay = 0.998},
                       .accumulate = leaves,
                       .leaves = leaves,
                       .batch = leaf,
                       .evaluate_every = steps_per_epoch,
                       .resume = options.resume});
  if (team.leads()) say_what_comes(options, steps, count, team.size(), executor.lanes());

  const fit::Epochs order(count, fit::Random(options.seed, 0));
  const fit::Random of_changes(options.seed + 2);
  fit::Prefetch<examples::ClassifierBatches> batches(
      [&](Index number, examples::ClassifierBatches& batch) { batch.load(order, number * leaf, &of_changes); },
      run.batches(), {data.train, leaf, options.changes});
  Model gradient;
  fit::Tensor<float, 2> logits_gradient(leaf, Index{classes});
  while (run.next()) {
    const auto& batch = batches.next();
    tape.record({.drop_path = 0.05f}, state.random.fork(run.batch()));
    const auto logits = state.model.forward(batch.groups(), tape);
    const double loss = fit::cross_entropy(logits, batch.labels(), logits_gradient, tape);
    state.model.backward(logits_gradient, gradient, tape);
    run.update(gradient, loss, tape, {{"accuracy", 100 * fit::accuracy(logits, batch.labels()).value()}});
    if (run.evaluates()) {
      run.evaluated("held_out_accuracy",
                    examples::accuracy(run.weights(), data.train, {count, held_out}, testing, team));
    }
  }
  if (const int code = run.finish(); code != 0 || !team.leads()) return code;

  const auto best_path = options.out / "classifier.safetensors";
  Model saved;
  fit::load(best_path, saved);
  const auto found = examples::classify(saved, data.test, testing);
  fit::ConfusionMatrix confusion(classes);
  for (std::size_t i = 0; i < found.size(); ++i) confusion.add(data.test.labels[i], found[i]);
  std::cout << "\nWhat it is (rows), and what the model says (columns):\n";
  confusion.write(std::cout, {examples::fashion_names.begin(), examples::fashion_names.end()});
  examples::Sheet sheet(10, examples::fashion_side, examples::fashion_side, 1, "what it says / what it is");
  for (std::size_t i = 0, shown = 0; i < found.size() && shown < 60; ++i) {
    if (found[i] == data.test.labels[i]) continue;
    sheet.add(data.test.images[static_cast<Index>(i)],
              std::string(examples::fashion_names[static_cast<std::size_t>(found[i])]) + "\n" +
                  examples::fashion_names[data.test.labels[i]]);
    ++shown;
  }
  sheet.write(options.out / "mistakes.png");
  std::printf(
      "\n%s: test accuracy %.2f %% after loading it again. %s shows what it gets wrong, %s how it learned.\n"
      "More: --minutes 15 --rate 1.5e-3 --shift 1 --erase 0.25; --resume with more --minutes; "
      "examples/generate_images.cpp draws such images.\n",
      best_path.string().c_str(), 100 * confusion.accuracy(), (options.out / "mistakes.png").string().c_str(),
      (options.out / "classifier.svg").string().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a FIT encoder to tell the ten kinds of clothing of Fashion-MNIST apart.");
  app.add_option("--data", options.data, "folder with the four IDX files, compressed or not")->capture_default_str();
  app.add_option("--out", options.out, "folder for weights and pictures")->capture_default_str();
  auto* minutes = app.add_option("--minutes", options.minutes, "as many steps as fit into them")
                      ->capture_default_str()
                      ->check(examples::positive);
  auto* epochs = app.add_option("--epochs", options.epochs, "passes over the training images, instead of --minutes")
                     ->check(examples::positive)
                     ->excludes(minutes);
  app.add_option("--steps", options.steps, "batches in all, instead of --minutes")
      ->check(examples::positive)
      ->excludes(minutes)
      ->excludes(epochs);
  app.add_option("--threads", options.threads, "threads; 0 is one for each processor")
      ->capture_default_str()
      ->check(examples::not_negative);
  app.add_option("--shift", options.changes.shift,
                 "training images are shifted by up to as many pixels; 1 pays in long runs")
      ->capture_default_str()
      ->check(CLI::Range(0, 8));
  app.add_option("--erase", options.changes.erase,
                 "share of training images of which a rectangle becomes gray; 0.25 pays in long runs")
      ->capture_default_str()
      ->check(examples::finite)
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--seed", options.seed, "of initial values, order and drop-outs")->capture_default_str();
  app.add_option("--leaves", options.leaves,
                 "parts that a batch is cut into: with as many, any number of processes compute the same")
      ->default_str("1 for each process");
  app.add_option("--rate", options.rate, "highest learning rate")->capture_default_str()->check(examples::positive);
  auto* from =
      app.add_option("--from", options.from, "weights of a classifier, whose encoder goes on, with a new head");
  app.add_flag("--freeze", options.freeze, "the encoder of --from stays as it is, and only the head learns")
      ->needs(from);
  app.add_flag("--resume", options.resume, "go on from the state in the output folder, if there is one");
  CLI11_PARSE(app, argc, argv);
  return examples::run_processes(argc, argv, options.threads, [&](fit::Team& team, int threads) {
    options.threads = threads;
    return run(options, team);
  });
}
