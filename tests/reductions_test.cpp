#include <fit/kernels/cross_entropy.hpp>
#include <fit/kernels/dropout.hpp>
#include <fit/kernels/layer_norm.hpp>
#include <fit/kernels/silu.hpp>
#include <fit/nn/pooling.hpp>
#include <fit/training/cross_entropy.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <cstdint>
#include <limits>
#include <utility>

namespace {

using fit::Index;
using fit::kernels::ColumnSum;
using fit::kernels::Dropout;
using test::normal_values;

template <class T>
constexpr Index width = fit::simd::width<T>;
template <class T>
constexpr T not_a_number = std::numeric_limits<T>::quiet_NaN();

template <class T>
std::vector<T> filled(Index count, T value) {
  return std::vector<T>(static_cast<std::size_t>(count), value);
}

template <class T>
double at(const std::vector<T>& values, Index i) {
  return static_cast<double>(values[static_cast<std::size_t>(i)]);
}

/// What references are summed in, so that their own rounding does not count against double.
using Exact = long double;

/// What should come out, and the rounding error of one unit in each number on the way that reaches it.
struct Expected {
  std::vector<Exact> value;
  std::vector<double> magnitude;
  explicit Expected(Index count) : value(filled(count, Exact(0))), magnitude(filled(count, 0.0)) {}
  template <class T>
  explicit Expected(const std::vector<T>& before) : Expected(static_cast<Index>(before.size())) {
    for (Index i = 0; i < static_cast<Index>(before.size()); ++i) add(i, at(before, i));
  }
  void add(Index i, Exact part, Exact error) {
    value[static_cast<std::size_t>(i)] += part;
    magnitude[static_cast<std::size_t>(i)] += static_cast<double>(error);
  }
  void add(Index i, Exact part) { add(i, part, std::abs(part)); }
};

/// The largest error in units of rounding; infinite for NaN.
template <class T>
double worst_error(const std::vector<T>& ours, const Expected& expected) {
  REQUIRE(ours.size() == expected.value.size());
  double worst = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const auto error = static_cast<double>(std::abs(static_cast<Exact>(ours[i]) - expected.value[i]));
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    if (error == 0) continue;
    worst = std::max(worst, error / static_cast<double>(std::numeric_limits<T>::epsilon()) / expected.magnitude[i]);
  }
  return worst;
}

fit::Executor& executor() {
  static fit::Executor two(2);
  return two;
}

/// A workspace with nothing but NaN in its arena.
template <class T>
fit::Workspace poisoned(fit::Executor& executor) {
  fit::Workspace workspace(executor);
  constexpr Index room = 1 << 14;
  std::fill_n(workspace.arena().allocate<T>(room), room, not_a_number<T>);
  workspace.arena().rewind({});
  return workspace;
}

template <class T>
struct Norm {
  Index rows, width;
  std::vector<T> weight, bias, x;
  std::vector<T> y, normalised, inverse;

  /// Rows around `mean`, the last one of equal elements.
  Norm(Index row_count, Index columns, double mean)
      : rows(row_count),
        width(columns),
        weight(normal_values<T>(columns, 1)),
        bias(normal_values<T>(columns, 2)),
        x(normal_values<T>(row_count * columns, 3)) {
    for (T& value : x) value += static_cast<T>(mean);
    if (rows > 1) std::fill(x.end() - width, x.end(), static_cast<T>(mean + 0.3));
    y = filled(rows * width, not_a_number<T>);
    normalised = y;
    inverse = filled(rows, not_a_number<T>);
  }
  void forward(fit::Executor& threads) {
    fit::kernels::layer_norm<T>({x.data(), weight.data(), bias.data(), y.data(), normalised.data(), inverse.data()},
                                rows, width, threads);
  }
};

