#pragma once

#include <fit/core/memory.hpp>
#include <fit/core/random.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

namespace examples {

using fit::Index;

/// Pictures of dashed paths that do not touch, two of them long, with two dots at ends of long ones: are these the ends
/// of one path? After Linsley et al., arXiv 1805.08315. In every picture there is a pair of ends of one path, and one
/// of two paths, that are as far from each other, so that the distance does not tell; nor does the direction of
/// paths at their ends, as they turn soon.
struct Pathfinder {
  Index side = 32;
  int dashes = 12, short_dashes = 4, short_paths = 4;  ///< dashes of a long and of a short path; short paths
  double dash = 2, gap = 1.4, room = 2.2;              ///< in pixels; room is what paths keep from each other
  double turn = 0.7;                                   ///< radians between two dashes, at most
  double thickness = 1, dot = 1.6;                     ///< dot is its radius

  /// The same at 128 x 128: Path-X's size.
  static Pathfinder large() {
    return {.side = 128,
            .dashes = 24,
            .short_dashes = 8,
            .short_paths = 12,
            .dash = 4,
            .gap = 2.5,
            .room = 4,
            .thickness = 1.5,
            .dot = 3};
  }

  /// A smaller picture, whose paths are shorter by so much that they find room: an easier task, to begin with.
  Pathfinder at(Index smaller) const {
    if (smaller == side) return *this;
    Pathfinder it = *this;
    const double share = static_cast<double>(smaller) / static_cast<double>(side);
    it.side = smaller;
    it.dashes = static_cast<int>(std::lround(share * dashes)) - 2;
    it.short_dashes = std::max(2, static_cast<int>(std::lround(share * short_dashes)));
    it.short_paths = static_cast<int>(std::lround(share * share * short_paths));
    return it;
  }

  /// Pixels [side, side] between 0 and 1; returns 1 where the dots are of one path, else 0.
  Index write(fit::Random random, float* pixels) const {
    const Index answer = random.below(2);
    for (;;) {
      Drawing drawing(*this, random.split());
      const auto first = drawing.path(dashes, dot), second = drawing.path(dashes, dot);
      if (!first || !second) continue;
      const auto dots = alike(*first, *second);
      if (!dots) continue;
      for (int i = 0; i < short_paths; ++i) drawing.path(short_dashes, 0);
      drawing.draw((*dots)[static_cast<std::size_t>(answer)], pixels);
      return answer;
    }
  }

 private:
  struct Point {
    double x = 0, y = 0;
  };
  static double distance(const Point& a, const Point& b) { return std::hypot(a.x - b.x, a.y - b.y); }

  using Path = std::vector<Point>;
  using Pair = std::array<Point, 2>;

  /// Ends of two paths and ends of one that are as far from each other, to a twentieth of the side, or nothing.
  std::optional<std::array<Pair, 2>> alike(const Path& first, const Path& second) const {
    std::optional<std::array<Pair, 2>> best;
    double least = static_cast<double>(side) / 20;
    for (const Path* path : {&first, &second}) {
      for (const Point& one : {first.front(), first.back()}) {
        for (const Point& other : {second.front(), second.back()}) {
          const Pair of_two{one, other}, of_one{path->front(), path->back()};
          const double off = std::abs(distance(one, other) - distance(of_one[0], of_one[1]));
          if (off >= least) continue;
          best = {of_two, of_one};
          least = off;
        }
      }
    }
    return best;
  }

  /// Paths that have been placed, and where there is no room for another.
  class Drawing {
   public:
    Drawing(const Pathfinder& is, fit::Random random) : is_(is), side_(static_cast<double>(is.side)), random_(random) {
      cells_ = static_cast<int>(is.side) * 2;
      taken_.resize(static_cast<std::size_t>(cells_ * cells_));
    }

    /// Places a path whose ends keep clear of others by so much more: the middle line's points, two of each dash, or
    /// nothing where no room was found.
    std::optional<Path> path(int count, double more) {
      for (int attempt = 0; attempt < 60; ++attempt) {
        Path points;
        if (!grow(points, count) || !clear(points.front(), more) || !clear(points.back(), more)) continue;
        for (std::size_t i = 0; i < points.size(); i += 2) {
          along(points[i], points[i + 1], [&](const Point& p) { return take(p, is_.room); });
          lines_.push_back({points[i], points[i + 1]});
        }
        for (const Point& end : {points.front(), points.back()}) take(end, is_.room + more);
        return points;
      }
      return {};
    }

    void draw(const Pair& dots, float* pixels) const {
      std::fill_n(pixels, is_.side * is_.side, 0.0f);
      for (const auto& [from, to] : lines_) {
        paint(from, to, is_.thickness / 2, 0.8, pixels);
      }
      for (const Point& p : dots) paint(p, p, is_.dot, 1, pixels);
    }

