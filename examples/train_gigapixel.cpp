// Trains a masked autoencoder (He et al., arXiv 2111.06377) on one large picture: three of four patches are hidden, and
// the model learns to fill them in from the others. Neither the patches nor what the model makes of them stand in
// memory as a whole: both are made from the pixels, some groups at a time.
#include <fit/fit.hpp>
#include <fit/run/interrupt.hpp>
#include <fit/run/log.hpp>
#include <fit/run/progress.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "support/checks.hpp"
#include "support/machine.hpp"
#include "support/picture.hpp"
#include "support/png.hpp"
#include "support/processes.hpp"

namespace {

using examples::Picture;
using examples::PictureSize;
using fit::Index;

constexpr Index patch = 16, group_side = 20, group_pixels = patch * group_side;
constexpr int group_tokens = group_side * group_side, hidden_tokens = group_tokens * 3 / 4;
constexpr int channels = patch * patch * 3;

constexpr fit::EncoderConfig config_of(fit::Layers layers, int latents, int data_dim, int latent_dim) {
  return {.layers = layers,
          .groups = fit::any,
          .tokens = group_tokens,
          .channels = channels,
          .latents = latents,
          .data_dim = data_dim,
          .latent_dim = latent_dim,
          .data_heads = data_dim / 64,
          .latent_heads = latent_dim / 64,
          .latent_positions = fit::Positions::sin_cos_grid};
}

template <fit::EncoderConfig c>
struct Autoencoder {
  using Scalar = float;
  static constexpr fit::EncoderConfig config = c;

  fit::Encoder<c> encoder;
  fit::nn::Linear<float, channels, c.data_dim> head;
  fit::Vector<float, channels> mask_token;

  static void visit(auto&& f, auto&... p) {
    f("encoder", p.encoder...);
    f("head", p.head...);
    f("mask_token", p.mask_token...);
  }
};

struct Options {
  std::filesystem::path image, out = "gigapixel", save, resume;
  std::string size, config = "base";
  fit::Recompute recompute = fit::Recompute::stream;
  Index steps = 20, leaves = 0;
  int latents = 16, threads = 0;
  double rate = 1e-3, memory_limit = 0;
  std::uint64_t seed = 7;

  Index leaves_of(const fit::Team& team) const { return std::max<Index>(team.size(), leaves); }
  std::filesystem::path state() const { return save.empty() ? out / "state.safetensors" : save; }
};

/// A picture as the model sees it in one pass: patches of which some are hidden. Each colour has mean 0 and deviation 1
/// over the whole picture, so that a loss of 1 is that of guessing the mean colour.
class MaskedPicture {
 public:
  /// `counted` are rows that the picture has; every row is that of one member of the team.
  MaskedPicture(const Picture& picture, const fit::IndexRange& counted, fit::Team& team)
      : picture_(picture), rows_(picture.size.height / group_pixels), columns_(picture.size.width / group_pixels) {
    struct Moments {
      std::array<double, 3> sums{}, squares{};  // of whole numbers, exact in any order
    } all;
    const Index width = 3 * picture.size.width;
    for (Index y = counted.first; y < counted.end(); ++y) {
      const std::uint8_t* const row = picture.row(y);
      for (Index i = 0; i < width; ++i) {
        const double value = row[i];
        all.sums[static_cast<std::size_t>(i % 3)] += value;
        all.squares[static_cast<std::size_t>(i % 3)] += value * value;
      }
    }
    const auto members = team.gather(all);
    const double count = static_cast<double>(picture.size.width * picture.size.height);
    for (std::size_t c = 0; c < 3; ++c) {
      double sum = 0, squares = 0;
      for (const Moments& member : members) {
        sum += member.sums[c];
        squares += member.squares[c];
      }
      const double mean = sum / count, variance = squares / count - mean * mean;
      mean_[c] = static_cast<float>(mean);
      deviation_[c] = static_cast<float>(std::sqrt(std::max(1.0, variance)));
    }
  }

