#pragma once

#include <bit>
#include <cstdint>

#include <fit/core/error.hpp>
#include <fit/core/random.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The order in which a run sees examples: without end, each `count` places a permutation of all, another one every
/// time. A place's example follows from its number alone, so a run that is resumed goes on with the same ones, and any
/// number of threads may ask. The permutations are Feistel networks over a counter (Luby and Rackoff, 1988), walked
/// until they come to an example.
class Epochs {
 public:
  /// Throws Error without examples.
  Epochs(Index count, Random random) : count_(count), random_(random) {
    require(count > 0, "there are no examples to train on");
    half_bits_ = (static_cast<int>(std::bit_width(static_cast<std::uint64_t>(count - 1))) + 1) / 2;
  }

  Index count() const { return count_; }

  /// The example at a place, 0, 1, 2, and so on. Throws Error for a negative one.
  Index operator()(Index place) const {
    require(place >= 0, "the places of an order begin with 0, not ", place);
    const Random of_epoch = random_.fork(place / count_);
    auto x = static_cast<std::uint64_t>(place % count_);
    do {
      x = permuted(x, of_epoch.key());
    } while (x >= static_cast<std::uint64_t>(count_));
    return static_cast<Index>(x);
  }

 private:
  std::uint64_t permuted(std::uint64_t x, std::uint64_t key) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = x >> half_bits_, right = x & mask;
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::uint64_t mixed = left ^ (random_bits(key + round, right) & mask);
      left = right;
      right = mixed;
    }
    return left << half_bits_ | right;
  }

  Index count_;
  Random random_;
  int half_bits_;
};

}  // namespace FIT_ABI
}  // namespace fit
