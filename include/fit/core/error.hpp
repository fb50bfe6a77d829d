#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Wrong input at run time: says what was expected and what came. What throws it has changed
/// nothing, unless it says so.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {

template <class Part>
void append(std::string& text, const Part& part) {
  if constexpr (std::is_arithmetic_v<Part>) {
    text += std::to_string(part);
  } else {
    text += std::string_view(part);
  }
}

}  // namespace detail

/// The parts, strings and numbers, one after the other.
template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::string text;
  (detail::append(text, parts), ...);
  return text;
}

namespace detail {

// Out of line, as it is called from many places that are compiled for it.
template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
  throw Error(concatenate(parts...));
}

}  // namespace detail

/// Throws Error with the parts as its message unless the condition holds.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) detail::fail(parts...);
}

}  // namespace FIT_ABI
}  // namespace fit
