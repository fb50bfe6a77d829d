#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <limits>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include <fit/core/error.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace plot {

/// Logarithmic axes have ticks at powers of 10 (1 ms, 10 ms) or of 2 (1 K, 4 K, with 1024 to a K). A value that is not
/// finite, or on a logarithmic axis not positive, is a gap in its line. A linear axis begins at zero where the smallest
/// value is positive and less than half the largest.
enum class Scale { linear, log10, log2 };

struct Axis {
  std::string title = {};
  Scale scale = Scale::linear;
  std::string unit = {};  ///< behind the numbers at the ticks, on a logarithmic axis with prefixes: "s" makes "10 ms"
  /// Values that lie on it whatever is drawn, as 0 and 100 for percentages; those that it cannot hold are left out.
  std::vector<double> includes = {};
};

struct Point {
  double x = 0, y = 0;
  bool dashed = false;  ///< the line that leads here, and the marker is hollow
};

struct Series {
  std::string name = {};  ///< in the legend; none where it is empty
  std::vector<Point> points = {};
  int colour = -1;  ///< which of the palette's, so that a curve keeps its own in every chart; by default its place
};

/// A thin line y = through.y * (x / through.x)^slope over two logarithmic axes.
struct Guide {
  double slope = 1;
  Point through = {};
  std::string label = {};
};

/// A ring with a text beside it.
struct Mark {
  double x = 0, y = 0;
  std::string label = {};
};

struct Chart {
  std::string title = {};
  Axis x = {}, y = {};
  std::vector<Series> series = {};
  std::vector<Guide> guides = {};
  std::vector<Mark> marks = {};
};

/// Charts in rows of `columns` under a title.
struct Figure {
  std::string title = {};
  std::vector<Chart> charts = {};
  int columns = 1;
  std::string note = {};  ///< a line at the foot
};

namespace detail {

/// Okabe and Ito's colours, which those who see few colours tell apart, without the yellow.
inline constexpr std::array<const char*, 7> palette{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                    "#e69f00", "#56b4e9", "#000000"};

/// A number as SVG has it, whatever the locale.
inline std::string number(double value, int digits = 1) {
  char text[64];
  const auto end =
      std::to_chars(text, text + sizeof(text), std::clamp(value, -1e7, 1e7), std::chars_format::fixed, digits);
  return {text, end.ptr};
}

/// The shortest of up to four digits.
inline std::string short_number(double value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof(text), value, std::chars_format::general, 4);
  return {text, end.ptr};
}

inline std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

