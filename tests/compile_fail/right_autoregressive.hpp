#pragma once

#include <fit/models/config.hpp>

/// What is right; the files around change one thing about it.
constexpr fit::AutoregressiveConfig right{.layers = "(2)1(1)",
                                          .groups = 6,
                                          .tokens = 9,
                                          .latents = 2,
                                          .data_dim = 24,
                                          .latent_dim = 32,
                                          .data_heads = 2,
                                          .latent_heads = 4,
                                          .vocabulary = 256};