  const Picture& picture() const { return picture_; }
  fit::Grid grid() const { return {.rows = rows_, .columns = columns_}; }
  Index groups() const { return rows_ * columns_; }
  double hidden_values() const { return static_cast<double>(groups()) * hidden_tokens * channels; }

  /// Which tokens are hidden follows from these numbers.
  void hide(const fit::Random& random) { random_ = random; }

  /// Tokens [count, group_tokens, channels] of some groups.
  void fill(Index first, Index count, const float* mask_token, float* to) const {
    for_each_token(first, count, [&](Index group, Index token, bool hidden) {
      if (hidden) {
        std::copy_n(mask_token, channels, to);
      } else {
        values_of(group, token, to);
      }
      to += channels;
    });
  }

  /// Adds what of the tokens' gradient is the mask token's.
  void add_mask_gradient(Index first, Index count, const float* from, float* mask_gradient) const {
    for_each_token(first, count, [&](Index, Index, bool hidden) {
      for (Index i = 0; hidden && i < channels; ++i) mask_gradient[i] += from[i];
      from += channels;
    });
  }

  /// The groups' share of the mean squared error of hidden tokens; what was made of them becomes its gradient.
  double compare(Index first, Index count, float* made) const {
    const auto scale = static_cast<float>(2 / hidden_values());
    std::array<float, channels> truth;
    double sum = 0;
    for_each_token(first, count, [&](Index group, Index token, bool hidden) {
      if (hidden) {
        values_of(group, token, truth.data());
        float squares = 0;
        for (std::size_t i = 0; i < truth.size(); ++i) {
          const float difference = made[i] - truth[i];
          squares += difference * difference;
          made[i] = scale * difference;
        }
        sum += static_cast<double>(squares);
      } else {
        std::fill_n(made, channels, 0.0f);
      }
      made += channels;
    });
    return sum / hidden_values();
  }

  /// draw(x, y, values) of every token in three versions, each [patch, patch, 3] from 0 to 255: as it is, as it is
  /// seen, and with what was made of it where it is hidden.
  template <class Draw>
  void show(Index first, Index count, const float* made, Draw&& draw) const {
    std::array<std::array<float, channels>, 3> versions;
    for_each_token(first, count, [&](Index group, Index token, bool hidden) {
      values_of(group, token, versions[0].data());
      for (std::size_t i = 0; i < channels; ++i) {
        const auto colour = [&](float value) {
          return std::clamp(mean_[i % 3] + deviation_[i % 3] * value, 0.0f, 255.0f);
        };
        const float guess = colour(made[i]);
        versions[0][i] = colour(versions[0][i]);
        versions[1][i] = hidden ? 128 : versions[0][i];
        versions[2][i] = hidden ? guess : versions[0][i];
      }
      draw(left_of(group, token), top_of(group, token), versions);
      made += channels;
    });
  }

 private:
  template <class Each>
  void for_each_token(Index first, Index count, Each&& each) const {
    for (Index group = first; group < first + count; ++group) {
      const auto hidden = hidden_in(group);
      for (Index token = 0; token < group_tokens; ++token) each(group, token, hidden[static_cast<std::size_t>(token)]);
    }
  }

  /// The first of a random order of the group's tokens.
  std::array<bool, group_tokens> hidden_in(Index group) const {
    fit::Random random = random_.fork(group);
    std::array<std::size_t, group_tokens> order;
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::array<bool, group_tokens> hidden{};
    for (std::size_t i = 0; i < hidden_tokens; ++i) {
      std::swap(order[i], order[i + static_cast<std::size_t>(random.below(std::ssize(order) - static_cast<Index>(i)))]);
      hidden[order[i]] = true;
    }
    return hidden;
  }

  Index left_of(Index group, Index token) const { return group % columns_ * group_pixels + token % group_side * patch; }
  Index top_of(Index group, Index token) const { return group / columns_ * group_pixels + token / group_side * patch; }

