#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#if __has_include(<unistd.h>)
#include <sys/ioctl.h>
#include <unistd.h>
#define FIT_HAS_TERMINAL 1
#else
#define FIT_HAS_TERMINAL 0
#endif

#include <fit/core/abi.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

/// "1:02:03" for 3723 seconds.
inline std::string duration_text(double seconds) {
  if (!(seconds >= 0 && seconds < 1e9)) return "-:--:--";
  const auto total = static_cast<long long>(seconds + 0.5);
  char text[32];
  std::snprintf(text, sizeof(text), "%lld:%02lld:%02lld", total / 3600, total / 60 % 60, total % 60);
  return text;
}

}  // namespace detail

/// A name and a value on the progress line.
struct Field {
  std::string name, value;

  Field(std::string n, std::string v) : name(std::move(n)), value(std::move(v)) {}
  Field(std::string n, const char* v) : name(std::move(n)), value(v) {}
  /// With as many significant digits.
  Field(std::string n, double v, int digits = 4) : name(std::move(n)) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.*g", digits, v);
    value = text;
  }
};

/// How far a loop is, in one line that is written over and over on a terminal, and in a line now and then elsewhere:
///
///     training [==>                 ] 120/1000  loss 0.3512  rate 0.001  0:01:20 elapsed, 0:09:47 left
class Progress {
 public:
  /// `first` is the number of steps done before, as when a run is taken up again; they do not count for the speed.
  explicit Progress(std::string title, std::int64_t total, std::int64_t first = 0, std::FILE* stream = stdout)
      : title_(std::move(title)), total_(total), first_(first), stream_(stream), start_(Clock::now()) {
#if FIT_HAS_TERMINAL
    terminal_ = ::isatty(::fileno(stream)) != 0;
#endif
  }

  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  ~Progress() { finish(); }

  /// After `done` steps; may be called as often as there are steps. The last step is always shown.
  void update(std::int64_t done, const std::vector<Field>& fields = {}) {
    const Clock::time_point now = Clock::now();
    const bool last = total_ > 0 && done >= total_;
    if (shown_ && !last && now - last_shown_ < (terminal_ ? std::chrono::milliseconds(100) : next_plain_)) return;
    // Ever rarer in a log, so that a long run does not fill it.
    if (shown_ && !terminal_) next_plain_ = std::min(next_plain_ * 3 / 2, longest_plain_);
    shown_ = true;
    last_shown_ = now;
    show(done, std::chrono::duration<double>(now - start_).count(), fields);
    if (last) finish();
  }

  /// Another number of steps in all; 0 while it is not known.
  void set_total(std::int64_t total) { total_ = total; }

  /// A line of its own among the progress, as for an evaluation.
  void note(const std::string& text) {
    finish();
    std::fprintf(stream_, "%s\n", text.c_str());
    std::fflush(stream_);
  }

  /// Leaves the line as it is and begins a new one; so does the destructor.
  void finish() {
    if (!open_) return;
    std::fputc('\n', stream_);
    std::fflush(stream_);
    open_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void show(std::int64_t done, double elapsed, const std::vector<Field>& fields) {
    std::string line = title_ + " " + (terminal_ ? bar(done) : "") + " " + std::to_string(done);
    if (total_ > 0) line += "/" + std::to_string(total_);
    for (const Field& field : fields) line += "  " + field.name + " " + field.value;
    line += "  " + detail::duration_text(elapsed) + " elapsed";
    if (done > first_ && done < total_) {
      const double left = elapsed / static_cast<double>(done - first_) * static_cast<double>(total_ - done);
      line += ", " + detail::duration_text(left) + " left";
    }
    if (terminal_) {
      line.resize(std::min(line.size(), columns() - 1));  // a line that wraps could not be written over
      std::fprintf(stream_, "\r%s\x1b[K", line.c_str());
      open_ = true;
    } else {
      std::fprintf(stream_, "%s\n", line.c_str());
    }
    std::fflush(stream_);
  }

  std::string bar(std::int64_t done) const {
    constexpr int width = 20;
    const double share = total_ > 0 ? static_cast<double>(done) / static_cast<double>(total_) : 0;
    const auto filled = static_cast<std::size_t>(width * std::clamp(share, 0.0, 1.0));
    std::string text(width, ' ');
    std::fill_n(text.begin(), filled, '=');
    if (filled < width) text[filled] = '>';
    return "[" + text + "]";
  }

  std::size_t columns() const {
#if FIT_HAS_TERMINAL
    winsize size{};
    if (::ioctl(::fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 1) return size.ws_col;
#endif
    return 80;
  }

  static constexpr std::chrono::milliseconds longest_plain_{60'000};

  std::string title_;
  std::int64_t total_, first_;
  std::FILE* stream_;
  Clock::time_point start_, last_shown_{};
  std::chrono::milliseconds next_plain_{1'000};
  bool terminal_ = false, shown_ = false, open_ = false;
};

}  // namespace FIT_ABI
}  // namespace fit
