// expect: fit: every dimension of a parameter must be positive
#include <fit/core/parameter.hpp>

fit::Parameter<float, 3, 1> right;
#ifdef FIT_MUST_FAIL
fit::Parameter<float, 3, 0> wrong;
#endif
