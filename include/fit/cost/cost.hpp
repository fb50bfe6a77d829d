#pragma once

#include <array>
#include <cstddef>
#include <limits>
#include <string_view>
#include <type_traits>

#include <fit/cost/autoregressive_decoder.hpp>
#include <fit/cost/diffusion_decoder.hpp>
#include <fit/cost/encoder.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What is asked about.
struct CostOptions {
  bool training = false;         ///< a training step, or inference
  TrainingOptions options = {};  ///< of the training step
  int threads = 1;               ///< of the executor, on which scratch depends
  bool average = false;          ///< whether a moving average of the weights is kept
  int groups = 0;                ///< of an example, where the configuration has any number
  bool by_groups = false;        ///< loss() over a source, not calls with tensors, where a model has both
  int members = 1;               ///< of a team that shares the groups of every example; and
  int member = 0;                ///< the one whose work and memory are asked about
};

/// What a model costs, known before it runs: the FLOPs that its kernels count, and the bytes that its tape, gradient
/// and optimiser take. Inputs, and gradients by outputs, are the caller's and do not count.
struct Cost {
  Index parameters = 0;
  std::array<PartCost, 7> parts = {};  ///< by Part, all stages together; parts that a model has not are zero
  Flops forward, backward;             ///< a training step does both

  // Bytes.
  Index weights = 0, gradients = 0;
  Index optimiser = 0;    ///< two moments of AdamW and, where one is kept, the average
  Index outputs = 0;      ///< what the model hands out
  Index activations = 0;  ///< kept for the way back, when most is in use
  Index scratch = 0;      ///< at the same moment
  Index tape = 0;         ///< Tape::peak(): the last two and, in training, the outputs
  Index peak = 0;         ///< all together
  Index sent = 0;         ///< to other members of a team, in a pass or a training step, the sum of its gradients aside
  TapeBytes arenas;       ///< of the tape, for Tape::reserve(): of each kind what it takes

  constexpr const PartCost& of(Part part) const { return parts[static_cast<std::size_t>(part)]; }
  /// Of a forward pass and, in training, the way back.
  constexpr Flops flops() const { return forward + backward; }
};

