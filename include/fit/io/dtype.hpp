#pragma once

#include <fit/core/error.hpp>
#include <fit/core/memory.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace fit {
inline namespace FIT_ABI {

static_assert(std::endian::native == std::endian::little, "fit: its files need a little-endian machine");

/// The element types of the safetensors format, and of NumPy's but for BF16.
enum class DType { F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL, U16, U32, U64 };

/// "F32": the type's name in the format.
constexpr std::string_view name_of(DType dtype) {
  constexpr std::string_view names[] = {"F64", "F32", "F16",  "BF16", "I64", "I32", "I16",
                                        "I8",  "U8",  "BOOL", "U16",  "U32", "U64"};
  return names[static_cast<std::size_t>(dtype)];
}

/// Bytes of an element.
constexpr Index size_of(DType dtype) {
  constexpr std::array<Index, 13> sizes{8, 4, 2, 2, 8, 4, 2, 1, 1, 1, 2, 4, 8};
  return sizes[static_cast<std::size_t>(dtype)];
}

/// The element type that holds numbers of type T as they are.
template <class T>
constexpr DType dtype_of() {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "fit: a tensor holds floating point, whole numbers or bool");
  using enum DType;
  if (std::is_same_v<T, bool>) return BOOL;
  if (std::is_floating_point_v<T>) return sizeof(T) == 4 ? F32 : F64;
  constexpr DType of_size[2][4] = {{U8, U16, U32, U64}, {I8, I16, I32, I64}};
  return of_size[std::is_signed_v<T> ? 1 : 0][std::bit_width(sizeof(T)) - 1];
}

namespace detail {

/// A text from a file as a part of a message: quoted, cut to a length, nothing but printable ASCII.
inline std::string printable(std::string_view text, std::size_t longest = 100) {
  std::string result = "\"";
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    result += byte < 0x20 || byte > 0x7e ? '?' : c;
  }
  return result + (text.size() > longest ? "...\"" : "\"");
}

/// Elements of a shape. Throws Error when one is negative or when the bytes cannot be counted.
inline Index count_elements(std::span<const Index> shape, DType dtype, std::string_view name) {
  Index count = 1;
  for (const Index size : shape) {
    require(size >= 0, "tensor ", printable(name), ": a dimension is negative: ", size);
    require(size == 0 || count <= std::numeric_limits<Index>::max() / size_of(dtype) / size, "tensor ", printable(name),
            ": the shape has more elements than can be counted");
    count *= size;
  }
  return count;
}

/// The number that the bits of an IEEE 754 half stand for, subnormal, infinite and NaN ones included.
inline float from_half(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  // A subnormal half is a normal float; made by a product so that flush-to-zero modes cannot touch it.
  const float subnormal = static_cast<float>(static_cast<std::int32_t>(rest)) * 0x1p-24f;
  const std::uint32_t exponent_shift = rest >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const std::uint32_t normal = (rest << 13) + exponent_shift;
  return std::bit_cast<float>(sign | (rest < 0x400u ? std::bit_cast<std::uint32_t>(subnormal) : normal));
}

inline float from_bfloat(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

/// to[i] = convert(the i-th Stored at `from`), which need not be aligned.
template <class Stored, class T, class Convert>
void convert_elements(const std::byte* from, T* to, Index count, Convert convert) {
  for (Index i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, from + i * static_cast<Index>(sizeof(Stored)), sizeof(Stored));
    to[i] = static_cast<T>(convert(value));
  }
}

constexpr bool is_floating_point(DType dtype) {
  return dtype == DType::F64 || dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

/// Elements of floating point, rounded to T.
template <class T>
void convert(DType dtype, std::span<const std::byte> from, T* to) {
  const auto count = static_cast<Index>(from.size()) / size_of(dtype);
  const auto same = [](auto value) { return value; };
  if (dtype == dtype_of<T>()) {
    if (count > 0) std::memcpy(to, from.data(), from.size());
  } else if (dtype == DType::F64) {
    convert_elements<double>(from.data(), to, count, same);
  } else if (dtype == DType::F32) {
    convert_elements<float>(from.data(), to, count, same);
  } else {
    convert_elements<std::uint16_t>(from.data(), to, count, dtype == DType::F16 ? from_half : from_bfloat);
  }
}

/// Whether the bits of an element, without its sign, are between two numbers. Of floating point they have the order of
/// the magnitudes, and options of compilers that promise finite numbers do not touch them.
template <class Bits>
bool any_between(Bits low, Bits high, std::span<const std::byte> from) {
  Index found = 0;
  for (std::size_t i = 0; i < from.size(); i += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, from.data() + i, sizeof(Bits));
    bits &= static_cast<Bits>(std::numeric_limits<std::make_signed_t<Bits>>::max());
    found += bits >= low && bits <= high;
  }
  return found > 0;
}

/// Whether elements of floating point are all finite.
inline bool all_finite(DType dtype, std::span<const std::byte> from) {
  switch (dtype) {
    case DType::F64:
      return !any_between<std::uint64_t>(0x7ff0'0000'0000'0000, 0x7fff'ffff'ffff'ffff, from);
    case DType::F32:
      return !any_between<std::uint32_t>(0x7f80'0000, 0x7fff'ffff, from);
    case DType::F16:
      return !any_between<std::uint16_t>(0x7c00, 0x7fff, from);
    default:
      return !any_between<std::uint16_t>(0x7f80, 0x7fff, from);
  }
}

/// Whether finite elements would be infinite as a T.
template <class T>
bool any_overflows(DType dtype, std::span<const std::byte> from) {
  if (dtype != DType::F64 || std::is_same_v<T, double>) return false;
  constexpr double least = 0x1.ffffffp127;  // halfway from the largest float to what would be the next one
  return any_between(std::bit_cast<std::uint64_t>(least),
                     std::bit_cast<std::uint64_t>(std::numeric_limits<double>::max()), from);
}

/// Copies elements to `to`, which has room for `count`: floating point rounded to T, whole numbers and bool as they
/// are. Throws Error that begins with `what`, having written nothing, for another number of elements, for a dtype that
/// does not convert, for a finite number that would become infinite, and for a bool that is neither 0 nor 1.
template <class T>
void read_elements(const std::string& what, DType dtype, std::span<const std::byte> from, T* to, Index count) {
  const Index size = static_cast<Index>(from.size()) / size_of(dtype);
  require(size == count, what, " has ", size, " elements, not ", count);
  if constexpr (std::is_floating_point_v<T>) {
    require(is_floating_point(dtype), what, " is ", name_of(dtype),
            ", which does not convert to floating point (F64, F32, F16, BF16 do)");
    require(!any_overflows<T>(dtype, from), what, " holds a number that is too large for ", name_of(dtype_of<T>()));
    convert(dtype, from, to);
  } else {
    require(dtype == dtype_of<T>(), what, " is ", name_of(dtype), ", which does not convert to ",
            name_of(dtype_of<T>()));
    require(!std::is_same_v<T, bool> ||
                std::all_of(from.begin(), from.end(), [](std::byte byte) { return byte <= std::byte{1}; }),
            what, " holds a BOOL that is neither 0 nor 1");
    if (count > 0) std::memcpy(to, from.data(), from.size());
  }
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
