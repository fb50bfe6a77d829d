#include <fit/core/error.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <deque>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "support.hpp"
#include "support/fashion.hpp"
#include "support/list_ops.hpp"
#include "support/markers.hpp"
#include "support/pathfinder.hpp"
#include "support/reach_tasks.hpp"
#include "support/token_reader.hpp"

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
  const examples::Pathfinder small, large = examples::Pathfinder::large();
  for (const auto& drawing : {small, small.at(24), small.at(16), large, large.at(112), large.at(96), large.at(80),
                              large.at(64), large.at(48), large.at(32)}) {
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
      if (answer == 1) CHECK(joined(pixels, side, bright[0], far, 0.1f, drawing.dash > 3 ? 5 : 2));
      if (answer == 0) CHECK(!joined(pixels, side, bright[0], far, 0.2f, drawing.dash > 3 ? 4 : 1));
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

TEST_CASE("a batch of a task says which tokens to read, and hides one of every four where it is to be found",
          "[tasks]") {
  using examples::Task, examples::TaskSource;
  for (const auto& [task, length, group] : {std::tuple{Task::markers, Index{256}, Index{64}},
                                            {Task::markers, 256, 256},
                                            {Task::lists, 256, 64},
                                            {Task::paths, 64, 16},
                                            {Task::paths, 256, 16},
                                            {Task::large_paths, 1024, 16}}) {
    const TaskSource plain(task, length, fit::Random(4)), denoising(task, length, fit::Random(4), true);
    auto batch = plain.batch(3, group), hidden = denoising.batch(3, group);
    plain.fill(5, batch);
    denoising.fill(5, hidden);
    const Index channels = batch.input.dimension(3);
    CHECK(batch.input.dimension(1) == length / group);
    REQUIRE(batch.read.size() == 3);
    for (Index i = 0; i < 3; ++i) {
      const auto [first, count] = batch.read[static_cast<std::size_t>(i)];
      INFO(static_cast<int>(task) << ", example " << i << ": " << first << " + " << count);
      if (task != Task::markers) {
        CHECK(first == i * length);
        CHECK(count == length);
        continue;
      }
      std::vector<std::uint8_t> symbols(static_cast<std::size_t>(length));
      const auto [sum, place] = examples::Markers{length}.write(fit::Random(4).fork(5 + i), symbols.data());
      CHECK(batch.answers(i) == sum);
      CHECK(first == i * length + place);
      CHECK(count == 1);
      CHECK(batch.input.data()[first * channels + symbols[static_cast<std::size_t>(place)]] == 1);
    }
    // What is hidden is what the plain batch has there; all else is the same.
    REQUIRE(static_cast<Index>(hidden.read.size()) == 3 * length / 4);
    Index at = 0, same = 0, places[4] = {};
    for (Index token = 0; token < 3 * length; ++token) {
      const float *is = batch.input.data() + token * channels, *shown = hidden.input.data() + token * channels;
      const auto place = static_cast<std::size_t>(at);
      if (place >= hidden.read.size() || hidden.read[place].first != token) {
        same += std::equal(is, is + channels, shown);
        continue;
      }
      CHECK(at == token / 4);
      ++places[token % 4];
      CHECK(std::all_of(shown, shown + channels, [](float value) { return value == -1; }));
      if (plain.picture()) {
        CHECK(std::equal(is, is + channels, hidden.hidden.data() + at * channels));
      } else {
        CHECK(is[hidden.answers(at)] == 1);
      }
      ++at;
    }
    CHECK(same == 3 * length * 3 / 4);
    for (const Index count : places) CHECK(count > length / 8);
  }
}

TEST_CASE("a token reader reads the mean of its tokens, and its gradient is right", "[tasks]") {
  using Reader = examples::TokenReader<fit::EncoderConfig{.layers = "(1)1(1)",
                                                          .groups = 2,
                                                          .tokens = 3,
                                                          .channels = 2,
                                                          .latents = 2,
                                                          .data_dim = 8,
                                                          .latent_dim = 8,
                                                          .data_heads = 2,
                                                          .latent_heads = 2},
                                       4>;
  Reader reader(fit::Random(1)), gradient;
  fit::Tensor<float, 4> input(2, 2, 3, 2);
  const auto noise = test::normal_values<float>(24, 2);
  std::copy(noise.begin(), noise.end(), input.data());
  const std::vector<examples::TokenRun> read{{1, 1}, {2, 4}, {6, 6}};
  const auto factors = test::normal_values<float>(12, 3);
  fit::Tape tape;
  const auto value = [&] {
    tape.clear();
    const auto logits = reader.forward(input, read, {}, tape);
    double sum = 0;
    for (std::size_t i = 0; i < factors.size(); ++i) sum += static_cast<double>(factors[i]) * logits.data()[i];
    return sum;
  };
  const auto data = reader.encoder(input).data;
  tape.clear();
  const auto logits = reader.forward(input, read, {}, tape);
  for (std::size_t run = 0; run < read.size(); ++run) {
    for (Index answer = 0; answer < 4; ++answer) {
      double expected = reader.head.bias.data()[answer];
      for (Index token = read[run].first; token < read[run].first + read[run].count; ++token) {
        for (Index j = 0; j < 8; ++j) {
          expected += static_cast<double>(reader.head.weight.data()[answer * 8 + j]) * data.data()[token * 8 + j] /
                      static_cast<double>(read[run].count);
        }
      }
      CHECK(std::abs(logits(static_cast<Index>(run), answer) - expected) < 1e-5);
    }
  }
  tape.record();
  reader.forward(input, read, {}, tape);
  fit::Tensor<float, 2> slopes(3, 4);
  std::copy(factors.begin(), factors.end(), slopes.data());
  reader.backward(slopes, gradient, tape);
  // Along the gradient the value grows by its square.
  double square = 0;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto slope) {
        for (Index i = 0; i < slope.size; ++i) square += static_cast<double>(slope.data[i]) * slope.data[i];
      },
      gradient);
  const double step = 1e-3 / std::sqrt(square);
  const auto moved = [&](double by) {
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto parameter, auto slope) {
          for (Index i = 0; i < parameter.size; ++i) parameter.data[i] += static_cast<float>(by) * slope.data[i];
        },
        reader, gradient);
    return value();
  };
  const double up = moved(step), down = moved(-2 * step);
  CHECK(std::abs((up - down) / (2 * step) - square) < 0.01 * square);
}

