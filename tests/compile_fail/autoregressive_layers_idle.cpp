// expect: every stage of the layer string but the last needs global blocks
#include "right_autoregressive.hpp"

constexpr fit::AutoregressiveConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.layers = "(2)0(1)";
#endif
  return changed;
}();

static_assert(fit::detail::check_autoregressive<config>());
