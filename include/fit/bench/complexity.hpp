#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <fit/bench/peak.hpp>
#include <fit/cost/cost.hpp>
#include <fit/kernels/attention_backward.hpp>
#include <fit/models/trunk.hpp>
#include <fit/nn/embedding.hpp>
#include <fit/nn/initialise.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Time, operations and memory against the length of a sequence.
namespace bench {

/// What is measured: a configuration's calls of the attention kernels alone, on random numbers; its stages, from data
/// tokens and latents to the same; or all of the model but its positions.
enum class Work { attention, layer, model };

enum class Pass { forward, forward_backward };

/// Operations, and bytes in use at the most.
struct Expected {
  Flops flops = {};
  Index bytes = 0;
};

/// Something of a certain size, ready to run again and again.
class Job {
 public:
  virtual ~Job() = default;
  virtual void run() = 0;
  /// In use at the most so far.
  virtual Index bytes() const = 0;
};

/// Something that can be run at many sizes.
struct Task {
  Work work = Work::attention;
  Index width = 0;  ///< of data tokens
  bool causal = false;
  std::vector<Pass> passes = {Pass::forward, Pass::forward_backward};
  std::function<Expected(const Sizes&, Pass, int threads)> expect;
  std::function<std::unique_ptr<Job>(const Sizes&, Pass, Executor&)> prepare;
};

/// Tasks that go through the same sizes: `sizes` tells those of a length, of one sequence, so groups * tokens = length.
struct Curve {
  std::string name;
  std::function<Sizes(Index length)> sizes;
  std::vector<Task> tasks;
};

/// One measurement.
struct Point {
  std::string curve = {};
  Work work = Work::attention;
  Index width = 0;
  bool causal = false;
  Pass pass = Pass::forward;
  Index length = 0;
  Sizes sizes = {};
  double seconds = 0;  ///< the median of several runs, where there was time for them
  Flops flops = {};
  double share = 0;  ///< flops.total() a second, over the measured peak
  Index bytes = 0;
  bool estimated = false;  ///< from the cost model, at the rate of the largest length that ran; else measured

  double tokens_per_second() const { return static_cast<double>(length) / seconds; }
};

/// Bytes that the system says are free, on Linux; elsewhere 4 GiB.
inline Index available_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string name, rest; info >> name; std::getline(info, rest)) {
    Index kilobytes = 0;
    if (name == "MemAvailable:" && info >> kilobytes) return kilobytes * 1024;
  }
  return Index{4} << 30;
}

/// from, 2 from, 4 from ... up to `to`. Throws Error unless 1 <= from <= to.
inline std::vector<Index> doublings(Index from, Index to) {
  require(from >= 1 && from <= to, "lengths must go from a positive number up to one that is not smaller, not from ",
          from, " to ", to);
  std::vector<Index> lengths;
  for (Index length = from;; length *= 2) {
    lengths.push_back(length);
    if (length > to / 2) return lengths;
  }
}

/// The divisor of `length` that is nearest to `wanted`, as a ratio.
inline Index nearest_divisor(Index length, double wanted) {
  Index best = 1;
  const auto distance = [&](Index divisor) { return std::abs(std::log(static_cast<double>(divisor) / wanted)); };
  for (Index divisor = 1; divisor * divisor <= length; ++divisor) {
    if (length % divisor != 0) continue;
    for (const Index candidate : {divisor, length / divisor}) {
      if (distance(candidate) < distance(best)) best = candidate;
    }
  }
  return best;
}

/// What a sweep found. `peak` is in operations a second on all its threads.
struct Results {
  double peak = 0;
  int threads = 1;
  std::vector<Point> points;
};

struct SweepOptions {
  std::vector<Index> lengths = doublings(1000, 1'024'000);  ///< ascending
  double seconds = 15;                                      ///< what would take longer is not run
  Index memory = available_memory() / 5 * 4;                ///< bytes; nor is what would take more
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  /// Called as soon as a point is known, which is the last of the results so far.
  std::function<void(const Point&, const Results&)> on_point = {};
  std::function<bool()> stop = {};  ///< asked between runs; ends the sweep when it says true
};

