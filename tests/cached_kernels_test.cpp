#include <fit/kernels/cached_attention.hpp>
#include <fit/kernels/few_rows.hpp>

#include <cstring>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;
namespace kernels = fit::kernels;

/// y = x weight^T + bias (+ y), and GELU, in double: the errors are held against sums of magnitudes.
template <class T>
void check_rows(Index rows, Index columns, Index depth, bool bias, bool accumulate, bool gelu) {
  INFO(rows << " x " << columns << " x " << depth << (bias ? ", bias" : "") << (accumulate ? ", accumulate" : "")
            << (gelu ? ", gelu" : ""));
  const auto x = test::normal_values<T>(rows * depth, 1), weight = test::normal_values<T>(columns * depth, 2);
  const auto offset = test::normal_values<T>(columns, 3), before = test::normal_values<T>(rows * columns, 4);
  std::vector<double> expected(before.size(), 0.0), magnitude(before.size(), 0.0);
  test::plain_product(rows, columns, depth, x.data(), depth, Index{1}, weight.data(), Index{1}, depth, expected.data(),
                      magnitude.data());
  const auto product_of = [&](std::vector<T>& y) {
    kernels::Product<T> product{
        .rows = rows,
        .columns = columns,
        .factors = {{kernels::plain(x.data(), depth), kernels::transposed(weight.data(), depth), depth}},
        .c = y.data(),
        .c_row = columns,
        .finish = {.accumulate = accumulate, .bias = bias ? offset.data() : nullptr}};
    if (gelu) {
      product.activation = kernels::Activation::gelu;
      product.activated = y.data();
    }
    return product;
  };
  std::vector<T> first;
  for (const int threads : {1, 2, 3}) {
    fit::Executor executor(threads);
    fit::Workspace workspace(executor);
    auto y = before, other = before;
    kernels::multiply_few_rows<T>({product_of(y), product_of(other)}, workspace);
    CHECK(y == other);
    if (threads == 1) first = y;
    CHECK(y == first);
  }
  for (std::size_t i = 0; i < first.size(); ++i) {
    double value = expected[i];
    if (bias) value += static_cast<double>(offset[i % static_cast<std::size_t>(columns)]);
    if (accumulate) value += static_cast<double>(before[i]);
    if (gelu) value *= 0.5 * std::erfc(-value / std::sqrt(2.0));
    const double scale = magnitude[i] + 3;
    if (!(std::abs(static_cast<double>(first[i]) - value) < 4 * scale * std::numeric_limits<T>::epsilon())) {
      FAIL("element " << i << " is " << first[i] << ", not " << value);
    }
  }
  // A row has the same bits by itself.
  fit::Executor executor(1);
  fit::Workspace workspace(executor);
  for (Index r = 0; r < rows; ++r) {
    std::vector<T> alone(before.begin() + r * columns, before.begin() + (r + 1) * columns);
    auto product = product_of(alone);
    product.rows = 1;
    product.factors[0].a.data += r * depth;
    kernels::multiply_few_rows<T>({product}, workspace);
    CHECK(std::equal(alone.begin(), alone.end(), first.begin() + r * columns));
  }
}

/// One query and its cache against softmax in double.
template <class T>
void check_attention(const std::vector<Index>& counts, const kernels::HeadCounts& of) {
  const auto [heads, head_width, sharing] = of;
  const Index width = heads * head_width, key_width = width / sharing;
  std::vector<std::vector<T>> q, keys, values, o;
  std::vector<kernels::CachedQuery<T>> queries;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    q.push_back(test::normal_values<T>(width, 10 + i, 2));
    keys.push_back(test::normal_values<T>(counts[i] * key_width, 20 + i));
    values.push_back(test::normal_values<T>(counts[i] * key_width, 30 + i));
    o.emplace_back(static_cast<std::size_t>(width), std::numeric_limits<T>::quiet_NaN());
  }
  for (std::size_t i = 0; i < counts.size(); ++i) {
    queries.push_back({q[i].data(), keys[i].data(), values[i].data(), counts[i], o[i].data()});
  }
  std::vector<std::vector<T>> first;
  for (const int threads : {1, 2, 3}) {
    fit::Executor executor(threads);
    fit::Workspace workspace(executor);
    kernels::cached_attention<T>(queries, of, workspace);
    if (threads == 1) first = o;
    CHECK(o == first);
    CHECK(workspace.arena().mark().total == 0);
  }
  for (std::size_t i = 0; i < counts.size(); ++i) {
    INFO(counts[i] << " keys, " << heads << " heads of " << head_width << ", " << sharing << " sharing");
    for (Index head = 0; head < heads; ++head) {
      const Index to_key = head / sharing * head_width;
      std::vector<double> weights, mixed(static_cast<std::size_t>(head_width), 0.0);
      double total = 0;
      for (Index key = 0; key < counts[i]; ++key) {
        double score = 0;
        for (Index j = 0; j < head_width; ++j) {
          score += static_cast<double>(q[i][static_cast<std::size_t>(head * head_width + j)]) *
                   static_cast<double>(keys[i][static_cast<std::size_t>(key * key_width + to_key + j)]);
        }
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(head_width))));
        total += weights.back();
      }
      for (Index key = 0; key < counts[i]; ++key) {
        for (Index j = 0; j < head_width; ++j) {
          mixed[static_cast<std::size_t>(j)] +=
              weights[static_cast<std::size_t>(key)] / total *
              static_cast<double>(values[i][static_cast<std::size_t>(key * key_width + to_key + j)]);
        }
      }
      CHECK(test::max_error(o[i].data() + head * head_width, mixed.data(), head_width) <
            300 * std::numeric_limits<T>::epsilon());
    }
  }
}

}  // namespace

