// expect: config.vocabulary must be positive
#include <fit/models/autoregressive_decoder.hpp>

#include "right_autoregressive.hpp"

constexpr fit::AutoregressiveConfig config = [] {
  auto changed = right;
#ifdef FIT_MUST_FAIL
  changed.vocabulary = 0;
#endif
  return changed;
}();

const fit::AutoregressiveDecoder<config> decoder;