namespace detail {

using fit::detail::Chunk;
using fit::detail::Trunk;
using fit::detail::trunk_of;
using fit::detail::TrunkConfig;

/// Random numbers in [-1, 1), which repeat after some ten thousand.
template <class T>
Buffer<T> random_values(Index count) {
  auto values = Buffer<T>::uninitialised(count);
  const Index fresh = std::min<Index>(count, 1 << 14);
  Random random(7);
  for (Index i = 0; i < fresh; ++i) values.data()[i] = static_cast<T>(2 * random.uniform() - 1);
  for (Index i = fresh; i < count; ++i) values.data()[i] = values.data()[i - fresh];
  return values;
}

/// The calls of the attention kernels that the stages of a model make.
inline std::vector<kernels::AttentionShape> attention_calls(const TrunkConfig& c, const Sizes& s) {
  const Plan plan = plan_of(c.layers);
  const Index data_head = c.data_dim / c.data_heads, latent_head = c.latent_dim / c.latent_heads;
  const Index cross_head = c.cross_dim() / c.cross_heads(), all = s.groups * s.latents;
  const auto local_mask = c.autoregressive ? kernels::Mask::causal() : kernels::Mask::none();
  const auto global_mask =
      c.mask == LatentMask::causal ? kernels::Mask::chunk_causal(s.latents) : kernels::Mask::none();
  std::vector<kernels::AttentionShape> calls;
  for (std::size_t i = 0; i < plan.count; ++i) {
    const auto add = [&](int times, const kernels::AttentionShape& shape) {
      calls.insert(calls.end(), static_cast<std::size_t>(times), shape);
    };
    add(plan[i].local_blocks, {s.all_groups(), s.tokens, s.tokens, c.data_heads, data_head, local_mask});
    add(plan[i].reads, {s.all_groups(), s.latents, s.tokens, c.cross_heads(), cross_head});
    add(plan[i].global_blocks, {s.batch, all, all, c.latent_heads, latent_head, global_mask});
    add(plan[i].writes, {s.all_groups(), s.tokens, s.latents, c.cross_heads(), cross_head});
  }
  return calls;
}

/// Attention calls one after the other, on the same memory.
template <class T>
class AttentionJob final : public Job {
 public:
  AttentionJob(std::vector<kernels::AttentionShape> calls, Pass pass, Executor& executor)
      : calls_(std::move(calls)), backward_(pass == Pass::forward_backward), workspace_(executor) {
    const Counts counts(calls_);
    for (Buffer<T>* buffer : {&q_, &o_}) *buffer = random_values<T>(counts.queries);
    for (Buffer<T>* buffer : {&k_, &v_}) *buffer = random_values<T>(counts.keys);
    if (!backward_) return;
    log_sum_ = random_values<T>(counts.log_sums);
    for (Buffer<T>* buffer : {&o_gradient_, &q_gradient_}) *buffer = random_values<T>(counts.queries);
    for (Buffer<T>* buffer : {&k_gradient_, &v_gradient_}) *buffer = random_values<T>(counts.keys);
  }

  void run() override {
    for (const kernels::AttentionShape& call : calls_) {
      const kernels::AttentionTensors<T> tensors{q_.data(), k_.data(), v_.data(), o_.data(), log_sum_.data()};
      kernels::attention(call, tensors, workspace_);
      if (!backward_) continue;
      kernels::attention_backward<T>(
          call, tensors, {o_gradient_.data(), q_gradient_.data(), k_gradient_.data(), v_gradient_.data()}, workspace_);
    }
  }

  Index bytes() const override {
    return Counts(calls_).bytes(backward_) + static_cast<Index>(workspace_.arena().peak());
  }

