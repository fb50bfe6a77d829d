#pragma once

#include <fit/models/autoregressive_decoder.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/run.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>

#include <CLI/CLI.hpp>

#include "checks.hpp"
#include "machine.hpp"

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
};

/// The options of every command, and the command `train` with its own; `unit` is what a step is made of.
inline CLI::App* add_training_options(CLI::App& app, DecoderTraining& plan, const std::string& unit) {
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--out", plan.out, "folder of weights and pictures")->capture_default_str();
  app.add_option("--threads", plan.threads, "threads; 0 is one for each processor")
      ->capture_default_str()
      ->check(examples::not_negative);
  app.add_option("--seed", plan.seed, "of everything random")->capture_default_str();
  app.add_flag("--plain", plan.plain, "a plain causal transformer with as many parameters instead");
  auto* train = app.add_subcommand("train", "trains");
  train->add_option("--steps", plan.steps, "batches of " + unit)->capture_default_str()->check(examples::positive);
  train->add_option("--minutes", plan.minutes, "as many steps as fit into them, instead of --steps")
      ->check(examples::positive);
  train->add_option("--every", plan.every, "steps from one saved state to the next")
      ->capture_default_str()
      ->check(examples::positive);
  train->add_option("--rate", plan.rate, "highest learning rate")->capture_default_str()->check(examples::positive);
  train->add_flag("--resume", plan.resume, "go on from the state in the output folder, if there is one");
  return train;
}

/// Trains on what fill(ids [batch, groups, tokens], number of the batch) gives; evaluate(model) gives the bits of what
/// was held out, by which the best weights are kept. Returns what the program returns.
template <class Model, class Fill, class Evaluate>
int train_decoder(const DecoderTraining& plan, fit::Executor& executor, Fill&& fill, Evaluate&& evaluate) {
  constexpr auto config = Model::config;
  fit::Tape tape(executor);
  fit::TrainingState<Model> state{.model = Model(fit::Random(plan.seed)),
                                  .optimizer = {.options = {.beta2 = 0.99}},
                                  .random = fit::Random(plan.seed + 1)};
  state.average = state.model;
  fit::Run run(state, {.folder = plan.out,
                       .name = plan.name,
                       .steps = plan.minutes > 0 ? 0 : plan.steps,
                       .minutes = plan.minutes,
                       .rate = {.peak = plan.rate, .warm_up = 100, .floor = plan.rate / 100},
                       .update = {.average_decay = 0.998},
                       .batch = plan.batch,
                       .evaluate_every = plan.every,
                       .smaller_is_better = true,
                       .resume = plan.resume});
  std::printf("%td parameters, sequences of %d groups of %d tokens, %d threads.\n", fit::count_parameters(state.model),
              config.groups, config.tokens, executor.lanes());
  using Ids = fit::Tensor<std::int32_t, 3>;
  fit::Prefetch<Ids> batches([&](Index number, Ids& ids) { fill(ids, number); }, run.batch(),
                             Ids(plan.batch, Index{config.groups}, Index{config.tokens}));
  Model gradient;
  while (run.next()) {
    const double nats = state.model.loss(batches.next(), gradient, tape, {}, state.random.split());
    run.update(gradient, nats, tape, {{"bits", fit::bits_per_dimension(nats)}});
    if (run.evaluates()) run.evaluated("held_out_bits", evaluate(run.weights()));
  }
  return run.finish();
}

/// Mean cross entropy in bits of sequences first .. of `count` that fill(ids [batch, groups, tokens], first) gives.
template <class Model, class Fill>
double bits_of(const Model& model, Index count, Index batch, fit::Tape& tape, Fill&& fill,
               fit::Progress* progress = nullptr) {
  constexpr auto config = Model::config;
  fit::Mean nats;
  for (Index first = 0; first < count; first += batch) {
    fit::Tensor<std::int32_t, 3> ids(std::min(batch, count - first), Index{config.groups}, Index{config.tokens});
    fill(ids, first);
    nats.add(model.loss(ids, tape), ids.dimension(0));
    if (progress) progress->update(first + ids.dimension(0));
  }
  return fit::bits_per_dimension(nats.value());
}

}  // namespace examples
