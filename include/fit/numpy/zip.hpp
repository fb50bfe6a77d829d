#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include <zlib.h>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// Numbers of a zip file (APPNOTE 6.3), which are little-endian and not aligned.
template <class T>
T zip_number(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
void append_number(std::string& to, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  to.append(bytes, sizeof(T));
}

inline constexpr std::uint32_t zip_large32 = 0xffffffff;  ///< "see the 64-bit field"
inline constexpr std::uint16_t zip_large16 = 0xffff;

struct ZipEntry {
  std::uint16_t method = 0;  ///< 0 as it is, 8 deflated
  std::uint32_t crc = 0;
  Index stored = 0, size = 0, offset = 0;
};

/// The checksum of bytes that follow those that gave `crc`, 0 at first. zlib takes no more than 4 GB at a time.
inline std::uint32_t zip_crc(std::uint32_t crc, const void* from, Index bytes) {
  constexpr Index most = Index{1} << 30;
  const auto* const data = static_cast<const unsigned char*>(from);
  for (Index i = 0; i < bytes; i += most) {
    crc = static_cast<std::uint32_t>(::crc32(crc, data + i, static_cast<uInt>(std::min(most, bytes - i))));
  }
  return crc;
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
