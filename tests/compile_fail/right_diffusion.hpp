#pragma once

#include <fit/models/config.hpp>

/// What is right; the files around change one thing about it.
constexpr fit::DiffusionConfig right{.layers = "(2)1(1)",
                                     .groups = 6,
                                     .tokens = 9,
                                     .channels = 3,
                                     .latents = 2,
                                     .data_dim = 24,
                                     .latent_dim = 32,
                                     .data_heads = 2,
                                     .latent_heads = 2,
                                     .output_channels = 3,
                                     .condition_channels = 5,
                                     .condition_tokens = 2};
