#pragma once

#include <fit/io/atomic_file.hpp>
#include <fit/plot/chart.hpp>
#include <fit/run/log.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>

#include "decoder_training.hpp"

#if __has_include(<sys/wait.h>)
#include <sys/wait.h>
#define EXAMPLES_HAS_PROCESSES 1
#else
#define EXAMPLES_HAS_PROCESSES 0
#endif

namespace examples {

/// Bytes that a program makes of a file, or nothing where there is no such program or no way to start it.
inline std::optional<Index> compressed_bytes(const std::string& program, const std::filesystem::path& file) {
#if EXAMPLES_HAS_PROCESSES
  std::string quoted;
  for (const char c : file.string()) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  std::FILE* const pipe = ::popen((program + " -c < '" + quoted + "' 2> /dev/null").c_str(), "r");
  fit::require(pipe != nullptr, "no process can be started");
  Index bytes = 0;
  std::array<char, 4096> part;
  while (const std::size_t count = std::fread(part.data(), 1, part.size(), pipe)) bytes += static_cast<Index>(count);
  const int status = ::pclose(pipe);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) return {};
  fit::require(status == 0, program, " did not compress ", file.string());
  return bytes;
#else
  (void)program, (void)file;
  return {};
#endif
}

/// Draws to OUT/NAME_compare.svg how the bits of what was held out fell with time, by the logs of FIT and of the plain
/// transformer, and what xz and zstd make of the same bytes.
inline void compare_decoders(const DecoderTraining& plan, const std::string& name, std::string_view held_out,
                             const std::string& unit) {
  fit::plot::Chart chart{.x = {.title = "minutes"}, .y = {.title = "bits per " + unit}};
  double longest = 0;
  for (const std::string& model : {name, "plain_" + name}) {
    fit::RunLog log(plan.out / model);
    log.read(std::numeric_limits<Index>::max());
    fit::plot::Series series{.name = model == name ? "FIT" : "plain transformer"};
    for (const auto& row : log.rows()) {
      for (const auto& [of, value] : row.values) {
        if (of == "held_out_bits") series.points.push_back({row.seconds / 60, value});
      }
      longest = std::max(longest, row.seconds / 60);
    }
    if (series.points.empty()) continue;
    const auto best = std::min_element(series.points.begin(), series.points.end(),
                                       [](const auto& a, const auto& b) { return a.y < b.y; });
    std::printf("%s: %.4f bits per %s\n", series.name.c_str(), best->y, unit.c_str());
    chart.series.push_back(series);
  }
  fit::require(!chart.series.empty(), plan.out.string(), ": no log of a run of ", name, " that was evaluated");
  const auto file = plan.out / (name + "_held_out");
  fit::write_file(file, held_out);
  for (const std::string program : {"xz -9", "zstd -19"}) {
    const auto size = compressed_bytes(program, file);
    if (!size) {
      std::printf("%s: not on this machine\n", program.c_str());
      continue;
    }
    const double bits = 8 * static_cast<double>(*size) / static_cast<double>(held_out.size());
    std::printf("%s: %.4f bits per %s\n", program.c_str(), bits, unit.c_str());
    chart.series.push_back({.name = program, .points = {{0, bits}, {longest, bits, true}}});
  }
  std::ostringstream svg;
  fit::plot::write_svg(svg, chart);
  const auto picture = plan.out / (name + "_compare.svg");
  fit::write_file(picture, svg.str());
  std::printf("%s\n", picture.string().c_str());
}

}  // namespace examples
