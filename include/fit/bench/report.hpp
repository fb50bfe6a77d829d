#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fit/bench/complexity.hpp>
#include <fit/plot/chart.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace bench {

inline const char* name_of(Work work) {
  return work == Work::attention ? "attention" : work == Work::layer ? "layer" : "model";
}
inline const char* name_of(Pass pass) { return pass == Pass::forward ? "forward" : "forward+backward"; }

/// The p in y ~ x^p, and its standard error.
struct Exponent {
  double value = 0, error = 0;
};

/// By least squares of log y over log x, of the upper half of the points, which ascend in x, but of three at least;
/// none where there are not so many, or a logarithm is not finite.
inline std::optional<Exponent> fit_exponent(std::span<const plot::Point> points) {
  if (points.size() < 3) return std::nullopt;
  points = points.last(std::max<std::size_t>(3, (points.size() + 1) / 2));
  const auto n = static_cast<double>(points.size());
  double x_mean = 0, y_mean = 0, xx = 0, xy = 0, yy = 0;
  for (const plot::Point& point : points) {
    x_mean += std::log(point.x) / n;
    y_mean += std::log(point.y) / n;
  }
  for (const plot::Point& point : points) {
    const double x = std::log(point.x) - x_mean, y = std::log(point.y) - y_mean;
    xx += x * x;
    xy += x * y;
    yy += y * y;
  }
  const double rest = std::max(0.0, yy - xy * xy / xx);
  const Exponent exponent{xy / xx, std::sqrt(rest / (n - 2) / xx)};
  if (!std::isfinite(exponent.value) || !std::isfinite(exponent.error)) return std::nullopt;
  return exponent;
}

/// Where the first of two lines, over the same x, comes to be below the second for good, between two points by their
/// straight lines over logarithmic axes: the first x when it is below everywhere, none when it does not end below.
inline std::optional<double> overtaking(std::span<const plot::Point> line, std::span<const plot::Point> other) {
  const std::size_t count = std::min(line.size(), other.size());
  const auto ahead = [&](std::size_t i) { return std::log(other[i].y / line[i].y); };
  std::size_t i = count;
  while (i > 0 && ahead(i - 1) > 0) --i;
  if (i == count) return std::nullopt;
  if (i == 0) return line[0].x;
  const double before = ahead(i - 1), after = ahead(i);
  return line[i - 1].x * std::pow(line[i].x / line[i - 1].x, -before / (after - before));
}

/// What was measured of one curve, by length.
struct Line {
  std::string curve = {};
  Work work = Work::attention;
  Index width = 0;
  bool causal = false;
  Pass pass = Pass::forward;
  std::vector<Point> points = {};

  /// `value` over the length; with `measured`, only of points that are.
  template <class Value>
  std::vector<plot::Point> over_length(Value&& value, bool measured = false) const {
    std::vector<plot::Point> result;
    for (const Point& point : points) {
      if (measured && point.estimated) continue;
      result.push_back({static_cast<double>(point.length), value(point), point.estimated});
    }
    return result;
  }
  std::vector<plot::Point> seconds() const {
    return over_length([](const Point& point) { return point.seconds; });
  }
  std::vector<plot::Point> bytes() const {
    return over_length([](const Point& point) { return static_cast<double>(point.bytes); });
  }

  /// Of the time, without what was estimated, and of the operations.
  std::optional<Exponent> time_exponent() const {
    return fit_exponent(over_length([](const Point& point) { return point.seconds; }, true));
  }
  std::optional<Exponent> flops_exponent() const {
    return fit_exponent(over_length([](const Point& point) { return static_cast<double>(point.flops.total()); }));
  }
};

/// The points of a sweep as lines, in the order of their first points.
inline std::vector<Line> lines_of(const Results& results) {
  std::vector<Line> lines;
  for (const Point& point : results.points) {
    const auto same = std::find_if(lines.begin(), lines.end(), [&](const Line& line) {
      return line.curve == point.curve && line.work == point.work && line.width == point.width &&
             line.causal == point.causal && line.pass == point.pass;
    });
    if (same != lines.end()) {
      same->points.push_back(point);
    } else {
      lines.push_back({point.curve, point.work, point.width, point.causal, point.pass, {point}});
    }
  }
  return lines;
}

namespace detail {

inline std::string rounded(double value, int digits) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed, digits).ptr};
}

/// 950, 1.4 k, 64 k, 1 M
inline std::string length_text(double length) {
  if (length < 1000) return rounded(length, 0);
  const bool million = length >= 1e6;
  const double value = length / (million ? 1e6 : 1e3);
  return rounded(value, value < 10 && value != std::round(value) ? 1 : 0) + (million ? " M" : " k");
}

}  // namespace detail

/// A row for every point; fields hold no commas, and numbers have a point.
inline void write_csv(std::ostream& out, const Results& results) {
  std::string text =
      "curve,work,width,causal,pass,length,groups,tokens,latents,seconds,flops_products,flops_attention,"
      "flops_executed,share_of_peak,bytes,tokens_per_second,source\n";
  for (const Point& point : results.points) {
    text += concatenate(
        point.curve, ",", name_of(point.work), ",", point.width, ",", point.causal ? 1 : 0, ",", name_of(point.pass),
        ",", point.length, ",", point.sizes.groups, ",", point.sizes.tokens, ",", point.sizes.latents, ",",
        fit::detail::shortest_text(point.seconds), ",", point.flops.products, ",", point.flops.attention, ",",
        point.flops.executed, ",", fit::detail::shortest_text(point.share_of(results.peak)), ",", point.bytes, ",",
        fit::detail::shortest_text(point.tokens_per_second()), ",", point.estimated ? "estimated" : "measured", "\n");
  }
  out << text;
}

