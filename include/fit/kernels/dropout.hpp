#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include <fit/core/memory.hpp>
#include <fit/core/random.hpp>

namespace fit::inline FIT_ABI::kernels {

/// Drop-out as a function of a key and an element's number: kept elements are scaled by 1 / keep, and the way back
/// draws the same ones again. Srivastava et al., JMLR 15 (2014).
struct Dropout {
  std::uint64_t key = 0;
  float rate = 0;

  explicit operator bool() const { return rate > 0; }

  /// values[i] *= the factor of element first + i.
  template <class T>
  void apply(T* values, Index count, std::uint64_t first) const {
    // 24 bits of an integer hash per element, in 32-bit arithmetic so that the loop becomes vector code.
    const auto low = static_cast<std::uint32_t>(random_bits(key, first >> 32));
    const auto threshold = static_cast<std::uint32_t>(rate * 0x1p24f);
    const T scale = T(1) / (T(1) - T(rate));
    const auto start = static_cast<std::uint32_t>(first);
    for (Index i = 0; i < count; ++i) {
      std::uint32_t h = (start + static_cast<std::uint32_t>(i)) * 0x9e3779b9u + low;
      h = (h ^ (h >> 16)) * 0x21f0aaadu;
      h = (h ^ (h >> 15)) * 0x735a2d97u;
      h ^= h >> 15;
      values[i] *= (h >> 8) < threshold ? T(0) : scale;
    }
  }
};

}  // namespace fit::inline FIT_ABI::kernels
