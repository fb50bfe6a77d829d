// expect: no logit depends on global blocks in the last stage of an autoregressive decoder
#include "right_autoregressive.hpp"

constexpr fit::AutoregressiveConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.layers = "(2)1(1)1";
#endif
  return changed;
}();

static_assert(fit::detail::check_autoregressive<config>());
