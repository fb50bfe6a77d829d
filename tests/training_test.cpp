#include <fit/fit.hpp>

#include <cmath>
#include <sstream>

#include "allocations.hpp"
#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;
using test::same_bits;
using test::values_of;

/// A model of a matrix, larger than a piece, positions and a vector.
template <class T>
struct Parts {
  using Scalar = T;
  fit::Matrix<T, 100, 123> weight;
  fit::Matrix<T, 5, 4> positions;
  fit::Vector<T, 7> bias;
  static void visit(auto&& f, auto&... p) {
    f("weight", p.weight...);
    f("positions", p.positions...);
    f("bias", p.bias...);
  }
};
using Small = Parts<float>;
using State = fit::TrainingState<Small>;

template <class Model = Small>
Model random_model(std::uint64_t seed, double deviation = 1) {
  Model model;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        const auto values = test::normal_values<typename Model::Scalar>(p.size, seed++, deviation);
        std::copy(values.begin(), values.end(), p.data);
      },
      model);
  return model;
}

State random_state(const fit::AdamWOptions& options = {}) {
  State state{.model = random_model(1), .optimizer = {.options = options}};
  state.average = random_model(4);
  return state;
}

fit::ParameterTreatment decay_matrices(std::string_view, std::size_t rank) { return {.decay = rank >= 2}; }

}  // namespace

TEST_CASE("AdamW takes the steps of its definition", "[training]") {
  fit::Executor executor(3);
  fit::Tape tape(executor);
  fit::AdamW<Small> optimizer{.options = {.beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.3}};
  Small model = random_model(1);
  const Small start = model;
  std::vector<Small> gradients;
  for (std::uint64_t step = 0; step < 5; ++step) {
    gradients.push_back(random_model(10 + 3 * step, 0.1));
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
      model.positions.data(), start.positions.data(), [](const Small& s) { return s.positions.data(); }, 20, 0);
  check(
      model.bias.data(), start.bias.data(), [](const Small& s) { return s.bias.data(); }, 7, 0);
  CHECK(test::contains(test::error_of([&] { optimizer.step(model, start, std::nan(""), tape); }), "finite"));
  Small gone = start;
  const Small kept = std::move(gone);
  CHECK(test::contains(test::error_of([&] { optimizer.step(model, gone, 0.01, tape); }), "moved away"));
  CHECK(optimizer.steps == 5);
}

TEST_CASE("a gradient whose square is too large to hold is forgotten in time", "[training]") {
  fit::Tape tape;
  fit::AdamW<Small> optimizer{.options = {.beta2 = 0.5, .weight_decay = 0}};
  Small model, gradient;
  gradient.bias.data()[0] = 1e21f;
  optimizer.step(model, gradient, 0.01, tape);
  gradient.bias.data()[0] = 1;
  const float before = model.bias.data()[0];
  for (int step = 0; step < 300; ++step) optimizer.step(model, gradient, 0.01, tape);
  CHECK(std::abs(model.bias.data()[0] - before) > 0.5);
}

TEST_CASE("weight decay is for matrices but positions and tables of embeddings", "[training]") {
  const auto decays = [](const char* name, std::size_t rank) {
    const auto treatment = fit::usual_treatment(name, rank);
    CHECK(treatment.rate == 1);
    CHECK(!treatment.frozen);
    return treatment.decay;
  };
  for (const char* name : {"weight", "head.weight", "encoder.stem.weight", "time_embedding.fc1.weight",
                           "stages.0.local.1.mlp.fc1.weight", "stages.2.read.attention.query.weight"}) {
    INFO(name);
    CHECK(decays(name, 2));
  }
  for (const char* name :
       {"encoder.data_positions", "latent_positions", "token_embedding.weight", "output_embedding.weight"}) {
    INFO(name);
    CHECK(!decays(name, 2));
  }
  for (const char* name : {"data_norm.weight", "stages.0.local.1.mlp.fc1.bias", "output_bias"}) {
    INFO(name);
    CHECK(!decays(name, 1));
  }

  // The names are those of the models: a step without gradient changes what decays and nothing else.
  constexpr fit::AutoregressiveConfig config{.layers = "(1)1(1)",
                                             .groups = 2,
                                             .tokens = 3,
                                             .latents = 2,
                                             .data_dim = 4,
                                             .latent_dim = 6,
                                             .data_heads = 2,
                                             .latent_heads = 2,
                                             .vocabulary = 5,
                                             .shared_embedding = false};
  using Decoder = fit::AutoregressiveDecoder<config>;
  Decoder decoder(fit::Random(1));
  test::stir(decoder);
  const Decoder before = decoder;
  fit::Tape tape;
  fit::AdamW<Decoder> optimizer;
  optimizer.step(decoder, Decoder(), 0.1, tape);
  int decayed = 0;
  std::vector<std::string> kept;
  fit::for_each_parameter(
      [&](const fit::ParameterName& name, auto now, auto then) {
        if (!std::equal(now.data, now.data + now.size, then.data)) {
          ++decayed;
        } else if (now.shape.size() > 1) {
          kept.push_back(name.text());
        }
      },
      decoder, before);
  CHECK(decayed > 10);
  CHECK(kept == std::vector<std::string>{"token_embedding.weight", "data_positions", "latent_positions",
                                         "output_embedding.weight"});
}

