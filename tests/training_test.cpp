#include <fit/fit.hpp>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;

/// A model of a matrix, larger than a piece, and a vector.
struct Small {
  using T = float;
  fit::Matrix<float, 100, 123> weight;
  fit::Vector<float, 7> bias;
  static void visit(auto&& f, auto&... p) {
    f("weight", p.weight...);
    f("bias", p.bias...);
  }
};

Small random_model(std::uint64_t seed, double deviation = 1) {
  Small model;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        const auto values = test::normal_values<float>(p.size, seed++, deviation);
        std::copy(values.begin(), values.end(), p.data);
      },
      model);
  return model;
}

}  // namespace

TEST_CASE("AdamW takes the steps of its definition", "[training]") {
  fit::Executor executor(3);
  fit::Tape tape(executor);
  fit::AdamW<Small> optimizer{.options = {.beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.3}};
  Small model = random_model(1);
  const Small start = model;
  std::vector<Small> gradients;
  for (std::uint64_t step = 0; step < 5; ++step) {
    gradients.push_back(random_model(10 + 2 * step, 0.1));
    optimizer.step(model, gradients.back(), 0.01, tape);
  }
  CHECK(optimizer.steps == 5);
  const auto check = [&](const float* now, const float* begin, auto gradient_of, Index size, double decay) {
    for (Index i = 0; i < size; ++i) {
      double x = begin[i], m = 0, v = 0;
      for (int step = 1; step <= 5; ++step) {
        const double g = gradient_of(gradients[static_cast<std::size_t>(step - 1)])[i];
        m = 0.8 * m + 0.2 * g;
        v = 0.95 * v + 0.05 * g * g;
        x -= 0.01 * decay * x;
        x -= 0.01 * (m / (1 - std::pow(0.8, step))) / (std::sqrt(v / (1 - std::pow(0.95, step))) + 1e-6);
      }
      REQUIRE(std::abs(now[i] - x) < 1e-6 * (1 + std::abs(x)));
    }
  };
  check(
      model.weight.data(), start.weight.data(), [](const Small& s) { return s.weight.data(); }, 12300, 0.3);
  check(
      model.bias.data(), start.bias.data(), [](const Small& s) { return s.bias.data(); }, 7, 0);
  CHECK(test::contains(test::error_of([&] { optimizer.step(model, start, std::nan(""), tape); }), "finite"));
  CHECK(optimizer.steps == 5);
}

TEST_CASE("clipping measures the whole gradient and scales it to the bound", "[training]") {
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const Small original = random_model(1);
  double squares = 0;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        for (Index i = 0; i < p.size; ++i) squares += static_cast<double>(p.data[i]) * p.data[i];
      },
      original);
  Small gradient = original;
  CHECK(std::abs(fit::clip_gradient(gradient, 3.0, tape) / std::sqrt(squares) - 1) < 1e-12);
  CHECK(std::abs(fit::clip_gradient(gradient, 1e9, tape) - 3) < 1e-5);
  CHECK(test::max_error(gradient.weight.data(), original.weight.data(), 12300) > 0.1);
  Small untouched = original;
  fit::clip_gradient(untouched, 1e9, tape);
  CHECK(test::max_error(untouched.weight.data(), original.weight.data(), 12300) == 0);
  untouched.bias.data()[0] = std::numeric_limits<float>::infinity();
  CHECK(std::isinf(fit::clip_gradient(untouched, 1.0, tape)));
  CHECK(test::max_error(untouched.weight.data(), original.weight.data(), 12300) == 0);
  CHECK(test::contains(test::error_of([&] { fit::clip_gradient(gradient, 0, tape); }), "positive"));
}

TEST_CASE("the moving average moves by one minus the decay", "[training]") {
  fit::Tape tape;
  Small average = random_model(1);
  const Small before = average, model = random_model(5);
  fit::update_average(average, model, 0.75, tape);
  for (Index i = 0; i < 12300; ++i) {
    const double expected = 0.75 * before.weight.data()[i] + 0.25 * model.weight.data()[i];
    REQUIRE(std::abs(average.weight.data()[i] - expected) < 1e-6);
  }
  CHECK(test::contains(test::error_of([&] { fit::update_average(average, model, 1.5, tape); }), "[0, 1]"));
}

TEST_CASE("the learning rate warms up in a line and falls along half a cosine", "[training]") {
  const fit::WarmUpCosine rate{.peak = 2, .warm_up = 4, .total = 104, .floor = 0.5};
  CHECK(rate(0) == 0.5);
  CHECK(rate(3) == 2);
  CHECK(rate(4) == 2);
  CHECK(std::abs(rate(54) - 1.25) < 1e-12);
  CHECK(std::abs(rate(104) - 0.5) < 1e-12);
  CHECK(std::abs(rate(1000) - 0.5) < 1e-12);
  CHECK(fit::WarmUpCosine{.peak = 1, .total = 0}(0) == 1);
}
