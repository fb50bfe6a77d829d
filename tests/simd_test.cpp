#include <fit/simd/batch.hpp>
#include <fit/simd/math.hpp>
#include <fit/simd/transpose.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <limits>
#include <numbers>

namespace {

using fit::Index;
namespace simd = fit::simd;

template <class T>
constexpr T infinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T nan = std::numeric_limits<T>::quiet_NaN();

/// f on every element, a register at a time.
template <class T, class F>
std::vector<T> map(const std::vector<T>& x, F f) {
  std::vector<T> result(x.size());
  const auto count = static_cast<Index>(x.size());
  for (Index i = 0; i < count; i += simd::width<T>) {
    simd::store_part(result.data() + i, f(simd::load_part(x.data() + i, count - i)),
                     std::min(simd::width<T>, count - i));
  }
  return result;
}

template <class T>
std::vector<T> range(double from, double to, Index count) {
  std::vector<T> values;
  for (Index i = 0; i < count; ++i) {
    values.push_back(static_cast<T>(from + (to - from) * static_cast<double>(i) / static_cast<double>(count - 1)));
  }
  return values;
}

template <class T>
void check_parts() {
  constexpr Index w = simd::width<T>;
  CHECK(w >= 1);
  CHECK((w & (w - 1)) == 0);
  for (Index offset = 0; offset < 3; ++offset) {
    for (Index count = 0; count <= w; ++count) {
      INFO(offset << " " << count);
      // Exactly as many elements as may be read, so that an address sanitiser sees one too many.
      std::vector<T> from(static_cast<std::size_t>(offset + count));
      for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(i + 1);
      std::vector<T> loaded(static_cast<std::size_t>(w), T(-1));
      simd::store(loaded.data(), simd::load_part(from.data() + offset, count));
      for (Index i = 0; i < w; ++i) {
        CHECK(loaded[static_cast<std::size_t>(i)] == (i < count ? static_cast<T>(offset + i + 1) : T(0)));
      }
      std::vector<T> to(static_cast<std::size_t>(w + 4), T(-1));
      for (Index i = 0; i < w; ++i) loaded[static_cast<std::size_t>(i)] = static_cast<T>(i + 1);
      simd::store_part(to.data() + offset, simd::load(loaded.data()), count);
      for (Index i = 0; i < w + 4; ++i) {
        const bool written = i >= offset && i < offset + count;
        CHECK(to[static_cast<std::size_t>(i)] == (written ? static_cast<T>(i - offset + 1) : T(-1)));
      }
    }
  }
}

template <class T>
void check_reductions() {
  constexpr auto w = static_cast<std::size_t>(simd::width<T>);
  std::vector<T> values(w);
  T total = 0;
  for (std::size_t i = 0; i < w; ++i) total += values[i] = static_cast<T>(3 * i) - T(5);
  CHECK(simd::sum(simd::load(values.data())) == total);  // small whole numbers: exact
  const std::vector<T> random = test::normal_values<T>(static_cast<Index>(w), 3);
  double exact = 0, magnitude = 0;
  for (const T value : random) {
    exact += static_cast<double>(value);
    magnitude += std::abs(static_cast<double>(value));
  }
  CHECK(std::abs(static_cast<double>(simd::sum(simd::load(random.data()))) - exact) <=
        static_cast<double>(std::numeric_limits<T>::epsilon()) * magnitude * static_cast<double>(w));
  std::vector<T> larger(w);
  simd::store(larger.data(), simd::max(simd::load(values.data()), simd::load(random.data())));
  for (std::size_t i = 0; i < w; ++i) CHECK(larger[i] == std::max(values[i], random[i]));
  for (std::size_t at = 0; at < w; ++at) {
    std::vector<T> x(w, T(-7));
    x[at] = T(-2);
    CHECK(simd::maximum(simd::load(x.data())) == T(-2));
    x[at] = infinity<T>;
    CHECK(simd::maximum(simd::load(x.data())) == infinity<T>);
    x.assign(w, -infinity<T>);
    CHECK(simd::maximum(simd::load(x.data())) == -infinity<T>);
    x[at] = std::numeric_limits<T>::lowest();
    CHECK(simd::maximum(simd::load(x.data())) == std::numeric_limits<T>::lowest());
    // NaN is passed over wherever it stands.
    for (std::size_t bad = 0; bad < w; ++bad) {
      if (bad == at) continue;
      x.assign(w, T(-3));
      x[at] = T(4);
      x[bad] = nan<T>;
      CHECK(simd::maximum(simd::load(x.data())) == T(4));
      x.assign(w, nan<T>);
      x[at] = T(4);
      CHECK(simd::maximum(simd::load(x.data())) == T(4));
    }
    x.assign(w, T(1));
    x[at] = nan<T>;
    if (w > 1) CHECK(std::isnan(simd::sum(simd::load(x.data()))));
  }
}

template <class T>
void check_fma() {
  const T epsilon = std::numeric_limits<T>::epsilon();
  const simd::Batch<T> result = simd::fma(simd::Batch<T>(1 + epsilon), simd::Batch<T>(1 - epsilon), simd::Batch<T>(-1));
  std::vector<T> values(static_cast<std::size_t>(simd::width<T>));
  simd::store(values.data(), result);
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
  const T expected = -epsilon * epsilon;  // lost where the product is rounded by itself
#else
  const T expected = 0;
#endif
  for (const T value : values) CHECK(value == expected);
}

template <class T>
void check_exp2() {
  const bool is_float = std::is_same_v<T, float>;
  const double lowest = is_float ? -126 : -1022, epsilon = std::numeric_limits<T>::epsilon();
  const auto exp2 = [](const simd::Batch<T>& x) { return simd::exp2(x); };
  for (const auto& [from, to] :
       {std::pair{lowest, 0.0}, std::pair{-2.0, 2.0}, std::pair{0.0, is_float ? 100.0 : 900.0}}) {
    const std::vector<T> x = range<T>(from, to, 20011), y = map(x, exp2);
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = std::exp2(static_cast<double>(x[i]));
      worst = test::worse(worst, std::abs(static_cast<double>(y[i]) - expected) / expected);
    }
    INFO(from);
    CHECK(worst < 1.5 * epsilon);
  }
  // Whole powers are exact, 1 above all.
  const std::vector<T> whole = range<T>(lowest, 60, static_cast<Index>(60 - lowest) + 1), powers = map(whole, exp2);
  Index wrong = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) wrong += powers[i] != std::exp2(whole[i]);
  CHECK(wrong == 0);

  const T zero_from = is_float ? T(-126.5) : T(-1022.5);
  for (const T x : {zero_from, zero_from - T(0.25), zero_from - T(0.5), zero_from - 1, T(-5000), T(-1e30),
                    std::numeric_limits<T>::lowest(), -infinity<T>}) {
    INFO(x);
    const T y = map(std::vector<T>{x}, exp2)[0];
    CHECK(y == 0);
    CHECK(!std::signbit(y));
  }
  // Just above, subnormal: no relative accuracy, but no garbage.
  for (const T x : range<T>(static_cast<double>(zero_from) + 0.01, lowest, 33)) {
    const double y = static_cast<double>(map(std::vector<T>{x}, exp2)[0]);
    CHECK(std::abs(y - std::exp2(static_cast<double>(x))) <=
          static_cast<double>(std::numeric_limits<T>::min()) * epsilon);
  }
  CHECK(std::isnan(map(std::vector<T>{nan<T>}, exp2)[0]));
  CHECK(std::isnan(map(std::vector<T>{-nan<T>}, exp2)[0]));
}

