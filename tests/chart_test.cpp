#include <fit/plot/chart.hpp>

#include <cmath>
#include <limits>
#include <locale>
#include <regex>
#include <sstream>

#include "catch.hpp"

using namespace fit::plot;

namespace {

std::string svg(const Chart& chart) {
  std::ostringstream out;
  write_svg(out, chart);
  return out.str();
}

/// The places of the markers.
std::vector<std::pair<double, double>> circles(const std::string& text) {
  std::vector<std::pair<double, double>> result;
  const std::regex circle("<circle cx=\"([^\"]+)\" cy=\"([^\"]+)\" r=\"2.6\"");
  for (std::sregex_iterator i(text.begin(), text.end(), circle), end; i != end; ++i) {
    result.emplace_back(std::stod((*i)[1]), std::stod((*i)[2]));
  }
  return result;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t result = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++result;
  return result;
}

}  // namespace

TEST_CASE("a power of x is a straight line over logarithmic axes, upwards", "[chart]") {
  Chart chart{.x = {"L", Scale::log2}, .y = {"time", Scale::log10, "s"}, .series = {{"square", {}}}};
  for (double x = 1024; x <= 65536; x *= 4) chart.series[0].points.push_back({x, 1e-9 * x * x});
  const auto places = circles(svg(chart));
  REQUIRE(places.size() == 4);
  for (std::size_t i = 1; i < places.size(); ++i) {
    CHECK(places[i].first - places[i - 1].first == Approx(places[1].first - places[0].first).margin(0.11));
    CHECK(places[i].second - places[i - 1].second == Approx(places[1].second - places[0].second).margin(0.11));
    CHECK(places[i].second < places[i - 1].second);
  }
}

TEST_CASE("ticks have prefixes of ten, and of 1024 where the axis counts in powers of two", "[chart]") {
  Chart chart{.x = {"L", Scale::log2}, .y = {"time", Scale::log10, "s"}};
  chart.series = {{"", {{1024, 2e-5}, {1 << 20, 20}}}};
  std::string text = svg(chart);
  for (const char* label : {">1 K<", ">256 K<", ">1 M<", ">100 µs<", ">1 ms<", ">10 s<"}) {
    CAPTURE(label);
    CHECK(count(text, label) == 1);
  }
  chart.y = {"memory", Scale::log2, "B"};
  chart.series = {{"", {{1024, 1 << 20}, {2048, 1 << 22}}}};
  text = svg(chart);
  CHECK(count(text, ">1 MiB<") == 1);
  CHECK(count(text, ">1.024 K<") == 0);
}

TEST_CASE("an axis goes as far as it is told to", "[chart]") {
  Chart chart{.x = {"L"}, .y = {.title = "right", .unit = "%"}, .series = {{"", {{1, 73}, {2, 88}}}}};
  CHECK(count(svg(chart), ">0 %<") + count(svg(chart), ">100 %<") == 0);
  chart.y.includes = {0, 100};
  CHECK(count(svg(chart), ">0 %<") == 1);
  CHECK(count(svg(chart), ">100 %<") == 1);
  chart.y = {.title = "time", .scale = Scale::log10, .unit = "s", .includes = {0, -1, 1e3}};  // two lie on no such axis
  CHECK(count(svg(chart), ">1 ks<") == 1);
}

