// expect: sin_cos_2d positions need a square number of tokens and an even width
#include <fit/fit.hpp>

#ifdef FIT_MUST_FAIL
constexpr int tokens = 7;
#else
constexpr int tokens = 9;
#endif
constexpr auto size = fit::nn::DataPositions<float, tokens, 8, fit::Positions::sin_cos_2d>::size;
