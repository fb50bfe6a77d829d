#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fit/fit.hpp>
#include <fit/run/epochs.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/run.hpp>

#include "support/checks.hpp"
#include "support/fashion.hpp"
#include "support/machine.hpp"
#include "support/png.hpp"

namespace {

using fit::Index;

constexpr Index side = examples::fashion_side, pixels = side * side;
constexpr int classes = examples::fashion_classes;

// A quarter of the image is a group, of 7 x 7 patches.
constexpr fit::ImageGrouping grouping{.sub_image = {14, 14}, .patch = {2, 2}};
constexpr fit::DiffusionConfig config{.layers = "(2)2(2)2(2)",
                                      .groups = 4,
                                      .tokens = 49,
                                      .channels = 4,
                                      .latents = 8,
                                      .data_dim = 64,
                                      .latent_dim = 128,
                                      .data_heads = 2,
                                      .latent_heads = 4,
                                      .output_channels = 4,
                                      .condition_channels = classes,
                                      .self_conditioning = fit::SelfConditioning::latent};
using Model = fit::DiffusionDecoder<config>;

const fit::DiffusionObjective objective{.schedule = fit::CosineSchedule{},
                                        .prediction = fit::Prediction::v,
                                        .loss_on = fit::LossOn::velocity,
                                        .self_conditioning_rate = 0.5,
                                        .condition_drop = 0.1};

struct Options {
  std::filesystem::path data = "/usr/share/datasets/fashion-mnist", out = "out", weights = "out/generator.safetensors";
  int threads = 0;
  std::uint64_t seed = 7;
  // Of train.
  Index steps = 10'000, batch = 64, every = 1'000;
  double rate = 2e-3;
  bool resume = false;
  // Of sample, denoise and evaluate.
  std::filesystem::path picture, classifier = "out/classifier.safetensors";
  int only = -1;
  Index count = 80;
  double level = 0.6;
  fit::SampleOptions sampling{.steps = 50,
                              .guidance = 1,
                              .schedule = objective.schedule,
                              .prediction = objective.prediction,
                              .x0_clip = fit::Range{-1, 1}};
};

/// Pixels between -1 and 1, as groups of tokens [count, groups, tokens, channels].
fit::Tensor<float, 4> groups_of(const examples::Images& images, const fit::Epochs& order, Index first, Index count) {
  fit::Tensor<float, 4> tensor(count, side, side, 1);
  for (Index i = 0; i < count; ++i) {
    const std::uint8_t* from = images[order(first + i)];
    for (Index j = 0; j < pixels; ++j) tensor.data()[i * pixels + j] = static_cast<float>(from[j]) / 127.5f - 1;
  }
  return fit::group_image(tensor, grouping);
}

/// The way back to bytes.
examples::Images images_of(const fit::TensorView<const float, 4>& groups) {
  const auto tensor = fit::ungroup_image(groups, {side, side}, grouping);
  examples::Images images{groups.dimension(0), side, side, {}};
  for (Index i = 0; i < tensor.size(); ++i) {
    const float value = std::clamp(tensor.data()[i], -1.0f, 1.0f);  // NaN stays, and becomes 0 below
    images.pixels.push_back(value >= -1 ? static_cast<std::uint8_t>(std::lround(127.5f * (value + 1))) : 0);
  }
  return images;
}

/// One-hot rows [labels, classes].
fit::Tensor<float, 2> conditions_of(const std::vector<std::uint8_t>& labels) {
  fit::Tensor<float, 2> condition(static_cast<Index>(labels.size()), Index{classes});
  for (std::size_t i = 0; i < labels.size(); ++i) condition(static_cast<Index>(i), labels[i]) = 1;
  return condition;
}

/// 0, 1, ... 9, 0, ... or one class alone.
std::vector<std::uint8_t> labels_of(Index count, int only) {
  std::vector<std::uint8_t> labels;
  for (Index i = 0; i < count; ++i) labels.push_back(static_cast<std::uint8_t>(only >= 0 ? only : i % classes));
  return labels;
}

examples::LabelledImages generate(const Model& model, const fit::SampleOptions& sampling,
                                  const std::vector<std::uint8_t>& labels, std::uint64_t seed, fit::Tape& tape,
                                  fit::Progress* progress = nullptr) {
  const auto count = static_cast<Index>(labels.size());
  const fit::Tensor<float, 2> condition = conditions_of(labels);
  const auto groups = fit::sample(model, sampling, count, fit::TensorView<const float, 2>(condition),
                                  fit::sample_noise<float>(fit::Random(seed)), tape, [&](const auto& step) {
                                    const Index part = step.x0.dimension(0);
                                    if (progress)
                                      progress->update(step.first * sampling.steps + (step.step + 1) * part);
                                    return true;
                                  });
  return {images_of(groups), labels};
}

void write_sheet(const std::filesystem::path& path, const examples::LabelledImages& set, const std::string& title) {
  examples::Sheet sheet(10, side, side, 1, title, {.scale = 3, .text_scale = 1, .gap = 8});
  for (Index i = 0; i < set.images.count; ++i) {
    sheet.add(set.images[i], examples::fashion_names[set.labels[static_cast<std::size_t>(i)]]);
  }
  sheet.write(path);
}

/// Images with the noise, the times and the labels that the loss needs.
struct Batch {
  fit::Tensor<float, 4> x0, noise;
  fit::Tensor<double, 1> times;
  fit::Tensor<float, 2> condition;