template <class T>
void check_norm_forward(Index rows, Index width, double mean) {
  INFO(rows << " rows of " << width << " around " << mean);
  // Equal numbers one after the other are all rounded the same way.
  const double bound = 3 + static_cast<double>(width) / static_cast<double>(8 * ::width<T>);
  Norm<T> norm(rows, width, mean);
  norm.forward(executor());
  Expected y(rows * width), normalised(rows * width), inverse(rows);
  for (Index i = 0; i < rows; ++i) {
    Exact total = 0, squares = 0;
    double largest = 0;
    for (Index j = 0; j < width; ++j) total += at(norm.x, i * width + j);
    const Exact middle = total / static_cast<Exact>(width);
    for (Index j = 0; j < width; ++j) {
      const Exact off = at(norm.x, i * width + j) - middle;
      squares += off * off;
      largest = std::max(largest, std::abs(at(norm.x, i * width + j)));
    }
    const Exact inverted = 1 / std::sqrt(squares / static_cast<Exact>(width) + Exact(1e-6));
    const Exact size = 1 + largest * inverted;  // of the elements in deviations, which is what a mean is rounded by
    inverse.add(i, inverted, inverted * size);
    for (Index j = 0; j < width; ++j) {
      const Exact z = (at(norm.x, i * width + j) - middle) * inverted, w = at(norm.weight, j);
      normalised.add(i * width + j, z, (1 + std::abs(z)) * size);
      y.add(i * width + j, w * z + at(norm.bias, j),
            std::abs(w) * (1 + std::abs(z)) * size + std::abs(at(norm.bias, j)));
    }
  }
  CHECK(worst_error(norm.y, y) < bound);
  CHECK(worst_error(norm.normalised, normalised) < bound);
  CHECK(worst_error(norm.inverse, inverse) < bound);

  std::vector<T> in_place = norm.x;
  fit::kernels::layer_norm<T>({in_place.data(), norm.weight.data(), norm.bias.data(), in_place.data()}, rows, width,
                              executor());
  CHECK(in_place == norm.y);
}

template <class T>
void check_norm_backward(Index rows, Index width) {
  INFO(rows << " rows of " << width);
  Norm<T> norm(rows, width, 0);
  norm.forward(executor());
  const std::vector<T> gradient = normal_values<T>(rows * width, 4);
  std::vector<T> x = normal_values<T>(rows * width, 5), weight = normal_values<T>(width, 6),
                 bias = normal_values<T>(width, 7);
  const Expected nothing_else(weight);
  Expected to_x(x), to_weight(weight), to_bias(bias);
  const auto columns = static_cast<Exact>(width);
  for (Index i = 0; i < rows; ++i) {
    Exact mean = 0, slope = 0, mean_size = 0, slope_size = 0;
    for (Index j = 0; j < width; ++j) {
      const Exact g = at(norm.weight, j) * at(gradient, i * width + j), z = at(norm.normalised, i * width + j);
      mean += g / columns;
      slope += g * z / columns;
      mean_size += std::abs(g) / columns;
      slope_size += std::abs(g * z) / columns;
      to_weight.add(j, at(gradient, i * width + j) * z);
      to_bias.add(j, at(gradient, i * width + j));
    }
    for (Index j = 0; j < width; ++j) {
      const Exact g = at(norm.weight, j) * at(gradient, i * width + j), z = at(norm.normalised, i * width + j);
      to_x.add(i * width + j, at(norm.inverse, i) * (g - mean - z * slope),
               at(norm.inverse, i) * (std::abs(g) + mean_size + std::abs(z) * slope_size));
    }
  }
  fit::Workspace workspace = poisoned<T>(executor());
  fit::kernels::layer_norm_backward<T>({norm.normalised.data(), norm.inverse.data(), norm.weight.data(),
                                        gradient.data(), x.data(), weight.data(), bias.data()},
                                       rows, width, workspace);
  CHECK(worst_error(x, to_x) < 2);
  CHECK(worst_error(weight, to_weight) < 2);
  CHECK(worst_error(bias, to_bias) < 2);
  CHECK(workspace.arena().mark().total == 0);
}

/// Several sums at once, of tensors of any rows and columns, added to numbers that are there.
template <class T>
struct Sums {
  std::vector<std::pair<Index, Index>> shapes;
  std::vector<std::vector<T>> x, sums;

