#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <fit/models/stages.hpp>

namespace fit::inline FIT_ABI {

/// Where tokens get their positions from: a trained array, the sine and cosine code of a line, or that of a square.
enum class Positions { learned, sin_cos, sin_cos_2d };

/// Which latents a latent sees in the global blocks: all, or those of its own and earlier groups.
enum class Mask { none, causal };

/// The shape of an encoder; a template argument, so every field is a constant. All sizes count elements.
struct EncoderConfig {
  Layers layers;       ///< stages of (local blocks) and global blocks
  int groups = 0;      ///< T, groups per example
  int tokens = 0;      ///< n, data tokens per group
  int channels = 0;    ///< C, width of an input token
  int latents = 0;     ///< m, latents per group
  int data_dim = 0;    ///< D, width of data tokens inside
  int latent_dim = 0;  ///< E, width of latents
  int data_heads = 0;
  int latent_heads = 0;
  int mlp_ratio = 4;  ///< hidden width of the MLPs over their width
  Positions data_positions = Positions::learned;
  Positions latent_positions = Positions::learned;  ///< learned or sin_cos
  Mask mask = Mask::none;
  int extra_tokens = 0;    ///< k, further data tokens per group, of their own width
  int extra_channels = 0;  ///< C_y, that width
};

/// What a diffusion decoder is given of its own earlier output: nothing, or the latents of the step before.
enum class SelfConditioning { none, latent };

/// The shape of a diffusion decoder: the fields of an encoder, without extra tokens, and its own.
struct DiffusionConfig {
  Layers layers;       ///< stages of (local blocks) and global blocks
  int groups = 0;      ///< T, groups per example
  int tokens = 0;      ///< n, data tokens per group
  int channels = 0;    ///< C, width of an input token
  int latents = 0;     ///< m, latents per group
  int data_dim = 0;    ///< D, width of data tokens inside
  int latent_dim = 0;  ///< E, width of latents; a multiple of 4
  int data_heads = 0;
  int latent_heads = 0;
  int mlp_ratio = 4;  ///< hidden width of the MLPs over their width
  Positions data_positions = Positions::learned;
  Positions latent_positions = Positions::learned;  ///< learned or sin_cos
  Mask mask = Mask::none;
  int output_channels = 0;     ///< width of an output token
  int condition_channels = 0;  ///< c, width of a conditioning token; 0 for no condition but the noise level
  int condition_tokens = 0;    ///< s, their number; 0 for one vector per example
  SelfConditioning self_conditioning = SelfConditioning::none;
  bool local_attention = true;     ///< whether local blocks have attention, or an MLP only
  bool cross_mlp = false;          ///< whether read and write end with an MLP
  bool cross_context_norm = true;  ///< whether read, write and condition normalise what they attend to
};

/// The shape of an autoregressive decoder: the fields of an encoder that apply, and its own.
struct AutoregressiveConfig {
  Layers layers;       ///< stages of (local blocks) and global blocks; the last has local blocks only
  int groups = 0;      ///< T, groups per sequence; with one group it is a plain causal transformer
  int tokens = 0;      ///< n, tokens per group
  int latents = 0;     ///< m, latents per group
  int data_dim = 0;    ///< D, width of tokens inside
  int latent_dim = 0;  ///< E, width of latents
  int data_heads = 0;
  int latent_heads = 0;
  int mlp_ratio = 4;  ///< hidden width of the MLPs over their width
  Positions data_positions = Positions::learned;
  Positions latent_positions = Positions::learned;  ///< learned or sin_cos
  int vocabulary = 0;                               ///< V, ids are 0 .. V-1
  bool shared_embedding = true;                     ///< whether logits are products with the token embedding
  bool output_bias = true;                          ///< whether logits have a bias
  bool keep_unused_latents = false;  ///< accept global blocks in the last stage, which no logit depends on
};

/// A configuration as text, field by field, under the names of its fields: what a file carries and a load compares.
using ConfigFields = std::vector<std::pair<std::string, std::string>>;

inline ConfigFields fields_of(const EncoderConfig& c) {
  constexpr const char* positions[] = {"learned", "sin_cos", "sin_cos_2d"};
  return {{"kind", "encoder"},
          {"layers", std::string(c.layers.view())},
          {"groups", std::to_string(c.groups)},
          {"tokens", std::to_string(c.tokens)},
          {"channels", std::to_string(c.channels)},
          {"latents", std::to_string(c.latents)},
          {"data_dim", std::to_string(c.data_dim)},
          {"latent_dim", std::to_string(c.latent_dim)},
          {"data_heads", std::to_string(c.data_heads)},
          {"latent_heads", std::to_string(c.latent_heads)},
          {"mlp_ratio", std::to_string(c.mlp_ratio)},
          {"data_positions", positions[static_cast<int>(c.data_positions)]},
          {"latent_positions", positions[static_cast<int>(c.latent_positions)]},
          {"mask", c.mask == Mask::causal ? "causal" : "none"},
          {"extra_tokens", std::to_string(c.extra_tokens)},
          {"extra_channels", std::to_string(c.extra_channels)}};
}

inline ConfigFields fields_of(const DiffusionConfig& c) {
  ConfigFields fields =
      fields_of(EncoderConfig{c.layers, c.groups, c.tokens, c.channels, c.latents, c.data_dim, c.latent_dim,
                              c.data_heads, c.latent_heads, c.mlp_ratio, c.data_positions, c.latent_positions, c.mask});
  fields.resize(fields.size() - 2);  // no extra tokens
  fields[0].second = "diffusion";
  const auto truth = [](bool value) { return std::string(value ? "true" : "false"); };
  const ConfigFields own = {{"output_channels", std::to_string(c.output_channels)},
                            {"condition_channels", std::to_string(c.condition_channels)},
                            {"condition_tokens", std::to_string(c.condition_tokens)},
                            {"self_conditioning", c.self_conditioning == SelfConditioning::latent ? "latent" : "none"},
                            {"local_attention", truth(c.local_attention)},
                            {"cross_mlp", truth(c.cross_mlp)},
                            {"cross_context_norm", truth(c.cross_context_norm)}};
  fields.insert(fields.end(), own.begin(), own.end());
  return fields;
}

inline ConfigFields fields_of(const AutoregressiveConfig& c) {
  ConfigFields fields =
      fields_of(EncoderConfig{c.layers, c.groups, c.tokens, 0, c.latents, c.data_dim, c.latent_dim, c.data_heads,
                              c.latent_heads, c.mlp_ratio, c.data_positions, c.latent_positions});
  fields.resize(fields.size() - 3);  // no mask to choose, no extra tokens
  std::erase_if(fields, [](const auto& field) { return field.first == "channels"; });
  fields[0].second = "autoregressive";
  const auto truth = [](bool value) { return std::string(value ? "true" : "false"); };
  const ConfigFields own = {{"vocabulary", std::to_string(c.vocabulary)},
                            {"shared_embedding", truth(c.shared_embedding)},
                            {"output_bias", truth(c.output_bias)},
                            {"keep_unused_latents", truth(c.keep_unused_latents)}};
  fields.insert(fields.end(), own.begin(), own.end());
  return fields;
}

/// What the three models' trunk needs to know of a configuration.
struct TrunkConfig {
  Layers layers;
  int groups, tokens, latents, data_dim, latent_dim, data_heads, latent_heads, mlp_ratio;
  Mask mask;
  bool local_attention = true, cross_mlp = false, cross_context_norm = true, conditioned = false;
  bool autoregressive = false;  ///< local blocks are causal, and a group is written from the latents of the one before