  void values_of(Index group, Index token, float* to) const {
    const Index row = 3 * picture_.size.width;
    const std::uint8_t* from = picture_.row(top_of(group, token)) + 3 * left_of(group, token);
    for (Index y = 0; y < patch; ++y, from += row) {
      for (std::size_t i = 0; i < 3 * patch; ++i) {
        *to++ = (static_cast<float>(from[i]) - mean_[i % 3]) / deviation_[i % 3];
      }
    }
  }

  const Picture& picture_;
  Index rows_, columns_;
  std::array<float, 3> mean_, deviation_;
  fit::Random random_{0};
};

/// A part of the picture in the three versions, scaled down by a whole number.
class View {
 public:
  View(Index left, Index top, PictureSize size, Index factor)
      : left_(left), top_(top), factor_(factor), size_{size.width / factor, size.height / factor} {
    for (auto& sums : sums_) sums.resize(static_cast<std::size_t>(3 * size_.width * size_.height));
  }

  void add(Index left, Index top, const std::array<std::array<float, channels>, 3>& versions) {
    for (Index i = 0; i < patch * patch; ++i) {
      const Index x = left + i % patch - left_, y = top + i / patch - top_;
      if (x < 0 || y < 0 || x / factor_ >= size_.width || y / factor_ >= size_.height) continue;
      const Index to = 3 * (y / factor_ * size_.width + x / factor_);
      for (std::size_t k = 0; k < 3; ++k) {
        for (Index c = 0; c < 3; ++c) {
          sums_[k][static_cast<std::size_t>(to + c)] += versions[k][static_cast<std::size_t>(3 * i + c)];
        }
      }
    }
  }

  /// The first member of a team gets what the others have drawn.
  void gather(fit::Team& team) {
    for (auto& sums : sums_) {
      const std::size_t bytes = sizeof(float) * sums.size();
      std::vector<float> drawn(sums.size());
      for (int other = 1; other < team.size(); ++other) {
        const fit::Team::Message to{0, sums.data(), bytes}, from{other, drawn.data(), bytes};
        team.exchange({&to, team.rank() == other ? 1u : 0u}, {&from, team.leads() ? 1u : 0u});
        for (std::size_t i = 0; team.leads() && i < sums.size(); ++i) sums[i] += drawn[i];
      }
    }
  }

  void write(const std::filesystem::path& path, const std::string& title) const {
    examples::Sheet sheet(3, static_cast<int>(size_.height), static_cast<int>(size_.width), 3, title,
                          {.scale = 1, .text_scale = 1, .gap = 12});
    const float unit = 255 * static_cast<float>(factor_ * factor_);
    for (std::size_t k = 0; k < 3; ++k) {
      std::vector<float> values = sums_[k];
      for (float& value : values) value /= unit;
      sheet.add(values.data(), std::array{"the picture", "what the model sees", "what it makes of that"}[k]);
    }
    sheet.write(path);
  }

 private:
  Index left_, top_, factor_;
  PictureSize size_;
  std::array<std::vector<float>, 3> sums_;
};

/// How much of a step's work is done, in FLOPs, by what the trunk says and the cost model knows of each phase.
class Work {
 public:
  explicit Work(const fit::Summary& summary) {
    for (const fit::SummaryLine& line : summary.lines) {
      const bool last = line.part == fit::Part::head, global = line.part == fit::Part::global;
      const std::size_t phase = (last ? phases_.size() / 2 - 1 : static_cast<std::size_t>(line.stage)) * 2 + global;
      phases_.resize(std::max(phases_.size(), phase / 2 * 2 + 2));
      phases_[phase].forward += static_cast<double>(line.forward.total());
      phases_[phase].backward += static_cast<double>(line.backward.total());
    }
  }

