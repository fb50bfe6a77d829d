#pragma once

#include <optional>
#include <vector>

#include <fit/models/config.hpp>
#include <fit/nn/block.hpp>
#include <fit/nn/cross.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// The layers of one stage of the trunk; which of them are there, its StagePlan says.
template <class T, TrunkConfig c>
struct Stage {
  using Scalar = T;
  static constexpr nn::CrossOptions cross{c.cross_context_norm, c.cross_mlp ? c.mlp_ratio : 0};
  static constexpr nn::CrossOptions conditioning{c.cross_context_norm, 0};
  using Local = nn::Block<T, c.data_dim, c.local_attention ? c.data_heads : 0, c.mlp_ratio,
                          c.local_attention ? c.data_key_heads : 0>;
  using Condition = nn::Cross<T, c.latent_dim, c.latent_dim, c.latent_dim, c.latent_heads, conditioning>;

  std::vector<Local> local;
  std::optional<nn::Cross<T, c.latent_dim, c.data_dim, c.cross_dim(), c.cross_heads(), cross>> read;
  If<c.conditioned, std::optional<Condition>> condition;
  std::vector<nn::Block<T, c.latent_dim, c.latent_heads, c.mlp_ratio, c.latent_key_heads>> global;
  std::optional<nn::Cross<T, c.data_dim, c.latent_dim, c.cross_dim(), c.cross_heads(), cross>> write;

  static void visit(auto&& f, auto&... p) {
    f("local", p.local...);
    f("read", p.read...);
    f("condition", p.condition...);
    f("global", p.global...);
    f("write", p.write...);
  }
};

/// What the latents of an example attend to besides the data: tokens [batch, count, latent_dim], or none, and where to
/// add their gradient on the way back.
template <class T>
struct Conditioning {
  const T* tokens = nullptr;
  Index count = 0;
  T* gradient = nullptr;
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
