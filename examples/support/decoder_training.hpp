#pragma once

#include <fit/io/checkpoint.hpp>
#include <fit/models/autoregressive_decoder.hpp>
#include <fit/training/learning_rate.hpp>
#include <fit/training/state.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>

#include <CLI/CLI.hpp>

#include "progress.hpp"

namespace examples {

using fit::Index;

/// How an autoregressive decoder is trained, and where its weights go: OUT/NAME.safetensors and, to resume from,
/// OUT/NAME_state.safetensors.
struct DecoderTraining {
  std::filesystem::path out = "out";
  std::string name = {};
  Index steps = 1'000, batch = 16, every = 500;
  double minutes = 0;  // where positive, as many steps as fit into them
  double rate = 2e-3;
  std::uint64_t seed = 7;
  bool resume = false, plain = false;
  int threads = 0;

  std::filesystem::path weights() const { return out / (name + ".safetensors"); }
  std::filesystem::path state() const { return out / (name + "_state.safetensors"); }
};

/// The options of every command, and the command `train` with its own; `unit` is what a step is made of.
inline CLI::App* add_training_options(CLI::App& app, DecoderTraining& plan, const std::string& unit) {
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--out", plan.out, "folder of weights and pictures")->capture_default_str();
  app.add_option("--threads", plan.threads, "threads; 0 is one for each processor")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--seed", plan.seed, "of everything random")->capture_default_str();
  app.add_flag("--plain", plan.plain, "a plain causal transformer with as many parameters instead");
  auto* train = app.add_subcommand("train", "trains");
  train->add_option("--steps", plan.steps, "batches of " + unit)->capture_default_str()->check(CLI::PositiveNumber);
  train->add_option("--minutes", plan.minutes, "as many steps as fit into them, instead of --steps")
      ->check(CLI::PositiveNumber);
  train->add_option("--every", plan.every, "steps from one saved state to the next")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  train->add_option("--rate", plan.rate, "highest learning rate")->capture_default_str()->check(CLI::PositiveNumber);
  train->add_flag("--resume", plan.resume, "go on from the state in the output folder");
  return train;
}

/// Trains on what fill(ids [batch, groups, tokens], step) gives; evaluate(model) makes a line for the log every so
/// often. The moving average of the parameters is what is saved.
template <class Model, class Fill, class Evaluate>
void train_decoder(const DecoderTraining& plan, fit::Executor& executor, Fill&& fill, Evaluate&& evaluate) {
  constexpr auto config = Model::config;
  std::filesystem::create_directories(plan.out);
  fit::Tape tape(executor);
  fit::TrainingState<Model> state{.model = Model(fit::Random(plan.seed)),
                                  .optimizer = {.options = {.beta2 = 0.99}},
                                  .random = fit::Random(plan.seed + 1)};
  state.average = state.model;
  if (plan.resume) {
    fit::load(plan.state(), state);
    std::printf("Resumed after %td steps.\n", state.step);
  }
  std::printf("%td parameters, sequences of %d groups of %d tokens, %d threads.\n", fit::count_parameters(state.model),
              config.groups, config.tokens, executor.lanes());
  Model gradient;
  fit::Tensor<std::int32_t, 3> ids(plan.batch, Index{config.groups}, Index{config.tokens});
  const bool timed = plan.minutes > 0;
  const auto budget = static_cast<Index>(std::ceil(60 * plan.minutes));
  Progress progress(timed ? "training, seconds" : "training", timed ? budget : plan.steps, timed ? 0 : state.step);
  const auto begin = std::chrono::steady_clock::now();
  double recent = 0, seconds = 0;
  const Index first = state.step;
  for (Index total = timed ? first + 1 : plan.steps; state.step < total;) {
    const double taken = static_cast<double>(state.step - first);
    if (timed) {
      const double left = taken > 0 ? (60 * plan.minutes - seconds) * taken / seconds : 1e6;
      total = state.step + static_cast<Index>(std::max(1.0, left));
    }
    const fit::WarmUpCosine rate{.peak = plan.rate, .warm_up = 100, .total = total, .floor = plan.rate / 100};
    fill(ids, state.step);
    const double nats = state.model.loss(ids, gradient, tape, {}, state.random.split());
    state.update(gradient, {.learning_rate = rate(state.step), .average_decay = 0.998}, tape);
    const double steps = static_cast<double>(state.step - first);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    recent += (fit::bits_per_dimension(nats) - recent) * std::max(0.02, 1 / steps);
    progress.update(timed ? std::min(budget, static_cast<Index>(seconds)) : state.step,
                    {{"step", std::to_string(state.step)},
                     {"bits", recent},
                     {"tokens/s", steps * static_cast<double>(ids.size()) / seconds}});
    if (timed && seconds >= 60 * plan.minutes) total = state.step;
    if (state.step % plan.every == 0 || state.step == total) {
      fit::save(plan.weights(), *state.average);
      fit::save(plan.state(), state);
      progress.note("step " + std::to_string(state.step) + ": " + evaluate(*state.average));
    }
  }
}

/// Mean cross entropy in bits of sequences first .. of `count` that fill(ids [batch, groups, tokens], first) gives.
template <class Model, class Fill>
double bits_of(const Model& model, Index count, Index batch, fit::Tape& tape, Fill&& fill,
               Progress* progress = nullptr) {
  constexpr auto config = Model::config;
  double total = 0;
  for (Index first = 0; first < count; first += batch) {
    fit::Tensor<std::int32_t, 3> ids(std::min(batch, count - first), Index{config.groups}, Index{config.tokens});
    fill(ids, first);
    total += model.loss(ids, tape) * static_cast<double>(ids.dimension(0));
    if (progress) progress->update(first + ids.dimension(0));
  }
  return fit::bits_per_dimension(total / static_cast<double>(std::max<Index>(1, count)));
}

}  // namespace examples
