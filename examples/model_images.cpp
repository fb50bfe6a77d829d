#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fit/fit.hpp>
#include <fit/run/epochs.hpp>
#include <fit/run/progress.hpp>

#include "support/checks.hpp"
#include "support/decoder_comparison.hpp"
#include "support/decoder_training.hpp"
#include "support/fashion.hpp"
#include "support/png.hpp"

namespace {

using fit::Index;

constexpr Index side = examples::fashion_side, pixels = side * side;
constexpr fit::ImageSize patch{14, 14};  // the pixels of a patch are a group
constexpr Index across = side / patch.width;

constexpr fit::AutoregressiveConfig fit_config{.layers = "(2)2(2)2(2)",
                                               .groups = 4,
                                               .tokens = 196,
                                               .latents = 16,
                                               .data_dim = 64,
                                               .latent_dim = 128,
                                               .data_heads = 4,
                                               .latent_heads = 4,
                                               .vocabulary = 256};
/// A plain causal transformer with as many parameters.
constexpr fit::AutoregressiveConfig plain_config{.layers = "(10)",
                                                 .groups = 1,
                                                 .tokens = 784,
                                                 .latents = 1,
                                                 .data_dim = 96,
                                                 .latent_dim = 8,
                                                 .data_heads = 6,
                                                 .latent_heads = 1,
                                                 .vocabulary = 256};

struct Options {
  std::filesystem::path data = "/usr/share/datasets/fashion-mnist", picture;
  examples::DecoderTraining training{.steps = 10'000, .batch = 8, .every = 1'000};
  fit::Order order = fit::Order::raster;
  Index count = 0, continuations = 4;
  float temperature = 1;
};

/// Images as sequences [count, groups, tokens] of gray values, patch by patch.
template <class Places>
void write_ids(const examples::Images& images, const Places& order, Index first, fit::Order way,
               fit::Tensor<std::int32_t, 3>& ids) {
  fit::Tensor<std::int32_t, 4> image(ids.dimension(0), side, side, 1);
  for (Index i = 0; i < image.dimension(0); ++i) {
    const std::uint8_t* from = images[order(first + i)];
    std::copy_n(from, pixels, image.data() + i * pixels);
  }
  const auto patches = fit::image_patches(image, patch, way);
  std::copy_n(patches.data(), ids.size(), ids.data());
}

/// The way back from one sequence; places without an id are gray.
std::vector<std::uint8_t> image_of(std::span<const std::int32_t> ids, fit::Order way) {
  fit::Tensor<std::int32_t, 3> patches(1, across * across, patch.height * patch.width);
  patches.setConstant(128);
  std::copy(ids.begin(), ids.end(), patches.data());
  const auto image = fit::patches_image(patches, {side, side}, patch, way);
  return {image.data(), image.data() + pixels};
}

/// Those of the test images of which an evaluation while training is.
Index evaluated_images(const examples::Images& images) { return std::min<Index>(100, images.count); }
std::string evaluated_pixels(const std::filesystem::path& folder) {
  const auto images = examples::load_fashion(folder).test.images;
  std::string bytes;
  for (Index i = 0; i < evaluated_images(images); ++i)
    bytes.append(reinterpret_cast<const char*>(images[i]), std::size_t{pixels});
  return bytes;
}

template <fit::AutoregressiveConfig config>
struct Commands {
  using Model = fit::AutoregressiveDecoder<config>;

  const Options& options;
  fit::Executor& executor;

  Model load() const {
    Model model;
    fit::load(options.training.weights(), model);
    return model;
  }

  int train() const {
    const auto data = examples::load_fashion(options.data);
    const Index count = data.train.images.count, batch = options.training.batch;
    fit::require(count >= batch, "the data set has ", count, " training images, fewer than a batch");
    fit::Tape tape(executor);
    const fit::Epochs order(count, fit::Random(options.training.seed, 0));
    return examples::train_decoder<Model>(
        options.training, executor,
        [&](auto& ids, Index number) { write_ids(data.train.images, order, number * batch, options.order, ids); },
        [&](const Model& model) {
          return bits_of_test(model, data.test.images, evaluated_images(data.test.images), tape);
        });
  }

  int evaluate() const {
    const auto data = examples::load_fashion(options.data).test.images;
    const Index count = options.count > 0 ? std::min(options.count, data.count) : data.count;
    const Model model = load();
    fit::Tape tape(executor);
    fit::Progress progress("evaluating", count);
    const double bits = bits_of_test(model, data, count, tape, &progress);
    std::printf("%.4f bits per dimension of %td test images\n", bits, count);
    return 0;
  }

