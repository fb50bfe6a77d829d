#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include <fit/core/tensor.hpp>

namespace fit {
inline namespace FIT_ABI {

/// A mean over examples that come in batches of any size: of two halves that are added it is that of the whole.
struct Mean {
  double sum = 0;
  Index count = 0;

  /// The mean over `of` examples.
  void add(double mean, Index of = 1) {
    if (of == 0) return;  // whose mean is NaN
    sum += mean * static_cast<double>(of);
    count += of;
  }
  Mean& operator+=(const Mean& other) {
    sum += other.sum;
    count += other.count;
    return *this;
  }
  /// NaN of nothing.
  double value() const { return sum / static_cast<double>(count); }
};

/// The class with the largest of a row's logits [rows, classes], a tensor or view; of several the first.
template <class Logits>
Index best_class(const Logits& logits, Index row) {
  const TensorView<const detail::ScalarOf<Logits>, 2> from(logits);
  const auto* const first = from.data() + row * from.dimension(1);
  return std::max_element(first, first + from.dimension(1)) - first;
}

/// The share of rows whose best class is the target, from 0 to 1. Throws Error for another number of targets, and for a
/// view of null.
template <class Logits>
Mean accuracy(const Logits& logits, TensorView<const std::int32_t, 1> targets) {
  require(targets.dimension(0) == logits.dimension(0), "an accuracy needs a target for each of ", logits.dimension(0),
          " rows, not ", targets.dimension(0));
  const bool given = targets.data() && (logits.dimension(1) == 0 || logits.data());
  require(targets.dimension(0) == 0 || given, "an accuracy is given a view of null");
  Mean right;
  for (Index i = 0; i < targets.dimension(0); ++i) right.add(best_class(logits, i) == targets(i) ? 1 : 0);
  return right;
}

/// How many equally likely choices a mean cross entropy in nats stands for.
inline double perplexity(double nats) { return std::exp(nats); }

/// The peak signal-to-noise ratio in decibels, of a mean squared error and the range of the values.
inline double peak_signal_to_noise(double mean_squared_error, double range) {
  return 10 * std::log10(range * range / mean_squared_error);
}

/// How often what is of one class was taken for another: whole numbers, so batches are added exactly.
class ConfusionMatrix {
 public:
  /// Throws Error without classes, and for more than 2^20.
  explicit ConfusionMatrix(Index classes) : classes_(classes) {
    require(classes > 0 && classes <= (Index{1} << 20), "a confusion matrix needs classes, 2^20 at most, not ",
            classes);
    counts_.resize(static_cast<std::size_t>(classes * classes));
  }

  /// Throws Error for a class outside 0 .. classes-1.
  void add(Index is, Index found, Index times = 1) { counts_[place(is, found)] += times; }
  /// Throws Error for another number of classes.
  ConfusionMatrix& operator+=(const ConfusionMatrix& other) {
    require(other.classes_ == classes_, "confusion matrices of ", classes_, " and of ", other.classes_,
            " classes cannot be added");
    std::transform(counts_.begin(), counts_.end(), other.counts_.begin(), counts_.begin(), std::plus<>());
    return *this;
  }

  Index classes() const { return classes_; }
  /// These throw Error for a class outside 0 .. classes-1, too.
  Index operator()(Index is, Index found) const { return counts_[place(is, found)]; }

  Index total() const {
    Index sum = 0;
    for (const Index count : counts_) sum += count;
    return sum;
  }
  Index right() const {
    Index sum = 0;
    for (Index i = 0; i < classes_; ++i) sum += (*this)(i, i);
    return sum;
  }
  /// The share that is right; NaN of nothing.
  double accuracy() const { return static_cast<double>(right()) / static_cast<double>(total()); }
  /// Of what is of a class, the share that was found; NaN where there is none.
  double recall(Index of) const {
    Index all = 0;
    for (Index i = 0; i < classes_; ++i) all += (*this)(of, i);
    return static_cast<double>((*this)(of, of)) / static_cast<double>(all);
  }
  /// Of what was taken for a class, the share that is of it; NaN where there is none.
  double precision(Index of) const {
    Index all = 0;
    for (Index i = 0; i < classes_; ++i) all += (*this)(i, of);
    return static_cast<double>((*this)(of, of)) / static_cast<double>(all);
  }

  /// A table: what is of a class in a row, what it was taken for in columns. Names or numbers of the classes.
  void write(std::ostream& out, const std::vector<std::string>& names = {}) const {
    const auto name = [&](Index i) {
      return static_cast<std::size_t>(i) < names.size() ? names[static_cast<std::size_t>(i)] : std::to_string(i);
    };
    std::size_t wide = 0;
    for (Index i = 0; i < classes_; ++i) wide = std::max(wide, name(i).size());
    for (const Index count : counts_) wide = std::max(wide, std::to_string(count).size());
    const auto cell = [&](std::string_view text) {
      out << std::string(wide - std::min(wide, text.size()), ' ') << text << ' ';
    };
    cell("");
    for (Index i = 0; i < classes_; ++i) cell(name(i));
    for (Index i = 0; i < classes_; ++i) {
      out << '\n';
      cell(name(i));
      for (Index j = 0; j < classes_; ++j) cell(std::to_string((*this)(i, j)));
    }
    out << '\n';
  }

 private:
  std::size_t place(Index is, Index found) const {
    for (const Index one : {is, found}) {
      require(one >= 0 && one < classes_, "a class must be in 0 .. ", classes_ - 1, ", not ", one);
    }
    return static_cast<std::size_t>(is * classes_ + found);
  }

  Index classes_;
  std::vector<Index> counts_;
};

}  // namespace FIT_ABI
}  // namespace fit