TEST_CASE("a rule that has all matrices decay takes the steps of plain AdamW to the bit", "[training]") {
  fit::Executor executor(2);
  fit::Tape tape(executor);
  fit::AdamW<Small> optimizer{.options = {.weight_decay = 0.3, .rule = decay_matrices}};
  Small model = random_model(1), expected = model, first, second;
  for (std::uint64_t step = 0; step < 4; ++step) {
    const Small gradient = random_model(10 + 3 * step, 0.1);
    optimizer.step(model, gradient, 0.01, tape);
    const auto count = static_cast<double>(step + 1);
    const auto rate = static_cast<float>(0.01 / (1 - std::pow(0.9, count)));
    const auto correction = static_cast<float>(1 / std::sqrt(1 - std::pow(0.999, count)));
    const auto shrink = static_cast<float>(1 - 0.01 * 0.3), rest1 = static_cast<float>(1 - 0.9);
    const auto rest2 = static_cast<float>(1 - 0.999);
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto p, auto g, auto m, auto v) {
          const float keep = p.shape.size() >= 2 ? shrink : 1.0f;
          for (Index i = 0; i < p.size; ++i) {
            m.data[i] = 0.9f * m.data[i] + rest1 * g.data[i];
            v.data[i] = 0.999f * v.data[i] + rest2 * g.data[i] * g.data[i];
            p.data[i] = keep * p.data[i] - rate * m.data[i] / (std::sqrt(v.data[i]) * correction + 1e-8f);
          }
        },
        expected, gradient, first, second);
  }
  CHECK(same_bits(values_of(model), values_of(expected)));
  CHECK(same_bits(values_of(optimizer.second_moment), values_of(second)));
}

TEST_CASE("a rule freezes parameters and scales their learning rate", "[training]") {
  fit::Tape tape;
  State plain = random_state(), ruled = random_state({.rule = [](std::string_view name, std::size_t rank) {
                                  auto treatment = fit::usual_treatment(name, rank);
                                  treatment.frozen = name == "positions";
                                  if (name == "weight") treatment.rate = 0.5;
                                  return treatment;
                                }});
  ruled.optimizer.first_moment = plain.optimizer.first_moment = random_model(7);
  const State before = ruled;
  Small gradient = random_model(20), same = gradient;
  gradient.positions.data()[3] = std::numeric_limits<float>::quiet_NaN();
  std::fill_n(same.positions.data(), 20, 0.0f);
  const double norm = fit::clip_gradient(same, std::numeric_limits<double>::infinity(), tape);
  CHECK(ruled.update(gradient, {.learning_rate = 0.02, .clip = norm}, tape) == norm);

  const auto equal = [](const auto& a, const auto& b) { return std::equal(a.data(), a.data() + a.size(), b.data()); };
  CHECK(equal(ruled.model.positions, before.model.positions));
  CHECK(equal(ruled.optimizer.first_moment.positions, before.optimizer.first_moment.positions));
  CHECK(equal(ruled.optimizer.second_moment.positions, before.optimizer.second_moment.positions));
  CHECK(!equal(ruled.average->positions, before.average->positions));
  State half = plain;
  plain.optimizer.step(plain.model, same, 0.02, tape);
  CHECK(equal(ruled.model.bias, plain.model.bias));
  CHECK(!equal(ruled.model.weight, plain.model.weight));
  half.optimizer.step(half.model, same, 0.01, tape);
  CHECK(equal(ruled.model.weight, half.model.weight));
}