  explicit Sums(std::vector<std::pair<Index, Index>> rows_and_columns) : shapes(std::move(rows_and_columns)) {
    std::uint64_t seed = 10;
    for (const auto& [rows, columns] : shapes) {
      x.push_back(normal_values<T>(rows * columns, ++seed));
      sums.push_back(normal_values<T>(columns, ++seed));
    }
  }
  ColumnSum<T> job(std::size_t i) { return {x[i].data(), shapes[i].first, shapes[i].second, sums[i].data()}; }
  void run(fit::Executor& threads) {
    fit::Workspace workspace = poisoned<T>(threads);
    std::vector<ColumnSum<T>> jobs;
    for (std::size_t i = 0; i < shapes.size(); ++i) jobs.push_back(job(i));
    fit::kernels::add_column_sums(std::span<const ColumnSum<T>>(jobs), workspace);
    CHECK(workspace.arena().mark().total == 0);
  }
  Expected expected(std::size_t i) const {
    Expected result(sums[i]);
    const auto& [rows, columns] = shapes[i];
    for (Index row = 0; row < rows; ++row) {
      for (Index j = 0; j < columns; ++j) result.add(j, at(x[i], row * columns + j));
    }
    return result;
  }
};

template <class T>
void check_sums(const std::vector<std::pair<Index, Index>>& shapes) {
  Sums<T> together(shapes), apart(shapes);
  std::vector<Expected> expected;
  for (std::size_t i = 0; i < shapes.size(); ++i) expected.push_back(together.expected(i));
  const auto before = together.sums;
  together.run(executor());
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    INFO("job " << i << ": " << shapes[i].first << " rows of " << shapes[i].second);
    CHECK(worst_error(together.sums[i], expected[i]) < 3);
    if (shapes[i].first == 0) CHECK(together.sums[i] == before[i]);
    fit::Workspace workspace = poisoned<T>(executor());
    fit::kernels::add_column_sums({apart.job(i)}, workspace);
    CHECK(apart.sums[i] == together.sums[i]);
  }
}

template <class T>
struct Entropy {
  Index rows, classes;
  std::vector<T> logits;
  std::vector<std::int32_t> targets;
  std::vector<T> losses, gradient;

  Entropy(Index row_count, Index class_count, double deviation)
      : rows(row_count),
        classes(class_count),
        logits(normal_values<T>(row_count * class_count, 20, deviation)),
        losses(filled(row_count, not_a_number<T>)),
        gradient(filled(row_count * class_count, not_a_number<T>)) {
    fit::Random random(21);
    for (Index i = 0; i < rows; ++i) targets.push_back(static_cast<std::int32_t>(random.below(classes)));
  }
  void run(fit::Executor& threads, T scale) {
    fit::kernels::cross_entropy<T>({logits.data(), targets.data(), losses.data(), gradient.data()}, scale, rows,
                                   classes, threads);
  }
  Index target(Index row) const { return targets[static_cast<std::size_t>(row)]; }
  std::pair<Expected, Expected> expected(double scale) const {
    std::pair<Expected, Expected> result(Expected{rows}, Expected{rows * classes});
    for (Index i = 0; i < rows; ++i) {
      Exact highest = at(logits, i * classes), total = 0;
      for (Index j = 1; j < classes; ++j) highest = std::max<Exact>(highest, at(logits, i * classes + j));
      for (Index j = 0; j < classes; ++j) total += std::exp(at(logits, i * classes + j) - highest);
      const Exact chosen = at(logits, i * classes + target(i));
      result.first.add(i, std::log(total) + highest - chosen,
                       1 + std::log(total) + std::abs(highest) + highest - chosen);
      for (Index j = 0; j < classes; ++j) {
        const Exact off = at(logits, i * classes + j) - highest, share = std::exp(off) / total;
        const double smallest = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
        result.second.add(i * classes + j, scale * (share - (j == target(i) ? 1 : 0)),
                          scale * (share * (1 - off) + (j == target(i) ? 1 : 0) + smallest));
      }
    }
    return result;
  }
};

