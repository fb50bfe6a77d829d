// expect: fit: arithmetic must be what is written
#include <fit/core/abi.hpp>
