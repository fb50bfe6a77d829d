// expect: a diffusion decoder computes in float or double
#include <fit/models/diffusion_decoder.hpp>

#include "right_diffusion.hpp"

#ifdef FIT_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

const fit::DiffusionDecoder<right, Scalar> decoder;