TEST_CASE("the rule is asked once for each parameter", "[training]") {
  fit::Executor executor(2);
  fit::Tape tape(executor);
  static std::vector<std::pair<std::string, std::size_t>> asked;
  asked.clear();
  const fit::ParameterRule rule = [](std::string_view name, std::size_t rank) {
    asked.emplace_back(name, rank);
    return fit::ParameterTreatment{.decay = name == "positions"};
  };
  State state = random_state({.rule = rule});
  Small gradient;
  long before = 0;
  for (int step = 0; step < 4; ++step) {
    if (step == 1) before = test::allocations();
    state.update(gradient, {}, tape);
  }
  CHECK(test::allocations() - before == 0);
  CHECK(asked == std::vector<std::pair<std::string, std::size_t>>{{"weight", 2}, {"positions", 2}, {"bias", 1}});
  State copy = state;
  copy.update(gradient, {}, tape);
  CHECK(asked.size() == 3);

  // A run that is resumed asks again.
  const test::TemporaryFolder folder;
  fit::save(folder / "state", state);
  State resumed{.optimizer = {.options = {.rule = rule}}};
  fit::load(folder / "state", resumed);
  resumed.update(gradient, {}, tape);
  CHECK(asked.size() == 6);
  CHECK(same_bits(values_of(resumed), values_of(copy)));
  resumed.optimizer.treatments.clear();
  resumed.update(gradient, {}, tape);
  CHECK(asked.size() == 9);
}

TEST_CASE("AdamW refuses numbers that no step can be taken with", "[training]") {
  fit::Tape tape;
  const Small start = random_model(1), gradient = random_model(4);
  const auto error = [&](const fit::AdamWOptions& options) {
    Small model = start;
    fit::AdamW<Small> optimizer{.options = options};
    const std::string text = test::error_of([&] { optimizer.step(model, gradient, 0.1, tape); });
    CHECK(same_bits(values_of(model), values_of(start)));
    CHECK(same_bits(values_of(optimizer.first_moment), values_of(Small())));
    CHECK(optimizer.steps == 0);
    CHECK(optimizer.treatments.empty());
    return text;
  };
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (const double beta : {-0.1, 1.0, infinity, nan}) {
    const std::string refused = fit::concatenate("the betas of AdamW must be in [0, 1), not ", beta);
    CHECK(test::contains(error({.beta1 = beta}), refused));
    CHECK(test::contains(error({.beta2 = beta}), refused));
  }
  for (const double epsilon : {-1e-8, 0.0, 1e-60, infinity, nan}) {  // in float, 1e-60 is zero
    CHECK(test::contains(error({.epsilon = epsilon}), "the epsilon of AdamW must be positive"));
  }
  for (const double decay : {-0.1, infinity, nan}) {
    CHECK(test::contains(error({.weight_decay = decay}), "the weight decay must be finite and not negative"));
  }
  static double rate_of_bias;
  for (const double rate : {-0.1, infinity, nan}) {
    rate_of_bias = rate;
    const fit::ParameterRule rule = [](std::string_view name, std::size_t) {
      return fit::ParameterTreatment{.rate = name == "bias" ? rate_of_bias : 1};
    };
    CHECK(test::contains(error({.rule = rule}), "the rate of bias must be finite and not negative"));
  }
  CHECK(test::contains(error({.rule = nullptr}), "needs a rule"));
  fit::AdamW<Small> plain{.options = {.beta1 = 0, .beta2 = 0, .weight_decay = 0}};
  Small model = start;
  plain.step(model, gradient, 0.1, tape);
  CHECK(plain.steps == 1);
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

TEST_CASE("clipping gives back its scratch memory", "[training]") {
  fit::Workspace workspace;
  Small gradient = random_model(1);
  workspace.arena().allocate<float>(100);
  const std::size_t used = workspace.arena().mark().total;
  for (const double largest : {1.0, 1e9}) {
    fit::clip_gradient(gradient, largest, workspace);
    CHECK(workspace.arena().mark().total == used);
  }
}

TEST_CASE("a gradient is clipped where its squares overflow", "[training]") {
  using Wide = Parts<double>;
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto length = [](const Wide& gradient) {
    double squares = 0;
    for (const double slope : values_of(gradient)) squares += slope * slope;
    return std::sqrt(squares);
  };
  const Wide direction = random_model<Wide>(1);
  const double unit = length(direction);
  for (const double size : {0x1p500, 0x1p511, 0x1p600, 0x1p1000}) {
    INFO(size);
    Wide gradient = direction;
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto p) {
          for (Index i = 0; i < p.size; ++i) p.data[i] *= size;
        },
        gradient);
    CHECK(std::abs(fit::clip_gradient(gradient, 3.0, tape) / size / unit - 1) < 1e-12);
    CHECK(std::abs(length(gradient) - 3) < 1e-12);
    CHECK(std::abs(gradient.bias.data()[2] - 3 / unit * direction.bias.data()[2]) < 1e-12);
  }
}