template <class T>
void check_entropy(Index rows, Index classes, double deviation) {
  INFO(rows << " rows of " << classes << " classes, deviation " << deviation);
  const T scale = T(0.125);
  Entropy<T> entropy(rows, classes, deviation);
  const auto [losses, gradient] = entropy.expected(static_cast<double>(scale));
  entropy.run(executor(), scale);
  CHECK(worst_error(entropy.losses, losses) < 2);
  CHECK(worst_error(entropy.gradient, gradient) < 10);

  Entropy<T> in_place(rows, classes, deviation);
  fit::kernels::cross_entropy<T>({in_place.logits.data(), in_place.targets.data(), in_place.losses.data()}, scale, rows,
                                 classes, executor());
  CHECK(in_place.losses == entropy.losses);
  in_place.losses = filled(rows, not_a_number<T>);
  fit::kernels::cross_entropy<T>(
      {in_place.logits.data(), in_place.targets.data(), in_place.losses.data(), in_place.logits.data()}, scale, rows,
      classes, executor());
  CHECK(in_place.losses == entropy.losses);
  CHECK(in_place.logits == entropy.gradient);
}

template <class T>
void check_pool(Index sequences, Index length, Index width) {
  INFO(sequences << " sequences of " << length << ", width " << width);
  const std::vector<T> x = normal_values<T>(sequences * length * width, 30);
  const std::vector<T> gradient = normal_values<T>(sequences * width, 31);
  std::vector<T> mean = filled(sequences * width, not_a_number<T>),
                 x_gradient = filled(sequences * length * width, not_a_number<T>);
  Expected expected(sequences * width), expected_gradient(sequences * length * width);
  const auto tokens = static_cast<Exact>(length);
  for (Index i = 0; i < sequences * length * width; ++i) {
    const Index to = i / (length * width) * width + i % width;
    expected.add(to, at(x, i) / tokens);
    expected_gradient.add(i, at(gradient, to) / tokens);
  }
  fit::nn::mean_pool(x.data(), mean.data(), sequences, length, width, executor());
  CHECK(worst_error(mean, expected) < 2);
  fit::nn::mean_pool_backward(gradient.data(), x_gradient.data(), sequences, length, width, executor());
  CHECK(worst_error(x_gradient, expected_gradient) < 2);
}

template <class T>
std::vector<T> factors(const Dropout& dropout, Index count, std::uint64_t first) {
  std::vector<T> result = filled(count, T(1));
  dropout.apply(result.data(), count, first);
  return result;
}

template <class T>
Index dropped(const std::vector<T>& values) {
  return std::count(values.begin(), values.end(), T(0));
}

}  // namespace

TEMPLATE_TEST_CASE("layer norm", "[reductions]", float, double) {
  using T = TestType;
  for (Index columns = 1; columns <= 2 * width<T> + 1; ++columns) {
    for (const double mean : {0.0, 3.0, -1000.0}) check_norm_forward<T>(5, columns, mean);
  }
  check_norm_forward<T>(0, 7, 0);
  check_norm_forward<T>(1, 1000, 5);
  check_norm_forward<T>(70, 300, 1);             // more rows than are taken at once
  constexpr Index short_row = 1024 / sizeof(T);  // the longest that goes side by side with others
  for (const Index columns : {width<T> + 3, short_row, short_row + 1}) check_norm_forward<T>(71, columns, 1);
}

TEMPLATE_TEST_CASE("the way back through layer norm", "[reductions]", float, double) {
  using T = TestType;
  for (Index columns = 1; columns <= 2 * width<T> + 1; ++columns) check_norm_backward<T>(5, columns);
  for (const Index rows : {0, 1, 63, 64, 65, 300}) check_norm_backward<T>(rows, width<T> + 3);
  check_norm_backward<T>(64 * 130, 3);  // more blocks of rows than are summed at once
  constexpr Index short_row = 1024 / sizeof(T);
  for (const Index columns : {short_row, short_row + 1}) check_norm_backward<T>(7, columns);
}

