#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <fit/bench/networks.hpp>
#include <fit/cost/cost.hpp>
#include <fit/kernels/attention_backward.hpp>
#include <fit/nn/initialise.hpp>

namespace fit {
inline namespace FIT_ABI {
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

namespace detail {

using fit::detail::TrunkConfig;

/// The calls of the attention kernels that the stages of a model make, but for those to a condition.
inline std::vector<kernels::AttentionShape> attention_calls(const TrunkConfig& c, const Sizes& s) {
  const Plan plan = plan_of(c.layers);
  const Index data_head = c.data_dim / c.data_heads, latent_head = c.latent_dim / c.latent_heads;
  const Index cross_head = c.cross_dim() / c.cross_heads(), all = s.groups * s.latents;
  std::vector<kernels::AttentionShape> calls;
  for (std::size_t i = 0; i < plan.count; ++i) {
    const auto add = [&](int times, const kernels::AttentionShape& shape) {
      calls.insert(calls.end(), static_cast<std::size_t>(times), shape);
    };
    add(c.local_attention ? plan[i].local_blocks : 0, {s.all_groups(),
                                                       s.tokens,
                                                       s.tokens,
                                                       c.data_heads,
                                                       data_head,
                                                       c.data_mask(),
                                                       {},
                                                       c.data_heads / c.data_key_heads});
    add(plan[i].reads, {s.all_groups(), s.latents, s.tokens, c.cross_heads(), cross_head});
    add(plan[i].global_blocks, {s.batch,
                                all,
                                all,
                                c.latent_heads,
                                latent_head,
                                c.latent_mask(s.latents),
                                {},
                                c.latent_heads / c.latent_key_heads});
    add(plan[i].writes, {s.all_groups(), s.tokens, s.latents, c.cross_heads(), cross_head});
  }
  return calls;
}

/// Attention calls one after the other, on the same memory.
template <class T>
class AttentionJob final : public Job {
 public:
  AttentionJob(std::vector<kernels::AttentionShape> calls, Pass pass, Executor& executor)
      : calls_(std::move(calls)), backward_(pass == Pass::forward_backward), workspace_(executor, &usage_) {
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

  Index bytes() const override { return Counts(calls_).bytes(backward_) + static_cast<Index>(usage_.peak); }

  static Expected expect(const std::vector<kernels::AttentionShape>& calls, Pass pass, int threads) {
    const bool backward = pass == Pass::forward_backward;
    Expected expected;
    Index scratch = 0;
    double flops = 0;
    for (const kernels::AttentionShape& call : calls) {
      flops += 14.0 * static_cast<double>(call.sequences) * static_cast<double>(call.queries) *
               static_cast<double>(call.keys) * static_cast<double>(call.width());
    }
    require(flops < 0x1p62, "the operations of attention over such sequences, some ", flops, ", cannot be counted");
    for (const kernels::AttentionShape& call : calls) {
      expected.flops += attention_flops<T>(call);
      if (backward) expected.flops += attention_backward_flops<T>(call, threads);
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
        keys = std::max(keys, call.sequences * call.keys * call.key_width());
        log_sums = std::max(log_sums, call.sequences * call.queries * call.heads);
      }
    }
    Index bytes(bool backward) const {
      return (backward ? 4 * (queries + keys) + log_sums : 2 * (queries + keys)) * static_cast<Index>(sizeof(T));
    }
  };

  std::vector<kernels::AttentionShape> calls_;
  bool backward_;
  Arena::Usage usage_;
  Workspace workspace_;
  Buffer<T> q_, k_, v_, o_, log_sum_, o_gradient_, q_gradient_, k_gradient_, v_gradient_;
};

template <class Network, class T>
class NetworkJob final : public Job {
 public:
  NetworkJob(const Sizes& sizes, Pass pass, const TrainingOptions& options, const TapeBytes& bytes, Executor& executor)
      : sizes_(sizes), options_(options), tape_(executor), input_(Network::input(sizes)) {
    tape_.reserve(bytes);
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
  return {
      .work = work, .width = config.data_dim, .causal = trunk.mask == LatentMask::causal, .expect = {}, .prepare = {}};
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

/// Reserves what the whole model takes, which is a little more than its stages do; outputs live on the tape always.
template <class Network, auto config, class T>
std::unique_ptr<Job> network_job(const Sizes& sizes, Pass pass, const TrainingOptions& options, Executor& executor) {
  const Cost cost = cost_at<config, T>(sizes, pass, options, executor.lanes());
  TapeBytes bytes = cost.arenas;
  bytes.outputs = std::max<std::ptrdiff_t>(bytes.outputs, cost.outputs);
  return std::make_unique<NetworkJob<Network, T>>(sizes, pass, options, bytes, executor);
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
    return detail::network_job<detail::StagesNetwork<config, T>, config, T>(sizes, pass, options, executor);
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
    return detail::network_job<Network, config, T>(sizes, pass, options, executor);
  };
  return task;
}

}  // namespace bench
}  // namespace FIT_ABI
}  // namespace fit