namespace detail {

/// Time over the length: curves with their exponents, guides, and where `challenger` overtakes `reference`.
inline plot::Chart time_chart(std::string title, std::span<const Line* const> lines, std::string_view reference,
                              std::string_view challenger) {
  plot::Chart chart{.title = std::move(title),
                    .x = {"sequence length, tokens", plot::Scale::log10},
                    .y = {"time", plot::Scale::log10, "s"}};
  std::vector<plot::Point> to_beat, challenging;
  plot::Point corner{std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto exponent = lines[i]->time_exponent();
    auto seconds = lines[i]->seconds();
    if (lines[i]->curve == reference) to_beat = seconds;
    if (lines[i]->curve == challenger) challenging = seconds;
    for (const plot::Point& point : seconds) corner = {std::min(corner.x, point.x), std::min(corner.y, point.y)};
    chart.series.push_back({concatenate(lines[i]->curve, exponent ? ": L^" + rounded(exponent->value, 2) + " ± " +
                                                                        rounded(exponent->error, 2)
                                                                  : std::string()),
                            std::move(seconds), static_cast<int>(i)});
  }
  for (const auto& [slope, label] : {std::pair{1.0, "L"}, {4.0 / 3, "L^(4/3)"}, {2.0, "L^2"}}) {
    chart.guides.push_back({slope, corner, label});
  }
  if (const auto where = overtaking(challenging, to_beat)) {
    const bool everywhere = *where == challenging.front().x;
    std::size_t i = 0;
    while (i + 2 < challenging.size() && challenging[i + 1].x <= *where) ++i;
    const plot::Point &left = challenging[i], &right = challenging[std::min(i + 1, challenging.size() - 1)];
    const double across = right.x > left.x ? std::log(*where / left.x) / std::log(right.x / left.x) : 0;
    chart.marks.push_back(
        {*where, left.y * std::pow(right.y / left.y, across),
         everywhere ? concatenate(challenger, " ahead of ", reference, " everywhere, here ",
                                  rounded(to_beat.front().y / challenging.front().y, 1), " times")
                    : concatenate(challenger, " ahead of ", reference, " from ", length_text(*where), " on")});
  }
  return chart;
}

inline plot::Chart memory_chart(std::string title, std::span<const Line* const> lines) {
  plot::Chart chart{.title = std::move(title),
                    .x = {"sequence length, tokens", plot::Scale::log10},
                    .y = {"most memory in use", plot::Scale::log2, "B"}};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    chart.series.push_back({lines[i]->curve, lines[i]->bytes(), static_cast<int>(i)});
  }
  return chart;
}

/// The share of peak over the tokens of a group, where it was measured, of curves whose groups grow.
inline plot::Chart share_chart(std::string title, std::span<const Line* const> lines, double peak) {
  plot::Chart chart{.title = std::move(title),
                    .x = {"tokens of a group, n", plot::Scale::log10},
                    .y = {"share of measured peak", plot::Scale::linear, "%"}};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (lines[i]->points.front().sizes.tokens == lines[i]->points.back().sizes.tokens) continue;
    std::vector<plot::Point> shares;
    for (const Point& point : lines[i]->points) {
      if (!point.estimated) shares.push_back({static_cast<double>(point.sizes.tokens), 100 * point.share_of(peak)});
    }
    std::stable_sort(shares.begin(), shares.end(), [](const auto& a, const auto& b) { return a.x < b.x; });
    chart.series.push_back({lines[i]->curve, std::move(shares), static_cast<int>(i)});
  }
  return chart;
}

}  // namespace detail

/// Four charts for every kind of work, width, and mask: the time of either pass over the length, with a mark where
/// `challenger` comes to be ahead of `reference` for good; the memory of forward and backward; the share of peak.
inline plot::Figure figure(const Results& results, std::string_view reference = "full",
                           std::string_view challenger = "fit") {
  plot::Figure figure{
      .title = concatenate("Time and memory over the length of the sequence, ", results.threads,
                           results.threads == 1 ? " thread" : " threads"),
      .columns = 2,
      .note =
          concatenate("Dashed and hollow: from the cost model, at the rate of the largest length that ran. Exponents "
                      "are of the upper half of what was measured. Peak: ",
                      detail::rounded(results.peak / 1e9, 0), " GFLOP/s.")};
  const std::vector<Line> lines = lines_of(results);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto alike = [&, first = &lines[i]](const Line& line) {
      return line.work == first->work && line.width == first->width && line.causal == first->causal;
    };
    if (std::any_of(lines.data(), lines.data() + i, alike)) continue;
    std::vector<const Line*> forward, both;
    for (const Line& line : lines) {
      if (alike(line)) (line.pass == Pass::forward ? forward : both).push_back(&line);
    }
    const std::string what =
        concatenate(name_of(lines[i].work), lines[i].causal ? ", causal" : "", ", width ", lines[i].width, ": ");
    if (!forward.empty()) {
      figure.charts.push_back(detail::time_chart(what + "time, forward", forward, reference, challenger));
    }
    if (!both.empty()) {
      figure.charts.push_back(detail::time_chart(what + "time, forward + backward", both, reference, challenger));
    }
    const auto& shown = both.empty() ? forward : both;
    figure.charts.push_back(detail::memory_chart(what + "memory", shown));
    figure.charts.push_back(detail::share_chart(what + "share of peak", shown, results.peak));
  }
  return figure;
}

}  // namespace bench
}  // namespace FIT_ABI
}  // namespace fit