TEMPLATE_TEST_CASE("a row of layer norm has the same bits by itself as among others", "[reductions]", float, double) {
  using T = TestType;
  for (const Index columns : {width<T>, 2 * width<T>, 2 * width<T> + 3}) {
    constexpr Index rows = 7;
    INFO(columns);
    Norm<T> all(rows, columns, 1);
    all.forward(executor());
    const std::vector<T> gradient = normal_values<T>(rows * columns, 4), before = normal_values<T>(rows * columns, 5);
    const auto back = [&](const Norm<T>& norm, Index row, Index count) {
      std::vector<T> x(before.begin() + row * columns, before.begin() + (row + count) * columns);
      std::vector<T> weight(norm.weight), bias(norm.bias);
      fit::Workspace workspace(executor());
      fit::kernels::layer_norm_backward<T>({norm.normalised.data(), norm.inverse.data(), norm.weight.data(),
                                            gradient.data() + row * columns, x.data(), weight.data(), bias.data()},
                                           count, columns, workspace);
      return x;
    };
    const auto part = [&](const std::vector<T>& of, Index row) {
      return std::vector<T>(of.begin() + row * columns, of.begin() + (row + 1) * columns);
    };
    const std::vector<T> x = back(all, 0, rows);
    for (Index row = 0; row < rows; ++row) {
      Norm<T> alone(1, columns, 1);
      alone.x = part(all.x, row);
      alone.forward(executor());
      CHECK(alone.y == part(all.y, row));
      CHECK(alone.normalised == part(all.normalised, row));
      CHECK(alone.inverse[0] == all.inverse[static_cast<std::size_t>(row)]);
      CHECK(back(alone, row, 1) == part(x, row));
    }
  }
}

TEMPLATE_TEST_CASE("column sums", "[reductions]", float, double) {
  using T = TestType;
  for (Index columns = 1; columns <= 2 * width<T> + 1; ++columns) check_sums<T>({{5, columns}});
  for (const Index rows : {0, 1, 127, 128, 129, 256, 500}) check_sums<T>({{rows, 16 * width<T> + 3}});
  check_sums<T>({});
  check_sums<T>({{0, 5}, {300, 40 * width<T>}, {0, 16 * width<T> + 1}, {1, 3}, {129, 1}, {0, 2}});
}

TEMPLATE_TEST_CASE("cross entropy and its gradient", "[reductions]", float, double) {
  using T = TestType;
  for (Index classes = 1; classes <= 2 * width<T> + 1; ++classes) check_entropy<T>(6, classes, 2);
  for (const double deviation : {1e-3, 1.0, 1e4}) check_entropy<T>(30, 1000, deviation);
  check_entropy<T>(0, 10, 1);
  check_entropy<T>(2, 5000, 1);
  check_entropy<T>(3000, 5, 1);
}

