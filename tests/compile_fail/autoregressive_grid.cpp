// expect: a sequence has no rows and columns
#include "right_autoregressive.hpp"

constexpr fit::AutoregressiveConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.latent_positions = fit::Positions::sin_cos_grid;
#endif
  return changed;
}();

static_assert(fit::detail::check_autoregressive<config>());