  std::size_t stages() const { return phases_.size() / 2; }
  double total(bool backward) const {
    double sum = 0;
    for (const Phase& phase : phases_) sum += phase.forward + (backward ? phase.backward : 0);
    return sum;
  }
  double done(const fit::PassProgress& at) const {
    if (at.all == 0) return 0;
    const std::size_t now = 2 * at.stage + (at.part == fit::Part::global);
    const double share = static_cast<double>(at.done) / static_cast<double>(at.all);
    double sum = 0;
    for (std::size_t i = 0; i < phases_.size(); ++i) {
      const double before = i < now ? 1 : i == now ? share : 0, after = i > now ? 1 : i == now ? share : 0;
      sum += (at.backward ? 1 : before) * phases_[i].forward + (at.backward ? after : 0) * phases_[i].backward;
    }
    return sum;
  }

 private:
  struct Phase {
    double forward = 0, backward = 0;
  };
  std::vector<Phase> phases_;  // of every stage two: what its groups do, and its blocks over the latents
};

std::string gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GB", bytes / 1e9);
  return text;
}

/// The rows of a picture that a member of a team sees: of its leaves' groups, and of its share where there are none.
fit::IndexRange rows_of(int member, const fit::Team& team, Index leaves, const PictureSize& size) {
  const Index columns = size.width / group_pixels, groups = columns * (size.height / group_pixels);
  const fit::IndexRange own = fit::share_of(leaves, member, team.size());
  const fit::IndexRange share = fit::share_of(groups, member, team.size());
  const Index first = std::min(fit::share_of(groups, own.first, leaves).first, share.first) / columns;
  const Index last = (std::max(fit::share_of(groups, own.end() - 1, leaves).end(), share.end()) - 1) / columns;
  return {first * group_pixels, (last + 1 - first) * group_pixels};
}

/// Says what a step does, and what it needs of the process that needs most: what the cost model knows, its pixels and
/// what is made of them. Throws Error for more than there is.
template <fit::EncoderConfig config>
void check_memory(const Options& options, const PictureSize& size, Index rows, const fit::Summary& summary,
                  const fit::ProcessCost& cost, fit::Team& team) {
  const auto leaves = static_cast<double>(cost.arenas.size());
  constexpr double head = sizeof(float) * channels * (config.data_dim + 2.0), through_head = 2.0 * 2048 * channels;
  struct Needs {
    double all, pixels;
  } most{0, static_cast<double>(3 * size.width * rows)};
  most.all = static_cast<double>(cost.peak()) + head * (1 + leaves + 2.0 / team.size()) +
             sizeof(float) * leaves * through_head + most.pixels;
  for (const Needs& needs : team.gather(most)) {
    if (needs.all > most.all) most = needs;
  }
  if (team.leads()) {
    std::printf("%s: %td parameters; %.1f TFLOP a step and %s of memory%s, %s of them pixels.\n", summary.title.c_str(),
                summary.cost.parameters, static_cast<double>(summary.cost.flops().total()) / 1e12,
                gigabytes(most.all).c_str(), team.size() > 1 ? " in each process" : "", gigabytes(most.pixels).c_str());
  }
  const double limit = options.memory_limit > 0 ? 1e9 * options.memory_limit : examples::physical_memory();
  fit::require(most.all <= limit, "a step on ", examples::text_of(size), " pixels needs ", gigabytes(most.all),
               options.memory_limit > 0 ? ", and --memory-limit allows " : ", and this machine has ", gigabytes(limit));
}

/// Steps, while a thread of its own says how far they are. A team shares the picture's groups.
template <fit::EncoderConfig config>
class Training {
 public:
  using Model = Autoencoder<config>;