  static Expected expect(const std::vector<kernels::AttentionShape>& calls, Pass pass, int threads) {
    const bool backward = pass == Pass::forward_backward;
    Expected expected;
    Index scratch = 0;
    for (const kernels::AttentionShape& call : calls) {
      expected.flops += attention_flops<T>(call);
      if (backward) {  // weights are made again: five products for the two of the forward pass
        expected.flops += {.attention = 10 * call.head_width * kernels::attention_pairs(call),
                           .executed = 10 * call.head_width * kernels::attention_backward_pairs_computed<T>(call)};
      }
      scratch = std::max(scratch, kernels::detail::AttentionScratch<T>::size(call));
      if (backward) scratch = std::max(scratch, kernels::detail::AttentionBackwardScratch<T>::size(call));
    }
    expected.bytes = Counts(calls).bytes(backward) + scratch * threads * static_cast<Index>(sizeof(T));
    return expected;
  }

 private:
  /// Elements of the largest tensors.
  struct Counts {
    Index queries = 0, keys = 0, log_sums = 0;

    explicit Counts(const std::vector<kernels::AttentionShape>& calls) {
      for (const kernels::AttentionShape& call : calls) {
        queries = std::max(queries, call.sequences * call.queries * call.width());
        keys = std::max(keys, call.sequences * call.keys * call.width());
        log_sums = std::max(log_sums, call.sequences * call.queries * call.heads);
      }
    }
    Index bytes(bool backward) const {
      return (backward ? 4 * (queries + keys) + log_sums : 2 * (queries + keys)) * static_cast<Index>(sizeof(T));
    }
  };

  std::vector<kernels::AttentionShape> calls_;
  bool backward_;
  Workspace workspace_;
  Buffer<T> q_, k_, v_, o_, log_sum_, o_gradient_, q_gradient_, k_gradient_, v_gradient_;
};

/// What Encoder computes, without positions, with counts that are chosen at run time.
template <EncoderConfig c, class T>
struct EncoderNetwork {
  using Input = T;
  nn::Linear<T, c.data_dim, c.channels> stem;
  nn::LayerNorm<T, c.data_dim> stem_norm;
  Trunk<T, trunk_of(c)> trunk;
  nn::LayerNorm<T, c.data_dim> data_norm;
  nn::LayerNorm<T, c.latent_dim> latent_norm;

  static void visit(auto&& f, auto&... p) {
    f("stem", p.stem...);
    f("stem_norm", p.stem_norm...);
    f("trunk", p.trunk...);
    f("data_norm", p.data_norm...);
    f("latent_norm", p.latent_norm...);
  }
  static Buffer<T> input(const Sizes& sizes) { return random_values<T>(sizes.data_rows() * c.channels); }

  struct Ends {
    const EncoderNetwork& p;
    const T* input;
    T* data;
    EncoderNetwork* gradient;
    Index tokens;

    Index rows(const Chunk& groups) const { return groups.count * tokens; }
    T* output(const Chunk& groups) const { return data + groups.first * tokens * c.data_dim; }
    void start(const Chunk& groups, T* x, Tape& tape) const {
      nn::forward(p.stem, input + groups.first * tokens * c.channels, x, rows(groups), tape);
      nn::forward<T>(p.stem_norm, x, x, rows(groups), tape);
    }
    void start_backward(const Chunk& groups, const T* x_gradient, Tape& tape) const {
      const Arena::Scope scope(tape.arena());
      T* between = fit::detail::zeros<T>(rows(groups) * c.data_dim, tape);
      nn::backward<T>(p.stem_norm, x_gradient, between, gradient->stem_norm, rows(groups), tape);
      nn::backward<T>(p.stem, between, nullptr, gradient->stem, rows(groups), tape);
    }
    void end(const Chunk& groups, T* x, bool, Tape& tape) const {
      nn::forward<T>(p.data_norm, x, output(groups), rows(groups), tape);
    }
    void end_backward(const Chunk& groups, T* x_gradient, Tape& tape) const {
      std::fill_n(x_gradient, rows(groups) * c.data_dim, T(0));
      nn::backward<T>(p.data_norm, output(groups), x_gradient, gradient->data_norm, rows(groups), tape);
    }
  };

