#pragma once

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace simd {

/// Bytes of a vector register under the flags of this translation unit; batch.hpp holds it against xsimd's.
#if defined(__AVX512F__)
inline constexpr Index register_bytes = 64;
#elif defined(__AVX__)
inline constexpr Index register_bytes = 32;
#elif defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS > 0
inline constexpr Index register_bytes = __ARM_FEATURE_SVE_BITS / 8;
#else
inline constexpr Index register_bytes = 16;
#endif

/// Elements in a register.
template <class T>
inline constexpr Index width = register_bytes / static_cast<Index>(sizeof(T));

/// Vector registers of the architecture.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int registers = 32;
#else
inline constexpr int registers = 16;
#endif

}  // namespace simd
}  // namespace FIT_ABI
}  // namespace fit
