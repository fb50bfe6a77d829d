// expect: a diffusion decoder computes in float or double
#include "right_diffusion.hpp"

#ifdef FIT_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

int main() { const fit::DiffusionDecoder<right, Scalar> decoder; }