  /// The way back, from the outputs as their own gradients, where `gradient` is given.
  void run(const T* input, EncoderNetwork* gradient, const Sizes& sizes, Tape& tape) const {
    const Index size = sizes.data_rows() * c.data_dim, latent_size = sizes.latent_rows() * c.latent_dim;
    T* data = tape.output<T>(size);
    T* latents = tape.output<T>(latent_size);
    const Ends ends{*this, input, data, gradient, sizes.tokens};
    const auto start = tape.mark();
    T* x = gradient ? tape.allocate<T>(size) : data;
    std::fill_n(latents, latent_size, T(0));
    trunk.forward(ends, x, latents, {}, sizes, tape);
    nn::forward<T>(latent_norm, latents, latents, sizes.latent_rows(), tape);
    tape.finish(start);
    if (!gradient) return;

    const auto frame = tape.pop();
    T* z_gradient = fit::detail::zeros<T>(latent_size, tape);
    nn::backward<T>(latent_norm, latents, z_gradient, gradient->latent_norm, sizes.latent_rows(), tape);
    trunk.backward(ends, x, z_gradient, {}, gradient->trunk, sizes, tape);
  }
};

/// What AutoregressiveDecoder computes, without positions and cross entropy, likewise.
template <AutoregressiveConfig c, class T>
struct DecoderNetwork {
  using Input = std::int32_t;
  nn::Embedding<T, c.vocabulary, c.data_dim> embedding;
  Trunk<T, trunk_of(c)> trunk;
  nn::LayerNorm<T, c.data_dim> data_norm;
  nn::Linear<T, c.vocabulary, c.data_dim> output;

  static void visit(auto&& f, auto&... p) {
    f("token_embedding", p.embedding...);
    f("trunk", p.trunk...);
    f("data_norm", p.data_norm...);
    f("output", p.output...);
  }
  static Buffer<std::int32_t> input(const Sizes& sizes) {
    Buffer<std::int32_t> ids(sizes.data_rows());
    Random random(7);
    for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>(random.below(c.vocabulary));
    return ids;
  }

  struct Ends {
    const DecoderNetwork& p;
    const std::int32_t* ids;
    DecoderNetwork* gradient;
    Index tokens;

    Index rows(const Chunk& groups) const { return groups.count * tokens; }
    void start(const Chunk& groups, T* x, Tape& tape) const {
      nn::forward(p.embedding, ids + groups.first * tokens, x, rows(groups), tape);
    }
    void start_backward(const Chunk& groups, const T* x_gradient, Tape& tape) const {
      nn::backward<T>(p.embedding, x_gradient, gradient->embedding, rows(groups), tape);
    }
    /// Goes back at once, as AutoregressiveDecoder::loss() does, so that logits never stand all together.
    void end(const Chunk& groups, T* x, bool, Tape& tape) const {
      const Arena::Scope scope(tape.arena());
      T* normed = tape.scratch<T>(rows(groups) * c.data_dim);
      T* logits = tape.scratch<T>(std::min(rows(groups), piece) * c.vocabulary);
      T* normed_gradient = gradient ? tape.scratch<T>(std::min(rows(groups), piece) * c.data_dim) : nullptr;
      nn::forward<T>(p.data_norm, x, normed, rows(groups), tape);
      for (Index first = 0; first < rows(groups); first += piece) {
        const Index count = std::min(piece, rows(groups) - first);
        T* of_piece = normed + first * c.data_dim;
        kernels::multiply({nn::output_product<T>(p.output, of_piece, logits, count)}, tape);
        if (!gradient) continue;
        kernels::multiply({nn::input_product<T>(p.output.weight, logits, normed_gradient, count),
                           nn::weight_product<T>(gradient->output.weight, of_piece, logits, count)},
                          tape);
        kernels::add_column_sums({nn::bias_sum<T>(gradient->output, logits, count)}, tape);
        std::copy_n(normed_gradient, count * c.data_dim, of_piece);
      }
      if (!gradient) return;
      std::fill_n(x, rows(groups) * c.data_dim, T(0));
      nn::backward<T>(p.data_norm, normed, x, gradient->data_norm, rows(groups), tape);
    }
    void end_backward(const Chunk&, T*, Tape&) const {}

    static constexpr Index piece = 4096;
  };

