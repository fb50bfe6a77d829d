// expect: an autoregressive decoder computes in float or double
#include <fit/models/autoregressive_decoder.hpp>

#include "right_autoregressive.hpp"

#ifdef FIT_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

const fit::AutoregressiveDecoder<right, Scalar> decoder;
