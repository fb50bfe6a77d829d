#pragma once

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <fit/core/team.hpp>
#include <fit/kernels/mask.hpp>
#include <fit/models/stages.hpp>
#include <fit/nn/positions.hpp>

namespace fit {
inline namespace FIT_ABI {

/// As a number of groups: it comes with each input, and may be another every time.
inline constexpr int any = -1;

/// Which latents a latent sees in the global blocks: all, or those of its own and earlier groups.
enum class LatentMask { none, causal };

namespace detail {

/// The fields that all configurations have: f(name, the field of each).
constexpr void visit_common(auto&& f, auto&... c) {
  f("layers", c.layers...);
  f("groups", c.groups...);
  f("tokens", c.tokens...);
  f("latents", c.latents...);
  f("data_dim", c.data_dim...);
  f("latent_dim", c.latent_dim...);
  f("data_heads", c.data_heads...);
  f("latent_heads", c.latent_heads...);
  f("data_key_heads", c.data_key_heads...);
  f("latent_key_heads", c.latent_key_heads...);
  f("mlp_ratio", c.mlp_ratio...);
  f("data_positions", c.data_positions...);
  f("latent_positions", c.latent_positions...);
}

}  // namespace detail

/// The shape of an encoder; a template argument, so every field is a constant. All sizes count elements.
struct EncoderConfig {
  Layers layers;       ///< stages of (local blocks) and global blocks
  int groups = 0;      ///< T, groups per example, or fit::any
  int tokens = 0;      ///< n, data tokens per group
  int channels = 0;    ///< C, width of an input token
  int latents = 0;     ///< m, latents per group
  int data_dim = 0;    ///< D, width of data tokens inside
  int latent_dim = 0;  ///< E, width of latents
  int data_heads = 0;
  int latent_heads = 0;
  int data_key_heads = 0;    ///< heads of the keys and values of local blocks; 0 for as many as data_heads
  int latent_key_heads = 0;  ///< heads of the keys and values of global blocks; 0 for as many as latent_heads
  int mlp_ratio = 4;         ///< hidden width of the MLPs over their width
  Positions data_positions = Positions::learned;
  Positions latent_positions = Positions::learned;  ///< not sin_cos_2d; with fit::any not learned
  LatentMask mask = LatentMask::none;
  int extra_tokens = 0;    ///< k, further data tokens per group, of their own width
  int extra_channels = 0;  ///< C_y, that width

  static constexpr const char* kind = "encoder";
  static constexpr void visit(auto&& f, auto&... c) {
    detail::visit_common(f, c...);
    f("channels", c.channels...);
    f("mask", c.mask...);
    f("extra_tokens", c.extra_tokens...);
    f("extra_channels", c.extra_channels...);
  }
};

/// What a diffusion decoder is given of its own earlier output: nothing, or the latents of the step before.
enum class SelfConditioning { none, latent };

/// The shape of a diffusion decoder: the fields of an encoder, without extra tokens, and its own.
struct DiffusionConfig {
  Layers layers;       ///< stages of (local blocks) and global blocks
  int groups = 0;      ///< T, groups per example, or fit::any
  int tokens = 0;      ///< n, data tokens per group
  int channels = 0;    ///< C, width of an input token
  int latents = 0;     ///< m, latents per group
  int data_dim = 0;    ///< D, width of data tokens inside
  int latent_dim = 0;  ///< E, width of latents; a multiple of 4
  int data_heads = 0;
  int latent_heads = 0;
  int data_key_heads = 0;    ///< heads of the keys and values of local blocks; 0 for as many as data_heads
  int latent_key_heads = 0;  ///< heads of the keys and values of global blocks; 0 for as many as latent_heads
  int mlp_ratio = 4;         ///< hidden width of the MLPs over their width
  Positions data_positions = Positions::learned;
  Positions latent_positions = Positions::learned;  ///< not sin_cos_2d; with fit::any not learned
  LatentMask mask = LatentMask::none;
  int output_channels = 0;     ///< width of an output token
  int condition_channels = 0;  ///< c, width of a conditioning token; 0 for no condition but the noise level
  int condition_tokens = 0;    ///< s, their number; 0 for one vector per example
  SelfConditioning self_conditioning = SelfConditioning::none;
  bool local_attention = true;     ///< whether local blocks have attention, or an MLP only
  bool cross_mlp = false;          ///< whether read and write end with an MLP
  bool cross_context_norm = true;  ///< whether read, write and condition normalise what they attend to

  static constexpr const char* kind = "diffusion";
  static constexpr void visit(auto&& f, auto&... c) {
    detail::visit_common(f, c...);
    f("channels", c.channels...);
    f("mask", c.mask...);
    f("output_channels", c.output_channels...);
    f("condition_channels", c.condition_channels...);
    f("condition_tokens", c.condition_tokens...);
    f("self_conditioning", c.self_conditioning...);
    f("local_attention", c.local_attention...);
    f("cross_mlp", c.cross_mlp...);
    f("cross_context_norm", c.cross_context_norm...);
  }
};

/// The shape of an autoregressive decoder: the fields of an encoder that apply, and its own.
struct AutoregressiveConfig {
  Layers layers;       ///< stages of (local blocks) and global blocks; the last has local blocks only
  int groups = 0;      ///< T, groups per sequence, or fit::any; with one group it is a plain causal transformer
  int tokens = 0;      ///< n, tokens per group
  int latents = 0;     ///< m, latents per group
  int data_dim = 0;    ///< D, width of tokens inside
  int latent_dim = 0;  ///< E, width of latents
  int data_heads = 0;
  int latent_heads = 0;
  int data_key_heads = 0;    ///< heads of the keys and values of local blocks; 0 for as many as data_heads
  int latent_key_heads = 0;  ///< heads of the keys and values of global blocks; 0 for as many as latent_heads
  int mlp_ratio = 4;         ///< hidden width of the MLPs over their width
  Positions data_positions = Positions::learned;
  Positions latent_positions = Positions::learned;  ///< not sin_cos_2d, sin_cos_grid; with fit::any not learned
  int vocabulary = 0;                               ///< V, ids are 0 .. V-1
  bool shared_embedding = true;                     ///< whether logits are products with the token embedding
  bool output_bias = true;                          ///< whether logits have a bias
  bool keep_unused_latents = false;  ///< accept global blocks in the last stage, which no logit depends on

  static constexpr const char* kind = "autoregressive";
  static constexpr void visit(auto&& f, auto&... c) {
    detail::visit_common(f, c...);
    f("vocabulary", c.vocabulary...);
    f("shared_embedding", c.shared_embedding...);
    f("output_bias", c.output_bias...);
    f("keep_unused_latents", c.keep_unused_latents...);
  }
};

/// A configuration as text, field by field, under the names of its fields: what a file carries and a load compares.
using ConfigFields = std::vector<std::pair<std::string, std::string>>;

namespace detail {

inline std::string text_of(const Layers& layers) { return std::string(layers.view()); }
inline std::string text_of(int value) { return value == any ? "any" : std::to_string(value); }
inline std::string text_of(bool value) { return value ? "true" : "false"; }
inline std::string text_of(LatentMask mask) { return mask == LatentMask::causal ? "causal" : "none"; }
inline std::string text_of(SelfConditioning value) { return value == SelfConditioning::latent ? "latent" : "none"; }
inline std::string text_of(Positions value) {
  static constexpr const char* names[] = {"learned",      "sin_cos", "sin_cos_2d",
                                          "sin_cos_grid", "shared",  "shared_sin_cos"};
  return names[static_cast<std::size_t>(value)];
}

}  // namespace detail

template <class Config>
ConfigFields fields_of(Config config) {
  // The same model has the same text, whichever way its key heads are given, and that of a file from before them.
  if (config.data_key_heads == config.data_heads) config.data_key_heads = 0;
  if (config.latent_key_heads == config.latent_heads) config.latent_key_heads = 0;
  ConfigFields fields{{"kind", Config::kind}};
  Config::visit([&](const char* name, const auto& value) { fields.emplace_back(name, detail::text_of(value)); },
                config);
  return fields;
}

/// What a pass goes over: examples, groups of each, and data tokens and latents of a group. Where a team shares the
/// groups of every example, those of one member, which follow each other.
struct Sizes {
  Index batch = 0, groups = 0, tokens = 0, latents = 0;
  Team* team = nullptr;
  Index first_group = 0;     ///< of the member's
  Index example_groups = 0;  ///< of a team: those of all members
  double growth = 0;         ///< of a group's work, by which they were dealt; see share_of_groups()

  /// The number of one of this member's batch * groups among all groups.
  constexpr Index number_of(Index group) const {
    return team ? group / groups * example_groups + first_group + group % groups : group;
  }
  constexpr Index groups_of_example() const { return example_groups > 0 ? example_groups : groups; }
  constexpr Index all_groups() const { return batch * groups; }
  constexpr Index data_rows() const { return all_groups() * tokens; }
  constexpr Index latent_rows() const { return all_groups() * latents; }
};

namespace detail {

/// Sequences of a length that go through a stage together: two thousand tokens, in memory that a pass reuses.
constexpr Index sequences_together(Index length) { return std::max<Index>(1, 2048 / length); }

/// Rows whose logits are in memory together in a loss.
constexpr Index logit_rows(Index vocabulary) { return std::clamp<Index>((Index{1} << 20) / vocabulary, 64, 4096); }

/// What the three models' trunk needs to know of a configuration: no counts, which come with each pass.
struct TrunkConfig {
  Layers layers;
  int data_dim = 0, latent_dim = 0, data_heads = 0, latent_heads = 0, data_key_heads = 0, latent_key_heads = 0;
  int mlp_ratio = 0;
  LatentMask mask = LatentMask::none;
  bool local_attention = true, cross_mlp = false, cross_context_norm = true;
  bool conditioned = false;     ///< latents attend to a condition after they have read
  bool autoregressive = false;  ///< local blocks are causal, and a group is written from the latents of the one before

  constexpr int cross_dim() const { return std::min(data_dim, latent_dim); }
  constexpr int cross_heads() const { return std::min(data_heads, latent_heads); }
  /// Widths of the keys and values of local and of global blocks.
  constexpr int data_key_dim() const { return data_dim / data_heads * data_key_heads; }
  constexpr int latent_key_dim() const { return latent_dim / latent_heads * latent_key_heads; }
  /// Of the local blocks.
  constexpr kernels::Mask data_mask() const { return autoregressive ? kernels::Mask::causal() : kernels::Mask::none(); }
  /// Of the global blocks, over groups of so many latents.
  constexpr kernels::Mask latent_mask(Index latents) const {
    return mask == LatentMask::causal ? kernels::Mask::chunk_causal(latents) : kernels::Mask::none();
  }
};

/// What a model has no field for keeps its default.
template <class Config>
constexpr TrunkConfig trunk_of(const Config& c) {
  TrunkConfig trunk{.layers = c.layers,
                    .data_dim = c.data_dim,
                    .latent_dim = c.latent_dim,
                    .data_heads = c.data_heads,
                    .latent_heads = c.latent_heads,
                    .data_key_heads = c.data_key_heads > 0 ? c.data_key_heads : c.data_heads,
                    .latent_key_heads = c.latent_key_heads > 0 ? c.latent_key_heads : c.latent_heads,
                    .mlp_ratio = c.mlp_ratio};
  if constexpr (std::is_same_v<Config, AutoregressiveConfig>) {
    trunk.mask = LatentMask::causal;
    trunk.autoregressive = true;
  } else {
    trunk.mask = c.mask;
  }
  if constexpr (std::is_same_v<Config, DiffusionConfig>) {
    trunk.local_attention = c.local_attention;
    trunk.cross_mlp = c.cross_mlp;
    trunk.cross_context_norm = c.cross_context_norm;
    trunk.conditioned = true;
  }
  return trunk;
}

/// Multiplications of what a group's tokens go through outside the trunk.
constexpr double ends_work(const EncoderConfig& c) {
  return static_cast<double>(c.data_dim) *
         (static_cast<double>(c.tokens) * c.channels + static_cast<double>(c.extra_tokens) * c.extra_channels);
}
constexpr double ends_work(const DiffusionConfig& c) {
  return static_cast<double>(c.data_dim) * c.tokens * (c.channels + c.output_channels);
}
constexpr double ends_work(const AutoregressiveConfig& c) {
  return static_cast<double>(c.data_dim) * c.tokens * c.vocabulary;
}

/// How much more work a group is than the one before it, as it sees one group more in the global blocks: by the first
/// group's work, in multiplications.
template <class Config>
constexpr double growth_of(const Config& config) {
  const TrunkConfig c = trunk_of(config);
  if (c.mask == LatentMask::none) return 0;
  const double tokens = config.tokens, latents = config.latents, width = c.cross_dim();
  const auto block = [&](double rows, double dim, double key_dim, bool attention) {
    return rows * dim * (2 * c.mlp_ratio * dim + (attention ? 2 * dim + 2 * key_dim + 2 * rows : 0));
  };
  const double cross = 2 * width * (tokens * c.data_dim + latents * c.latent_dim + latents * tokens);
  const Plan plan = plan_of(c.layers);
  double first = ends_work(config), more = 0;
  for (std::size_t i = 0; i < plan.count; ++i) {
    const double locals = plan[i].local_blocks, globals = plan[i].global_blocks;
    first += locals * block(tokens, c.data_dim, c.data_key_dim(), c.local_attention) +
             globals * block(latents, c.latent_dim, c.latent_key_dim(), true) +
             (plan[i].reads + plan[i].writes) * cross;
    more += globals * 2 * latents * latents * c.latent_dim;
  }
  return more / first;
}

/// Rules that the three models share.
template <auto config>
constexpr bool check_common() {
  check_layers<config.layers>();
  static_assert(config.groups > 0 || config.groups == any, "fit: config.groups must be positive, or fit::any");
  static_assert(config.tokens > 0, "fit: config.tokens must be positive");
  static_assert(config.latents > 0, "fit: config.latents must be positive");
  static_assert(config.data_dim > 0, "fit: config.data_dim must be positive");
  static_assert(config.latent_dim > 0, "fit: config.latent_dim must be positive");
  static_assert(config.data_heads > 0, "fit: config.data_heads must be positive");
  static_assert(config.latent_heads > 0, "fit: config.latent_heads must be positive");
  static_assert(config.mlp_ratio > 0, "fit: config.mlp_ratio must be positive");
  static_assert(config.data_dim % std::max(1, config.data_heads) == 0,
                "fit: config.data_dim must be a multiple of config.data_heads");
  static_assert(config.latent_dim % std::max(1, config.latent_heads) == 0,
                "fit: config.latent_dim must be a multiple of config.latent_heads");
  static_assert(config.data_key_heads >= 0 && config.data_heads % std::max(1, config.data_key_heads) == 0,
                "fit: config.data_heads must be a multiple of config.data_key_heads, or that be 0");
  static_assert(config.latent_key_heads >= 0 && config.latent_heads % std::max(1, config.latent_key_heads) == 0,
                "fit: config.latent_heads must be a multiple of config.latent_key_heads, or that be 0");
  static_assert(
      std::min(config.data_dim, config.latent_dim) % std::max(1, std::min(config.data_heads, config.latent_heads)) == 0,
      "fit: the width of read and write, the smaller of config.data_dim and config.latent_dim, must be a "
      "multiple of their heads, the smaller of config.data_heads and config.latent_heads");
  static_assert(config.data_positions == Positions::learned || config.data_positions == Positions::sin_cos ||
                    config.data_positions == Positions::sin_cos_2d,
                "fit: config.data_positions must be learned, sin_cos or sin_cos_2d");
  static_assert(config.latent_positions != Positions::sin_cos_2d,
                "fit: config.latent_positions must be learned, sin_cos, sin_cos_grid, shared or shared_sin_cos");
  static_assert(config.latent_positions != Positions::learned || config.groups != any,
                "fit: learned latent positions need a number as config.groups; with fit::any, config.latent_positions "
                "must be sin_cos, sin_cos_grid, shared or shared_sin_cos");
  static_assert(config.latent_positions != Positions::sin_cos || config.groups == 1 || config.latents == 1 ||
                    config.latent_dim % 2 == 0,
                "fit: sin_cos latent positions need an even config.latent_dim");
  static_assert(config.latent_positions != Positions::sin_cos_grid || config.latent_dim >= 8,
                "fit: sin_cos_grid latent positions need a config.latent_dim of at least 8");
  static_assert(config.data_positions != Positions::sin_cos_2d ||
                    nn::integer_root(config.tokens) * nn::integer_root(config.tokens) == config.tokens,
                "fit: sin_cos_2d data positions need a square number as config.tokens");
  static_assert(config.data_positions != Positions::sin_cos_2d || config.data_dim % 2 == 0 || config.tokens == 1,
                "fit: sin_cos_2d data positions need an even config.data_dim");
  return true;
}

template <EncoderConfig config>
constexpr bool check_encoder() {
  check_common<config>();
  static_assert(config.channels > 0, "fit: config.channels must be positive");
  static_assert(config.extra_tokens >= 0, "fit: config.extra_tokens must not be negative");
  static_assert((config.extra_tokens > 0) == (config.extra_channels > 0),
                "fit: config.extra_tokens and config.extra_channels must both be positive or both be zero");
  return true;
}

template <DiffusionConfig config>
constexpr bool check_diffusion() {
  check_common<config>();
  static_assert(config.channels > 0, "fit: config.channels must be positive");
  static_assert(config.output_channels > 0, "fit: config.output_channels must be positive");
  static_assert(config.latent_dim % 4 == 0 && config.latent_dim >= 12,
                "fit: config.latent_dim of a diffusion decoder must be a multiple of 4, and at least 12");
  static_assert(config.condition_channels >= 0, "fit: config.condition_channels must not be negative");
  static_assert(config.condition_tokens >= 0, "fit: config.condition_tokens must not be negative");
  static_assert(config.condition_tokens == 0 || config.condition_channels > 0,
                "fit: config.condition_tokens need config.condition_channels");
  return true;
}

template <AutoregressiveConfig config>
constexpr bool check_autoregressive() {
  check_common<config>();
  constexpr Plan plan = plan_of(config.layers);
  static_assert(config.vocabulary > 0, "fit: config.vocabulary must be positive");
  static_assert(config.latent_positions != Positions::sin_cos_grid,
                "fit: config.latent_positions of an autoregressive decoder must not be sin_cos_grid: a sequence has no "
                "rows and columns");
  static_assert(config.keep_unused_latents || plan.error != LayersError::none || !plan[plan.count - 1].reads,
                "fit: no logit depends on global blocks in the last stage of an autoregressive decoder: end "
                "config.layers with a bracket, or set config.keep_unused_latents");
  return true;
}

}  // namespace detail

/// The groups of an example that a member of a team has, of all: a contiguous range, in the members' order, by
/// share_of(). Under a causal mask, where later latents see more, ranges are of equal work rather than of equal number.
template <class Config>
constexpr IndexRange share_of_groups(const Config& config, Index groups, Index member, Index members) {
  return share_of(groups, member, members, detail::growth_of(config));
}

}  // namespace FIT_ABI
}  // namespace fit
