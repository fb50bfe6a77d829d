#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fit/core/error.hpp>
#include <fit/core/memory.hpp>
#include <fit/io/atomic_file.hpp>
#include <fit/io/dtype.hpp>
#include <fit/io/input_file.hpp>
#include <fit/plot/chart.hpp>

namespace fit {
inline namespace FIT_ABI {

using NamedValues = std::vector<std::pair<std::string, double>>;

/// What a run tells of itself, as a table, a picture, and lines for other tools: PREFIX.csv, PREFIX.svg and
/// PREFIX.jsonl, the same in any locale. Each is written whole every time, so that a reader never finds half of one.
class RunLog {
 public:
  struct Row {
    Index step = 0;
    double seconds = 0;
    NamedValues values = {};
  };

  explicit RunLog(std::filesystem::path prefix) : prefix_(std::move(prefix)) {}

  const std::vector<Row>& rows() const { return rows_; }

  /// Throws Error for a name that is empty or has more than letters, digits, "_", "/" and ".", or is there twice.
  static void check(const NamedValues& values) {
    for (const auto& [name, value] : values) {
      const bool plain = !name.empty() && name.find_first_not_of(characters) == name.npos;
      require(plain && name != "step" && name != "seconds", "a value of a log cannot be called ",
              detail::printable(name));
      const auto same = [&, &of = name](const auto& other) { return other.first == of; };
      require(std::count_if(values.begin(), values.end(), same) == 1, "two values of a log are called ", name);
    }
  }

  /// Throws Error as check().
  void add(Row row) {
    check(row.values);
    for (const auto& [name, value] : row.values) {
      if (std::find(names_.begin(), names_.end(), name) == names_.end()) names_.push_back(name);
    }
    rows_.push_back(std::move(row));
  }

  /// Reads the table of a run that goes on from a step; what came after that is forgotten. None is as good as an empty
  /// one. Throws Error for a table that is none of ours, or cannot be read.
  void read(Index last_step) {
    rows_.clear();
    names_.clear();
    std::error_code error;
    if (std::filesystem::status(path("csv"), error).type() == std::filesystem::file_type::not_found) return;
    std::istringstream stream(text_of(path("csv")));
    std::string line;
    if (!std::getline(stream, line)) return;
    std::vector<std::string> names = cells_of(line);
    const auto good = [&](bool holds) {
      require(holds, path("csv").string(), ": not the log of a run; remove it to go on without it");
    };
    good(names.size() >= 2 && names[0] == "step" && names[1] == "seconds");
    while (std::getline(stream, line)) {
      const std::vector<std::string> cells = cells_of(line);
      good(cells.size() == names.size());
      Row row;
      row.step = number_of<Index>(cells[0], good);
      row.seconds = number_of<double>(cells[1], good);
      for (std::size_t i = 2; i < cells.size(); ++i) {
        if (!cells[i].empty()) row.values.emplace_back(names[i], number_of<double>(cells[i], good));
      }
      if (row.step <= last_step) add(std::move(row));
    }
  }

  /// Throws Error when a file cannot be written.
  void write() const {
    std::ostringstream csv, json, svg;
    write_csv(csv);
    write_json_lines(json);
    plot::write_svg(svg, figure());
    write_file(path("csv"), csv.str());
    write_file(path("jsonl"), json.str());
    write_file(path("svg"), svg.str());
  }

  /// Each value against steps and against seconds.
  plot::Figure figure() const {
    plot::Figure figure;
    figure.title = prefix_.filename().string();
    figure.columns = 2;
    for (const std::string& name : names_) {
      for (const bool by_time : {false, true}) {
        plot::Chart chart{.title = name, .x = {.title = by_time ? "seconds" : "step"}};
        chart.series.push_back({.points = points(name, by_time)});
        figure.charts.push_back(std::move(chart));
      }
    }
    return figure;
  }

 private:
  static constexpr std::string_view characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.";

  std::filesystem::path path(const char* extension) const {
    std::filesystem::path result = prefix_;
    return result += std::string(".") + extension;
  }

  static std::string text_of(const std::filesystem::path& path) {
    return detail::naming(path.string(), [&] {
      detail::InputFile file(path);
      std::string text(static_cast<std::size_t>(file.size()), '\0');
      file.get(text.data(), text.size());
      return text;
    });
  }

  static std::vector<std::string> cells_of(const std::string& line) {
    std::vector<std::string> cells{""};
    for (const char c : line) {
      if (c == ',') {
        cells.emplace_back();
      } else {
        cells.back() += c;
      }
    }
    return cells;
  }

  template <class Number, class Good>
  static Number number_of(const std::string& text, Good&& good) {
    Number value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    good(error == std::errc() && end == text.data() + text.size());
    return value;
  }

  static const double* value_of(const Row& row, const std::string& name) {
    for (const auto& [own, value] : row.values) {
      if (own == name) return &value;
    }
    return nullptr;
  }

  void write_csv(std::ostream& out) const {
    out << "step,seconds";
    for (const std::string& name : names_) out << ',' << name;
    out << '\n';
    for (const Row& row : rows_) {
      out << std::to_string(row.step) << ',' << detail::shortest_text(row.seconds);
      for (const std::string& name : names_) {
        const double* const value = value_of(row, name);
        out << ',' << (value ? detail::shortest_text(*value) : "");
      }
      out << '\n';
    }
  }

  /// JSON has no infinities and no NaN: null.
  void write_json_lines(std::ostream& out) const {
    for (const Row& row : rows_) {
      out << "{\"step\": " << std::to_string(row.step) << ", \"seconds\": " << detail::shortest_text(row.seconds);
      for (const auto& [name, value] : row.values) {
        out << ", \"" << name << "\": " << (std::isfinite(value) ? detail::shortest_text(value) : "null");
      }
      out << "}\n";
    }
  }

  /// Means of neighbours where there are more than a picture can show.
  std::vector<plot::Point> points(const std::string& name, bool by_time) const {
    std::vector<plot::Point> all;
    for (const Row& row : rows_) {
      if (const double* const value = value_of(row, name)) {
        all.push_back({by_time ? row.seconds : static_cast<double>(row.step), *value});
      }
    }
    constexpr std::size_t most = 400;
    const std::size_t together = (all.size() + most - 1) / most;
    if (together <= 1) return all;
    std::vector<plot::Point> few;
    for (std::size_t i = 0; i < all.size(); i += together) {
      const std::size_t end = std::min(all.size(), i + together);
      plot::Point mean;
      for (std::size_t j = i; j < end; ++j) {
        mean.x += all[j].x / static_cast<double>(end - i);
        mean.y += all[j].y / static_cast<double>(end - i);
      }
      few.push_back(mean);
    }
    return few;
  }

  std::filesystem::path prefix_;
  std::vector<std::string> names_;
  std::vector<Row> rows_;
};

}  // namespace FIT_ABI
}  // namespace fit
