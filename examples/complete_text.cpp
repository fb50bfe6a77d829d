#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fit/fit.hpp>
#include <fit/run/progress.hpp>

#include "support/checks.hpp"
#include "support/decoder_comparison.hpp"
#include "support/decoder_training.hpp"

namespace {

using fit::Index;

constexpr fit::AutoregressiveConfig fit_config{.layers = "(2)2(2)2(2)",
                                               .groups = 16,
                                               .tokens = 128,
                                               .latents = 16,
                                               .data_dim = 128,
                                               .latent_dim = 192,
                                               .data_heads = 4,
                                               .latent_heads = 6,
                                               .vocabulary = 256};
/// A plain causal transformer with as many parameters.
constexpr fit::AutoregressiveConfig plain_config{.layers = "(16)",
                                                 .groups = 1,
                                                 .tokens = 2048,
                                                 .latents = 1,
                                                 .data_dim = 128,
                                                 .latent_dim = 8,
                                                 .data_heads = 4,
                                                 .latent_heads = 1,
                                                 .vocabulary = 256};
constexpr Index length = 2048;  // bytes of a window

struct Options {
  std::vector<std::filesystem::path> data;
  examples::DecoderTraining training{.steps = 16'000, .batch = 2, .every = 2'000};
  std::string prefix;
  Index bytes = 600;
  fit::TokenSampling sampling{.temperature = 0.8f, .top_p = 0.95f};
};

struct Text {
  std::string train, held_out;
};

/// The text files among some paths and below some folders, in the order of their names: every tenth is held out. In the
/// text each file is followed by a zero byte, which no text file has.
Text load_text(const std::vector<std::filesystem::path>& paths) {
  namespace fs = std::filesystem;
  fit::require(!paths.empty(), "--data needs a file or a folder");
  std::vector<fs::path> files;
  for (const fs::path& path : paths) {
    fit::require(fs::exists(path), path.string(), ": no such file or folder");
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (const auto& entry : fs::recursive_directory_iterator(path, fs::directory_options::skip_permission_denied)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  Text text;
  std::size_t number = 0;
  for (const fs::path& path : files) {
    std::ifstream stream(path, std::ios::binary);
    fit::require(stream.is_open(), path.string(), ": cannot be opened");
    const std::string content{std::istreambuf_iterator<char>(stream), {}};
    if (content.empty() || content.find('\0') != content.npos) continue;  // not text
    std::string& to = number++ % 10 == 9 ? text.held_out : text.train;
    to += content;
    to += '\0';
  }
  const auto bytes = static_cast<Index>(text.train.size());
  fit::require(bytes >= length, "the training text has ", bytes, " bytes, fewer than a window of ", length);
  return text;
}

/// Windows of the held-out text, whole ones only.
Index held_out_windows(const Text& text) {
  const auto bytes = static_cast<Index>(text.held_out.size());
  fit::require(bytes >= length, "the held-out text, every tenth file, has ", bytes, " bytes, fewer than a window of ",
               length);
  return bytes / length;
}

/// How far some windows begin from each other that lie evenly in the held-out text.
Index window_distance(const Text& text, Index windows) { return held_out_windows(text) / windows * length; }

/// Of which an evaluation while training is.
Index evaluated_windows(const Text& text) { return std::min<Index>(64, held_out_windows(text)); }
std::string evaluated(const Text& text) {
  const Index windows = evaluated_windows(text), apart = window_distance(text, windows);
  std::string bytes;
  for (Index i = 0; i < windows; ++i) {
    bytes.append(text.held_out, static_cast<std::size_t>(i * apart), static_cast<std::size_t>(length));
  }
  return bytes;
}

std::int32_t byte_at(const std::string& text, Index i) {
  return static_cast<std::uint8_t>(text[static_cast<std::size_t>(i)]);
}

template <fit::AutoregressiveConfig config>
struct Commands {
  using Model = fit::AutoregressiveDecoder<config>;
  static_assert(config.groups * config.tokens == length);

  const Options& options;
  fit::Executor& executor;

  Model load() const {
    Model model;
    fit::load(options.training.weights(), model);
    return model;
  }

  int train() const {
    const Text text = load_text(options.data);
    std::printf("%zu bytes to train on, %zu held out.\n", text.train.size(), text.held_out.size());
    const Index windows = evaluated_windows(text);
    fit::Tape tape(executor);
    return examples::train_decoder<Model>(
        options.training, executor,
        [&](auto& ids, Index number) {
          fit::Random random = fit::Random(options.training.seed, 0).fork(number);
          for (Index i = 0; i < ids.dimension(0); ++i) {
            const Index first = random.below(static_cast<Index>(text.train.size()) - length + 1);
            for (Index j = 0; j < length; ++j) ids.data()[i * length + j] = byte_at(text.train, first + j);
          }
        },
        [&](const Model& model) { return bits(model, text, windows, tape); });
  }

  int evaluate() const {
    const Text text = load_text(options.data);
    const Index windows = held_out_windows(text);
    const Model model = load();
    fit::Tape tape(executor);
    fit::Progress progress("evaluating", windows);
    const double result = bits(model, text, windows, tape, &progress);
    std::printf("%.4f bits per byte of %td held-out bytes\n", result, windows * length);
    return 0;
  }

  int complete() const {
    fit::require(static_cast<Index>(options.prefix.size()) < length, "the prefix has ", options.prefix.size(),
                 " bytes, but with what follows the model has room for ", length);
    const Model model = load();
    fit::Generator generator(model, 1, executor);
    std::vector<std::int32_t> ids;
    for (Index i = 0; i < static_cast<Index>(options.prefix.size()); ++i) ids.push_back(byte_at(options.prefix, i));
    generator.prompt(ids);
    std::fwrite(options.prefix.data(), 1, options.prefix.size(), stdout);
    auto sampling = options.sampling;
    sampling.end = 0;  // the end of a file
    for (const auto token : generator.stream(sampling, fit::Random(options.training.seed), options.bytes)) {
      if (token != 0) std::fputc(token, stdout);
      std::fflush(stdout);
    }
    std::fputc('\n', stdout);
    return 0;
  }

 private:
  static double bits(const Model& model, const Text& text, Index windows, fit::Tape& tape,
                     fit::Progress* progress = nullptr) {
    const Index apart = window_distance(text, windows);
    return examples::bits_of(
        model, windows, 8, tape,
        [&](auto& ids, Index first) {
          for (Index i = 0; i < ids.size(); ++i)
            ids.data()[i] = byte_at(text.held_out, (first + i / length) * apart + i % length);
        },
        progress);
  }
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Learns the bytes of text files with a FIT autoregressive decoder, and goes on where a text ends.");
  auto& plan = options.training;
  auto* train = examples::add_training_options(app, plan, "2 windows of 2048 bytes");
  app.add_option("--data", options.data, "text files, and folders of them, such as /usr/include/eigen3");
  auto* evaluate = app.add_subcommand("evaluate", "bits per byte of the files held out");
  auto* compare = app.add_subcommand("compare", "draws how FIT and the plain transformer learnt, beside xz and zstd");
  auto* complete = app.add_subcommand("complete", "writes on where a text ends");
  complete->add_option("prefix", options.prefix, "the beginning of a text")->required();
  complete->add_option("--bytes", options.bytes, "at most as many more")
      ->capture_default_str()
      ->check(examples::positive);
  complete->add_option("--temperature", options.sampling.temperature, "0 for the likeliest byte each time")
      ->capture_default_str()
      ->check(examples::not_negative);
  complete->add_option("--top-k", options.sampling.top_k, "of the likeliest bytes only; 0 for all")
      ->capture_default_str();
  complete->add_option("--top-p", options.sampling.top_p, "of the likeliest bytes with this probability together")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  plan.name = plan.plain ? "plain_text" : "text";
  try {
    if (*compare) return examples::compare_decoders(plan, "text", evaluated(load_text(options.data)), "byte"), 0;
    fit::Executor executor(examples::threads(plan.threads));
    const auto run = [&](const auto& commands) {
      if (*train) return commands.train();
      return *evaluate ? commands.evaluate() : commands.complete();
    };
    return plan.plain ? run(Commands<plain_config>{options, executor}) : run(Commands<fit_config>{options, executor});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "complete_text: %s\n", error.what());
    return 1;
  }
}