  /// Upper halves of test images, continued.
  int complete() const {
    const auto data = examples::load_fashion(options.data).test.images;
    const Index count = std::min<Index>(options.count > 0 ? options.count : 10, data.count);
    const Model model = load();
    examples::check_writable(options.picture);
    const fit::Epochs order(data.count, fit::Random(options.training.seed));
    examples::Sheet sheet(static_cast<int>(options.continuations) + 2, side, side, 1,
                          "upper half, continuations, truth", {.scale = 3, .text_scale = 1, .gap = 8});
    fit::Progress progress("completing", count);
    for (Index i = 0; i < count; ++i) {
      fit::Tensor<std::int32_t, 3> ids(1, Index{config.groups}, Index{config.tokens});
      write_ids(data, order, i, options.order, ids);
      const std::span<const std::int32_t> whole(ids.data(), static_cast<std::size_t>(pixels));
      fit::Generator generator(model, options.continuations, executor);
      generator.prompt(whole.first(static_cast<std::size_t>(pixels / 2)));
      sheet.add(image_of(generator.ids(), options.order).data());
      const fit::Random random = fit::Random(options.training.seed, 0).fork(i);
      while (!generator.finished_all()) generator.next({.temperature = options.temperature}, random);
      for (Index j = 0; j < options.continuations; ++j) sheet.add(image_of(generator.ids(j), options.order).data());
      sheet.add(image_of(whole, options.order).data());
      progress.update(i + 1);
    }
    return write(sheet);
  }

  int sample() const {
    const Index count = options.count > 0 ? options.count : 40;
    const Model model = load();
    examples::check_writable(options.picture);
    examples::Sheet sheet(10, side, side, 1, "", {.scale = 3, .text_scale = 1, .gap = 8});
    fit::Generator generator(model, count, executor);
    fit::Progress progress("sampling", pixels);
    for (Index place = 0; !generator.finished_all(); ++place) {
      generator.next({.temperature = options.temperature}, fit::Random(options.training.seed));
      progress.update(place + 1);
    }
    for (Index i = 0; i < count; ++i) sheet.add(image_of(generator.ids(i), options.order).data());
    return write(sheet);
  }

 private:
  double bits_of_test(const Model& model, const examples::Images& images, Index count, fit::Tape& tape,
                      fit::Progress* progress = nullptr) const {
    const auto order = [](Index i) { return i; };
    return examples::bits_of(
        model, count, 20, tape, [&](auto& ids, Index first) { write_ids(images, order, first, options.order, ids); },
        progress);
  }

  int write(const examples::Sheet& sheet) const {
    sheet.write(options.picture);
    std::printf("%s\n", options.picture.string().c_str());
    return 0;
  }
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Models the images of Fashion-MNIST pixel by pixel with a FIT autoregressive decoder.");
  auto& plan = options.training;
  auto* train = examples::add_training_options(app, plan, "8 images");
  app.add_option("--data", options.data, "folder with the four IDX files, compressed or not")->capture_default_str();
  app.add_option("--order", options.order, "of the patches: raster or snake")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, fit::Order>{{"raster", fit::Order::raster}, {"snake", fit::Order::snake}}));
  auto* evaluate = app.add_subcommand("evaluate", "bits per dimension of the test images");
  auto* complete = app.add_subcommand("complete", "continues the upper halves of test images");
  auto* compare = app.add_subcommand("compare", "draws how FIT and the plain transformer learnt, beside xz and zstd");
  auto* sample = app.add_subcommand("sample", "draws images from nothing");
  for (auto* command : {evaluate, complete, sample}) {
    command->add_option("--count", options.count, "images")->check(CLI::Range(1, 10'000));
  }
  for (auto* command : {complete, sample}) {
    command->add_option("--temperature", options.temperature, "below 1 likelier, above 1 more varied")
        ->capture_default_str()
        ->check(examples::not_negative);
    command->add_option("--picture", options.picture, "PNG file to write, by default in the output folder");
  }
  complete->add_option("--continuations", options.continuations, "of each image")
      ->capture_default_str()
      ->check(CLI::Range(1, 100));
  CLI11_PARSE(app, argc, argv);
  const std::string name = options.order == fit::Order::snake ? "pixels_snake" : "pixels";
  plan.name = (plan.plain ? "plain_" : "") + name;
  if (options.picture.empty()) options.picture = plan.out / (*complete ? "completed.png" : "sampled.png");
  try {
    if (*compare) return examples::compare_decoders(plan, name, evaluated_pixels(options.data), "dimension"), 0;
    fit::Executor executor(examples::threads(plan.threads));
    const auto run = [&](const auto& commands) {
      if (*train) return commands.train();
      if (*evaluate) return commands.evaluate();
      return *complete ? commands.complete() : commands.sample();
    };
    return plan.plain ? run(Commands<plain_config>{options, executor}) : run(Commands<fit_config>{options, executor});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "model_images: %s\n", error.what());
    return 1;
  }
}