TEST_CASE("an update clips, steps, averages, counts and leaves a gradient of zero", "[training]") {
  fit::Executor executor(2);
  fit::Tape tape(executor);
  State state = random_state(), expected = state, without = state;
  without.average.reset();
  for (std::uint64_t step = 0; step < 30; ++step) {
    const double rate = 0.01 + 0.001 * static_cast<double>(step), n = static_cast<double>(step);
    Small gradient = random_model(10 + 3 * step, step % 2 == 0 ? 1 : 1e-4), same = gradient;
    const fit::UpdateOptions options{.learning_rate = rate, .clip = 2, .average_decay = 0.6};
    Small other = gradient;
    const double norm = fit::clip_gradient(same, 2.0, tape);
    expected.optimizer.step(expected.model, same, rate, tape);
    fit::update_average(*expected.average, expected.model, std::min(0.6, (1 + n) / (10 + n)), tape);
    CHECK(state.update(gradient, options, tape) == norm);
    CHECK(without.update(other, options, tape) == norm);
    CHECK((norm > 2) == (step % 2 == 0));
    CHECK(same_bits(values_of(gradient), values_of(Small())));
    CHECK(state.step == static_cast<Index>(step + 1));
    CHECK(tape.arena().mark().total == 0);
    CHECK(same_bits(values_of(state), values_of(expected)));
    CHECK(same_bits(values_of(without.model), values_of(expected.model)));
    CHECK(!without.average);
  }
  CHECK(state.optimizer.steps == 30);
}

TEST_CASE("an update with a gradient that is not finite changes nothing", "[training]") {
  fit::Tape tape;
  State state = random_state();
  Small gradient = random_model(7);
  state.update(gradient, {}, tape);
  const State before = state;
  for (const float slope : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    for (const auto choice : {fit::NotFinite::error, fit::NotFinite::skip}) {
      const bool skip = choice == fit::NotFinite::skip;
      state.step = 1;
      gradient = random_model(7);
      gradient.bias.data()[5] = slope;
      double norm = 0;
      CHECK(test::error_of([&] { norm = state.update(gradient, {.not_finite = choice}, tape); }) ==
            (skip ? "(no error)" : "the norm of the gradient in step 1 is not finite"));
      CHECK(std::isfinite(norm) != skip);
      CHECK(same_bits(values_of(gradient), values_of(Small())));
      CHECK(same_bits(values_of(state), values_of(before)));
      CHECK(state.optimizer.steps == 1);
      CHECK(state.step == (skip ? 2 : 1));
    }
  }
}

