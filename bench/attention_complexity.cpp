// Time, operations and memory of attention, of layers and of whole models against the length of the sequence:
// `attention_complexity --help`.

#include <CLI/CLI.hpp>

#include <cstdio>
#include <cstdlib>
#include <fit/bench/report.hpp>
#include <fit/io/atomic_file.hpp>
#include <fit/run/interrupt.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "complexity_curves.hpp"
#include "onnx_attention.hpp"

namespace {

using fit::Index;
using namespace fit::bench;

struct Settings {
  bool quick = false, full = false;
  double seconds = 15;
  int threads = SweepOptions().threads;
  Index min = 1000, max = 1'024'000;  // doublings of 1000 have divisors near their cube roots
  std::uint64_t memory = static_cast<std::uint64_t>(SweepOptions().memory);
  std::vector<int> widths{256};
  std::vector<std::string> curves{"full", "local", "fit", "fixed", "latents", "cheapest"};
  std::vector<std::string> works{"attention", "layer", "model"};
  std::vector<std::string> masks{"none"};
  std::string onnxruntime, csv, json, svg, png;
};

template <class T>
bool contains(const std::vector<T>& values, const T& value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

std::vector<Curve> curves_of(int width, bool causal) {
  return width == 256 ? complexity_curves<256>(causal) : complexity_curves<512>(causal);
}

/// What was asked for, attention of all curves before layers, and these before models.
std::vector<Curve> chosen_curves(const Settings& settings) {
  std::vector<Curve> chosen;
  std::shared_ptr<const onnx::Runtime> runtime;
  if (!settings.onnxruntime.empty()) {
    fit::require(contains<std::string>(settings.works, "attention") && contains<std::string>(settings.masks, "none"),
                 "--onnxruntime is of attention without a mask, which --works or --masks leave out");
    runtime = std::make_shared<const onnx::Runtime>(settings.onnxruntime);
    onnx::attention(runtime, 1, 8, 8, 64, 1, false, 1)->run();  // better wrong now than in the middle of a sweep
  }
  for (const int width : settings.widths) {
    for (const bool causal : {false, true}) {
      if (!contains(settings.masks, std::string(causal ? "causal" : "none"))) continue;
      const std::vector<Curve> curves = curves_of(width, causal);
      for (const Work work : {Work::attention, Work::layer, Work::model}) {
        if (!contains(settings.works, std::string(name_of(work)))) continue;
        for (const Curve& curve : curves) {
          if (!contains(settings.curves, curve.name)) continue;
          for (const Task& task : curve.tasks) {
            if (task.work == work) chosen.push_back({curve.name, curve.sizes, {task}});
          }
        }
        if (runtime && work == Work::attention && !causal) {
          chosen.push_back(onnx::attention_curve(runtime, width, width / 64));
        }
      }
    }
  }
  return chosen;
}

std::string json_of(const Results& results) {
  const auto exponent = [](const std::optional<Exponent>& of) {
    return of ? nlohmann::json{{"value", of->value}, {"error", of->error}} : nlohmann::json(nullptr);
  };
  nlohmann::json json{
      {"threads", results.threads}, {"peak_flops_per_second", results.peak}, {"curves", nlohmann::json::array()}};
  for (const Line& line : lines_of(results)) {
    nlohmann::json points = nlohmann::json::array();
    for (const Point& point : line.points) {
      points.push_back({{"length", point.length},
                        {"groups", point.sizes.groups},
                        {"tokens", point.sizes.tokens},
                        {"latents", point.sizes.latents},
                        {"seconds", point.seconds},
                        {"flops_products", point.flops.products},
                        {"flops_attention", point.flops.attention},
                        {"flops_executed", point.flops.executed},
                        {"share_of_peak", point.share_of(results.peak)},
                        {"bytes", point.bytes},
                        {"tokens_per_second", point.tokens_per_second()},
                        {"estimated", point.estimated}});
    }
    json["curves"].push_back({{"curve", line.curve},
                              {"work", name_of(line.work)},
                              {"width", line.width},
                              {"causal", line.causal},
                              {"pass", name_of(line.pass)},
                              {"time_exponent", exponent(line.time_exponent())},
                              {"flops_exponent", exponent(line.flops_exponent())},
                              {"points", std::move(points)}});
  }
  return json.dump(1) + "\n";
}

/// The files, written anew after each point, so that they hold whatever was measured.
class Files {
 public:
  /// Throws fit::Error where one cannot be written, and leaves what is there.
  explicit Files(const Settings& settings) : settings_(settings) {
    for (const std::string* path : {&settings.csv, &settings.json, &settings.svg, &settings.png}) {
      if (!path->empty()) fit::AtomicFile{*path};
    }
  }

  /// Says what went wrong, and returns whether nothing did.
  bool write(const Results& results) const {
    bool good = true;
    const auto put = [&](const std::string& path, const auto& text) {
      if (path.empty()) return;
      try {
        fit::write_file(path, text());
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        good = false;
      }
    };
    const auto streamed = [](const auto& writer) {
      std::ostringstream out;
      writer(out);
      return out.str();
    };
    put(settings_.csv, [&] { return streamed([&](std::ostream& out) { write_csv(out, results); }); });
    put(settings_.json, [&] { return json_of(results); });
    put(settings_.svg,
        [&] { return streamed([&](std::ostream& out) { fit::plot::write_svg(out, figure(results)); }); });
    return good;
  }

  /// The picture as PNG, by a program that draws SVG.
  bool draw() const {
    if (settings_.png.empty()) return true;
    const auto quoted = [](const std::string& path) {
      std::string result = "'";
      for (const char c : path) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
      return result + "'";
    };
    const std::string from = quoted(settings_.svg), to = quoted(settings_.png);
    const std::string command = "if command -v rsvg-convert >/dev/null; then rsvg-convert --zoom 2 -o " + to + " -- " +
                                from + "; elif command -v inkscape >/dev/null; then inkscape -o " + to + " " + from +
                                " >/dev/null 2>&1; else exit 9; fi";
    if (std::system(command.c_str()) == 0) return true;
    std::fprintf(stderr,
                 "%s: not drawn: --png takes a working rsvg-convert (in Debian's librsvg2-bin) or inkscape; the "
                 "picture is in %s\n",
                 settings_.png.c_str(), settings_.svg.c_str());
    return false;
  }

 private:
  const Settings& settings_;
};

/// 1.23 ms
std::string with_prefix(double value, const char* unit, double base = 1000) {
  const char* const prefixes[] = {"n", "u", "m", "", "k", "M", "G", "T", "P"};
  int prefix = 3;
  if (value >= 1) {
    for (; value >= 999.5 && prefix < 8; ++prefix) value /= base;  // of more digits %.3g makes 1e+03
  } else {
    for (; value < 1 && value > 0 && prefix > 0; --prefix) value *= base;
  }
  char text[48];
  std::snprintf(text, sizeof(text), "%.3g %s%s", value, prefixes[prefix], unit);
  return text;
}

const char* short_name(Pass pass) { return pass == Pass::forward ? "fwd" : "fwd+bwd"; }

void print_head() {
  std::printf("%9s %-9s %-6s %3s %-7s %-11s %8s = %7s x %7s + %3s  %8s  %11s %6s  %8s  %9s\n", "", "work", "mask",
              "dim", "pass", "curve", "length", "groups", "tokens", "m", "time", "operations", "peak", "memory",
              "tokens");
}

void print_point(const Point& point, double peak, std::size_t number, std::size_t of) {
  std::printf("%4zu/%-4zu %-9s %-6s %3td %-7s %-11s %8td = %7td x %7td + %3td  %8s  %11s %4.0f %%  %8s  %7s/s%s\n",
              number, of, name_of(point.work), point.causal ? "causal" : "", point.width, short_name(point.pass),
              point.curve.c_str(), point.length, point.sizes.groups, point.sizes.tokens, point.sizes.latents,
              with_prefix(point.seconds, "s").c_str(),
              with_prefix(static_cast<double>(point.flops.total()), "FLOP").c_str(), 100 * point.share_of(peak),
              with_prefix(static_cast<double>(point.bytes), "B", 1024).c_str(),
              with_prefix(point.tokens_per_second(), "").c_str(), point.estimated ? "  estimated" : "");
  std::fflush(stdout);
}

void print_exponents(const Results& results) {
  const auto text = [](const std::optional<Exponent>& exponent) {
    char buffer[48] = "too few points";
    if (exponent) std::snprintf(buffer, sizeof(buffer), "%.2f +- %.3f", exponent->value, exponent->error);
    return std::string(buffer);
  };
  const std::vector<Line> lines = lines_of(results);
  std::printf("\nExponents of the length, over its upper half:\n%-9s %-6s %4s %-16s %-8s  %-15s  %-15s\n", "", "", "",
              "", "", "time, measured", "operations");
  for (const Line& line : lines) {
    std::printf("%-9s %-6s %3td %-7s %-11s %-16s  %s\n", name_of(line.work), line.causal ? "causal" : "", line.width,
                short_name(line.pass), line.curve.c_str(), text(line.time_exponent()).c_str(),
                text(line.flops_exponent()).c_str());
  }
  for (const Line& line : lines) {
    if (line.curve != "fit") continue;
    for (const Line& other : lines) {
      if (other.curve != "full" || other.work != line.work || other.width != line.width ||
          other.causal != line.causal || other.pass != line.pass) {
        continue;
      }
      const auto where = overtaking(line.seconds(), other.seconds());
      std::printf("%s%s, width %td, %s: ", name_of(line.work), line.causal ? ", causal" : "", line.width,
                  name_of(line.pass));
      if (!where) {
        std::printf("fit is not ahead of full at the longest sequence\n");
      } else if (*where == static_cast<double>(line.points.front().length)) {
        std::printf("fit is ahead of full everywhere, %.1f times at %td\n",
                    other.points.front().seconds / line.points.front().seconds, line.points.front().length);
      } else {
        std::printf("fit is ahead of full from a length of %.0f on\n", *where);
      }
    }
  }
}

int run(const Settings& settings) {
  std::vector<Curve> curves = chosen_curves(settings);
  const Files files(settings);
  SweepOptions options{.lengths = doublings(settings.min, settings.max),
                       .seconds = settings.seconds,
                       .memory = static_cast<Index>(std::min<std::uint64_t>(settings.memory, PTRDIFF_MAX)),
                       .threads = settings.threads};
  std::size_t total = 0;
  for (const Curve& curve : curves) {
    for (const Task& task : curve.tasks) total += task.passes.size() * options.lengths.size();
  }
  std::size_t number = 0;
  bool good = true;
  options.on_point = [&](const Point& point, const Results& so_far) {
    if (number == 0) print_head();
    print_point(point, so_far.peak, ++number, total);
    good = files.write(so_far) && good;
  };
  const fit::Interrupt interrupt;  // after the run that is under way
  options.stop = fit::Interrupt::asked;
  const Results results = sweep(curves, options);
  const bool interrupted = fit::Interrupt::asked();
  if (interrupted) std::printf("\nInterrupted; this is what was measured.\n");
  print_exponents(results);
  if (!results.points.empty()) good = files.write(results) && files.draw() && good;
  return interrupted ? 130 : good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app("Time, operations and memory of attention, layers and models against the length of the sequence");
  auto* quick = app.add_flag("--quick", settings.quick, "a minute: four curves, 0.5 seconds a point");
  app.add_flag("--full", settings.full, "half an hour: causal masks too, 10 seconds a point")->excludes(quick);
  app.add_option("--seconds", settings.seconds,
                 "of a run, 15 by default; what would take longer is estimated, and each point runs once more");
  app.add_option("--threads", settings.threads, "to run on");
  app.add_option("--min", settings.min, "shortest sequence; lengths double from there");
  app.add_option("--max", settings.max, "longest sequence");
  app.add_option("--memory-limit", settings.memory, "what would take more is estimated: bytes, or as 8GB")
      ->transform(CLI::AsSizeValue(false));
  const auto list = [&](const char* name, auto& values, const char* what) {
    using Value = typename std::decay_t<decltype(values)>::value_type;
    const std::vector<Value> allowed = [&] {
      if constexpr (std::is_same_v<Value, int>) {
        return std::vector<int>{256, 512};
      } else {
        return values.size() == 1 ? std::vector<Value>{"none", "causal"} : values;
      }
    }();
    return app.add_option(name, values, what)->delimiter(',')->check(CLI::IsMember(allowed));
  };
  auto* curves = list("--curves", settings.curves, "which, by commas");
  list("--works", settings.works, "attention alone, a layer, a whole model");
  list("--widths", settings.widths, "of tokens");
  auto* masks = list("--masks", settings.masks, "none, causal or both");
  app.add_option("--onnxruntime", settings.onnxruntime, "path of libonnxruntime.so: full attention as it runs it");
  app.add_option("--csv", settings.csv, "a row for each point");
  app.add_option("--json", settings.json, "the same, and exponents");
  auto* svg = app.add_option("--svg", settings.svg, "time and memory over the length, drawn");
  app.add_option("--png", settings.png, "the same by rsvg-convert or inkscape")->needs(svg);
  CLI11_PARSE(app, argc, argv);
  if (settings.quick) {
    if (app.count("--seconds") == 0) settings.seconds = 0.5;
    if (curves->count() == 0) settings.curves = {"full", "local", "fit", "latents"};
  }
  if (settings.full) {
    if (app.count("--seconds") == 0) settings.seconds = 10;
    if (masks->count() == 0) settings.masks = {"none", "causal"};
  }
  try {
    return run(settings);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
