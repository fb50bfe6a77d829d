#include <fit/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "support.hpp"
#include "support/list_ops.hpp"
#include "support/markers.hpp"
#include "support/pathfinder.hpp"

using fit::Index;

TEST_CASE("two markers in two groups, their sum and the place of the second", "[tasks]") {
  for (const Index length : {128, 1024}) {
    std::vector<std::uint8_t> symbols(static_cast<std::size_t>(length));
    std::vector<int> sums(3), other_places(static_cast<std::size_t>(length / 64));
    for (Index number = 0; number < 600; ++number) {
      const auto [sum, place] = examples::Markers{length}.write(fit::Random(1).fork(number), symbols.data());
      std::vector<Index> found;
      for (Index i = 0; i < length; ++i) {
        const int symbol = symbols[static_cast<std::size_t>(i)];
        if (symbol < 3) found.push_back(i);
      }
      REQUIRE(found.size() == 2);
      CHECK(found[0] / 64 != found[1] / 64);
      CHECK(place == found[1]);
      CHECK(sum == (symbols[static_cast<std::size_t>(found[0])] + symbols[static_cast<std::size_t>(found[1])]) % 3);
      ++sums[static_cast<std::size_t>(sum)];
      ++other_places[static_cast<std::size_t>(found[0] / 64)];
    }
    for (const int count : sums) CHECK(count > 150);
    CHECK(other_places.back() == 0);
    CHECK(other_places.front() > 600 / (length / 64));
  }
  std::uint8_t few[64];
  CHECK(test::contains(test::error_of([&] { examples::Markers{64}.write(fit::Random(1), few); }), "not 64"));
}

TEST_CASE("lists come to what their operators say", "[tasks]") {
  for (const Index length : {256, 2048}) {
    const examples::ListOps lists{length};
    std::vector<std::uint8_t> symbols(static_cast<std::size_t>(length));
    std::vector<int> values(10), operators(4);
    std::size_t deepest = 0;
    for (Index number = 0; number < 300; ++number) {
      const Index value = lists.write(fit::Random(2).fork(number), symbols.data());
      // Each open list: its operator, then its values.
      std::vector<std::vector<int>> open{{}};
      std::size_t count = 0;
      for (; count < symbols.size() && symbols[count] != 15; ++count) {
        const int symbol = symbols[count];
        if (symbol < 10) {
          open.back().push_back(symbol);
        } else if (symbol < 14) {
          ++operators[static_cast<std::size_t>(symbol - 10)];
          open.push_back({symbol});
        } else {
          REQUIRE(open.size() > 1);
          const int what = open.back()[0];
          std::vector<int> of(open.back().begin() + 1, open.back().end());
          open.pop_back();
          REQUIRE(of.size() >= 2);
          REQUIRE(of.size() <= 10);
          std::sort(of.begin(), of.end());
          int sum = 0;
          for (const int one : of) sum += one;
          const double median = (of[of.size() / 2] + of[(of.size() - 1) / 2]) / 2.0;
          const int result[] = {of[0], of.back(), static_cast<int>(median), sum % 10};
          open.back().push_back(result[what - 10]);
        }
        deepest = std::max(deepest, open.size() - 1);
      }
      CHECK(count > static_cast<std::size_t>(length * 500 / 2048));
      CHECK(count < static_cast<std::size_t>(length * 2000 / 2048));
      CHECK(std::all_of(symbols.begin() + static_cast<std::ptrdiff_t>(count), symbols.end(),
                        [](int symbol) { return symbol == 15; }));
      REQUIRE(open.size() == 1);
      REQUIRE(open[0].size() == 1);
      CHECK(open[0][0] == value);
      ++values[static_cast<std::size_t>(value)];
    }
    CHECK(deepest == 9);
    for (const int count : values) CHECK(count >= 8);
    for (const int count : operators) CHECK(count > 500);
  }
  std::vector<std::uint8_t> few(32, 15);
  std::copy_n(std::begin({11, 4, 13, 7, 8, 14, 14}), 7, few.begin());
  CHECK(examples::ListOps{32}.text(few.data()) == "[MAX 4 [SM 7 8 ] ]");
}

namespace {

/// Whether a pixel can be reached from another over some that are not darker than `least`, by steps whose square is at
/// most `reach`.
bool joined(const std::vector<float>& pixels, Index side, Index from, Index to, float least, Index reach) {
  const Index most = static_cast<Index>(std::sqrt(static_cast<double>(reach)));
  std::vector<bool> seen(pixels.size());
  std::deque<Index> waiting{from};
  seen[static_cast<std::size_t>(from)] = true;
  while (!waiting.empty()) {
    const Index at = waiting.front();
    waiting.pop_front();
    for (Index y = std::max<Index>(0, at / side - most); y <= std::min(side - 1, at / side + most); ++y) {
      for (Index x = std::max<Index>(0, at % side - most); x <= std::min(side - 1, at % side + most); ++x) {
        const Index next = y * side + x, down = y - at / side, right = x - at % side;
        if (down * down + right * right > reach) continue;
        if (seen[static_cast<std::size_t>(next)] || pixels[static_cast<std::size_t>(next)] < least) continue;
        seen[static_cast<std::size_t>(next)] = true;
        waiting.push_back(next);
      }
    }
  }
  return seen[static_cast<std::size_t>(to)];
}

}  // namespace

TEST_CASE("dots are joined where the answer says so, and their distance does not tell", "[tasks]") {
  for (const auto& drawing : {examples::Pathfinder(), examples::Pathfinder::large()}) {
    const Index side = drawing.side, count = 300;
    std::vector<float> pixels(static_cast<std::size_t>(side * side));
    std::vector<std::pair<double, Index>> distances;
    Index yes = 0;
    for (Index number = 0; number < count; ++number) {
      const Index answer = drawing.write(fit::Random(3).fork(number), pixels.data());
      yes += answer;
      // Only dots are brighter than dashes: the first such pixel and the one farthest from it.
      std::vector<Index> bright;
      bool inside = true;
      for (Index i = 0; i < side * side; ++i) {
        const float pixel = pixels[static_cast<std::size_t>(i)];
        inside = inside && pixel >= 0 && pixel <= 1;
        if (pixel > 0.95f) bright.push_back(i);
      }
      CHECK(inside);
      REQUIRE(bright.size() >= 2);
      Index far = bright[0];
      const auto apart = [&](Index i) {
        return std::hypot(double(i / side - bright[0] / side), double(i % side - bright[0] % side));
      };
      for (const Index i : bright) far = apart(i) > apart(far) ? i : far;
      // By bright pixels side by side only one path joins them; by any, one path always does.
      INFO(side << ": " << number);
      if (answer == 1) CHECK(joined(pixels, side, bright[0], far, 0.1f, side > 32 ? 5 : 2));
      if (answer == 0) CHECK(!joined(pixels, side, bright[0], far, 0.2f, side > 32 ? 4 : 1));
      distances.emplace_back(apart(far), answer);
    }
    INFO(side << ": " << yes << " yes");
    CHECK(std::abs(yes - count / 2) < 40);
    // The best guess by a threshold on the distance.
    std::sort(distances.begin(), distances.end());
    Index best = 0, below = 0;
    for (const auto& [distance, answer] : distances) {
      below += answer == 1 ? 1 : -1;
      best = std::max(best, std::abs(below));
    }
    INFO(best);
    CHECK(best < 30 + std::abs(2 * yes - count));
  }
}
