// expect: an encoder computes in float or double
#include "right_encoder.hpp"

#ifdef FIT_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

int main() {
  const fit::Encoder<right, Scalar> encoder;
}
