#pragma once

#include <fit/core/error.hpp>
#include <fit/core/random.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace examples {

using fit::Index;

/// Random symbols with a marker in two groups of them; a marker holds 0, 1 or 2. Asked of the token of the second one:
/// the sum, modulo 3. Who does not see both can but guess.
struct Markers {
  static constexpr int kinds = 16, classes = 3, group = 64;
  Index length = 1024;

  /// Symbols below `kinds`; returns the sum and the place of the second marker. Throws Error for less than two groups.
  std::pair<Index, Index> write(fit::Random random, std::uint8_t* symbols) const {
    fit::require(length >= 2 * group && length % group == 0, "markers need a length of several times ", group, ", not ",
                 length);
    for (Index i = 0; i < length; ++i) symbols[i] = static_cast<std::uint8_t>(classes + random.below(kinds - classes));
    const Index groups = length / group, one = random.below(groups);
    const Index other = (one + 1 + random.below(groups - 1)) % groups;
    Index sum = 0, last = 0;
    for (const Index at : {one, other}) {
      const Index place = at * group + random.below(group), value = random.below(classes);
      symbols[place] = static_cast<std::uint8_t>(value);
      last = std::max(last, place);
      sum += value;
    }
    return {sum % classes, last};
  }
};

}  // namespace examples