  void load(const examples::LabelledImages& from, const fit::Epochs& order, Index first, Index count,
            fit::Random random) {
    x0 = groups_of(from.images, order, first, count);
    noise = fit::Tensor<float, 4>(x0.dimensions());
    times = fit::Tensor<double, 1>(count);
    std::vector<std::uint8_t> labels;
    for (Index i = 0; i < count; ++i) {
      labels.push_back(from.labels[static_cast<std::size_t>(order(first + i))]);
      times(i) = random.uniform();
    }
    for (Index i = 0; i < noise.size(); ++i) noise.data()[i] = static_cast<float>(random.normal());
    condition = conditions_of(labels);
  }
};

int train(const Options& options, fit::Tape& tape, fit::Tape& sampling) {
  const auto data = examples::load_fashion(options.data);
  const Index count = data.train.images.count, batch = options.batch;
  fit::require(count >= batch, "the data set has ", count, " training images, fewer than a batch");
  fit::TrainingState<Model> state{.model = Model(fit::Random(options.seed)),
                                  .optimizer = {.options = {.beta2 = 0.99}},
                                  .random = fit::Random(options.seed + 1)};
  state.average = state.model;
  fit::Run run(state, {.folder = options.out,
                       .name = "generator",
                       .steps = options.steps,
                       .rate = {.peak = options.rate, .warm_up = 200, .floor = options.rate / 100},
                       .batch = batch,
                       .evaluate_every = options.every,
                       .smaller_is_better = true,
                       .resume = options.resume});
  std::printf("%td parameters, %td training images in %d groups of %d tokens, %d threads.\n",
              fit::count_parameters(state.model), count, config.groups, config.tokens, tape.executor().lanes());

  const fit::Epochs order(count, fit::Random(options.seed, 0));
  const fit::Random noise(options.seed + 2);
  fit::Prefetch<Batch> batches(
      [&](Index number, Batch& made) { made.load(data.train, order, number * batch, batch, noise.fork(number)); },
      run.batch());
  Batch held_out;
  held_out.load(data.test, fit::Epochs(data.test.images.count, fit::Random(1)), 0,
                std::min<Index>(200, data.test.images.count), fit::Random(2));
  using Condition = fit::TensorView<const float, 2>;
  fit::DiffusionLoss<Model> loss(objective);
  Model gradient;
  while (run.next()) {
    const Batch& b = batches.next();
    const double now =
        loss(state.model, b.x0, b.noise, b.times, Condition(b.condition), gradient, tape, {}, state.random.split());
    run.update(gradient, now, tape);
    if (!run.evaluates()) continue;
    run.evaluated("test_loss", loss(run.weights(), held_out.x0, held_out.noise, held_out.times,
                                    Condition(held_out.condition), sampling));
    write_sheet(options.out / "generated.png",
                generate(run.weights(), options.sampling, labels_of(40, -1), 1, sampling),
                "step " + std::to_string(state.step));
  }
  return run.finish();
}

int sample(const Options& options, fit::Tape& tape) {
  Model model;
  fit::load(options.weights, model);
  examples::check_writable(options.picture);
  fit::Progress progress("sampling", options.count * options.sampling.steps);
  const auto set =
      generate(model, options.sampling, labels_of(options.count, options.only), options.seed, tape, &progress);
  progress.finish();
  write_sheet(options.picture, set, "");
  std::printf("%s\n", options.picture.string().c_str());
  return 0;
}

/// Test images with noise on them, and what the model makes of them.
int denoise(const Options& options, fit::Tape& tape) {
  Model model;
  fit::load(options.weights, model);
  examples::check_writable(options.picture);
  const auto data = examples::load_fashion(options.data).test;
  const Index count = std::min(options.count, data.images.count);
  const fit::Epochs order(data.images.count, fit::Random(options.seed));
  const auto truth = groups_of(data.images, order, 0, count);
  std::vector<std::uint8_t> labels;
  for (Index i = 0; i < count; ++i) labels.push_back(data.labels[static_cast<std::size_t>(order(i))]);
  const fit::Tensor<float, 2> condition = conditions_of(labels);
  const fit::NoiseShares shares = fit::noise_shares(options.sampling.schedule, options.level);
  auto noisy = truth;
  fit::sample_noise<float>(fit::Random(options.seed))(-1, 0, noisy);
  for (Index i = 0; i < noisy.size(); ++i) {
    noisy.data()[i] =
        static_cast<float>(shares.keep) * truth.data()[i] + static_cast<float>(shares.lose) * noisy.data()[i];
  }
  auto sampling = options.sampling;
  sampling.start = options.level;
  const auto fresh = fit::sample_noise<float>(fit::Random(options.seed + 1));
  const auto estimate = fit::sample(
      model, sampling, count, fit::TensorView<const float, 2>(condition),
      [&](Index step, Index first, fit::TensorView<float, 4> to) {
        if (step >= 0) return fresh(step, first, to);
        std::copy_n(noisy.data() + first * pixels, to.size(), to.data());
      },
      tape);
  double error = 0, before = 0;
  for (Index i = 0; i < truth.size(); ++i) {
    error += std::pow(estimate.data()[i] - truth.data()[i], 2);
    before += std::pow(noisy.data()[i] - truth.data()[i], 2);
  }
  const auto root = [&](double sum) { return std::sqrt(sum / static_cast<double>(truth.size())) / 2; };
  examples::Sheet sheet(9, side, side, 1, "noisy, estimate, truth", {.scale = 3, .text_scale = 1, .gap = 8});
  const auto columns = {images_of(noisy), images_of(estimate), images_of(truth)};
  for (Index i = 0; i < count; ++i) {
    for (const auto& column : columns)
      sheet.add(column[i], examples::fashion_names[labels[static_cast<std::size_t>(i)]]);
  }
  sheet.write(options.picture);
  std::printf("%s: root mean square error of a pixel in [0, 1]: %.3f noisy, %.3f estimated\n",
              options.picture.string().c_str(), root(before), root(error));
  return 0;
}

/// For each image, the root mean square difference of a pixel, in [0, 1], to the nearest of a set; sorted.
std::vector<double> nearest(const examples::Images& images, const examples::Images& among, fit::Tape& tape) {
  const auto rows = [](const examples::Images& from, Index first, Index count) {
    fit::Tensor<float, 2> values(count, pixels);
    for (Index i = 0; i < values.size(); ++i) values.data()[i] = static_cast<float>(from[first][i]) / 255;
    return values;
  };
  const auto square = [](const float* row) {
    return static_cast<double>(std::inner_product(row, row + pixels, row, 0.0f));
  };
  const auto left = rows(images, 0, images.count);
  std::vector<double> best(static_cast<std::size_t>(images.count), std::numeric_limits<double>::max());
  for (Index first = 0; first < among.count; first += 2'000) {
    const Index count = std::min<Index>(2'000, among.count - first);
    const auto right = rows(among, first, count);
    fit::Tensor<float, 2> products(images.count, count);
    fit::kernels::multiply<float>({{.rows = images.count,
                                    .columns = count,
                                    .factors = {{fit::kernels::plain(left.data(), pixels),
                                                 fit::kernels::transposed(right.data(), pixels), pixels}},
                                    .c = products.data(),
                                    .c_row = count}},
                                  tape);
    for (Index j = 0; j < count; ++j) {
      const double length = square(&right(j, 0));
      for (Index i = 0; i < images.count; ++i) {
        double& least = best[static_cast<std::size_t>(i)];
        least = std::min(least, length - 2 * static_cast<double>(products(i, j)));
      }
    }
  }
  for (Index i = 0; i < images.count; ++i) {
    double& distance = best[static_cast<std::size_t>(i)];
    distance = std::sqrt(std::max(0.0, distance + square(&left(i, 0))) / static_cast<double>(pixels));
  }
  std::sort(best.begin(), best.end());
  return best;
}

int evaluate(const Options& options, fit::Tape& tape) {
  Model model;
  fit::load(options.weights, model);
  examples::FashionClassifier classifier;
  fit::load(options.classifier, classifier);
  const auto data = examples::load_fashion(options.data);
  fit::require(data.train.images.count > 0 && data.test.images.count > 0, "the data set has no images to compare with");
  fit::Progress progress("sampling", options.count * options.sampling.steps);
  const auto set =
      generate(model, options.sampling, labels_of(options.count, options.only), options.seed, tape, &progress);
  progress.finish();
  examples::LabelledImages real = data.test;
  real.images.count = std::min(options.count, real.images.count);
  real.labels.resize(static_cast<std::size_t>(real.images.count));
  std::printf("%-36s %10td %10td\n", "", set.images.count, real.images.count);
  std::printf("%-36s %10s %10s\n", "", "samples", "test images");
  const auto found = examples::classify(classifier, set, tape);
  std::printf("%-36s %8.1f %% %8.1f %%\n", "the classifier agrees on", examples::accuracy(found, set),
              examples::accuracy(examples::classify(classifier, real, tape), real));
  const auto ours = nearest(set.images, data.train.images, tape),
             theirs = nearest(real.images, data.train.images, tape);
  const auto middle = [](const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; };
  std::printf("%-36s %10.4f %10.4f\n", "median distance to training images", middle(ours), middle(theirs));
  std::printf("%-36s %10.4f %10.4f\n", "the nearest of all", ours.front(), theirs.front());
  std::printf("of each class:");
  for (int label = 0; label < classes; ++label) {
    double right = 0, all = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      all += set.labels[i] == label;
      right += set.labels[i] == label && found[i] == label;
    }
    if (all > 0)
      std::printf("  %s %.0f %%", examples::fashion_names[static_cast<std::size_t>(label)], 100 * right / all);
  }
  std::printf("\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a FIT diffusion decoder to draw the ten kinds of clothing of Fashion-MNIST, and draws them.");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--data", options.data, "folder with the four IDX files, compressed or not")->capture_default_str();
  app.add_option("--threads", options.threads, "threads; 0 is one for each processor")
      ->capture_default_str()
      ->check(examples::not_negative);
  app.add_option("--seed", options.seed, "of everything random")->capture_default_str();

  auto* train_command = app.add_subcommand("train", "trains, with a sheet of samples every so often");
  train_command->add_option("--out", options.out, "folder for weights and pictures")->capture_default_str();
  train_command->add_option("--steps", options.steps, "batches of 64 images")
      ->capture_default_str()
      ->check(examples::positive);
  train_command->add_option("--every", options.every, "steps from one sheet and saved state to the next")
      ->capture_default_str()
      ->check(examples::positive);
  train_command->add_option("--sheet-steps", options.sampling.steps, "denoising steps of a sheet's samples")
      ->capture_default_str()
      ->check(examples::positive);
  train_command->add_option("--rate", options.rate, "highest learning rate")
      ->capture_default_str()
      ->check(examples::positive);
  train_command->add_flag("--resume", options.resume, "go on from the state in the output folder, if there is one");

  auto* sample_command = app.add_subcommand("sample", "draws a sheet of samples");
  auto* denoise_command = app.add_subcommand("denoise", "puts noise on test images and takes it off again");
  auto* evaluate_command =
      app.add_subcommand("evaluate",
                         "draws 1,000 samples, asks the classifier of classify_images what they are, and "
                         "looks for the nearest training image");
  const std::map<std::string, int> names = [] {
    std::map<std::string, int> result{{"all", -1}};
    for (int i = 0; i < classes; ++i) {
      result[examples::fashion_names[static_cast<std::size_t>(i)]] = i;
      result[std::to_string(i)] = i;
    }
    return result;
  }();
  const std::map<std::string, fit::Sampler> samplers = {
      {"ddim", fit::Sampler::ddim}, {"ddpm_large", fit::Sampler::ddpm_large}, {"ddpm_small", fit::Sampler::ddpm_small}};
  for (auto* command : {sample_command, denoise_command, evaluate_command}) {
    command->add_option("--weights", options.weights, "file that train saved")->capture_default_str();
    command->add_option("--count", options.count, "images")
        ->check(CLI::Range(1, command == evaluate_command ? 1'000'000 : 10'000));
    command->add_option("--steps", options.sampling.steps, "denoising steps")
        ->capture_default_str()
        ->check(examples::positive);
    command->add_option("--guidance", options.sampling.guidance, "towards the class; 0 is none")->capture_default_str();
    command->add_option("--sampler", options.sampling.method, "ddim, ddpm_large or ddpm_small")
        ->transform(CLI::CheckedTransformer(samplers));
    if (command != evaluate_command) {
      command->add_option("--picture", options.picture, "PNG file to write: out/samples.png or out/denoised.png");
    }
    if (command != denoise_command) {
      command->add_option("--class", options.only, "name or number of a class, or all")
          ->transform(CLI::CheckedTransformer(names, CLI::ignore_case));
    }
  }
  denoise_command->add_option("--level", options.level, "time of the noise, 0 none, 1 nothing but noise")
      ->capture_default_str()
      ->check(examples::finite)
      ->check(CLI::Range(0.001, 1.0));
  evaluate_command->add_option("--classifier", options.classifier, "file that classify_images saved")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    fit::Executor executor(examples::threads(options.threads));
    fit::Tape tape(executor), second(executor);
    const auto given = [&](const char* name) { return app.get_subcommands().front()->count(name) > 0; };
    if (*train_command) return train(options, tape, second);
    if (!*evaluate_command && !given("--picture")) {
      options.picture = *denoise_command ? "out/denoised.png" : "out/samples.png";
      std::filesystem::create_directories(options.picture.parent_path());
    }
    if (*denoise_command) {
      if (!given("--count")) options.count = 24;
      return denoise(options, tape);
    }
    if (*evaluate_command) {
      if (!given("--count")) options.count = 1'000;
      return evaluate(options, tape);
    }
    return sample(options, tape);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "generate_images: %s\n", error.what());
    return 1;
  }
}
