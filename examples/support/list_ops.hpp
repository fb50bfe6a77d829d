#pragma once

#include <fit/core/memory.hpp>
#include <fit/core/random.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace examples {

using fit::Index;

/// Nested lists of digits, each with an operator, and the digit that they come to: Nangia and Bowman, arXiv 1804.06028,
/// as in the Long Range Arena (Tay et al., arXiv 2011.04006): more than 500 and less than 2,000 symbols, digits ten
/// deep at most, two to ten arguments.
struct ListOps {
  static constexpr int kinds = 16, classes = 10, group = 64;
  Index length = 2048;  ///< of which lists take a quarter to all, in the proportions above
  /// The symbols: digits, four operators, which open a list, its end, and what fills the rest.
  static constexpr const char* names[kinds] = {"0", "1", "2",    "3",    "4",    "5",   "6", "7",
                                               "8", "9", "[MIN", "[MAX", "[MED", "[SM", "]", "-"};

  /// Symbols [length]; returns what the list comes to.
  Index write(fit::Random random, std::uint8_t* symbols) const {
    const auto most = static_cast<std::size_t>(length * 2000 / 2048);
    std::vector<std::uint8_t> list;
    Index value = 0;
    do {
      list.clear();
      value = append(list, 1, most, random);
    } while (list.size() <= most / 4 || list.size() >= most);
    std::fill(std::copy(list.begin(), list.end(), symbols), symbols + length, fill);
    return value;
  }

  std::string text(const std::uint8_t* symbols) const {
    std::string line;
    for (Index i = 0; i < length && symbols[i] != fill; ++i) line += std::string(i > 0 ? " " : "") + names[symbols[i]];
    return line;
  }

 private:
  static constexpr std::uint8_t operators = 10, end = 14, fill = 15;

  /// Appends a digit or a list, and returns its value. One too long is left unfinished.
  static Index append(std::vector<std::uint8_t>& list, int depth, std::size_t most, fit::Random& random) {
    if (depth >= 10 || random.uniform() > 0.25 || list.size() > most) {
      const Index digit = random.below(10);
      list.push_back(static_cast<std::uint8_t>(digit));
      return digit;
    }
    const Index operation = random.below(4);
    list.push_back(static_cast<std::uint8_t>(operators + operation));
    std::vector<Index> values(static_cast<std::size_t>(2 + random.below(9)));
    for (Index& value : values) value = append(list, depth + 1, most, random);
    list.push_back(end);
    std::sort(values.begin(), values.end());
    const std::size_t middle = values.size() / 2;
    switch (operation) {
      case 0:
        return values.front();
      case 1:
        return values.back();
      case 2:
        return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
      default:
        break;
    }
    Index sum = 0;
    for (const Index value : values) sum += value;
    return sum % 10;
  }
};

}  // namespace examples