  constexpr int cross_dim() const { return std::min(data_dim, latent_dim); }
  constexpr int cross_heads() const { return std::min(data_heads, latent_heads); }
};

namespace detail {

/// The largest whole number whose square is at most n.
constexpr int integer_root(int n) {
  int root = 0;
  while ((root + 1) * (root + 1) <= n) ++root;
  return root;
}

/// Rules that the three models share.
template <auto config>
constexpr bool check_common() {
  check_layers<config.layers>();
  static_assert(config.groups > 0, "fit: config.groups must be positive");
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
  static_assert(
      std::min(config.data_dim, config.latent_dim) % std::max(1, std::min(config.data_heads, config.latent_heads)) == 0,
      "fit: the width of read and write, the smaller of config.data_dim and config.latent_dim, must be a "
      "multiple of their heads, the smaller of config.data_heads and config.latent_heads");
  static_assert(config.latent_positions != Positions::sin_cos_2d,
                "fit: config.latent_positions must be learned or sin_cos");
  static_assert(config.latent_positions == Positions::learned || config.groups == 1 || config.latents == 1 ||
                    config.latent_dim % 2 == 0,
                "fit: sin_cos latent positions need an even config.latent_dim");
  static_assert(config.data_positions != Positions::sin_cos_2d ||
                    integer_root(config.tokens) * integer_root(config.tokens) == config.tokens,
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
  static_assert(config.latent_dim % 4 == 0 && config.latent_dim >= 8,
                "fit: config.latent_dim of a diffusion decoder must be a multiple of 4, and at least 8");
  static_assert(config.condition_channels >= 0, "fit: config.condition_channels must not be negative");
  static_assert(config.condition_tokens >= 0, "fit: config.condition_tokens must not be negative");
  static_assert(config.condition_tokens == 0 || config.condition_channels > 0,
                "fit: config.condition_tokens need config.condition_channels");
  return true;
}

template <AutoregressiveConfig config>
constexpr bool check_autoregressive() {
  check_common<config>();
  constexpr Schedule schedule = parse_layers(config.layers.view());
  static_assert(config.vocabulary > 0, "fit: config.vocabulary must be positive");
  static_assert(config.keep_unused_latents || schedule.error != LayersError::none ||
                    schedule.stages[schedule.count - 1].global_blocks == 0,
                "fit: no logit depends on global blocks in the last stage of an autoregressive decoder: end "
                "config.layers with a bracket, or set config.keep_unused_latents");
  return true;
}

}  // namespace detail

}  // namespace fit::inline FIT_ABI