TEST_CASE("products of few rows, at sizes around the vector width", "[cached_kernels]") {
  for (const Index rows : {1, 2, 3, 4, 5, 9}) {
    for (const Index columns : {1, 3, 4, 5, 17, 64}) {
      for (const Index depth : {1, 3, 8, 15, 16, 17, 33, 64})
        check_rows<float>(rows, columns, depth, true, false, false);
    }
  }
  for (const bool bias : {false, true}) {
    for (const bool accumulate : {false, true}) {
      check_rows<float>(3, 1030, 65, bias, accumulate, false);
      check_rows<double>(5, 517, 40, bias, accumulate, false);
    }
  }
  check_rows<float>(2, 700, 48, true, false, true);
  check_rows<double>(1, 70, 9, true, false, true);
}

TEST_CASE("products that are not of few rows' kind are refused", "[cached_kernels]") {
  std::vector<float> x(64, 1.0f), weight(64, 1.0f), y(64, 7.0f);
  fit::Executor executor(2);
  fit::Workspace workspace(executor);
  const auto refused = [&](auto&& change, const std::string& what) {
    kernels::Product<float> right{
        .rows = 2,
        .columns = 8,
        .factors = {{kernels::plain<float>(x.data(), 8), kernels::transposed<float>(weight.data(), 8), 8}},
        .c = y.data(),
        .c_row = 8};
    right.activated = y.data();
    auto wrong = right;
    change(wrong);
    CHECK(test::error_of([&] {
            kernels::multiply_few_rows({right, wrong}, workspace);
          }) ==
          "multiply_few_rows computes products of one pair of factors, the left one plain and the right one "
          "transposed, with bias and GELU in place; it was given " +
              what);
  };
  using Product = kernels::Product<float>;
  refused([](Product& p) { p.count = 2; }, "several pairs");
  refused([](Product& p) { p.factors[0].a = kernels::transposed<float>(p.factors[0].a.data, 8); },
          "a left factor that is transposed");
  refused([](Product& p) { p.factors[0].b = kernels::plain<float>(p.factors[0].b.data, 8); },
          "a right factor that is plain");
  refused([&](Product& p) { p.finish.row_scale = x.data(); }, "row_scale");
  refused([](Product& p) { p.dropout = {1, 0.5f}; }, "drop-out");
  refused([](Product& p) { p.activation = kernels::Activation::times_slope; }, "the slope of GELU");
  refused(
      [&](Product& p) {
        p.activation = kernels::Activation::gelu;
        p.activated = x.data();
      },
      "the slope of GELU");
  CHECK(y == std::vector<float>(64, 7.0f));
}

TEST_CASE("one query over cached keys, at lengths around a piece", "[cached_kernels]") {
  for (const Index head_width : {1, 5, 8, 16, 17, 32, 64}) {
    check_attention<float>({1, 2, 3, 4, 5, 127, 128, 129}, {3, head_width});
    check_attention<double>({7, 300, 1}, {2, head_width});
    check_attention<float>({1, 5, 129, 300}, {6, head_width, 3});
    check_attention<double>({130, 4}, {4, head_width, 4});
  }
  check_attention<float>({2000, 1, 513}, {8, 64});  // enough for several threads
}

TEST_CASE("large scores and keys that nobody should weigh do not spoil a cached attention", "[cached_kernels]") {
  const Index count = 400, width = 16;
  std::vector<float> q(width, 30.0f), keys(count * width, -30.0f), values(count * width, 1e30f), o(width);
  std::fill_n(keys.begin() + 333 * width, width, 30.0f);
  std::fill_n(values.begin() + 333 * width, width, 5.0f);
  const kernels::CachedQuery<float> query{q.data(), keys.data(), values.data(), count, o.data()};
  fit::Executor executor(2);
  fit::Workspace workspace(executor);
  kernels::cached_attention<float>(std::span(&query, 1), {1, width}, workspace);
  for (const float value : o) CHECK(value == 5.0f);
  const kernels::CachedQuery<float> nothing{q.data(), nullptr, nullptr, 0, o.data()};
  kernels::cached_attention<float>(std::span(&nothing, 1), {1, width}, workspace);
  for (const float value : o) CHECK(value == 0.0f);
}
