#pragma once

#include <fit/version.hpp>

// The exponential rounds by adding and subtracting a large number, and checks of arguments ask for NaN and infinity:
// results would be wrong without a word. Clang tells of -ffast-math and -ffinite-math-only alone.
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || __FINITE_MATH_ONLY__ > 0
#error "fit: arithmetic must be what is written; compile without -ffast-math, -Ofast and the flags these stand for"
#endif

/// FIT_ABI names the inline namespace that every declaration of the library lives in. It spells the version, the
/// instruction set this translation unit is compiled for, and whether it checks assertions (assert.hpp) or counts its
/// work (work_count.hpp), so that units built with different flags may be linked into one program: each level below
/// keeps its own copy of every inline function, and handing a fit type across such a border fails to link. Units of one
/// level must be built for one processor, as their copies are taken for the same.

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512CD__)
#define FIT_ABI_LEVEL avx512
#elif defined(__AVX512F__)
#define FIT_ABI_LEVEL avx512f
#elif defined(__AVX2__)
#define FIT_ABI_LEVEL avx2
#elif defined(__AVX__)
#define FIT_ABI_LEVEL avx
#elif defined(__SSE4_1__)
#define FIT_ABI_LEVEL sse4
#elif defined(__SSE2__) || defined(_M_X64)
#define FIT_ABI_LEVEL sse2
#elif defined(__ARM_NEON)
#define FIT_ABI_LEVEL neon
#else
#define FIT_ABI_LEVEL generic
#endif

#if defined(__AVX512BF16__)
#define FIT_ABI_EXTENSION fma_bf16
#elif defined(__FMA__) || defined(__AVX512F__)
#define FIT_ABI_EXTENSION fma
#else
#define FIT_ABI_EXTENSION base
#endif

#if !defined(FIT_ASSERT_ENABLED)
#if defined(NDEBUG)
#define FIT_ASSERT_ENABLED 0
#else
#define FIT_ASSERT_ENABLED 1
#endif
#endif

#if !defined(FIT_COUNT_WORK)
#define FIT_COUNT_WORK 0
#endif

#if FIT_COUNT_WORK && FIT_ASSERT_ENABLED
#define FIT_ABI_ASSERT _count_assert
#elif FIT_COUNT_WORK
#define FIT_ABI_ASSERT _count
#elif FIT_ASSERT_ENABLED
#define FIT_ABI_ASSERT _assert
#else
#define FIT_ABI_ASSERT
#endif

#define FIT_ABI_PASTE(major, minor, level, extension, checks) v##major##_##minor##_##level##_##extension##checks
#define FIT_ABI_NAME(major, minor, level, extension, checks) FIT_ABI_PASTE(major, minor, level, extension, checks)
#define FIT_ABI FIT_ABI_NAME(FIT_VERSION_MAJOR, FIT_VERSION_MINOR, FIT_ABI_LEVEL, FIT_ABI_EXTENSION, FIT_ABI_ASSERT)

// GCC 12 warns of uninitialised values inside its own AVX-512 intrinsics (GCC bug 105593). Whoever reads their header
// first decides, so read it here with those two warnings off.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13 && defined(__AVX512F__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
