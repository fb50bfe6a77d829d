// expect: an autoregressive decoder computes in float or double
#include "right_autoregressive.hpp"

#ifdef FIT_MUST_FAIL
using Scalar = int;
#else
using Scalar = double;
#endif

int main() {
  const fit::AutoregressiveDecoder<right, Scalar> decoder;
}
