#pragma once

#include <fit/core/error.hpp>
#include <fit/core/memory.hpp>
#include <fit/io/atomic_file.hpp>
#include <fit/plot/chart.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <locale>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace examples {

using fit::Index;

/// What models come to on tasks, as a table that grows with each of them.
class Results {
 public:
  struct Row {
    std::string task;
    Index length = 0;
    std::string model;
    double minutes = 0;
    Index steps = 0, parameters = 0, tests = 0;
    double accuracy = 0;  // in percent, of so many tests

    auto key() const { return std::tie(task, length, model); }
  };

  /// Reads the table, if there is one. Throws fit::Error for one that is none.
  explicit Results(std::filesystem::path path) : path_(std::move(path)) {
    if (!std::filesystem::exists(path_)) return;
    std::ifstream stream(path_);
    fit::require(stream.is_open(), path_.string(), ": cannot be opened");
    stream.imbue(std::locale::classic());
    std::string line;
    if (!std::getline(stream, line)) return;
    fit::require(line == head, path_.string(), ": not a table of results");
    while (std::getline(stream, line)) {
      std::replace(line.begin(), line.end(), ',', ' ');
      std::istringstream cells(line);
      cells.imbue(std::locale::classic());
      Row row;
      cells >> row.task >> row.length >> row.model >> row.minutes >> row.steps >> row.parameters >> row.tests >>
          row.accuracy;
      fit::require(!cells.fail(), path_.string(), ": not a row of results: ", line);
      rows_.push_back(row);
    }
    fit::require(!stream.bad(), path_.string(), ": cannot be read");
  }

  const std::vector<Row>& rows() const { return rows_; }

  /// In place of an earlier one of the same task, length and model. Throws fit::Error when it cannot be written.
  void add(const Row& row) {
    std::erase_if(rows_, [&](const Row& other) { return other.key() == row.key(); });
    rows_.push_back(row);
    std::sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) { return a.key() < b.key(); });
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << head << '\n';
    for (const Row& r : rows_) {
      text << r.task << ',' << r.length << ',' << r.model << ',' << r.minutes << ',' << r.steps << ',' << r.parameters
           << ',' << r.tests << ',' << r.accuracy << '\n';
    }
    fit::write_file(path_, text.str());
  }

  /// Accuracy against length, a chart for each task and a curve for each model, whose colour is the same in all.
  void draw(const std::filesystem::path& path) const {
    fit::plot::Figure figure{.columns = 2};
    std::vector<std::string> models;
    for (const Row& row : rows_) {
      if (figure.charts.empty() || figure.charts.back().title != row.task) {
        figure.charts.push_back({.title = row.task,
                                 .x = {"tokens", fit::plot::Scale::log2},
                                 .y = {.title = "right", .unit = "%", .includes = {0, 100}}});
      }
      auto& curves = figure.charts.back().series;
      auto curve = std::find_if(curves.begin(), curves.end(), [&](const auto& c) { return c.name == row.model; });
      if (curve == curves.end()) {
        const auto model = std::find(models.begin(), models.end(), row.model);
        const auto colour = static_cast<int>(model - models.begin());
        if (model == models.end()) models.push_back(row.model);
        curve = curves.insert(curves.end(), {.name = row.model, .colour = colour});
      }
      curve->points.push_back({static_cast<double>(row.length), row.accuracy});
    }
    std::ostringstream svg;
    fit::plot::write_svg(svg, figure);
    fit::write_file(path, svg.str());
  }

 private:
  static constexpr const char* head = "task,length,model,minutes,steps,parameters,tests,accuracy";

  std::filesystem::path path_;
  std::vector<Row> rows_;
};

}  // namespace examples
