// expect: config.data_dim must be a multiple of config.data_heads
#include "right_diffusion.hpp"

constexpr fit::DiffusionConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.data_heads = 5;
#endif
  return changed;
}();

static_assert(fit::detail::check_diffusion<config>());