TEMPLATE_TEST_CASE("the mean cross entropy", "[reductions]", float, double) {
  using T = TestType;
  Entropy<T> entropy(37, 11, 2);
  const auto [losses, gradient] = entropy.expected(1.0 / 37);
  fit::Workspace workspace(executor());
  fit::Tensor<T, 2> logits(37, 11), to(37, 11);
  std::copy(entropy.logits.begin(), entropy.logits.end(), logits.data());
  fit::Tensor<std::int32_t, 1> targets(37), fewer(36);
  std::copy(entropy.targets.begin(), entropy.targets.end(), targets.data());
  double mean = 0;
  for (const Exact loss : losses.value) mean += static_cast<double>(loss) / 37;
  const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  CHECK(std::abs(fit::cross_entropy(logits, targets, workspace) - mean) < 4 * epsilon * mean);
  CHECK(std::abs(fit::cross_entropy(logits, targets, to, workspace) - mean) < 4 * epsilon * mean);
  CHECK(worst_error(std::vector<T>(to.data(), to.data() + to.size()), gradient) < 10);
  CHECK(workspace.arena().mark().total == 0);

  // Whatever a model or a user has them in.
  const fit::Tensor<T, 2> gradient_of_tensors = to;
  const auto same = [&](const auto& of, const auto& at, auto&& where) {
    to.setZero();
    const double value = fit::cross_entropy(of, at, where, workspace);
    CHECK(value == fit::cross_entropy(of, at, workspace));
    CHECK(value == fit::cross_entropy(logits, targets, workspace));
    CHECK(std::equal(to.data(), to.data() + to.size(), gradient_of_tensors.data()));
  };
  same(fit::TensorView<const T, 2>(logits), fit::TensorView<const std::int32_t, 1>(targets), fit::TensorView<T, 2>(to));
  same(fit::TensorView<T, 2>(logits), fit::TensorView<std::int32_t, 1>(targets), to.eigen());
  same(logits.eigen(), targets.eigen(), to);
  same(std::as_const(logits).eigen(), std::as_const(targets).eigen(), to);
  same(Eigen::Tensor<T, 2, Eigen::RowMajor>(logits.eigen()), targets, to);

  CHECK(test::error_of([&] { fit::cross_entropy(logits, fewer, workspace); }) ==
        "cross entropy needs a target for each of 37 rows, not 36");
  CHECK(test::error_of([&] { fit::cross_entropy(fit::TensorView<const T, 2>(nullptr, 37, 11), targets, workspace); }) ==
        "a cross entropy is given a view of null");
  to.setConstant(5);
  for (const auto& [rows, classes] : {std::pair{36, 11}, {37, 10}, {11, 37}}) {
    fit::Tensor<T, 2> wrong(rows, classes);
    CHECK(test::error_of([&] { fit::cross_entropy(logits, targets, wrong, workspace); }) ==
          "the gradient of a cross entropy must have the shape [37, 11], not " + fit::shape_text(wrong.dimensions()));
  }
  for (const std::int32_t target : {-1, 11, std::numeric_limits<std::int32_t>::min()}) {
    targets(36) = target;
    CHECK(test::error_of([&] { fit::cross_entropy(logits, targets, to, workspace); }) ==
          "target 36 must be in 0 .. 10, not " + std::to_string(target));
  }
  CHECK(std::count(to.data(), to.data() + to.size(), T(5)) == to.size());

  const fit::Tensor<T, 2> no_rows(0, 11), no_classes(37, 0);
  CHECK(fit::cross_entropy(no_rows, fit::Tensor<std::int32_t, 1>(0), workspace) == 0);
  CHECK(test::contains(test::error_of([&] { fit::cross_entropy(no_classes, targets, workspace); }), "target 0 must"));
}

TEMPLATE_TEST_CASE("mean pooling and its way back", "[reductions]", float, double) {
  using T = TestType;
  for (Index columns = 1; columns <= 2 * width<T> + 1; ++columns) check_pool<T>(3, 5, columns);
  for (const Index length : {1, 2, 7, 100}) check_pool<T>(4, length, width<T> + 1);
  check_pool<T>(0, 5, 3);
}

TEMPLATE_TEST_CASE("drop-out drops its share and scales the rest", "[reductions]", float, double) {
  using T = TestType;
  constexpr Index count = 400000;
  for (const float rate : {0.01f, 0.1f, 0.3f, 0.5f, 0.9f}) {
    INFO(rate);
    const double p = static_cast<double>(rate), n = static_cast<double>(count);
    for (const std::uint64_t first : {std::uint64_t{0}, (std::uint64_t{1} << 32) - 1000, std::uint64_t{12345} << 33}) {
      const std::vector<T> values = factors<T>({17, rate}, count, first);
      CHECK(std::abs(static_cast<double>(dropped(values)) / n - p) < 4.5 * std::sqrt(p * (1 - p) / n));
      const T scale = T(1) / (T(1) - T(rate));
      CHECK(dropped(values) + std::count(values.begin(), values.end(), scale) == count);
      // Neighbours, near and as far as rows are apart, fall independently of each other.
      for (const std::size_t apart : {1u, 2u, 64u, 1024u}) {
        double both = 0;
        for (std::size_t i = apart; i < values.size(); ++i) both += values[i] == T(0) && values[i - apart] == T(0);
        const double pairs = n - static_cast<double>(apart);
        CHECK(std::abs(both / pairs - p * p) < 6 * std::sqrt(p * p / pairs));
      }
    }
  }
}

