// expect: the width of read and write
#include "right_encoder.hpp"

constexpr fit::EncoderConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.data_dim = 9;
  changed.data_heads = 3;
  changed.latent_heads = 2;
#endif
  return changed;
}();

static_assert(fit::detail::check_encoder<config>());