  /// The way back, from the logits as their own gradients, where `gradient` is given.
  void run(const std::int32_t* ids, DecoderNetwork* gradient, const Sizes& sizes, Tape& tape) const {
    const Index z_size = sizes.latent_rows() * c.latent_dim;
    const Ends ends{*this, ids, gradient, sizes.tokens};
    const auto start = tape.mark();
    T* x = tape.allocate<T>(sizes.data_rows() * c.data_dim);
    T* z = tape.allocate<T>(z_size);
    std::fill_n(z, z_size, T(0));
    trunk.forward(ends, x, z, {}, sizes, tape);
    tape.finish(start);
    if (!gradient) return;

    const auto frame = tape.pop();
    T* z_gradient = fit::detail::zeros<T>(z_size, tape);
    trunk.backward(ends, x, z_gradient, {}, gradient->trunk, sizes, tape);
  }
};

/// The stages alone.
template <auto c, class T>
struct StagesNetwork {
  using Input = T;
  Trunk<T, trunk_of(c)> trunk;

  static void visit(auto&& f, auto&... p) { f("trunk", p.trunk...); }
  static Buffer<T> input(const Sizes& sizes) { return random_values<T>(sizes.data_rows() * c.data_dim); }

  /// Data tokens come and go as they are.
  struct Ends {
    const T* input;
    Index size;

    void start(const Chunk& groups, T* x, Tape&) const {
      std::copy_n(input + groups.first * size, groups.count * size, x);
    }
    void start_backward(const Chunk&, const T*, Tape&) const {}
    void end(const Chunk&, T*, bool, Tape&) const {}
    void end_backward(const Chunk&, T*, Tape&) const {}
  };

  /// The way back, from what comes out as its own gradient, where `gradient` is given.
  void run(const T* input, StagesNetwork* gradient, const Sizes& sizes, Tape& tape) const {
    const Index z_size = sizes.latent_rows() * c.latent_dim;
    T* x = tape.output<T>(sizes.data_rows() * c.data_dim);
    T* z = tape.output<T>(z_size);
    std::fill_n(z, z_size, T(0));
    const Ends ends{input, sizes.tokens * c.data_dim};
    trunk.forward(ends, x, z, {}, sizes, tape);
    if (gradient) trunk.backward(ends, x, z, {}, gradient->trunk, sizes, tape);
  }
};

template <class T, auto c>
auto model_network() {
  using Config = std::remove_const_t<decltype(c)>;
  static_assert(std::is_same_v<Config, EncoderConfig> || std::is_same_v<Config, AutoregressiveConfig>,
                "fit: a sweep goes over configurations of encoders and autoregressive decoders");
  if constexpr (std::is_same_v<Config, EncoderConfig>) {
    static_assert(c.extra_tokens == 0, "fit: a sweep goes over configurations without extra tokens");
    return std::type_identity<EncoderNetwork<c, T>>();
  } else {
    return std::type_identity<DecoderNetwork<c, T>>();
  }
}

template <class Network, class T>
class NetworkJob final : public Job {
 public:
  NetworkJob(const Sizes& sizes, Pass pass, const TrainingOptions& options, Executor& executor)
      : sizes_(sizes), options_(options), tape_(executor), input_(Network::input(sizes)) {
    nn::initialise(network_, Random(7));
    if (pass == Pass::forward_backward) gradient_ = std::make_unique<Network>();
  }

  void run() override {
    if (gradient_) {
      tape_.record(options_);
    } else {
      tape_.clear();
    }
    network_.run(input_.data(), gradient_.get(), sizes_, tape_);
  }

  Index bytes() const override {
    const Index weights = count_parameters(network_) * static_cast<Index>(sizeof(T)) * (gradient_ ? 2 : 1);
    return weights + static_cast<Index>(tape_.peak());
  }

