#pragma once

#include <fit/bench/complexity.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace {

template <int width, bool causal>
constexpr auto complexity_config(fit::Layers layers) {
  constexpr int heads = std::max(1, width / 64);
  if constexpr (causal) {
    return fit::AutoregressiveConfig{.layers = layers,
                                     .groups = 1,
                                     .tokens = 1,
                                     .latents = 1,
                                     .data_dim = width,
                                     .latent_dim = width,
                                     .data_heads = heads,
                                     .latent_heads = heads,
                                     .vocabulary = 256};
  } else {
    return fit::EncoderConfig{.layers = layers,
                              .groups = 1,
                              .tokens = 1,
                              .channels = 16,
                              .latents = 1,
                              .data_dim = width,
                              .latent_dim = width,
                              .data_heads = heads,
                              .latent_heads = heads};
  }
}

template <int width, bool causal>
std::vector<fit::bench::Curve> complexity_curves_of() {
  using fit::Index, fit::Sizes;
  constexpr auto plain_layer = complexity_config<width, causal>("(1)"), plain = complexity_config<width, causal>("(6)");
  constexpr auto fit_layer = complexity_config<width, causal>("(1)1(0)");
  constexpr auto fit_model = complexity_config<width, causal>("(2)2(2)2(2)");
  constexpr auto latents_layer = complexity_config<width, causal>("(0)1(0)");
  constexpr auto latents_model = complexity_config<width, causal>("(0)6(0)");
  const std::vector<fit::bench::Task> of_plain{fit::bench::attention_task<plain_layer>(),
                                               fit::bench::layer_task<plain_layer>(), fit::bench::model_task<plain>()};
  const std::vector<fit::bench::Task> of_fit{fit::bench::attention_task<fit_layer>(),
                                             fit::bench::layer_task<fit_layer>(), fit::bench::model_task<fit_model>()};
  const std::vector<fit::bench::Task> of_latents{fit::bench::attention_task<latents_layer>(),
                                                 fit::bench::layer_task<latents_layer>(),
                                                 fit::bench::model_task<latents_model>()};
  const auto groups_of = [](Index latents) {
    return [=](Index length) {
      const Index n = fit::bench::nearest_divisor(length, 250);
      return Sizes{1, length / n, n, latents};
    };
  };
  const auto all_at_once = [](Index length) { return Sizes{1, 1, length, 256}; };
  const auto cube_root = [](Index length) {
    const Index n = fit::bench::nearest_divisor(length, std::cbrt(static_cast<double>(length)));
    return Sizes{1, length / n, n, 1};
  };
  const auto cheapest = [](Index length) {
    const Index n = fit::cheapest_tokens(complexity_config<width, causal>("(2)2(2)2(2)"), length);
    return Sizes{1, length / n, n, 1};
  };
  return {{"full",
           [](Index length) {
             return Sizes{1, 1, length, 1};
           },
           of_plain},
          {"local", groups_of(1), of_plain},
          {"fit", cube_root, of_fit},
          {"fixed", groups_of(8), of_fit},
          {"latents", causal ? std::function<Sizes(Index)>(groups_of(8)) : all_at_once, of_latents},
          {"cheapest", cheapest, of_fit}};
}

/// The curves of attention_complexity, of one width for data tokens and latents, in heads of 64:
///
///   full      attention of all tokens to all
///   local     attention in groups of 250 tokens alone
///   fit       FIT with groups of n = L^(1/3) tokens and one latent each, the paper's choice
///   fixed     FIT with groups of 250 tokens and 8 latents each
///   latents   256 latents that read all tokens and write to all, as in RIN and Perceiver; causal: no local attention,
///             otherwise as fixed
///   cheapest  FIT with one latent to a group, and the n for which a training step takes the fewest operations
///
/// Each n is the divisor of the length that is nearest. Layers have one block of each kind that the curve has, models
/// six local blocks (fit: and four global ones).
template <int width>
std::vector<fit::bench::Curve> complexity_curves(bool causal) {
  return causal ? complexity_curves_of<width, true>() : complexity_curves_of<width, false>();
}

}  // namespace