TEMPLATE_TEST_CASE("drop-out is a function of the key and the element", "[reductions]", float, double) {
  using T = TestType;
  const Dropout dropout{99, 0.4f};
  constexpr Index count = 999;
  for (const std::uint64_t first :
       {std::uint64_t{0}, (std::uint64_t{1} << 32) - 500, (std::uint64_t{7} << 32) - 1, std::uint64_t{5} << 40}) {
    const std::vector<T> whole = factors<T>(dropout, count, first);
    for (const Index piece : {1, 7, 499, 500, 501}) {
      INFO(first << " in pieces of " << piece);
      std::vector<T> pieces = filled(count, T(1));
      for (Index i = 0; i < count; i += piece) {
        dropout.apply(pieces.data() + i, std::min(piece, count - i), first + static_cast<std::uint64_t>(i));
      }
      CHECK(pieces == whole);
    }
    const std::vector<double> others = factors<double>(dropout, count, first);
    Index differing = 0;
    for (Index i = 0; i < count; ++i) differing += (at(whole, i) == 0) != (at(others, i) == 0);
    CHECK(differing == 0);  // float and double lose the same elements
  }
  // Where key or upper half of the number differ, so do about 48 % of the elements.
  const std::vector<T> base = factors<T>(dropout, count, 0);
  const auto differing = [&](const std::vector<T>& other) {
    Index result = 0;
    for (Index i = 0; i < count; ++i) result += at(base, i) != at(other, i);
    return result;
  };
  for (const std::uint64_t key : {0u, 98u, 100u, 1u << 20})
    CHECK(std::abs(differing(factors<T>({key, 0.4f}, count, 0)) - 480) < 80);
  for (const int shift : {32, 33, 50}) {
    CHECK(std::abs(differing(factors<T>(dropout, count, std::uint64_t{1} << shift)) - 480) < 80);
  }
  // A higher rate drops what a lower one does, and more.
  const std::vector<T> more = factors<T>({99, 0.7f}, count, 0);
  CHECK(dropped(more) > dropped(base));
  for (Index i = 0; i < count; ++i) {
    if (at(base, i) == 0) REQUIRE(at(more, i) == 0);
  }
}

TEMPLATE_TEST_CASE("drop-out at rate 0 changes nothing", "[reductions]", float, double) {
  using T = TestType;
  CHECK(!Dropout{});
  CHECK(!Dropout{3, 0.0f});
  CHECK(static_cast<bool>(Dropout{3, 0.1f}));
  const std::vector<T> values = normal_values<T>(1000, 40);
  std::vector<T> after = values;
  Dropout{3, 0.0f}.apply(after.data(), 1000, 0);
  CHECK(after == values);
}

TEMPLATE_TEST_CASE("SiLU and its slope, of every size around the vector width and in place", "[reductions]", float,
                   double) {
  using T = TestType;
  const auto sigmoid = [](Exact x) { return 1 / (1 + std::exp(-x)); };
  const auto slope = [&](Exact x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); };
  for (Index count = 0; count <= 2 * width<T> + 1; ++count) {
    const std::vector<T> x = normal_values<T>(count, 60, 2), gradient = normal_values<T>(count + 1, 61);
    std::vector<T> y = filled(count + 1, T(77)), through = gradient, in_place = x;
    fit::kernels::silu(x.data(), y.data(), count);
    fit::kernels::silu(in_place.data(), in_place.data(), count);
    fit::kernels::silu_backward(x.data(), through.data(), count);
    Expected values(count), gradients(count);
    for (Index i = 0; i < count; ++i) {
      const Exact at_x = at(x, i), factor = at(gradient, i);
      // The exponential's argument is rounded, too: what that does to the value grows with x.
      values.add(i, at_x * sigmoid(at_x), std::abs(at_x * sigmoid(at_x)) * (1 + std::abs(at_x)));
      gradients.add(i, factor * slope(at_x), std::abs(factor));
    }
    INFO(count);
    CHECK(y.back() == T(77));
    CHECK(through.back() == gradient.back());
    y.pop_back();
    through.pop_back();
    CHECK(in_place == y);
    CHECK(worst_error(y, values) < 4);
    CHECK(worst_error(through, gradients) < 4);
  }
}