TEST_CASE("an update refuses wrong options and leaves everything as it was", "[training]") {
  fit::Tape tape;
  State state = random_state(
      {.rule = [](std::string_view name, std::size_t) { return fit::ParameterTreatment{.frozen = name == "bias"}; }});
  Small gradient = random_model(7);
  const State before = state;
  const Small same = gradient;
  const auto error = [&](const fit::UpdateOptions& options) {
    const std::string text = test::error_of([&] { state.update(gradient, options, tape); });
    CHECK(same_bits(values_of(gradient), values_of(same)));
    CHECK(same_bits(values_of(state), values_of(before)));
    CHECK(state.step == 0);
    return text;
  };
  CHECK(test::contains(error({.learning_rate = std::nan("")}), "the learning rate must be finite"));
  CHECK(test::contains(error({.clip = 0}), "the largest gradient norm must be positive"));
  CHECK(test::contains(error({.average_decay = 1.5}), "the decay of an average must be in [0, 1]"));
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

TEST_CASE("the learning rate warms up in a line, and falls as it is told", "[training]") {
  fit::LearningRate rate{.peak = 2, .warm_up = 4, .floor = 0.5};
  const Index total = 104;
  CHECK(rate(0, total) == 0.5);
  CHECK(rate(3, total) == 2);
  CHECK(rate(4, total) == 2);
  CHECK(rate(0, 10) == 1);  // of a short run a fifth
  CHECK(rate(1, 10) == 2);
  CHECK(rate(0, 4) == 2);
  CHECK(std::abs(rate(29, total) - (0.5 + 1.5 * (0.5 + std::sqrt(0.125)))) < 1e-12);
  CHECK(std::abs(rate(54, total) - 1.25) < 1e-12);
  rate.decay = fit::Decay::linear;
  CHECK(rate(4, total) == 2);
  CHECK(std::abs(rate(29, total) - 1.625) < 1e-12);
  rate.decay = fit::Decay::late;
  rate.part = 0.25;
  CHECK(rate(3, total) == 2);
  CHECK(rate(78, total) == 2);
  CHECK(std::abs(rate(91, total) - 1.25) < 1e-12);
  rate.part = 0;
  CHECK(rate(103, total) == 2);
  CHECK(rate(104, total) == 0.5);
  rate.part = 1;  // of what the warm-up leaves
  CHECK(std::abs(rate(54, total) - 1.25) < 1e-12);
  for (const fit::Decay decay : {fit::Decay::cosine, fit::Decay::linear, fit::Decay::late}) {
    rate.decay = decay;
    CHECK(std::abs(rate(104, total) - 0.5) < 1e-12);
    CHECK(std::abs(rate(1000, total) - 0.5) < 1e-12);
    CHECK(fit::LearningRate{.peak = 1, .decay = decay}(0, 0) == 1);
  }
}

TEST_CASE("metrics of parts add up to those of the whole", "[training]") {
  fit::Mean whole, first, second;
  const double values[] = {1, 2, 4, 8, 16};
  for (int i = 0; i < 5; ++i) {
    whole.add(values[i]);
    (i < 2 ? first : second).add(values[i]);
  }
  first += second;
  CHECK(first.value() == whole.value());
  CHECK(whole.value() == 6.2);
  fit::Mean batches;
  batches.add(1.5, 2);
  batches.add(28.0 / 3, 3);
  CHECK(std::abs(batches.value() - 6.2) < 1e-15);
  batches.add(fit::Mean().value(), 0);
  CHECK(std::abs(batches.value() - 6.2) < 1e-15);
  CHECK(std::isnan(fit::Mean().value()));

  fit::Tensor<float, 2> logits(4, 3);
  std::copy_n(std::begin({1, 2, 3, 5, 5, 0, -1, -2, -3, 0, 7, 7}), 12, logits.data());
  fit::Tensor<std::int32_t, 1> targets(4);
  std::copy_n(std::begin({2, 1, 0, 1}), 4, targets.data());
  CHECK(fit::best_class(logits, 1) == 0);
  const fit::Mean share = fit::accuracy(logits, targets);
  CHECK(share.sum == 3);
  CHECK(share.count == 4);
  CHECK(test::contains(test::error_of([&] { fit::accuracy(fit::Tensor<double, 2>(3, 2), targets); }),
                       "a target for each of 3 rows, not 4"));
  const fit::TensorView<const float, 2> null(nullptr, 4, 3);
  CHECK(test::error_of([&] { fit::accuracy(null, targets); }) == "an accuracy is given a view of null");
  fit::ConfusionMatrix all(3), one(3), other(3);
  const int seen[][2] = {{0, 0}, {0, 1}, {1, 1}, {1, 1}, {2, 0}, {0, 0}};
  for (std::size_t i = 0; i < 6; ++i) {
    all.add(seen[i][0], seen[i][1]);
    (i % 2 == 0 ? one : other).add(seen[i][0], seen[i][1]);
  }
  one += other;
  for (Index i = 0; i < 3; ++i) {
    for (Index j = 0; j < 3; ++j) CHECK(one(i, j) == all(i, j));
  }
  CHECK(all.total() == 6);
  CHECK(all.right() == 4);
  CHECK(all.accuracy() == 4.0 / 6);
  CHECK(all.recall(0) == 2.0 / 3);
  CHECK(all.precision(0) == 2.0 / 3);
  CHECK(all.recall(1) == 1);
  CHECK(std::isnan(all.precision(2)));
  std::ostringstream table;
  all.write(table, {"cat", "dog", "hen"});
  CHECK(table.str() == "    cat dog hen \ncat   2   1   0 \ndog   0   2   0 \nhen   1   0   0 \n");
  CHECK_THROWS_AS(all.add(3, 0), fit::Error);
  CHECK_THROWS_AS(all.add(0, -1), fit::Error);
  CHECK_THROWS_AS(all += fit::ConfusionMatrix(2), fit::Error);
  CHECK_THROWS_AS(fit::ConfusionMatrix(0), fit::Error);
  CHECK_THROWS_AS(fit::ConfusionMatrix(Index{1} << 32), fit::Error);
  CHECK_THROWS_AS(all(3, 0), fit::Error);
  CHECK_THROWS_AS(all.recall(-1), fit::Error);
  CHECK_THROWS_AS(all.precision(3), fit::Error);

  CHECK(std::abs(fit::perplexity(std::log(7.0)) - 7) < 1e-12);
  CHECK(std::abs(fit::peak_signal_to_noise(0.01, 1) - 20) < 1e-12);
  CHECK(std::isinf(fit::peak_signal_to_noise(0, 255)));
}
