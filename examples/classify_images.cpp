#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fit/fit.hpp>

#include "support/fashion.hpp"
#include "support/png.hpp"
#include "support/progress.hpp"

namespace {

using fit::Index;

constexpr int classes = examples::fashion_classes;
using Model = examples::FashionClassifier;

struct Options {
  std::filesystem::path data = "/usr/share/datasets/fashion-mnist", out = "out";
  int epochs = 7, threads = 0, shift = 0;
  Index batch = 128;
  double rate = 2e-3;
  std::uint64_t seed = 7;
  bool resume = false;
};

void print_confusion(const std::vector<Index>& found, const examples::LabelledImages& set) {
  std::vector<int> counts(classes * classes);
  for (std::size_t i = 0; i < found.size(); ++i) ++counts[set.labels[i] * classes + static_cast<std::size_t>(found[i])];
  std::printf("\nWhat it is (rows), and what the model says (columns):\n%12s", "");
  for (int j = 0; j < classes; ++j) std::printf(" %8.8s", examples::fashion_names[static_cast<std::size_t>(j)]);
  for (int i = 0; i < classes; ++i) {
    std::printf("\n%12s", examples::fashion_names[static_cast<std::size_t>(i)]);
    for (int j = 0; j < classes; ++j) std::printf(" %8d", counts[static_cast<std::size_t>(i * classes + j)]);
  }
  std::printf("\n\n");
}

int run(const Options& options) {
  const auto data = examples::load_fashion(options.data);
  const Index count = data.train.images.count, steps_per_epoch = count / options.batch;
  fit::require(steps_per_epoch > 0, "the data set has ", count, " training images, fewer than a batch");
  std::filesystem::create_directories(options.out);
  const auto state_path = options.out / "state.safetensors", best_path = options.out / "classifier.safetensors";

  fit::Executor executor(examples::threads(options.threads));
  fit::Tape tape(executor), testing(executor);
  fit::TrainingState<Model> state{.model = Model(fit::Random(options.seed)),
                                  .optimizer = {.options = {.beta2 = 0.98, .weight_decay = 0.05}},
                                  .random = fit::Random(options.seed + 1)};
  state.average = state.model;
  double best = 0;
  if (options.resume) {
    fit::load(state_path, state);
    if (std::filesystem::exists(best_path)) {
      Model saved;
      fit::load(best_path, saved);
      best = examples::accuracy(examples::classify(saved, data.test, testing), data.test);
    }
    std::printf("Resumed after %td epochs; best so far %.2f %%.\n", state.step / steps_per_epoch, best);
  }
  constexpr const auto& config = examples::classifier_config;
  std::printf("%td parameters, %td training images in %d groups of %d tokens, %d threads.\n",
              fit::count_parameters(state.model), count, config.groups, config.tokens, executor.lanes());

  const Index total = steps_per_epoch * options.epochs;
  const fit::WarmUpCosine rate{.peak = options.rate, .warm_up = 100, .total = total};
  examples::ClassifierBatches batch(data.train, options.batch, options.shift);
  Model gradient;
  fit::Tensor<float, 2> logits_gradient(options.batch, Index{classes});
  examples::Progress progress("training", total, state.step);
  using Clock = std::chrono::steady_clock;
  while (state.step < total) {
    const Index epoch = state.step / steps_per_epoch, start = epoch * steps_per_epoch;
    const fit::Random shuffle = fit::Random(options.seed, 0).fork(epoch);
    const auto order = examples::shuffled(count, shuffle);
    double loss_sum = 0, right = 0;
    const auto begin = Clock::now();
    while (state.step < start + steps_per_epoch) {
      const Index done = state.step - start;
      batch.load(order, done * options.batch, &shuffle);
      tape.record({.drop_path = 0.05f}, state.random.split());
      const auto logits = state.model.forward(batch.groups(), tape);
      loss_sum += fit::cross_entropy(logits, batch.labels(), logits_gradient, tape);
      for (Index i = 0; i < options.batch; ++i) right += examples::best_class(logits, i) == batch.labels()(i);
      state.model.backward(logits_gradient, gradient, tape);
      state.update(gradient, {.learning_rate = rate(state.step), .average_decay = 0.998}, tape);
      const double seen = static_cast<double>(done + 1), images = seen * static_cast<double>(options.batch);
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      progress.update(state.step, {{"epoch", std::to_string(epoch + 1) + "/" + std::to_string(options.epochs)},
                                   {"loss", loss_sum / seen},
                                   {"accuracy", 100 * right / images, 3},
                                   {"images/s", images / seconds}});
    }
    const double now = examples::accuracy(examples::classify(*state.average, data.test, testing), data.test);
    char text[64];
    std::snprintf(text, sizeof(text), "epoch %td: test accuracy %.2f %%", epoch + 1, now);
    progress.note(text);
    if (now > best) {
      best = now;
      fit::save(best_path, *state.average);
    }
    fit::save(state_path, state);
  }
  progress.finish();

  Model saved;
  fit::load(best_path, saved);
  const auto found = examples::classify(saved, data.test, testing);
  print_confusion(found, data.test);
  examples::Sheet sheet(10, examples::fashion_side, examples::fashion_side, 1, "what it says / what it is");
  for (std::size_t i = 0, shown = 0; i < found.size() && shown < 60; ++i) {
    if (found[i] == data.test.labels[i]) continue;
    sheet.add(data.test.images[static_cast<Index>(i)],
              std::string(examples::fashion_names[static_cast<std::size_t>(found[i])]) + "\n" +
                  examples::fashion_names[data.test.labels[i]]);
    ++shown;
  }
  sheet.write(options.out / "mistakes.png");
  std::printf("%s: test accuracy %.2f %% after loading it again; %s shows what it gets wrong.\n",
              best_path.string().c_str(), examples::accuracy(found, data.test),
              (options.out / "mistakes.png").string().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a FIT encoder to tell the ten kinds of clothing of Fashion-MNIST apart.");
  app.add_option("--data", options.data, "folder with the four IDX files, compressed or not")->capture_default_str();
  app.add_option("--out", options.out, "folder for weights and pictures")->capture_default_str();
  app.add_option("--epochs", options.epochs, "passes over the training images")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--threads", options.threads, "threads; 0 is one for each processor")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--shift", options.shift, "training images are shifted by up to as many pixels; 1 pays in long runs")
      ->capture_default_str()
      ->check(CLI::Range(0, 8));
  app.add_option("--seed", options.seed, "of initial values, order and drop-outs")->capture_default_str();
  app.add_option("--rate", options.rate, "highest learning rate")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_flag("--resume", options.resume, "go on from the state in the output folder");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify_images: %s\n", error.what());
    return 1;
  }
}
