#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// 64 random bits as a function of a key and a counter: the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
/// splittable pseudorandom number generators", OOPSLA 2014), at any place of its sequence.
constexpr std::uint64_t random_bits(std::uint64_t key, std::uint64_t counter) {
  std::uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// A counter-based generator: its whole state is two numbers, and a draw depends on nothing else.
class Random {
 public:
  explicit constexpr Random(std::uint64_t seed) : key_(random_bits(seed, 0)) {}
  /// The generator that key() and counter() describe.
  constexpr Random(std::uint64_t key, std::uint64_t counter) : key_(key), counter_(counter) {}

  constexpr std::uint64_t key() const { return key_; }
  constexpr std::uint64_t counter() const { return counter_; }

  constexpr std::uint64_t bits() { return random_bits(key_, counter_++); }

  /// Uniform in [0, 1).
  constexpr double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  /// Uniform in 0 .. bound-1; bound must be positive.
  constexpr Index below(Index bound) {
    return std::min(bound - 1, static_cast<Index>(uniform() * static_cast<double>(bound)));
  }

  /// Normal with mean 0 and deviation 1 (Box and Muller, 1958; one of the pair).
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

  /// Goes past so many normal numbers without making them.
  constexpr void skip_normal(Index count) { counter_ += 2 * static_cast<std::uint64_t>(count); }

  /// The generator that belongs to a number, or to several: of an example, a step, a position. Takes no draw, so the
  /// same numbers give the same generator, in any order and on any thread. fork(n) is what split() gives after n more
  /// draws: of one generator, use the one or the other.
  template <class... Numbers>
  constexpr Random fork(Index number, Numbers... more) const {
    std::uint64_t seed = random_bits(key_, counter_ + static_cast<std::uint64_t>(number));
    ((seed = random_bits(seed, static_cast<std::uint64_t>(more))), ...);
    return Random(seed);
  }

  /// An independent generator; takes one draw from this one.
  constexpr Random split() { return Random(bits()); }

 private:
  std::uint64_t key_;
  std::uint64_t counter_ = 0;
};

}  // namespace FIT_ABI
}  // namespace fit
