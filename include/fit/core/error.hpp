#pragma once

#include <charconv>
#include <initializer_list>
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

/// The shortest text that reads as the same number, whatever the locale.
template <class Real>
std::string shortest_text(Real value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

/// A part of a message: a text, which must outlive it, or a number. Of one type whatever it holds, so that messages are
/// put together in one place and not compiled for every call.
class MessagePart {
 public:
  template <class T>
  MessagePart(const T& value) {
    if constexpr (std::is_floating_point_v<T>) {
      kind_ = std::is_same_v<T, float> ? Kind::single : Kind::real;
      real_ = static_cast<double>(value);
    } else if constexpr (std::is_unsigned_v<T>) {
      kind_ = Kind::natural;
      natural_ = value;
    } else if constexpr (std::is_integral_v<T>) {
      kind_ = Kind::whole;
      whole_ = value;
    } else {
      text_ = std::string_view(value);
    }
  }

  void append_to(std::string& text) const {
    if (kind_ == Kind::text) text += text_;
    if (kind_ == Kind::whole) text += std::to_string(whole_);
    if (kind_ == Kind::natural) text += std::to_string(natural_);
    if (kind_ == Kind::single) text += shortest_text(static_cast<float>(real_));
    if (kind_ == Kind::real) text += shortest_text(real_);
  }

 private:
  enum class Kind { text, whole, natural, single, real } kind_ = Kind::text;
  std::string_view text_;
  long long whole_ = 0;
  unsigned long long natural_ = 0;
  double real_ = 0;
};

inline std::string join_parts(std::initializer_list<MessagePart> parts) {
  std::string text;
  for (const MessagePart& part : parts) part.append_to(text);
  return text;
}

[[noreturn, gnu::noinline, gnu::cold]] inline void fail(std::initializer_list<MessagePart> parts) {
  throw Error(join_parts(parts));
}

}  // namespace detail

/// The parts, strings and numbers, one after the other.
template <class... Parts>
std::string concatenate(const Parts&... parts) {
  return detail::join_parts({parts...});
}

/// Throws Error with the parts as its message unless the condition holds.
template <class... Parts>
constexpr void require(bool condition, const Parts&... parts) {
  if (!condition) detail::fail({parts...});
}

}  // namespace FIT_ABI
}  // namespace fit