/// About how wide a text is in a sans-serif face, in units of its size.
inline double text_width(std::string_view text) {
  return 0.56 * static_cast<double>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

/// An axis with its range: where a value lies between 0 and 1, and its ticks.
class Ruler {
 public:
  Ruler(const Axis& axis, double low, double high) : axis_(axis) {
    if (!(low <= high)) {
      low = axis.scale == Scale::linear ? 0 : 1;
      high = low + 1;
    }
    low_ = at_scale(low);
    high_ = at_scale(high);
    if (axis.scale == Scale::linear) {
      if (low_ > 0 && low_ < high_ / 2) low_ = 0;
      // Ticks closer to each other than numbers are could not be counted.
      if (high_ - low_ <= 1e-9 * std::max(std::abs(low_), std::abs(high_)))
        high_ = low_ + std::max(1.0, std::abs(low_));
      step_ = nice((high_ - low_) / 5);
      low_ = std::floor(low_ / step_ + 1e-9) * step_;
      high_ = std::ceil(high_ / step_ - 1e-9) * step_;
    } else {
      const double margin = std::max(0.04 * (high_ - low_), 0.1);
      low_ -= margin;
      high_ += margin;
      step_ = std::max(1.0, std::ceil((high_ - low_) / 8));
    }
  }

  bool holds(double value) const { return std::isfinite(at_scale(value)); }
  double operator()(double value) const { return (at_scale(value) - low_) / (high_ - low_); }
  double low() const { return value_of(low_); }
  double high() const { return value_of(high_); }

  /// f(value, label), the label empty for lines without one.
  template <class F>
  void ticks(F&& f) const {
    const double first = std::ceil(low_ / step_ - 1e-9), last = std::floor(high_ / step_ + 1e-9);
    for (double i = first; i <= last; ++i) f(value_of(i * step_), label(value_of(i * step_)));
    if (axis_.scale != Scale::log10 || step_ > 1) return;
    for (double decade = std::floor(low_); decade <= high_; ++decade) {
      for (int digit = 2; digit <= 9; ++digit) {
        const double value = digit * std::pow(10.0, decade);
        if (at_scale(value) < low_ || at_scale(value) > high_) continue;
        f(value, last - first < 1 && (digit == 2 || digit == 5) ? label(value) : std::string());
      }
    }
  }

 private:
  double at_scale(double value) const {
    return axis_.scale == Scale::linear ? value : axis_.scale == Scale::log10 ? std::log10(value) : std::log2(value);
  }
  double value_of(double at) const {
    return axis_.scale == Scale::linear ? at : axis_.scale == Scale::log10 ? std::pow(10.0, at) : std::exp2(at);
  }

  /// 1, 2 or 5 times a power of ten, at least `step`.
  static double nice(double step) {
    const double power = std::pow(10.0, std::floor(std::log10(step)));
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (factor * power >= step * (1 - 1e-9)) return factor * power;
    }
    return 10 * power;
  }

  std::string label(double value) const {
    if (axis_.scale == Scale::linear) {
      const double rounded = std::abs(value) < step_ * 1e-6 ? 0 : value;
      return short_number(rounded) + (axis_.unit.empty() ? "" : " " + axis_.unit);
    }
    const bool binary = axis_.scale == Scale::log2;
    static constexpr std::array<const char*, 10> prefixes{"n", "µ", "m", "", "k", "M", "G", "T", "P", "E"};
    const double base = binary ? 1024 : 1000;
    const double power = std::clamp(std::floor(std::log(value) / std::log(base) + 1e-9), binary ? 0.0 : -3.0, 6.0);
    std::string prefix = prefixes[static_cast<std::size_t>(power + 3)];
    if (binary && prefix == "k") prefix = "K";
    if (binary && !prefix.empty() && !axis_.unit.empty()) prefix += "i";
    const std::string behind = prefix + axis_.unit;
    return short_number(value / std::pow(base, power)) + (behind.empty() ? "" : " " + behind);
  }

  const Axis& axis_;
  double low_, high_, step_;
};

/// One chart, written into a box whose upper left corner is at (left, top).
class Panel {
 public:
  static constexpr double width = 480;
  static double height(const Chart& chart) {
    const auto names = std::count_if(chart.series.begin(), chart.series.end(),
                                     [](const Series& series) { return !series.name.empty(); });
    return 30 + area_height + 54 + legend_row * static_cast<double>((names + 1) / 2);
  }

  Panel(std::ostream& out, const Chart& chart, double left, double top)
      : out_(out),
        chart_(chart),
        left_(left + 72),
        top_(top + 30),
        area_width_(width - 72 - (chart.guides.empty() ? 18 : 54)),
        x_(range(chart.x, 0)),
        y_(range(chart.y, 1)) {}

  void write() {
    text(left_ + area_width_ / 2, top_ - 11, chart_.title, "middle", 13, "#000000");
    axes();
    const std::string clip = "a" + number(left_, 0) + "-" + number(top_, 0);
    out_ << "<clipPath id=\"" << clip << "\"><rect x=\"" << number(left_) << "\" y=\"" << number(top_) << "\" width=\""
         << number(area_width_) << "\" height=\"" << number(area_height) << "\"/></clipPath>\n";
    out_ << "<g clip-path=\"url(#" << clip << ")\" fill=\"none\">\n";
    for (const Guide& guide : chart_.guides) draw(guide);
    for (std::size_t i = 0; i < chart_.series.size(); ++i) draw(chart_.series[i], colour(i));
    out_ << "</g>\n";
    for (std::size_t i = 0; i < chart_.series.size(); ++i) markers(chart_.series[i], colour(i));
    legend();
    for (const Guide& guide : chart_.guides) label(guide);
    for (const Mark& mark : chart_.marks) draw(mark);
  }

 private:
  static constexpr double area_height = 270, legend_row = 16, small_text = 11;
  static constexpr std::size_t most_markers = 40;  // points of a line; with more there are none

  struct Spot {
    double x, y;
  };

  Ruler range(const Axis& axis, int which) const {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    const auto take = [&](double x, double y) {
      const double value = which == 0 ? x : y;
      if (!std::isfinite(value) || (axis.scale != Scale::linear && value <= 0)) return;
      low = std::min(low, value);
      high = std::max(high, value);
    };
    for (const Series& series : chart_.series) {
      for (const Point& point : series.points) take(point.x, point.y);
    }
    for (const Mark& mark : chart_.marks) take(mark.x, mark.y);
    for (const double value : axis.includes) take(value, value);
    return Ruler(axis, low, high);
  }

