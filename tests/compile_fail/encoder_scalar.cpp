// expect: an encoder computes in float or double
#include <fit/models/encoder.hpp>

#include "right_encoder.hpp"

#ifdef FIT_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

const fit::Encoder<right, Scalar> encoder;