 private:
  Sizes sizes_;
  TrainingOptions options_;
  Tape tape_;
  Network network_;
  std::unique_ptr<Network> gradient_;
  Buffer<typename Network::Input> input_;
};

template <auto config>
Task task_of(Work work) {
  const TrunkConfig trunk = trunk_of(config);
  return {.work = work, .width = config.data_dim, .causal = trunk.autoregressive, .expect = {}, .prepare = {}};
}

/// The cost of a pass of the whole model with these sizes.
template <auto config, class T>
Cost cost_at(const Sizes& sizes, Pass pass, const TrainingOptions& options, int threads) {
  auto c = config;
  c.groups = static_cast<int>(sizes.groups);
  c.tokens = static_cast<int>(sizes.tokens);
  c.latents = static_cast<int>(sizes.latents);
  return cost_of<T>(c, sizes.batch,
                    {.training = pass == Pass::forward_backward, .options = options, .threads = threads});
}

inline double seconds_of(Job& job) {
  const auto start = std::chrono::steady_clock::now();
  job.run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The median of a few runs, without the first, which brings memory in; of the first alone where another one would take
/// too long. Negative when there was none.
inline double median_seconds(Job& job, double most, const std::function<bool()>& stop) {
  std::vector<double> times;
  double spent = 0;
  while (!stop || !stop()) {
    times.push_back(seconds_of(job));
    spent += times.back();
    const bool room = spent + times.back() < most;
    if (!room || (times.size() >= 4 && spent > most / 50)) break;
  }
  if (times.empty()) return -1;
  if (times.size() > 1) times.erase(times.begin());
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

inline void check(const Curve& curve, Index length) {
  require(curve.name.find_first_of(",\"\n") == std::string::npos,
          "the name of a curve must not have commas, quotes or new lines, as it goes into a table: ", curve.name);
  // Attention's operations, fourteen for each number and pair of tokens in some dozen layers, are counted in 64 bits.
  for (const Task& task : curve.tasks) {
    const auto pairs = static_cast<double>(length) * static_cast<double>(length);
    require(pairs * static_cast<double>(task.width) <= 0x1p54, "the operations of curve ", curve.name,
            " cannot be counted at a length of ", length, " and a width of ", task.width, ": shorten one of them");
  }
  const Sizes sizes = curve.sizes(length);
  require(sizes.batch == 1 && sizes.groups >= 1 && sizes.tokens >= 1 && sizes.latents >= 1, "curve ", curve.name,
          " needs a batch of 1 with at least 1 group, token and latent, not ", sizes.batch, ", ", sizes.groups, ", ",
          sizes.tokens, " and ", sizes.latents, ", at a length of ", length);
  require(sizes.groups * sizes.tokens == length, "curve ", curve.name, " makes ", sizes.groups, " groups of ",
          sizes.tokens, " tokens of a length of ", length, ": choose lengths that it divides");
  for (const Task& task : curve.tasks) {
    for (const Pass pass : task.passes) task.expect(sizes, pass, 1);  // the cost model refuses what it cannot count
  }
}

}  // namespace detail

/// The attention kernels' calls of a configuration.
template <auto config, class T = float>
Task attention_task() {
  Task task = detail::task_of<config>(Work::attention);
  task.expect = [](const Sizes& sizes, Pass pass, int threads) {
    return detail::AttentionJob<T>::expect(detail::attention_calls(detail::trunk_of(config), sizes), pass, threads);
  };
  task.prepare = [](const Sizes& sizes, Pass pass, Executor& executor) -> std::unique_ptr<Job> {
    return std::make_unique<detail::AttentionJob<T>>(detail::attention_calls(detail::trunk_of(config), sizes), pass,
                                                     executor);
  };
  return task;
}

/// The stages of a configuration, which for a layer is one, as "(1)1(0)"; trained with these options.
template <auto config, class T = float>
Task layer_task(const TrainingOptions& options = {}) {
  Task task = detail::task_of<config>(Work::layer);
  task.expect = [options](const Sizes& sizes, Pass pass, int threads) {
    const Cost cost = detail::cost_at<config, T>(sizes, pass, options, threads);
    Expected expected{.bytes = cost.peak - cost.optimiser};
    for (const PartCost& part : cost.parts) {
      if (part.part != Part::stem && part.part != Part::head) expected.flops += part.forward + part.backward;
    }
    return expected;
  };
  task.prepare = [options](const Sizes& sizes, Pass pass, Executor& executor) -> std::unique_ptr<Job> {
    return std::make_unique<detail::NetworkJob<detail::StagesNetwork<config, T>, T>>(sizes, pass, options, executor);
  };
  return task;
}

/// The model of a configuration, trained with these options.
template <auto config, class T = float>
Task model_task(const TrainingOptions& options = {}) {
  Task task = detail::task_of<config>(Work::model);
  task.expect = [options](const Sizes& sizes, Pass pass, int threads) {
    const Cost cost = detail::cost_at<config, T>(sizes, pass, options, threads);
    return Expected{cost.flops(), cost.peak - cost.optimiser};
  };
  task.prepare = [options](const Sizes& sizes, Pass pass, Executor& executor) -> std::unique_ptr<Job> {
    using Network = typename decltype(detail::model_network<T, config>())::type;
    return std::make_unique<detail::NetworkJob<Network, T>>(sizes, pass, options, executor);
  };
  return task;
}

/// A configuration of the user's own: its attention, and the whole model, trained with these options. `sizes` takes the
/// place of its counts.
template <auto config, class T = float>
Curve curve(std::string name, std::function<Sizes(Index length)> sizes, const TrainingOptions& options = {}) {
  return {std::move(name), std::move(sizes), {attention_task<config, T>(), model_task<config, T>(options)}};
}

/// Runs the tasks of all curves at all lengths. What would take too long or too much memory, or finds none, is
/// estimated from the cost model, with time and memory in proportion to the largest length that ran before; where none
/// has, at a quarter of the peak. Throws Error before anything runs when there is nothing to do, when lengths do not
/// ascend from one or more, or when a curve cannot divide one.
inline Results sweep(const std::vector<Curve>& curves, const SweepOptions& options = {}) {
  require(!curves.empty() && !options.lengths.empty(), "a sweep needs at least one curve and one length");
  for (std::size_t i = 0; i < options.lengths.size(); ++i) {
    require(options.lengths[i] > (i == 0 ? 0 : options.lengths[i - 1]), "lengths must be positive and ascend, but ",
            options.lengths[i], " follows ", i == 0 ? 0 : options.lengths[i - 1]);
  }
  require(options.seconds > 0, "a point needs some time, not ", options.seconds, " seconds");
  require(options.memory > 0, "a memory limit must be positive, not ", options.memory);
  for (const Curve& curve : curves) {
    for (const Index length : options.lengths) detail::check(curve, length);
  }
  Executor executor(options.threads);
  Results results{measure_peak(executor), options.threads, {}};
  for (const Curve& curve : curves) {
    for (const Task& task : curve.tasks) {
      for (const Pass pass : task.passes) {
        double rate = results.peak / 4, memory_ratio = 1;
        for (const Index length : options.lengths) {
          if (options.stop && options.stop()) return results;
          Point point{.curve = curve.name,
                      .work = task.work,
                      .width = task.width,
                      .causal = task.causal,
                      .pass = pass,
                      .length = length,
                      .sizes = curve.sizes(length)};
          const Expected expected = task.expect(point.sizes, pass, options.threads);
          const double flops = static_cast<double>(expected.flops.total()), bytes = static_cast<double>(expected.bytes);
          point.flops = expected.flops;
          point.estimated = true;
          if (flops / rate <= options.seconds && bytes * memory_ratio <= static_cast<double>(options.memory)) {
            try {
              const auto job = task.prepare(point.sizes, pass, executor);
              point.seconds = detail::median_seconds(*job, options.seconds, options.stop);
              if (point.seconds < 0) return results;
              point.bytes = job->bytes();
              point.estimated = false;
              rate = flops / point.seconds;
              memory_ratio = static_cast<double>(point.bytes) / bytes;
            } catch (const std::bad_alloc&) {  // then it is as if the limit had said so
            }
          }
          if (point.estimated) {
            point.seconds = flops / rate;
            point.bytes = static_cast<Index>(bytes * memory_ratio);
          }
          point.share = flops / point.seconds / results.peak;
          results.points.push_back(point);
          if (options.on_point) options.on_point(point, results);
        }
      }
    }
  }
  return results;
}

}  // namespace bench
}  // namespace FIT_ABI
}  // namespace fit