  bool holds(double x, double y) const { return x_.holds(x) && y_.holds(y); }
  Spot at(double x, double y) const { return {left_ + area_width_ * x_(x), top_ + area_height * (1 - y_(y))}; }

  const char* colour(std::size_t series) const {
    const int chosen = chart_.series[series].colour;
    return palette[(chosen < 0 ? series : static_cast<std::size_t>(chosen)) % palette.size()];
  }

  void text(double x, double y, std::string_view words, const char* anchor, double size, const char* fill,
            std::string_view more = {}) {
    out_ << "<text x=\"" << number(x) << "\" y=\"" << number(y) << "\" text-anchor=\"" << anchor << "\" font-size=\""
         << number(size) << "\" fill=\"" << fill << "\"" << more << ">" << escaped(words) << "</text>\n";
  }
  /// On a white rim, so that it can be read over lines.
  void text_over_lines(double x, double y, std::string_view words, const char* anchor, const char* fill) {
    text(x, y, words, anchor, small_text, fill,
         " stroke=\"#ffffff\" stroke-width=\"3\" stroke-linejoin=\"round\" paint-order=\"stroke\"");
  }
  void line(Spot from, Spot to, std::string_view how) {
    out_ << "<path d=\"M" << number(from.x) << " " << number(from.y) << "L" << number(to.x) << " " << number(to.y)
         << "\" " << how << "/>\n";
  }

  void axes() {
    const double bottom = top_ + area_height, right = left_ + area_width_;
    x_.ticks([&](double value, const std::string& label) {
      const double x = left_ + area_width_ * x_(value);
      line({x, top_}, {x, bottom}, label.empty() ? minor_line : major_line);
      if (!label.empty()) text(x, bottom + 15, label, "middle", 10.5, "#333333");
    });
    y_.ticks([&](double value, const std::string& label) {
      const double y = top_ + area_height * (1 - y_(value));
      line({left_, y}, {right, y}, label.empty() ? minor_line : major_line);
      if (!label.empty()) text(left_ - 6, y + 3.5, label, "end", 10.5, "#333333");
    });
    out_ << "<path d=\"M" << number(left_) << " " << number(top_) << "V" << number(bottom) << "H" << number(right)
         << "\" fill=\"none\" stroke=\"#333333\"/>\n";
    text(left_ + area_width_ / 2, bottom + 33, chart_.x.title, "middle", 11.5, "#000000");
    const std::string turn =
        concatenate(" transform=\"rotate(-90 ", number(left_ - 56), " ", number(top_ + area_height / 2), ")\"");
    text(left_ - 56, top_ + area_height / 2, chart_.y.title, "middle", 11.5, "#000000", turn);
  }

  /// Runs of solid and of dashed line. What rounds to one place is drawn once.
  void draw(const Series& series, const char* stroke) {
    std::string path, last_place;
    bool dashed = false, after_gap = true;
    const auto end = [&] {
      if (path.find('L') != std::string::npos) {
        out_ << "<path d=\"" << path << "\" stroke=\"" << stroke << "\" stroke-width=\"1.8\" stroke-linejoin=\"round\""
             << (dashed ? " stroke-dasharray=\"5 3\"" : "") << "/>\n";
      }
      path.clear();
    };
    for (const Point& point : series.points) {
      if (!holds(point.x, point.y)) {
        end();
        after_gap = true;
        continue;
      }
      const Spot spot = at(point.x, point.y);
      const std::string place = number(spot.x) + " " + number(spot.y);
      if (after_gap) {
        path = "M" + place;
        dashed = point.dashed;
      } else if (place != last_place) {
        if (point.dashed != dashed) {
          end();
          path = "M" + last_place;
          dashed = point.dashed;
        }
        path += "L" + place;
      }
      last_place = place;
      after_gap = false;
    }
    end();
  }

  void markers(const Series& series, const char* stroke) {
    if (series.points.size() > most_markers) return;
    for (const Point& point : series.points) {
      if (holds(point.x, point.y)) circle(at(point.x, point.y), point.dashed ? "#ffffff" : stroke, stroke);
    }
  }
  void circle(Spot spot, const char* fill, const char* stroke, double radius = 2.6) {
    out_ << "<circle cx=\"" << number(spot.x) << "\" cy=\"" << number(spot.y) << "\" r=\"" << number(radius)
         << "\" fill=\"" << fill << "\" stroke=\"" << stroke << "\" stroke-width=\"1.3\"/>\n";
  }