   private:
    bool grow(Path& points, int count) {
      Point at{random_.uniform() * side_, random_.uniform() * side_};
      double heading = 2 * std::numbers::pi * random_.uniform();
      for (int i = 0; i < count; ++i) {
        bool placed = false;
        for (int attempt = 0; attempt < 6 && !placed; ++attempt) {
          const double to = heading + (2 * random_.uniform() - 1) * is_.turn;
          const double before = i == 0 ? 0 : is_.gap;
          const Point from{at.x + before * std::cos(to), at.y + before * std::sin(to)};
          const Point end{from.x + is_.dash * std::cos(to), from.y + is_.dash * std::sin(to)};
          if (!free(from, end, points)) continue;
          points.push_back(from);
          points.push_back(end);
          at = end;
          heading = to;
          placed = true;
        }
        if (!placed) return false;
      }
      return true;
    }

    /// Whether a dash keeps clear of the border, of other paths and of what its own has been before the last dash.
    bool free(const Point& from, const Point& to, const Path& own) const {
      const double border = is_.dot;
      const double near = is_.room + is_.dash / 2;
      return along(from, to, [&](const Point& p) {
        if (std::min(p.x, p.y) < border || std::max(p.x, p.y) > side_ - border || taken_[cell(p)]) return false;
        for (std::size_t i = 0; i + 2 < own.size(); ++i) {
          const double x = p.x - own[i].x, y = p.y - own[i].y;
          if (x * x + y * y < near * near) return false;
        }
        return true;
      });
    }

    /// Whether something holds at every pixel of a dash.
    static bool along(const Point& from, const Point& to, auto&& holds) {
      const int steps = std::max(1, static_cast<int>(std::ceil(distance(from, to))));
      for (int i = steps; i >= 0; --i) {
        const double share = static_cast<double>(i) / steps;
        if (!holds(Point{from.x + share * (to.x - from.x), from.y + share * (to.y - from.y)})) return false;
      }
      return true;
    }

    std::size_t cell(const Point& p) const {
      return static_cast<std::size_t>(static_cast<int>(2 * p.y) * cells_ + static_cast<int>(2 * p.x));
    }

    /// Whether something holds at every cell around a point.
    bool around(const Point& p, double radius, auto&& holds) {
      const int reach = static_cast<int>(std::ceil(2 * radius));
      for (int y = -reach; y <= reach; ++y) {
        for (int x = -reach; x <= reach; ++x) {
          const Point at{p.x + 0.5 * x, p.y + 0.5 * y};
          if (at.x < 0 || at.y < 0 || at.x >= side_ || at.y >= side_ || distance(at, p) > radius) continue;
          if (!holds(taken_[cell(at)])) return false;
        }
      }
      return true;
    }
    bool take(const Point& p, double radius) {
      return around(p, radius, [](std::uint8_t& taken) { return taken = 1; });
    }
    bool clear(const Point& p, double radius) {
      return around(p, radius, [](std::uint8_t taken) { return taken == 0; });
    }

    /// A line with round ends, or a disc, its edge a pixel wide.
    void paint(const Point& from, const Point& to, double radius, double shade, float* pixels) const {
      const double reach = radius + 1;
      const auto clamp = [&](double v) { return std::clamp<Index>(static_cast<Index>(v), 0, is_.side - 1); };
      for (Index y = clamp(std::min(from.y, to.y) - reach); y <= clamp(std::max(from.y, to.y) + reach); ++y) {
        for (Index x = clamp(std::min(from.x, to.x) - reach); x <= clamp(std::max(from.x, to.x) + reach); ++x) {
          const Point p{static_cast<double>(x) + 0.5, static_cast<double>(y) + 0.5};
          const Point way{to.x - from.x, to.y - from.y};
          const double squared = way.x * way.x + way.y * way.y;
          const double share =
              squared > 0 ? std::clamp(((p.x - from.x) * way.x + (p.y - from.y) * way.y) / squared, 0.0, 1.0) : 0;
          const double off = distance(p, {from.x + share * way.x, from.y + share * way.y});
          float& pixel = pixels[y * is_.side + x];
          pixel = std::max(pixel, static_cast<float>(shade * std::clamp(radius + 0.5 - off, 0.0, 1.0)));
        }
      }
    }

    const Pathfinder& is_;
    double side_;
    fit::Random random_;
    int cells_;
    std::vector<std::uint8_t> taken_;
    std::vector<std::array<Point, 2>> lines_;
  };
};

}  // namespace examples