TEST_CASE("a classifier's token is a window of pixels and of their slopes", "[tasks]") {
  constexpr Index side = examples::fashion_side, pixels = side * side, window = examples::window_side;
  examples::LabelledImages set;
  set.images.count = 1;
  set.images.rows = set.images.columns = side;
  for (Index i = 0; i < pixels; ++i) set.images.pixels.push_back(static_cast<std::uint8_t>(i * i % 251));
  set.labels.push_back(3);
  const auto order = [](Index) { return Index{0}; };
  const auto value = [&](Index y, Index x) {
    const bool inside = y >= 0 && y < side && x >= 0 && x < side;
    return (inside ? static_cast<double>(set.images[0][y * side + x]) / 255 - 0.286 : -0.286) / 0.353;
  };
  const auto check = [&](const fit::Tensor<float, 4>& groups, bool mirror, Index down, Index right) {
    const auto seen = [&](Index y, Index x) {  // what is moved out of the image is lost
      if (y < 0 || y >= side || x < 0 || x >= side) return value(-1, -1);
      return value(y - down, mirror ? side - 1 - (x - right) : x - right);
    };
    const auto rise = [&](Index y, Index x, Index step_y, Index step_x) {
      return std::sqrt(std::max(0.0, seen(y + step_y, x + step_x) - seen(y - step_y, x - step_x)));
    };
    double worst = 0;
    for (Index group = 0; group < groups.dimension(1); ++group) {
      for (Index token = 0; token < groups.dimension(2); ++token) {
        for (Index i = 0; i < window * window; ++i) {
          const Index y = 4 * group - 2 + i / window, x = 4 * token - 2 + i % window;
          const std::array expected{seen(y, x), rise(y, x, 0, 1), rise(y, x, 0, -1), rise(y, x, 1, 0),
                                    rise(y, x, -1, 0)};
          for (std::size_t channel = 0; channel < expected.size(); ++channel) {
            const double found = groups(0, group, token, static_cast<Index>(channel) * window * window + i);
            worst = std::max(worst, std::abs(found - expected[channel]));
          }
        }
      }
    }
    return worst < 2e-3;  // roots of what is nearly zero
  };
  examples::ClassifierBatches plain(set, 1);
  plain.load(order, 0, nullptr);
  CHECK(plain.labels()(0) == 3);
  CHECK(check(plain.groups(), false, 0, 0));

  // Every change that may be is made, and none that may not.
  examples::ClassifierBatches changed(set, 1, {.shift = 1});
  const fit::Random random(1);
  std::vector<int> found(18);
  for (Index i = 0; i < 300; ++i) {
    changed.load(order, i, &random);
    int matches = 0;
    for (int change = 0; change < 18; ++change) {
      const bool holds = check(changed.groups(), change >= 9, change / 3 % 3 - 1, change % 3 - 1);
      matches += holds;
      found[static_cast<std::size_t>(change)] += holds;
    }
    REQUIRE(matches == 1);
  }
  CHECK(std::count(found.begin(), found.end(), 0) == 0);

  // A rectangle becomes gray, 4 to 12 pixels either way, and nothing else.
  set.images.pixels.assign(pixels, 0);
  examples::ClassifierBatches erased(set, 1, {.erase = 1});
  int seen = 0;
  for (Index i = 0; i < 50; ++i) {
    erased.load(order, i, &random);
    Index top = side, left = side, bottom = -1, right = -1, count = 0;
    float lowest = 1000, highest = -1000;
    for (Index y = 0; y < side; ++y) {
      for (Index x = 0; x < side; ++x) {
        const float pixel = erased.groups()(0, y / 4, x / 4, (y % 4 + 2) * window + x % 4 + 2);
        if (std::abs(pixel - value(0, 0)) < 1e-3) continue;
        ++count;
        top = std::min(top, y);
        left = std::min(left, x);
        bottom = std::max(bottom, y);
        right = std::max(right, x);
        lowest = std::min(lowest, pixel);
        highest = std::max(highest, pixel);
      }
    }
    if (count == 0) continue;  // of the gray it had
    ++seen;
    const Index height = bottom - top + 1, width = right - left + 1;
    CHECK((height >= 4 && height <= 12 && width >= 4 && width <= 12));
    CHECK(count == height * width);
    CHECK(lowest == highest);
  }
  CHECK(seen > 40);
}