namespace detail {

/// The configuration with the number of groups that is asked about.
template <class Config>
constexpr Config with_groups(Config config, int groups) {
  if (config.groups == any) {
    require(groups >= 1, "the cost of a model of any number of groups needs options.groups, at least 1, not ", groups);
    require(config.latent_positions != Positions::learned,
            "a model of any number of groups has no learned latent positions");
    config.groups = groups;
  }
  require(groups == 0 || groups == config.groups, "this model has ", config.groups, " groups, and not options.groups, ",
          groups);
  return config;
}

/// Throws Error for counts that are not positive and widths that heads do not divide. Returns whether the work is small
/// enough to be counted.
template <class Config>
constexpr bool check_counts(const Config& config, Index batch, int threads) {
  double tokens = 0, width = 0, blocks = 0;
  const auto check = [](const char* name, Index value, Index least) {
    require(value >= least, "a model with ", name, " = ", value, " has no cost: it must be at least ", least);
  };
  check("batch", batch, 1);
  check("threads", threads, 1);
  Config::visit(
      [&](std::string_view name, const auto& field) {
        if constexpr (std::is_same_v<decltype(field), const int&>) {
          const bool optional =
              name.starts_with("extra") || name.starts_with("condition") || name.ends_with("key_heads");
          check(name.data(), field, optional ? 0 : 1);
          if (name.ends_with("tokens")) tokens += field;
          if (name.ends_with("dim") || name.ends_with("channels") || name == "vocabulary") width += field;
        }
      },
      config);
  const auto divides = [](const char* dim, Index width_of, const char* heads, Index count) {
    require(width_of % count == 0, dim, " = ", width_of, " is no multiple of ", heads, " = ", count);
  };
  const TrunkConfig trunk = trunk_of(config);
  divides("data_dim", config.data_dim, "data_heads", config.data_heads);
  divides("latent_dim", config.latent_dim, "latent_heads", config.latent_heads);
  divides("data_heads", config.data_heads, "data_key_heads", trunk.data_key_heads);
  divides("latent_heads", config.latent_heads, "latent_key_heads", trunk.latent_key_heads);
  divides("the width of read and write", trunk.cross_dim(), "their heads", trunk.cross_heads());
  if constexpr (std::is_same_v<Config, EncoderConfig>) {
    require((config.extra_tokens > 0) == (config.extra_channels > 0),
            "extra_tokens and extra_channels must both be positive or both be zero");
  }
  if constexpr (std::is_same_v<Config, DiffusionConfig>) {
    require(config.latent_dim % 4 == 0 && config.latent_dim >= 12,
            "latent_dim of a diffusion decoder must be a multiple of 4, and at least 12, not ", config.latent_dim);
    require(config.condition_tokens == 0 || config.condition_channels > 0, "condition_tokens need condition_channels");
  }
  const Plan plan = plan_of(config.layers);
  require(plan.error == LayersError::none, "the layer string \"", config.layers.view(),
          "\" is not one like \"(2)4(2)\"");
  for (std::size_t i = 0; i < plan.count; ++i) blocks += 4 + plan[i].local_blocks + plan[i].global_blocks;
  const double groups = config.groups, latents = config.latents, seen = tokens + groups * latents;
  const double rows = static_cast<double>(batch) * groups * (tokens + latents);
  return 16 * blocks * rows * width * (seen + (2 + config.mlp_ratio) * width) <
         static_cast<double>(std::numeric_limits<Index>::max());
}

template <class Config>
constexpr void check_costs(const Config& config, Index batch, int threads) {
  require(check_counts(config, batch, threads), "the work of a batch of ", batch, " examples of ", config.groups,
          " groups is too large to be counted");
}

/// The model, as a member of a team has it.
template <class Config>
constexpr auto model_of(const Config& config, Index batch, const CostOptions& options) {
  require(options.members >= 1 && options.members <= config.groups && options.member >= 0 &&
              options.member < options.members,
          "a team's members must be 1 to the ", config.groups, " groups, and the member one of them, not ",
          options.members, " and ", options.member);
  auto model = metered::meter_model(config, batch, options.by_groups);
  if (options.members > 1) {
    const IndexRange own = share_of_groups(config, config.groups, options.member, options.members);
    model.sizes.groups = own.count;
    model.sizes.first_group = own.first;
    model.sizes.example_groups = config.groups;
    model.sizes.growth = growth_of(config);
  }
  return model;
}

/// The meter of a model's pass.
template <class T, class Config>
constexpr Meter<T> meter_of(const Config& config, Index batch, const CostOptions& options) {
  check_costs(config, batch, options.threads);
  check(options.options);
  if constexpr (std::is_same_v<Config, EncoderConfig>) {
    require(!options.by_groups || config.extra_tokens == 0, "an encoder with extra tokens has no loss by_groups");
  } else if constexpr (std::is_same_v<Config, AutoregressiveConfig>) {
    require(!options.by_groups, "by_groups says nothing of an autoregressive decoder, whose loss always is");
  }
  Meter<T> meter(options.training, options.training ? options.options : TrainingOptions{}, options.threads,
                 {options.members, options.member});
  const auto model = model_of(config, batch, options);
  model.describe_all(meter);
  if (options.training) {
    model.training_step(meter);
  } else {
    model.forward(meter);
  }
  return meter;
}

}  // namespace detail

/// The cost of one call of a model of this configuration, whose counts may be chosen at run time. An encoder is trained
/// from gradients of both outputs, a diffusion decoder from that of its prediction, an autoregressive decoder by its
/// loss(). T is the type it computes in. Throws Error for counts, heads and options that cannot be.
template <class T = float, class Config>
constexpr Cost cost_of(const Config& of, Index batch, const CostOptions& options = {}) {
  const Config config = detail::with_groups(of, options.groups);
  const detail::Meter<T> meter = detail::meter_of<T>(config, batch, options);
  Cost cost;
  for (std::size_t i = 0; i < meter.count(); ++i) {
    const PartCost& part = meter.part(i);
    PartCost& to = cost.parts[static_cast<std::size_t>(part.part)];
    to.part = part.part;
    to.blocks += part.blocks;
    to.rows = part.rows;
    to.width = part.width;
    to.parameters += part.parameters;
    to.forward += part.forward;
    to.backward += part.backward;
    to.kept += part.kept;
    cost.parameters += part.parameters;
    cost.forward += part.forward;
    cost.backward += part.backward;
  }
  constexpr Index size = sizeof(T);
  cost.weights = size * cost.parameters;
  cost.gradients = options.training ? cost.weights : 0;
  cost.optimiser = options.training ? cost.weights * (options.average ? 3 : 2) : 0;
  cost.activations = meter.peak().records;
  cost.scratch = meter.peak().scratch + meter.peak().lanes;
  cost.tape = meter.peak().total();
  cost.arenas = meter.peaks();
  cost.sent = meter.sent();
  if (of.groups == any) cost.sent += static_cast<Index>(sizeof(Index)) * (options.members - 1);  // how many there are
  cost.outputs =
      options.training ? meter.peak().outputs : size * detail::model_of(config, batch, options).output_size();
  cost.peak = cost.weights + cost.gradients + cost.optimiser + cost.activations + cost.scratch + cost.outputs;
  return cost;
}

