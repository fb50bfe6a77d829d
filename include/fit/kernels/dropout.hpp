#pragma once

#include <cstdint>

#include <fit/core/assert.hpp>
#include <fit/core/memory.hpp>
#include <fit/core/random.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// Drop-out as a function of a key and an element's number: kept elements are scaled by 1 / keep, and are the same
/// ones whenever they are asked for again. Srivastava et al., JMLR 15 (2014).
struct Dropout {
  std::uint64_t key = 0;
  float rate = 0;
  std::uint64_t offset = 0;  ///< added to the elements' numbers: where what a kernel sees begins in the whole

  explicit operator bool() const { return rate > 0; }

  /// values[i] *= the factor of element first + i. Cutting a row in pieces makes no difference.
  template <class T>
  void apply(T* values, Index count, std::uint64_t first) const {
    FIT_ASSERT(rate >= 0 && rate < 1);
    FIT_ASSERT(count == 0 || (count > 0 && values));
    first += offset;
    while (count > 0) {
      const std::uint64_t left = (std::uint64_t{1} << 32) - (first & 0xffffffffu);
      const Index part = left < static_cast<std::uint64_t>(count) ? static_cast<Index>(left) : count;
      apply_within(values, part, first);
      values += part;
      count -= part;
      first += static_cast<std::uint64_t>(part);
    }
  }

 private:
  // An integer hash of 32 bits per element, so that the loop becomes vector code; the upper bits of the number only
  // choose the hash.
  template <class T>
  void apply_within(T* values, Index count, std::uint64_t first) const {
    const auto salt = static_cast<std::uint32_t>(random_bits(key, first >> 32));
    const auto threshold = static_cast<std::uint32_t>(rate * 0x1p24f);
    const T scale = T(1) / (T(1) - T(rate));
    const auto start = static_cast<std::uint32_t>(first);
    for (Index i = 0; i < count; ++i) {
      std::uint32_t h = (start + static_cast<std::uint32_t>(i)) * 0x9e3779b9u + salt;
      h = (h ^ (h >> 16)) * 0x21f0aaadu;
      h = (h ^ (h >> 15)) * 0x735a2d97u;
      h ^= h >> 15;
      values[i] *= (h >> 8) < threshold ? T(0) : scale;
    }
  }
};

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
