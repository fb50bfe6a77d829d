#pragma once

#include <cstdio>
#include <cstdlib>

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

[[noreturn]] inline void assertion_failed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: fit: assertion failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit

/// What kernels take for granted of their arguments: where it does not hold, says so and ends the program, as assert().
/// Checked where NDEBUG is not defined, or as FIT_ASSERT_ENABLED says, 0 or 1; the same in all of a translation unit.
#if FIT_ASSERT_ENABLED
#define FIT_ASSERT(...) ((__VA_ARGS__) ? void() : ::fit::detail::assertion_failed(__FILE__, __LINE__, #__VA_ARGS__))
#else
#define FIT_ASSERT(...) static_cast<void>(sizeof((__VA_ARGS__) ? 1 : 0))
#endif