/// The same of a configuration that is a constant:
///
///     static_assert(fit::cost<config>(1).peak < 64 << 20);
template <auto config, class T = float>
constexpr Cost cost(Index batch, const CostOptions& options = {}) {
  return cost_of<T>(config, batch, options);
}

/// What a step of sampling costs.
struct SamplingCost {
  Index evaluations = 1;  ///< of the denoiser
  Flops flops;            ///< of all of them
  Index tape = 0;         ///< Tape::peak(), bytes
};

/// The cost of one step of sample() for a batch: `guided` evaluates the denoiser with and without its condition, and a
/// step of Heun's method does that twice. Where config.groups is any, it is to be set to a number first, here and
/// below.
template <class T = float>
constexpr SamplingCost sampling_cost_of(const DiffusionConfig& config, Index batch, bool guided = false,
                                        bool heun = false, int threads = 1) {
  detail::check_costs(config, batch, threads);
  const detail::metered::DiffusionDecoder model(config, batch);
  detail::Meter<T> meter(false, {}, threads);
  const Index evaluations = (guided ? 2 : 1) * (heun ? 2 : 1);
  for (Index i = 0; i < evaluations; ++i) {
    model.outputs(meter);
    model.forward(meter);
  }
  Flops flops;
  for (std::size_t i = 0; i < meter.count(); ++i) flops += meter.part(i).forward;
  return {evaluations, flops, meter.peak().total()};
}

/// What generation costs, for one sequence of its whole length, one id at a time.
struct GenerationCost {
  Index caches = 0;  ///< bytes, of one sequence
  Flops flops;       ///< of all ids
};

/// Throws Error as cost_of().
template <class T = float>
constexpr GenerationCost generation_cost_of(const AutoregressiveConfig& config) {
  namespace metered = detail::metered;
  detail::check_costs(config, 1, 1);
  const metered::AutoregressiveDecoder model(config, 1);
  const metered::Trunk& trunk = model.trunk;
  const Index ids = model.rows(), groups = config.groups, tokens = config.tokens, latents = config.latents;
  const Index dim = config.data_dim, cross = trunk.c.cross_dim();
  constexpr Index size = sizeof(T);
  constexpr auto line = [](Index rows, Index width) {
    constexpr Index unit = Index{alignment} / Index{sizeof(float)};
    return (rows * width + unit - 1) / unit * unit;
  };
  const auto product = [](const metered::Linear& p, Index rows) { return 2 * rows * p.out * p.in; };
  const auto projections = [&](const metered::Attention& p, Index rows) {
    return product(p.query(), rows) + 2 * product(p.key(), rows) + product(p.output(), rows);
  };
  const auto mlp = [&](const metered::MLP& p, Index rows) {
    return p.ratio > 0 ? product(p.fc1(), rows) + product(p.fc2(), rows) : 0;
  };
  GenerationCost cost;
  const auto attention = [&](Index flops) {
    cost.flops.attention += flops;
    cost.flops.executed += flops;
  };
  for (std::size_t i = 0; i < trunk.plan.count; ++i) {
    const Index locals = trunk.plan[i].local_blocks, globals = trunk.plan[i].global_blocks;
    const metered::Block local = trunk.local(), global = trunk.global();
    const metered::Attention &read = trunk.read().attention, &write = trunk.write().attention;
    // An id sees those of its group up to its own.
    const Index seen = groups * (tokens * (tokens + 1) / 2);
    cost.caches += locals * 2 * line(tokens, trunk.c.data_key_dim());
    cost.flops.products += locals * (projections(local.attention(), ids) + mlp(local.mlp(), ids));
    attention(locals * 4 * dim * seen);
    if (!trunk.plan[i].writes) continue;
    cost.caches +=
        line(tokens, dim) + 2 * line(latents, cross) + globals * 2 * line(groups * latents, trunk.c.latent_key_dim());
    cost.flops.products += product(write.query(), ids) + product(write.output(), ids) + mlp(trunk.write().mlp(), ids);
    attention(4 * cross * ids * latents);
    // At the end of each group but the last; the write's keys and values also at the beginning, of zeros.
    const Index ends = groups - 1, rows = ends * latents;
    cost.flops.products += product(read.query(), rows) + 2 * product(read.key(), ends * tokens) +
                           product(read.output(), rows) + mlp(trunk.read().mlp(), rows);
    const Flops reading = attention_flops<T>(read.shape(ends, latents, tokens, {}));
    cost.flops += reading;
    cost.flops.products += globals * (projections(global.attention(), rows) + mlp(global.mlp(), rows));
    attention(globals * 4 * config.latent_dim * latents * latents * (ends * (ends + 1) / 2));
    cost.flops.products += 2 * product(write.key(), groups * latents);
  }
  cost.flops.products += 2 * ids * model.embedding();
  cost.caches *= size;
  return cost;
}