template <class T>
void check_log2() {
  constexpr double epsilon = std::numeric_limits<T>::epsilon();
  const auto log2 = [](const simd::Batch<T>& x) { return simd::log2(x); };
  for (const auto& [from, to] : {std::pair{0.01, 2.0}, std::pair{1.0, 3.0}, std::pair{1.0, 1e6}}) {
    const std::vector<T> x = range<T>(from, to, 20011), y = map(x, log2);
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = std::log2(static_cast<double>(x[i]));
      worst = test::worse(worst, std::abs(static_cast<double>(y[i]) - expected) / (1 + std::abs(expected)));
    }
    INFO(from << " to " << to);
    CHECK(worst < 1.5 * epsilon);
  }
  for (int power = -100; power <= 100; ++power) {  // exact, 0 above all
    REQUIRE(map(std::vector<T>{std::exp2(T(power))}, log2)[0] == T(power));
  }
  CHECK(std::isnan(map(std::vector<T>{nan<T>}, log2)[0]));
  CHECK(std::isnan(map(std::vector<T>{-nan<T>}, log2)[0]));
}

template <class T>
void check_normal() {
  const auto distribution = [](const simd::Batch<T>& x) { return simd::normal(x).distribution; };
  const auto density = [](const simd::Batch<T>& x) { return simd::normal(x).density; };
  const std::vector<T> x = range<T>(-12, 12, 40009), p = map(x, distribution), d = map(x, density);
  constexpr double epsilon = std::numeric_limits<T>::epsilon();
  long double worst = 0, worst_density = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto at = static_cast<long double>(x[i]);
    const long double expected = std::erfc(-at / std::sqrt(2.0L)) / 2;
    const long double expected_density = std::exp(-at * at / 2) / std::sqrt(2 * std::numbers::pi_v<long double>);
    // The argument's rounding counts, too: it grows with x^2.
    const long double bound = epsilon * (3.5L + at * at);
    worst = test::worse(worst, std::abs(static_cast<long double>(p[i]) - expected) / expected / bound);
    worst_density = test::worse(worst_density,
                                std::abs(static_cast<long double>(d[i]) - expected_density) / expected_density / bound);
  }
  CHECK(worst < 1);
  CHECK(worst_density < 1);
  const std::vector<T> special{-infinity<T>, infinity<T>, nan<T>, 0, T(-0.0), -50, 50};
  const std::vector<T> at = map(special, distribution), slope = map(special, density);
  CHECK(at[0] == 0);
  CHECK(at[1] == 1);
  CHECK(std::isnan(at[2]));
  CHECK(std::abs(static_cast<double>(at[3]) - 0.5) < 1e-7);
  CHECK(at[3] == at[4]);
  CHECK(at[5] >= 0);
  CHECK(at[5] < std::numeric_limits<T>::min());
  CHECK(at[6] == 1);
  CHECK(slope[0] == 0);
  CHECK(slope[1] == 0);
  CHECK(std::isnan(slope[2]));
}

