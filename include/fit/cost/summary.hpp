#pragma once

#include <array>
#include <cmath>
#include <cstdio>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <fit/cost/cost.hpp>

namespace fit {
inline namespace FIT_ABI {

/// A line of a summary: the stem, the head, or one part of a stage.
struct SummaryLine {
  std::string name;  ///< "stages.0.local x 2"
  Part part = Part::stem;
  Index stage = 0;
  std::array<Index, 4> shape = {};  ///< of what it changes: [batch, groups, tokens or latents, width]
  Index parameters = 0;
  Flops forward, backward;
  double share = 0;  ///< of all FLOPs
  Index kept = 0;    ///< bytes kept for the way back

  Flops flops() const { return forward + backward; }
};

/// What a model is made of and what it costs, part by part, as text or as numbers.
struct Summary {
  std::string title;
  std::vector<SummaryLine> lines;  ///< in the order in which tokens pass them
  Cost cost;
};

namespace detail {

/// A number in three digits with a prefix of the decimal system: 1.23 M.
inline std::string short_text(double value, const char* unit) {
  static constexpr const char* prefixes[] = {"", "k", "M", "G", "T", "P", "E"};
  std::size_t prefix = 0;
  while (std::abs(value) >= 999.5 && prefix + 1 < std::size(prefixes)) {
    value /= 1000;
    ++prefix;
  }
  char text[32];
  const int digits = prefix == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  std::snprintf(text, sizeof text, "%.*f %s", digits, value, prefixes[prefix]);
  return text + std::string(unit);
}

inline std::string padded(const std::string& text, std::size_t width, bool right) {
  const std::string space(width > text.size() ? width - text.size() : 0, ' ');
  return right ? space + text : text + space;
}

}  // namespace detail

/// The summary of a configuration whose counts may be chosen at run time. Throws Error as cost_of().
template <class T = float, class Config>
Summary summary_of(const Config& of, Index batch = 1, const CostOptions& options = {}) {
  const Config config = detail::with_groups(of, options.groups);
  const detail::Meter<T> meter = detail::meter_of<T>(config, batch, options);
  Summary summary;
  summary.cost = cost_of<T>(of, batch, options);
  summary.title = concatenate(Config::kind, " ", config.layers.view(), ", batch ", batch,
                              options.training ? ", training step" : ", inference",
                              !options.training || options.options.recompute == Recompute::none ? ""
                              : options.options.recompute == Recompute::stage                   ? ", recompute by stage"
                                                                                                : ", streamed");
  const Index own = share_of_groups(config, config.groups, options.member, options.members).count;
  const auto add = [&](const PartCost& part, std::string name) {
    const auto all = static_cast<double>(summary.cost.flops().total());
    summary.lines.push_back({std::move(name),
                             part.part,
                             part.stage,
                             {batch, own, part.rows / (batch * own), part.width},
                             part.parameters,
                             part.forward,
                             part.backward,
                             all > 0 ? static_cast<double>((part.forward + part.backward).total()) / all : 0,
                             part.kept});
  };
  const auto add_part = [&](Part wanted, Index stage, const char* name) {
    for (std::size_t i = 0; i < meter.count(); ++i) {
      const PartCost& part = meter.part(i);
      if (part.part != wanted || part.stage != stage || part.blocks == 0) continue;
      const std::string place = wanted == Part::stem || wanted == Part::head ? "" : concatenate("stages.", stage, ".");
      add(part, place + name + (part.blocks > 1 ? concatenate(" x ", part.blocks) : ""));
    }
  };
  add_part(Part::stem, 0, "stem");
  for (std::size_t i = 0; i < plan_of(config.layers).count; ++i) {
    const auto stage = static_cast<Index>(i);
    add_part(Part::local, stage, "local");
    add_part(Part::read, stage, "read");
    add_part(Part::condition, stage, "condition");
    add_part(Part::global, stage, "global");
    add_part(Part::write, stage, "write");
  }
  add_part(Part::head, 0, "head");
  return summary;
}

/// The same of a configuration that is a constant: `std::cout << fit::summary<config>();`
template <auto config, class T = float>
Summary summary(Index batch = 1, const CostOptions& options = {}) {
  return summary_of<T>(config, batch, options);
}

inline std::ostream& operator<<(std::ostream& out, const Summary& summary) {
  using detail::short_text;
  const auto line = [&](const std::string& name, const std::string& shape, const std::string& parameters,
                        const std::string& flops, const std::string& share, const std::string& kept) {
    out << detail::padded(name, 24, false) << detail::padded(shape, 22, false) << detail::padded(parameters, 12, true)
        << detail::padded(flops, 12, true) << detail::padded(share, 8, true) << detail::padded(kept, 10, true) << '\n';
  };
  const auto bytes = [](Index count) { return short_text(static_cast<double>(count), "B"); };
  const auto flops_text = [](const Flops& flops) { return short_text(static_cast<double>(flops.total()), "FLOP"); };
  out << summary.title << '\n';
  line("part", "shape", "parameters", "work", "share", "kept");
  for (const SummaryLine& l : summary.lines) {
    char share[16];
    std::snprintf(share, sizeof share, "%.1f %%", 100 * l.share);
    line(l.name, concatenate("[", l.shape[0], ", ", l.shape[1], ", ", l.shape[2], ", ", l.shape[3], "]"),
         concatenate(l.parameters), flops_text(l.flops()), share, bytes(l.kept));
  }
  const Cost& c = summary.cost;
  Index kept = 0;
  for (const SummaryLine& l : summary.lines) kept += l.kept;
  line("all", "", concatenate(c.parameters), flops_text(c.flops()), "100 %", bytes(kept));
  out << "memory: weights " << bytes(c.weights) << ", gradients " << bytes(c.gradients) << ", optimiser "
      << bytes(c.optimiser) << ", outputs " << bytes(c.outputs) << ", activations " << bytes(c.activations)
      << ", scratch " << bytes(c.scratch) << ", peak " << bytes(c.peak) << '\n';
  return out;
}

}  // namespace FIT_ABI
}  // namespace fit