/// Bytes that generation reads for one id, at the least.
struct GenerationReads {
  Index weights = 0;  ///< of the parameters that an id goes through
  Index caches = 0;   ///< keys and values that it sees
  /// Parameters, tokens, keys and values that the latents of its group go through at its end; the last group has none.
  Index group_end = 0;
};

/// What the id at a position reads, counted from 0. Throws Error for one outside the sequence, and as cost_of().
template <class T = float>
constexpr GenerationReads generation_reads_of(const AutoregressiveConfig& config, Index position) {
  detail::check_costs(config, 1, 1);
  const detail::metered::AutoregressiveDecoder model(config, 1);
  const detail::metered::Trunk& trunk = model.trunk;
  require(position >= 0 && position < model.rows(), "a position must be in 0 .. ", model.rows() - 1, ", not ",
          position);
  const Index group = position / config.tokens, slot = position % config.tokens;
  GenerationReads reads;
  reads.weights = model.embedding() + (config.output_bias ? config.vocabulary : 0) + model.data_norm().parameters();
  for (std::size_t i = 0; i < trunk.plan.count; ++i) {
    const Index locals = trunk.plan[i].local_blocks, globals = trunk.plan[i].global_blocks;
    reads.weights += locals * trunk.local().parameters();
    reads.caches += locals * 2 * trunk.c.data_key_dim() * (slot + 1);
    if (!trunk.plan[i].writes) continue;
    const detail::metered::Cross write = trunk.write();
    const Index of_latents =
        2 * write.attention.key().parameters() + (write.context_norm ? write.norm_of_context().parameters() : 0);
    reads.weights += write.parameters() - of_latents;
    reads.caches += Index{2} * trunk.c.cross_dim() * config.latents;
    if (group + 1 == config.groups) continue;
    reads.group_end +=
        trunk.read().parameters() + config.tokens * Index{config.data_dim} + of_latents +
        globals * (trunk.global().parameters() + Index{2} * trunk.c.latent_key_dim() * config.latents * (group + 1));
  }
  constexpr Index size = sizeof(T);
  return {size * reads.weights, size * reads.caches, size * reads.group_end};
}

/// How many tokens a group should have: the divisor of `length` for which a training step of the configuration, with
/// length / tokens groups, takes the fewest FLOPs. Throws Error for a length below one, and as cost_of().
template <class T = float, class Config>
constexpr int cheapest_tokens(Config config, Index length) {
  require(length >= 1 && length <= std::numeric_limits<int>::max(),
          "a length must be positive and fit into an int, unlike ", length);
  Index best = 0, tokens_of_best = 1;
  const auto try_tokens = [&](Index tokens) {
    config.tokens = static_cast<int>(tokens);
    config.groups = static_cast<int>(length / tokens);
    if (!detail::check_counts(config, 1, 1)) return;
    const Index flops = cost_of<T>(config, 1, {.training = true}).flops().total();
    if (best == 0 || flops < best) {
      best = flops;
      tokens_of_best = tokens;
    }
  };
  for (Index tokens = 1; tokens * tokens <= length; ++tokens) {
    if (length % tokens != 0) continue;
    try_tokens(tokens);
    try_tokens(length / tokens);
  }
  require(best > 0, "no group size makes the work of a length of ", length, " small enough to be counted");
  return static_cast<int>(tokens_of_best);
}

}  // namespace FIT_ABI
}  // namespace fit