  double guide_at(const Guide& guide, double x) const {
    return guide.through.y * std::pow(x / guide.through.x, guide.slope);
  }
  void draw(const Guide& guide) {
    const double low = guide_at(guide, x_.low()), high = guide_at(guide, x_.high());
    if (!y_.holds(low) || !y_.holds(high)) return;
    line(at(x_.low(), low), at(x_.high(), high), "stroke=\"#777777\" stroke-width=\"1\" stroke-dasharray=\"1 3\"");
  }
  /// Where the line leaves the chart: right of it, or below its upper side.
  void label(const Guide& guide) {
    const double end = guide_at(guide, x_.high());
    if (!holds(x_.high(), end) || y_(end) < 0) return;
    if (y_(end) <= 1) {
      text(left_ + area_width_ + 4, at(x_.high(), end).y + 4, guide.label, "start", small_text, "#555555");
    } else {
      const double x = guide.through.x * std::pow(y_.high() / guide.through.y, 1 / guide.slope);
      if (x_.holds(x)) text_over_lines(at(x, y_.high()).x - 8, top_ + 12, guide.label, "end", "#555555");
    }
  }

  void draw(const Mark& mark) {
    if (!holds(mark.x, mark.y)) return;
    const Spot spot = at(mark.x, mark.y);
    circle(spot, "none", "#000000", 6);
    const double size = small_text * text_width(mark.label);
    const bool fits = spot.x + 10 + size < left_ + area_width_;
    text_over_lines(fits ? spot.x + 9 : spot.x - 9, std::min(spot.y + 14, top_ + area_height - 4), mark.label,
                    fits ? "start" : "end", "#000000");
  }

  /// Two names beside each other, below the axis.
  void legend() {
    double x = left_ - 52, y = top_ + area_height + 50;
    for (std::size_t i = 0; i < chart_.series.size(); ++i) {
      const Series& series = chart_.series[i];
      if (series.name.empty()) continue;
      line({x, y}, {x + 20, y}, concatenate("stroke=\"", colour(i), "\" stroke-width=\"2\""));
      text(x + 25, y + 4, series.name, "start", small_text, "#000000");
      const bool first = x < left_;
      x += first ? width / 2 : -width / 2;
      y += first ? 0 : legend_row;
    }
  }

  static constexpr std::string_view major_line = "stroke=\"#dddddd\" stroke-width=\"0.8\"";
  static constexpr std::string_view minor_line = "stroke=\"#eeeeee\" stroke-width=\"0.6\"";

  std::ostream& out_;
  const Chart& chart_;
  double left_, top_, area_width_;
  Ruler x_, y_;
};

}  // namespace detail

/// Writes a figure as one SVG, which scales to the place that it is shown in. Throws Error when there are no columns.
inline void write_svg(std::ostream& out, const Figure& figure) {
  require(figure.columns >= 1, "a figure needs at least 1 column, not ", figure.columns);
  using detail::Panel, detail::number;
  const int count = static_cast<int>(figure.charts.size()), columns = std::max(1, std::min(figure.columns, count));
  const int rows = (count + columns - 1) / columns;
  const double head = figure.title.empty() ? 0 : 34, foot = figure.note.empty() ? 0 : 24;
  double row = 0;
  for (const Chart& chart : figure.charts) row = std::max(row, Panel::height(chart));
  const double width = columns * Panel::width, height = head + rows * row + foot;
  out << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " << number(width, 0) << " " << number(height, 0)
      << "\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n<rect width=\"100%\" height=\"100%\" "
         "fill=\"#ffffff\"/>\n";
  const auto text = [&](double y, double size, const std::string& words) {
    if (words.empty()) return;
    out << "<text x=\"" << number(width / 2) << "\" y=\"" << number(y) << "\" text-anchor=\"middle\" font-size=\""
        << number(size) << "\">" << detail::escaped(words) << "</text>\n";
  };
  text(24, 16, figure.title);
  for (int i = 0; i < count; ++i) {
    Panel(out, figure.charts[static_cast<std::size_t>(i)], i % columns * Panel::width, head + i / columns * row)
        .write();
  }
  text(height - 9, 11, figure.note);
  out << "</svg>\n";
}

/// One chart.
inline void write_svg(std::ostream& out, const Chart& chart) { write_svg(out, Figure{{}, {chart}}); }

}  // namespace plot
}  // namespace FIT_ABI
}  // namespace fit
