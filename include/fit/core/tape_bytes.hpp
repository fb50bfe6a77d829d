#pragma once

#include <cstddef>

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Bytes of a Tape by what they are for, each at its own worst moment.
struct TapeBytes {
  std::ptrdiff_t records = 0;  ///< for the way back
  std::ptrdiff_t scratch = 0;  ///< until a call ends
  std::ptrdiff_t outputs = 0;  ///< that a model hands out
  std::ptrdiff_t lanes = 0;    ///< of each thread's own, all together, until a kernel ends

  constexpr std::ptrdiff_t total() const { return records + scratch + outputs + lanes; }
};

}  // namespace FIT_ABI
}  // namespace fit