template <class T>
void check_transpose() {
  constexpr Index w = simd::width<T>;
  for (const Index from_row : {w, w + 1, 3 * w + 2}) {
    for (const Index to_row : {w, w + 3, 2 * w + 1}) {
      std::vector<T> from(static_cast<std::size_t>(1 + w * from_row)),
          to(static_cast<std::size_t>(1 + w * to_row), T(-1));
      for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(i);
      simd::transpose(from.data() + 1, from_row, to.data() + 1, to_row);
      Index wrong = to[0] != T(-1);
      for (Index i = 0; i < w; ++i) {
        for (Index j = 0; j < to_row; ++j) {
          const T expected = j < w ? static_cast<T>(1 + j * from_row + i) : T(-1);
          wrong += to[static_cast<std::size_t>(1 + i * to_row + j)] != expected;
        }
      }
      CHECK(wrong == 0);
    }
  }
}

}  // namespace

TEST_CASE("parts of a register are loaded and stored", "[simd]") {
  check_parts<float>();
  check_parts<double>();
}

TEST_CASE("registers are reduced", "[simd]") {
  check_reductions<float>();
  check_reductions<double>();
}

TEST_CASE("products and sums are rounded once", "[simd]") {
  check_fma<float>();
  check_fma<double>();
}

TEST_CASE("logarithms to base two", "[simd]") {
  check_log2<float>();
  check_log2<double>();
}

TEST_CASE("powers of two", "[simd]") {
  check_exp2<float>();
  check_exp2<double>();
}

TEST_CASE("the normal distribution", "[simd]") {
  check_normal<float>();
  check_normal<double>();
}

TEST_CASE("squares are transposed", "[simd]") {
  check_transpose<float>();
  check_transpose<double>();
}