TEMPLATE_TEST_CASE("SiLU is right over its whole range and lets NaN through", "[reductions]", float, double) {
  using T = TestType;
  constexpr Index count = 40001;
  std::vector<T> x, y(count), slope = filled(count, T(1));
  for (Index i = 0; i < count; ++i) x.push_back(static_cast<T>(-20 + 0.001 * static_cast<double>(i)));
  fit::kernels::silu(x.data(), y.data(), count);
  fit::kernels::silu_backward(x.data(), slope.data(), count);
  Expected values(count), slopes(count);
  for (Index i = 0; i < count; ++i) {
    const Exact s = 1 / (1 + std::exp(-Exact(at(x, i))));
    values.add(i, at(x, i) * s, std::abs(at(x, i) * s) * (1 + std::abs(at(x, i))));
    slopes.add(i, s * (1 + at(x, i) * (1 - s)), 1 + std::max(0.0, at(x, i)));  // 1 - s loses digits that x brings back
  }
  CHECK(worst_error(y, values) < 4);
  CHECK(worst_error(slope, slopes) < 4);

  const std::vector<T> far{T(-1e30), T(-1000), T(1000), T(1e30), T(0), not_a_number<T>};
  std::vector<T> value = far, gradient = filled(6, T(1));
  fit::kernels::silu(far.data(), value.data(), 6);
  fit::kernels::silu_backward(far.data(), gradient.data(), 6);
  CHECK(value[0] == 0);
  CHECK(value[1] == 0);
  CHECK(value[2] == far[2]);
  CHECK(value[3] == far[3]);
  CHECK(value[4] == 0);
  CHECK(std::isnan(value[5]));
  const std::vector<T> expected{0, 0, 1, 1, T(0.5)};
  CHECK(std::vector<T>(gradient.begin(), gradient.end() - 1) == expected);
  CHECK(std::isnan(gradient[5]));
}

TEMPLATE_TEST_CASE("reductions do not depend on the threads", "[reductions]", float, double) {
  using T = TestType;
  struct Outcome {
    Norm<T> norm{200, 257, 1}, narrow{203, 100, 1};
    std::vector<T> x = normal_values<T>(200 * 257, 50), weight = normal_values<T>(257, 51),
                   bias = normal_values<T>(257, 52);
    Sums<T> sums{{{700, 40 * width<T> + 1}, {0, 3}, {129, 5}}};
    Entropy<T> entropy{400, 33, 1};
    std::vector<T> pooled = filled(20 * 33, not_a_number<T>);

    explicit Outcome(int threads) {
      fit::Executor several(threads);
      fit::Workspace workspace(several);
      norm.forward(several);
      narrow.forward(several);
      fit::kernels::layer_norm_backward<T>({norm.normalised.data(), norm.inverse.data(), norm.weight.data(),
                                            norm.y.data(), x.data(), weight.data(), bias.data()},
                                           200, 257, workspace);
      sums.run(several);
      entropy.run(several, T(0.3));
      fit::nn::mean_pool(entropy.logits.data(), pooled.data(), 20, 20, 33, several);
    }
  };
  const Outcome one(1);
  for (const int threads : {2, 3, 7}) {
    INFO(threads);
    const Outcome several(threads);
    CHECK(several.norm.y == one.norm.y);
    CHECK(several.narrow.y == one.narrow.y);
    CHECK(several.x == one.x);
    CHECK(several.weight == one.weight);
    CHECK(several.bias == one.bias);
    CHECK(several.sums.sums == one.sums.sums);
    CHECK(several.entropy.losses == one.entropy.losses);
    CHECK(several.entropy.gradient == one.entropy.gradient);
    CHECK(several.pooled == one.pooled);
  }
}