  Training(const Options& options, MaskedPicture& picture, fit::Team& team, fit::Executor& executor,
           const std::vector<fit::TapeBytes>& arenas, const Work& work)
      : options_(options),
        picture_(picture),
        team_(team),
        executor_(executor),
        leaves_(std::in_place, team, fit::LeafCounts{.shares = options.leaves_of(team)}, executor),
        work_(work),
        state_(team, Model(), {.beta2 = 0.95, .weight_decay = 0.05}, fit::Random(options.seed)),
        log_(options.out / "loss") {
    if (options.resume.empty()) {
      fit::nn::initialise(state_.model, fit::Random(options.seed + 1));
    } else {
      fit::load(options.resume, state_);
    }
    first_step_ = state_.step;
    for (std::size_t i = 0; i < arenas.size(); ++i) leaves_->tapes()[i].reserve(arenas[i]);
    team.lead([&] { prepare_files(); });
    if (options.resume.empty()) save();  // so that there is always the state before a step
  }

  int run() {
    std::jthread watcher;
    if (team_.leads()) watcher = std::jthread([&] { watch(); });
    std::exception_ptr error;
    try {
      train();
      if (!interrupted_) draw();
    } catch (...) {
      error = std::current_exception();
    }
    if (watcher.joinable()) {
      {
        const std::lock_guard lock(mutex_);
        ended_ = true;
        changed_.notify_one();
      }
      watcher.join();
    }
    try {
      if (unsaved_ && (!error || team_.size() == 1)) save();
    } catch (const fit::Error&) {
      if (!error) throw;
    }
    if (error) std::rethrow_exception(error);
    report_memory();
    if (!interrupted_) return 0;
    if (team_.leads()) {
      std::printf("Interrupted after %td steps; the state is in %s.\n", state_.step, options_.state().c_str());
    }
    return 130;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void prepare_files() {
    if (!options_.resume.empty()) {
      log_.read(state_.step);
      if (!log_.rows().empty()) seconds_ = log_.rows().back().seconds;
      std::printf("Resumed after %td steps.\n", state_.step);
    }
    // Better now than after an hour.
    const std::filesystem::path state = std::filesystem::absolute(options_.state());
    const fit::AtomicFile writable(state);
    const auto needed = 3 * sizeof(float) * static_cast<std::uintmax_t>(fit::count_parameters(state_.model));
    const std::uintmax_t room = std::filesystem::space(state.parent_path()).available;
    fit::require(room > needed, state.string(), ": the state takes ", gigabytes(static_cast<double>(needed)),
                 ", and there is room for ", gigabytes(static_cast<double>(room)));
    if (options_.resume.empty()) {
      for (const std::filesystem::path& file : {state, std::filesystem::absolute(options_.out / "loss.csv")}) {
        auto before = file;
        before.replace_filename(file.stem().string() + "_before" + file.extension().string());
        if (std::filesystem::exists(file)) std::filesystem::rename(file, before);
      }
    }
    log_.write();
  }

  void train() {
    const fit::LearningRate rate{
        .peak = options_.rate, .warm_up = std::clamp<Index>(options_.steps / 10, 1, 100), .floor = options_.rate / 100};
    auto last_saved = Clock::now();
    while (state_.step < options_.steps && !asked_to_stop()) {
      const auto start = Clock::now();
      picture_.hide(state_.random.fork(state_.step + 1));
      const double loss = leaves_->pass([&](fit::Tape& tape, Model& gradient, Index) {
        return pass(tape, &gradient, [](Index, Index, const float*) {});
      });
      // An interruption saves what is there: not while it changes.
      std::unique_lock lock(mutex_);
      leaves_->update(state_, {.learning_rate = rate(state_.step, options_.steps)});
      unsaved_ = true;
      progress_ = {};
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      say("step %td: loss %.4f, %.2f s, %.0f GFLOP/s", state_.step, loss, seconds, work_.total(true) / seconds / 1e9);
      seconds_ += seconds;
      log_.add({state_.step, seconds_, {{"loss", loss}, {"step_seconds", seconds}}});
      team_.lead([&] {
        try {
          log_.write();
        } catch (const fit::Error& error) {  // no reason to lose an hour
          say("%s", error.what());
        }
      });
      const bool due = team_.of_first(Clock::now() - last_saved > std::chrono::minutes(10) ? 1 : 0) == 1;
      if (state_.step == options_.steps || due) {
        save();
        last_saved = Clock::now();
      }
    }
  }

  bool asked_to_stop() {
    for (const int asked : team_.gather(fit::Interrupt::asked() ? 1 : 0)) interrupted_ = interrupted_ || asked == 1;
    return interrupted_;
  }

  /// The loss of the hidden patches, with its gradient where there is a place for it. look(first, count, made) sees
  /// what the head makes of every group's tokens.
  template <class Look>
  double pass(fit::Tape& tape, Model* gradient, Look&& look) {
    const Model& model = state_.model;
    fit::GroupSource<float> source{.groups = picture_.groups(), .grid = picture_.grid()};
    source.fill = [&](Index first, Index count, float* to) {
      picture_.fill(first, count, model.mask_token.data(), to);
    };
    source.gradient = [&](Index first, Index count, const float* from) {
      picture_.add_mask_gradient(first, count, from, gradient->mask_token.data());
    };
    const fit::GroupLoss<float> loss = [&](Index first, Index count, const float* data, float* to) {
      const fit::Arena::Scope scope(tape.arena());
      const Index rows = count * group_tokens;
      float* made = tape.scratch<float>(rows * channels);
      fit::nn::forward(model.head, data, made, rows, tape);
      look(first, count, made);
      const double share = picture_.compare(first, count, made);
      if (to) fit::nn::backward<float>(model.head, made, to, gradient->head, rows, tape);
      return share;
    };
    const fit::Watch watch = [&](const fit::PassProgress& at) {
      const std::lock_guard lock(mutex_);
      progress_ = at;
    };
    if (!gradient) return model.encoder.loss(source, loss, tape, watch);
    return model.encoder.loss(source, loss, gradient->encoder, tape, {.recompute = options_.recompute}, fit::Random(0),
                              watch);
  }

  void draw() {
    constexpr Index side = 448;
    const Picture& picture = picture_.picture();
    const PictureSize &size = picture.size, part{std::min(size.width, side), std::min(size.height, side)};
    std::array views{
        View(0, 0, size, std::min({(std::max(size.width, size.height) + side - 1) / side, part.width, part.height})),
        View((size.width - part.width) / 2, (size.height - part.height) / 2, part, 1)};
    picture_.hide(state_.random.fork(0));
    leaves_.reset();  // a pass at inference needs other memory than a step, and less
    fit::Tape tape(executor_, team_);
    {
      const std::lock_guard lock(mutex_);
      drawing_ = true;
    }
    const double loss = pass(tape, nullptr, [&](Index first, Index count, const float* made) {
      picture_.show(first, count, made, [&](Index left, Index top, const auto& versions) {
        for (View& view : views) view.add(left, top, versions);
      });
    });
    for (View& view : views) view.gather(team_);
    team_.lead([&] {
      const std::lock_guard lock(mutex_);
      views[0].write(options_.out / "picture.png", picture.about);
      views[1].write(options_.out / "part.png", "its middle, pixel by pixel");
      progress_ = {};
      say("loss of the pictures %.4f; loss.csv, loss.svg, picture.png and part.png are in %s", loss,
          options_.out.c_str());
    });
  }

  /// What each process of a team had in memory at most.
  void report_memory() {
    if (team_.size() == 1) return;
    std::string text = "memory of each process, at most:";
    for (const double bytes : team_.gather(examples::peak_memory())) text += " " + gigabytes(bytes);
    if (team_.leads()) std::printf("%s\n", text.c_str());
  }

  void save() {
    fit::save(options_.state(), state_);
    unsaved_ = false;
  }

  /// A line for the other thread to print.
  void say(const char* format, auto... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    lines_.emplace_back(text);
  }

  /// Until the worker has ended. An interruption within a pass, which may take an hour, ends the program with the state
  /// as it was before.
  void watch() {
    std::optional<fit::Progress> progress;
    auto start = Clock::now();
    std::unique_lock lock(mutex_);
    for (bool last = false; !last;) {
      changed_.wait_for(lock, std::chrono::milliseconds(100));
      last = ended_;
      if (!lines_.empty()) progress.reset();
      for (const std::string& line : lines_) std::printf("%s\n", line.c_str());
      lines_.clear();
      // Processes of a team come to an end together, between steps.
      if (fit::Interrupt::asked() && !last && team_.size() == 1) leave();
      if (last || progress_.all == 0) continue;
      if (!progress) {
        progress.emplace(drawing_ ? "pictures" : "step " + std::to_string(state_.step + 1),
                         std::llround(work_.total(!drawing_) / 1e9));
        start = Clock::now();
      }
      if (Clock::now() - start < std::chrono::seconds(3)) continue;  // of short steps their losses say enough
      const fit::PassProgress& at = progress_;
      progress->update(std::llround(work_.done(at) / 1e9),
                       {{"stage", fit::concatenate(at.stage + 1, "/", work_.stages(), at.backward ? " back" : "")},
                        {at.part == fit::Part::local ? "groups" : "blocks", fit::concatenate(at.done, "/", at.all)}});
    }
  }

  [[noreturn]] void leave() {
    try {
      if (unsaved_) save();
      std::printf("Interrupted in step %td.\nThe state before it is in %s.\n", state_.step + 1,
                  (state_.step > first_step_ || options_.resume.empty() ? options_.state() : options_.resume).c_str());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    std::fflush(stdout);
    std::_Exit(130);
  }

  const Options& options_;
  MaskedPicture& picture_;
  fit::Team& team_;
  fit::Executor& executor_;
  std::optional<fit::Leaves<Model>> leaves_;
  const Work& work_;
  fit::ShardedState<Model> state_;
  fit::RunLog log_;
  double seconds_ = 0;  // of all steps
  Index first_step_ = 0;

  // Of what both threads use. A pass reads the state without it, as it only changes between them.
  std::mutex mutex_;
  std::condition_variable changed_;
  fit::PassProgress progress_{};
  std::vector<std::string> lines_;
  bool drawing_ = false, unsaved_ = false, ended_ = false;
  bool interrupted_ = false;  // the training thread's own
};

/// From "6400" or "6400x3200".
PictureSize size_from(const std::string& text) {
  PictureSize size;
  const char* const end = text.data() + text.size();
  std::from_chars_result at = std::from_chars(text.data(), end, size.width);
  size.height = size.width;
  if (at.ec == std::errc() && at.ptr != end && *at.ptr == 'x') at = std::from_chars(at.ptr + 1, end, size.height);
  fit::require(at.ec == std::errc() && at.ptr == end, "--size must be like 6400 or 6400x3200, not ", text);
  return size;
}

/// What is asked for, else as many groups as the picture has, else the paper's size.
PictureSize size_of(const Options& options) {
  PictureSize size{6400, 6400};
  if (!options.size.empty()) {
    size = size_from(options.size);
  } else if (!options.image.empty()) {
    size = examples::picture_size(options.image);
    for (Index* side : {&size.width, &size.height}) *side = std::max(group_pixels, *side / group_pixels * group_pixels);
  }
  for (const Index side : {size.width, size.height}) {
    fit::require(side > 0 && side <= 320'000 && side % group_pixels == 0, "a picture's sides must be multiples of ",
                 group_pixels, " pixels, the side of a group, up to 320000, unlike ", examples::text_of(size));
  }
  return size;
}

template <fit::EncoderConfig config>
int run(const Options& options, fit::Team& team) {
  const PictureSize size = size_of(options);
  fit::Executor executor(options.threads);
  const auto rows_of_member = [&](int member) { return rows_of(member, team, options.leaves_of(team), size); };
  const fit::IndexRange rows = rows_of_member(team.rank());
  const fit::CostOptions of{.training = true,
                            .options = {.recompute = options.recompute},
                            .threads = executor.lanes(),
                            .groups = static_cast<int>(size.width / group_pixels * (size.height / group_pixels)),
                            .by_groups = true,
                            .members = team.size(),
                            .member = team.rank()};
  const fit::Summary summary = fit::summary<config>(1, of);
  const fit::ProcessCost cost =
      fit::process_cost_of(config, 1, {.shares = options.leaves_of(team)}, team.size(), team.rank(), of);
  check_memory<config>(options, size, rows.count, summary, cost, team);
  team.lead([&] { std::filesystem::create_directories(options.out); });
  const Picture picture =
      options.image.empty() ? examples::formula_picture(size, rows) : examples::read_picture(options.image, size, rows);
  if (team.leads()) std::printf("%s.\n", picture.about.c_str());
  const Index counted = team.leads() ? 0 : std::max(rows.first, rows_of_member(team.rank() - 1).end());
  MaskedPicture masked(picture, {counted, rows.end() - counted}, team);
  const Work work(summary);
  return Training<config>(options, masked, team, executor, cost.arenas, work).run();
}

int run_configured(const Options& options, fit::Team& team) {
  fit::require(options.latents == 16 || options.config == "base", "only the base configuration has --latents 4");
  if (options.config == "local") return run<config_of("(6)", 16, 256, 512)>(options, team);
  if (options.config == "large") return run<config_of("(2)4(2)4(2)", 16, 512, 768)>(options, team);
  if (options.latents == 4) return run<config_of("(2)4(2)4(2)", 4, 256, 512)>(options, team);
  return run<config_of("(2)4(2)4(2)", 16, 256, 512)>(options, team);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a FIT encoder to fill in the hidden three quarters of a large picture.");
  app.add_option("--image", options.image, "a PNG or JPEG file; without one, a picture made by a formula");
  app.add_option("--size", options.size,
                 "pixels, as 6400 or 6400x3200: the picture is cropped or repeated by reflection to it");
  app.add_option("--config", options.config, "base (32 M parameters), large, or local: local blocks alone")
      ->capture_default_str()
      ->check(CLI::IsMember({"base", "large", "local"}));
  app.add_option("--latents", options.latents, "of a group")->capture_default_str()->check(CLI::IsMember({4, 16}));
  app.add_option("--recompute", options.recompute, "none, stage or stream: more work, less memory")
      ->transform(CLI::CheckedTransformer(std::map<std::string, fit::Recompute>{
          {"none", fit::Recompute::none}, {"stage", fit::Recompute::stage}, {"stream", fit::Recompute::stream}}));
  app.add_option("--steps", options.steps, "in all, with those of the run that is resumed")
      ->capture_default_str()
      ->check(examples::not_negative);
  app.add_option("--rate", options.rate, "highest learning rate")->capture_default_str()->check(examples::positive);
  app.add_option("--threads", options.threads, "threads; 0 is one for each processor")
      ->capture_default_str()
      ->check(examples::not_negative);
  app.add_option("--leaves", options.leaves,
                 "shares of the picture's groups: with as many, any number of processes compute the same")
      ->default_str("1 for each process");
  app.add_option("--seed", options.seed, "of everything random")->capture_default_str();
  app.add_option("--memory-limit", options.memory_limit, "in GB: what needs more is refused; the machine's by default")
      ->check(examples::positive);
  app.add_option("--out", options.out, "folder of losses and pictures")->capture_default_str();
  app.add_option("--save", options.save, "where the state goes, at the end, every ten minutes and when interrupted");
  app.add_option("--resume", options.resume, "a state to go on from");
  CLI11_PARSE(app, argc, argv);
  return examples::run_processes(argc, argv, options.threads, [&](fit::Team& team, int threads) {
    const fit::Interrupt interrupt;
    options.threads = threads;
    return run_configured(options, team);
  });
}