TEST_CASE("what cannot be drawn is a gap", "[chart]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (const double wrong : {nan, infinity, -infinity, 0.0, -1.0}) {
    CAPTURE(wrong);
    const Chart chart{
        .x = {"x"}, .y = {"y", Scale::log10}, .series = {{"line", {{1, 1}, {2, 10}, {3, wrong}, {4, 10}, {5, 100}}}}};
    const std::string text = svg(chart);
    CHECK(circles(text).size() == 4);
    CHECK(count(text, "stroke-width=\"1.8\"") == 2);
    CHECK(count(text, "nan") + count(text, "inf") == 0);
  }
  CHECK(circles(svg({.series = {{"zero on a linear axis", {{0, 0}, {1, -1}}}}})).size() == 2);
  // Numbers next to each other are one to an axis.
  const double next = std::nextafter(1e-3, 1);
  CHECK(circles(svg({.series = {{"next", {{0, 1e-3}, {1, next}, {2, -next}}}}})).size() == 3);
  for (const double sign : {1.0, -1.0}) {
    CHECK(circles(svg({.series = {{"next", {{0, sign * 1e-3}, {1, sign * next}}}}})).size() == 2);
  }
  CHECK(count(svg({.x = {"x", Scale::log10}}), "</svg>") == 1);
}

TEST_CASE("dashed runs begin where the solid line ends", "[chart]") {
  const std::string text = svg({.series = {{"line", {{0, 0}, {1, 1}, {2, 2, true}, {3, 3, true}}}}});
  CHECK(count(text, "stroke-dasharray=\"5 3\"") == 1);
  CHECK(count(text, "stroke-width=\"1.8\"") == 2);
  CHECK(count(text, "r=\"2.6\" fill=\"#ffffff\"") == 2);
  const std::regex runs("<path d=\"M[^L]+L([^\"]+)\" stroke=[^/]+/>\\s*<path d=\"M([^L]+)L");
  std::smatch match;
  REQUIRE(std::regex_search(text, match, runs));
  CHECK(match[1] == match[2]);
}

TEST_CASE("a thousand points that fall on one place are drawn once", "[chart]") {
  Chart chart{.series = {{"loss", {}}}};
  for (int i = 0; i <= 100000; ++i) chart.series[0].points.push_back({static_cast<double>(i), i < 100000 ? 1.0 : 2.0});
  const std::string text = svg(chart);
  CHECK(text.size() < 100000);
  CHECK(circles(text).empty());
}

TEST_CASE("texts are escaped, numbers have a point in any locale", "[chart]") {
  struct Comma : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const Chart chart{.title = "a < b & \"c\"\n>", .series = {{"<s>", {{0.5, 1234.5}, {1.5, 5000}}}}};
  std::ostringstream out;
  out.imbue(std::locale(std::locale::classic(), new Comma));
  write_svg(out, Figure{"t & t", {chart, chart, chart}, 2, "n < m"});
  CHECK(count(out.str(), "a &lt; b &amp; &quot;c&quot; &gt;") == 3);
  CHECK(count(out.str(), "&lt;s&gt;") == 3);
  CHECK(count(out.str(), "n &lt; m") == 1);
  CHECK(std::regex_search(out.str(), std::regex("cx=\"[0-9]+\\.[0-9]\"")));
  CHECK_FALSE(std::regex_search(out.str(), std::regex("[0-9],[0-9]")));
  CHECK_THROWS_AS(write_svg(out, Figure{"", {chart}, 0}), fit::Error);
}

TEST_CASE("a guide has its slope and a curve its colour", "[chart]") {
  Chart chart{.x = {"x", Scale::log10}, .y = {"y", Scale::log10}, .series = {{"s", {{1, 1}, {100, 1e4}}, 3}}};
  chart.guides = {{2, {1, 1}, "x^2"}};
  const std::string text = svg(chart);
  std::smatch match;
  REQUIRE(std::regex_search(text, match, std::regex("M([0-9.]+) ([0-9.]+)L([0-9.]+) ([0-9.]+)\" stroke=\"#777777\"")));
  const auto places = circles(text);
  REQUIRE(places.size() == 2);
  const double slope = (places[1].second - places[0].second) / (places[1].first - places[0].first);
  CHECK((std::stod(match[4]) - std::stod(match[2])) / (std::stod(match[3]) - std::stod(match[1])) ==
        Approx(slope).epsilon(0.01));
  CHECK(count(text, "fill=\"#cc79a7\"") == 2);
  CHECK(count(text, ">x^2<") == 1);
}
