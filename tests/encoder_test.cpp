#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <thread>
#include <tuple>

#include <fit/fit.hpp>

#include "allocations.hpp"
#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;
using test::same_bits;

constexpr fit::EncoderConfig config{.layers = "(2)1(1)2(1)",
                                    .groups = 6,
                                    .tokens = 10,
                                    .channels = 3,
                                    .latents = 3,
                                    .data_dim = 24,
                                    .latent_dim = 40,
                                    .data_heads = 2,
                                    .latent_heads = 4};
using Encoder = fit::Encoder<config>;

fit::Tensor<float, 4> random_input(Index batch, std::uint64_t seed = 3) {
  fit::Tensor<float, 4> input(batch, Index{config.groups}, Index{config.tokens}, Index{config.channels});
  const auto values = test::normal_values<float>(input.size(), seed);
  std::copy(values.begin(), values.end(), input.data());
  return input;
}

/// All that a few steps of training leave, one number after the other.
std::vector<float> train(fit::Executor& executor, const fit::TrainingOptions& options, int steps, Index batch) {
  fit::Tape tape(executor);
  fit::TrainingState<Encoder> state{.model = Encoder(fit::Random(5)), .random = fit::Random(8)};
  state.average = state.model;
  Encoder gradient;
  std::vector<float> seen;
  const auto input = random_input(batch);
  for (int step = 0; step < steps; ++step) {
    tape.record(options, state.random.split());
    const auto [data, latents] = state.model.forward(input, tape);
    seen.insert(seen.end(), data.data(), data.data() + data.size());
    seen.insert(seen.end(), latents.data(), latents.data() + latents.size());
    fit::set_zero(gradient);
    state.model.backward({.data = data, .latents = latents}, gradient, tape);  // of half the squared length
    fit::clip_gradient(gradient, 1.0, tape);
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto p) { seen.insert(seen.end(), p.data, p.data + p.size); }, gradient);
    state.optimizer.step(state.model, gradient, 1e-2, tape);
    fit::update_average(*state.average, state.model, 0.9, tape);
  }
  fit::for_each_parameter([&](const fit::ParameterName&, auto p) { seen.insert(seen.end(), p.data, p.data + p.size); },
                          state);
  return seen;
}

}  // namespace

TEST_CASE("outputs, gradients and trained weights have the same bits for any number of threads", "[encoder]") {
  const fit::TrainingOptions options{.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f};
  fit::Executor one(1);
  const auto expected = train(one, options, 3, 70);
  CHECK(std::all_of(expected.begin(), expected.end(), [](float value) { return std::isfinite(value); }));
  for (const int threads : {2, 3, 7}) {
    INFO(threads << " threads");
    fit::Executor executor(threads);
    CHECK(same_bits(train(executor, options, 3, 70), expected));
  }
  Eigen::ThreadPool pool(2);
  fit::Executor borrowed(pool);
  CHECK(same_bits(train(borrowed, options, 3, 70), expected));
}

TEST_CASE("what an example's drop-outs drop does not depend on the batch and its chunks", "[encoder]") {
  const Encoder encoder(fit::Random(3));
  const auto input = random_input(800);  // several chunks of groups, and of examples
  fit::Tape tape;
  const auto run = [&](Index batch) {
    tape.record({.drop_path = 0.3f, .drop_units = 0.2f, .drop_attention = 0.2f}, fit::Random(9));
    const fit::TensorView<const float, 4> part(input.data(), batch, Index{config.groups}, Index{config.tokens},
                                               Index{config.channels});
    const auto output = encoder.forward(Encoder::Inputs{part}, tape);
    const Index each = output.latents.size() / batch;
    return std::vector<float>(output.latents.data(), output.latents.data() + 3 * each);
  };
  CHECK(run(800) == run(3));
}

namespace {

/// Whether equal examples, one of which is `apart` sequences behind the other and so at the same place of another
/// chunk, come out differently where half of the branches are dropped.
template <fit::EncoderConfig c, bool of_latents>
bool dropped_apart(Index batch, Index apart) {
  const fit::Encoder<c> encoder(fit::Random(3));
  fit::Tensor<float, 4> input(batch, Index{c.groups}, Index{c.tokens}, Index{c.channels});
  input.setConstant(0.5f);
  fit::Tape tape;
  tape.record({.drop_path = 0.5f}, fit::Random(9));
  const auto output = encoder.forward(input, tape);
  const auto& tokens = of_latents ? output.latents : output.data;
  const Index each = tokens.size() / (batch * (of_latents ? 1 : c.groups));
  Index different = 0;
  for (Index i = 0; i < apart; ++i) {
    const float* here = tokens.data() + i * each;
    different += !std::equal(here, here + each, here + apart * each);
  }
  return different > apart / 4;
}

}  // namespace

TEST_CASE("the chunks of a pass drop differently", "[encoder]") {
  // Local blocks alone: 256 groups of 16 tokens are a chunk. Global ones alone: so are 256 examples of 16 latents.
  constexpr fit::EncoderConfig local{.layers = "(2)",
                                     .groups = 1,
                                     .tokens = 16,
                                     .channels = 2,
                                     .latents = 1,
                                     .data_dim = 8,
                                     .latent_dim = 8,
                                     .data_heads = 1,
                                     .latent_heads = 1};
  constexpr fit::EncoderConfig global{.layers = "(0)2",
                                      .groups = 4,
                                      .tokens = 1,
                                      .channels = 2,
                                      .latents = 4,
                                      .data_dim = 8,
                                      .latent_dim = 8,
                                      .data_heads = 1,
                                      .latent_heads = 1};
  CHECK(dropped_apart<local, false>(512, 256));
  CHECK(dropped_apart<global, true>(512, 256));
}

TEST_CASE("recompute changes memory and no bit, drop-outs included", "[encoder]") {
  fit::Executor executor(2);
  fit::TrainingOptions options{.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f};
  const auto kept = train(executor, options, 2, 70);
  for (const fit::Recompute recompute : test::recomputes) {
    options.recompute = recompute;
    CHECK(same_bits(train(executor, options, 2, 70), kept));
  }
  options.keep_data_every = 1;
  CHECK(same_bits(train(executor, options, 2, 70), kept));
  options.keep_data_every = 2;
  CHECK(same_bits(train(executor, options, 2, 70), kept));

  std::size_t peaks[3] = {};
  const auto input = random_input(800);
  for (const fit::Recompute recompute : test::recomputes) {
    fit::Tape tape(executor);
    tape.record({.recompute = recompute});
    const Encoder encoder(fit::Random(5));
    Encoder gradient;
    const auto [data, latents] = encoder.forward(input, tape);
    encoder.backward({.data = data, .latents = latents}, gradient, tape);
    peaks[static_cast<int>(recompute)] = tape.peak();
  }
  CHECK(peaks[1] * 2 < peaks[0]);
  CHECK(peaks[2] < peaks[1]);
}

TEST_CASE("recompute changes no bit where the latents of an example are many thousands", "[encoder]") {
  constexpr fit::EncoderConfig c{.layers = "(1)2(1)",
                                 .groups = 700,
                                 .tokens = 2,
                                 .channels = 2,
                                 .latents = 8,
                                 .data_dim = 8,
                                 .latent_dim = 8,
                                 .data_heads = 1,
                                 .latent_heads = 1};
  using Long = fit::Encoder<c>;
  const Long encoder(fit::Random(5));
  fit::Tensor<float, 4> input(1, Index{c.groups}, Index{c.tokens}, Index{c.channels});
  const auto values = test::normal_values<float>(input.size(), 3);
  std::copy(values.begin(), values.end(), input.data());
  std::vector<float> kept;
  for (const fit::Recompute recompute : test::recomputes) {
    fit::Tape tape;
    tape.record({.drop_path = 0.2f, .drop_units = 0.1f, .recompute = recompute}, fit::Random(2));
    Long gradient;
    const auto [data, latents] = encoder.forward(input, tape);
    encoder.backward({.data = data, .latents = latents}, gradient, tape);
    const auto seen = test::values_of(gradient);
    if (recompute == fit::Recompute::none) kept = seen;
    CHECK(same_bits(seen, kept));
  }
}

TEST_CASE("a training step allocates nothing after the first", "[encoder]") {
  for (const fit::Recompute recompute : test::recomputes) {
    fit::Executor executor(2);
    fit::Tape tape(executor);
    fit::TrainingState<Encoder> state{.model = Encoder(fit::Random(5)), .average = Encoder(), .random = fit::Random(8)};
    Encoder gradient;
    const auto input = random_input(70);
    long before = 0;
    for (int step = 0; step < 4; ++step) {
      if (step == 1) before = test::allocations();
      tape.record({.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f, .recompute = recompute},
                  state.random.split());
      const auto [data, latents] = state.model.forward(input, tape);
      fit::set_zero(gradient);
      state.model.backward({.data = data, .latents = latents}, gradient, tape);
      fit::clip_gradient(gradient, 1.0, tape);
      state.optimizer.step(state.model, gradient, 1e-3, tape);
      fit::update_average(*state.average, state.model, 0.9, tape);
    }
    CHECK(test::allocations() - before == 0);
  }
}

TEST_CASE("an example's output does not depend on its batch", "[encoder]") {
  const Encoder encoder(fit::Random(5));
  const auto whole = encoder(random_input(70));
  const auto first = encoder(random_input(1));
  CHECK(test::max_error(first.data.data(), whole.data.data(), first.data.size()) == 0);
  CHECK(test::max_error(first.latents.data(), whole.latents.data(), first.latents.size()) == 0);
}

TEST_CASE("a chunk-causal encoder's latents do not see later groups", "[encoder]") {
  static constexpr fit::EncoderConfig causal = [] {
    auto c = config;
    c.layers = "(1)2";
    c.mask = fit::LatentMask::causal;
    return c;
  }();
  const fit::Encoder<causal> encoder(fit::Random(5));
  auto input = random_input(1);
  const auto before = encoder(input);
  for (Index g = 1; g < causal.groups; ++g) {
    auto changed = input;
    changed(0, g, 4, 1) += 1;
    const auto after = encoder(changed);
    const Index unseen = g * causal.latents * causal.latent_dim;
    CHECK(test::max_error(after.latents.data(), before.latents.data(), unseen) == 0);
    CHECK(test::max_error(after.latents.data(), before.latents.data(), after.latents.size()) > 0);
  }
}

TEST_CASE("a copy of an encoder is independent of it", "[encoder]") {
  Encoder encoder(fit::Random(5));
  const Encoder copy = encoder;
  fit::set_zero(encoder);
  const auto input = random_input(2);
  const auto zero = encoder(input), kept = copy(input), expected = Encoder(fit::Random(5))(input);
  CHECK(test::max_error(kept.latents.data(), expected.latents.data(), kept.latents.size()) == 0);
  CHECK(test::max_error(zero.latents.data(), expected.latents.data(), kept.latents.size()) > 0);
}

TEST_CASE("initial values are as the specification has them", "[encoder]") {
  const Encoder encoder(fit::Random(5)), same(fit::Random(5)), other(fit::Random(6));
  bool differs = false, equal = true;
  fit::for_each_parameter(
      [&](const fit::ParameterName& at, auto p, auto q, auto r) {
        INFO(at.text());
        double sum = 0, squares = 0, largest = 0;
        for (Index i = 0; i < p.size; ++i) {
          equal = equal && p.data[i] == q.data[i];
          differs = differs || p.data[i] != r.data[i];
          sum += p.data[i];
          squares += static_cast<double>(p.data[i]) * p.data[i];
          largest = std::max(largest, std::abs(static_cast<double>(p.data[i])));
        }
        const double count = static_cast<double>(p.size);
        if (at.part == "bias") {
          CHECK(largest == 0);
        } else if (p.shape.size() == 1) {
          CHECK(sum == count);
        } else {
          const bool weight = at.part == "weight";
          const double limit = weight ? std::sqrt(6.0 / static_cast<double>(p.shape[0] + p.shape[1])) : 0.04;
          const double deviation = weight ? limit / std::sqrt(3.0) : 0.02 * 0.8796;  // of a normal cut at two
          CHECK(largest <= limit * 1.0001);
          CHECK(std::abs(std::sqrt(squares / count) / deviation - 1) < 5 / std::sqrt(count));
          CHECK(std::abs(sum / count) < 5 * deviation / std::sqrt(count));
        }
      },
      encoder, same, other);
  CHECK(differs);
  CHECK(equal);
}

TEST_CASE("an empty batch, and a NaN, pass through", "[encoder]") {
  const Encoder encoder(fit::Random(5));
  const auto none = encoder(random_input(0));
  CHECK(none.data.dimension(0) == 0);
  CHECK(none.latents.dimension(0) == 0);
  fit::Tape tape;
  tape.record();
  const auto nothing = random_input(0);
  const auto views = encoder.forward(nothing, tape);
  Encoder gradient;
  encoder.backward({.data = views.data}, gradient, tape);
  double length = 0;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        for (Index i = 0; i < p.size; ++i) length += std::abs(p.data[i]);
      },
      gradient);
  CHECK(length == 0);

  auto input = random_input(2);
  input(1, 0, 0, 0) = std::numeric_limits<float>::quiet_NaN();
  const auto output = encoder(input);
  const Index half = output.data.size() / 2;
  CHECK(std::all_of(output.data.data(), output.data.data() + half, [](float value) { return std::isfinite(value); }));
  CHECK(std::isnan(output.data.data()[half]));
}

TEST_CASE("wrong shapes and wrong order are errors that say what was expected", "[encoder]") {
  const Encoder encoder(fit::Random(5));
  const auto text = test::error_of([&] { encoder(fit::Tensor<float, 4>(2, 6, 11, 3)); });
  CHECK(test::contains(text, "[batch, 6, 10, 3]"));
  CHECK(test::contains(text, "[2, 6, 11, 3]"));

  static constexpr fit::EncoderConfig extra = [] {
    auto c = config;
    c.extra_tokens = 2;
    c.extra_channels = 5;
    return c;
  }();
  const fit::Encoder<extra> with_extra(fit::Random(5));
  CHECK(test::contains(test::error_of([&] {
                         with_extra({random_input(2), fit::Tensor<float, 4>(1, 6, 2, 5)});
                       }),
                       "[2, 6, 2, 5], not [1, 6, 2, 5]"));
  CHECK(test::error_of([&] { with_extra({random_input(2)}); }) == "this encoder needs extra tokens");
  CHECK(test::error_of([&] { encoder({random_input(2), random_input(2)}); }) == "this encoder takes no extra tokens");
  CHECK(test::contains(test::error_of([&] { encoder(fit::TensorView<const float, 4>(nullptr, 2, 6, 10, 3)); }),
                       "it is a view of null"));
  CHECK(test::contains(test::error_of([&] { encoder(fit::TensorView<const float, 4>(nullptr, -1, 6, 10, 3)); }),
                       "[batch, 6, 10, 3], not [-1, 6, 10, 3]"));
  const float number = 0;
  const Index large = Index{1} << 60;
  CHECK(test::contains(test::error_of([&] { encoder(fit::TensorView<const float, 4>(&number, large, 6, 10, 3)); }),
                       "too large to be counted"));

  fit::Tape tape;
  Encoder gradient;
  CHECK(test::contains(test::error_of([&] { encoder.backward({}, gradient, tape); }), "backward does not find"));
  const auto input = random_input(2);
  encoder.forward(input, tape);  // on a tape that does not record, inference
  CHECK(test::contains(test::error_of([&] { encoder.backward({}, gradient, tape); }), "backward does not find"));
  tape.record();
  const auto views = encoder.forward(input, tape);
  // The record of another encoder is not this one's, though both go over the same sizes.
  static constexpr fit::EncoderConfig wider = [] {
    auto c = config;
    c.channels = 300;
    return c;
  }();
  const fit::Encoder<wider> other;
  fit::Encoder<wider> other_gradient;
  CHECK(test::contains(test::error_of([&] { other.backward({.data = views.data}, other_gradient, tape); }),
                       "does not find its forward"));
  const fit::Tensor<float, 4> wrong(1, 6, 10, 24);
  CHECK(test::contains(test::error_of([&] { encoder.backward({.data = wrong}, gradient, tape); }), "[2, 6, 10, 24]"));
  encoder.backward({.data = views.data}, gradient, tape);  // the failed call has left the tape as it was
  CHECK(test::contains(test::error_of([&] { tape.record({.drop_units = 1.0f}); }), "drop_units must be in [0, 1)"));
  CHECK(test::contains(test::error_of([&] { tape.record({.drop_path = std::nanf("")}); }), "drop_path"));
}

TEST_CASE("a pass that does not record, on the tape or off it, is the same and leaves the tape as it was",
          "[encoder]") {
  const Encoder encoder(fit::Random(5));
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto input = random_input(70), other = random_input(3, 9);
  const auto same = [](const auto& a, const auto& b) {
    return test::max_error(a.data.data(), b.data.data(), b.data.size()) == 0 &&
           test::max_error(a.latents.data(), b.latents.data(), b.latents.size()) == 0;
  };
  const auto expected = encoder(input), of_other = encoder(other);
  // Two outputs live on one tape, until it is cleared.
  const auto first = encoder.forward(input, tape), second = encoder.forward(other, tape);
  CHECK(same(first, expected));
  CHECK(same(second, of_other));
  // In the middle of training.
  Encoder undisturbed, gradient;
  tape.record({.drop_path = 0.2f}, fit::Random(1));
  auto views = encoder.forward(input, tape);
  encoder.backward({.data = views.data, .latents = views.latents}, undisturbed, tape);
  tape.record({.drop_path = 0.2f}, fit::Random(1));
  views = encoder.forward(input, tape);
  CHECK(same(encoder(other, tape), of_other));
  CHECK(tape.recording());
  encoder.backward({.data = views.data, .latents = views.latents}, gradient, tape);
  CHECK(same_bits(test::values_of(gradient), test::values_of(undisturbed)));
}

// A forward pass keeps what it views until backward, so it takes no tensor that is about to go; a call may.
template <class Model, class Input>
constexpr bool keeps_temporaries = requires(const Model& model, Input input, fit::Tape& tape) {
  model.forward(std::move(input), tape);
};
static_assert(!keeps_temporaries<Encoder, fit::Tensor<float, 4>>);
static_assert(!keeps_temporaries<Encoder, Eigen::Tensor<float, 4, Eigen::RowMajor>>);
static_assert(keeps_temporaries<Encoder, fit::TensorView<float, 4>>);
static_assert(keeps_temporaries<Encoder, Encoder::Inputs>);
static_assert(!keeps_temporaries<fit::Classifier<config, 3>, fit::Tensor<float, 4>>);
static_assert(std::is_invocable_v<const Encoder&, fit::Tensor<float, 4>>);

TEST_CASE("a model or a gradient that was moved from is an error", "[encoder]") {
  constexpr auto codes = [] {
    auto c = config;
    c.latent_positions = fit::Positions::sin_cos;
    return c;
  }();
  const auto input = random_input(2);
  fit::Tape tape;
  const auto gone = [](auto&& call) { CHECK(test::contains(test::error_of(call), "moved away")); };
  fit::Encoder<codes> model(fit::Random(1)), gradient;
  const auto taken = std::move(gradient);
  tape.record();
  const auto output = model.forward(input, tape);
  gone([&] { model.backward({.latents = output.latents}, gradient, tape); });
  const auto also = std::move(model);
  gone([&] { model(input, tape); });
  gone([&] { model.forward(input, tape); });
}

TEST_CASE("calls on one encoder from several threads are safe and equal", "[encoder]") {
  const Encoder encoder(fit::Random(5));
  const auto input = random_input(8);
  const auto expected = encoder(input);
  std::vector<double> errors(4, -1);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < errors.size(); ++i) {
    threads.emplace_back([&, i] {
      double worst = 0;
      for (int repeat = 0; repeat < 5; ++repeat) {
        const auto output = encoder(input);
        worst = std::max(worst, test::max_error(output.data.data(), expected.data.data(), expected.data.size()));
      }
      errors[i] = worst;
    });
  }
  for (auto& thread : threads) thread.join();
  for (const double error : errors) CHECK(error == 0);
}

TEST_CASE("a classifier learns a small problem", "[encoder]") {
  // Which group holds the one bright token?
  using Model = fit::Classifier<config, config.groups>;
  fit::Executor executor(2);
  fit::Tape tape(executor);
  fit::TrainingState<Model> state{.model = Model(fit::Random(5)), .random = fit::Random(8)};
  Model gradient;
  const Index batch = 32;
  fit::Tensor<std::int32_t, 1> labels(batch);
  fit::Tensor<float, 2> logits_gradient(batch, Index{config.groups});
  double loss = 0;
  for (int step = 0; step < 300; ++step) {
    fit::Tensor<float, 4> input(batch, Index{config.groups}, Index{config.tokens}, Index{config.channels});
    for (Index b = 0; b < batch; ++b) {
      labels(b) = static_cast<std::int32_t>(state.random.below(config.groups));
      input(b, labels(b), state.random.below(config.tokens), 0) = 3;
    }
    tape.record({}, state.random.split());
    const auto logits = state.model.forward(input, tape);
    loss = fit::cross_entropy(logits, labels, logits_gradient, tape);
    if (step == 0) CHECK(loss > 1.0);
    fit::set_zero(gradient);
    state.model.backward(logits_gradient, gradient, tape);
    state.optimizer.step(state.model, gradient, 2e-3, tape);
  }
  CHECK(loss < 0.1);
}

TEST_CASE("a classifier takes the mean of the latents, or of the data where no latent has read them", "[encoder]") {
  static constexpr fit::EncoderConfig local = [] {
    auto c = config;
    c.layers = "(2)";
    return c;
  }();
  const auto input = random_input(3), other = random_input(3, 9);
  const auto check = [&]<class Model>(const Model& model) {
    fit::Tape tape;
    const auto logits = model(input), of_other = model(other), with_tape = model(input, tape);
    REQUIRE(logits.size() == 3 * 4);
    CHECK(test::max_error(with_tape.data(), logits.data(), logits.size()) == 0);
    CHECK(test::relative_error(of_other.data(), logits.data(), logits.size()) > 1e-4);
    // By hand.
    const auto output = model.encoder(input);
    const bool data = Model::config.layers.view() == "(2)";
    const auto& tokens = data ? output.data : output.latents;
    const Index width = tokens.dimension(3), length = tokens.dimension(1) * tokens.dimension(2);
    for (Index b = 0; b < 3; ++b) {
      for (Index i = 0; i < 4; ++i) {
        double expected = model.head.bias.data()[i];
        for (Index t = 0; t < length; ++t) {
          for (Index j = 0; j < width; ++j) {
            expected += static_cast<double>(tokens.data()[(b * length + t) * width + j]) / static_cast<double>(length) *
                        static_cast<double>(model.head.weight.data()[i * width + j]);
          }
        }
        CHECK(std::abs(static_cast<double>(logits(b, i)) - expected) < 1e-5);
      }
    }
    // The way back moves every parameter of the head, and those of the encoder.
    tape.record();
    const auto views = model.forward(input, tape);
    CHECK(test::max_error(views.data(), logits.data(), logits.size()) == 0);
    CHECK(test::max_error(model(other, tape).data(), of_other.data(), of_other.size()) == 0);  // and leaves nothing
    Model gradient;
    const fit::Tensor<float, 2> wrong(3, 5);
    CHECK(test::error_of([&] { model.backward(wrong, gradient, tape); }) ==
          "the gradient of the logits must have the shape [3, 4], not [3, 5]");
    model.backward(views, gradient, tape);
    const auto values = test::values_of(gradient);
    const auto moved = std::count_if(values.begin(), values.end(), [](float value) { return value != 0; });
    CHECK(moved > static_cast<Index>(values.size()) / 2);
    CHECK(tape.mark().total == 0);
    CHECK(test::error_of([&] { model.backward(views, gradient, tape); }) != "(no error)");
  };
  check(fit::Classifier<config, 4>(fit::Random(5)));
  check(fit::Classifier<local, 4>(fit::Random(5)));
}

TEST_CASE("a loss over a source of groups is that over tensors, with the gradients", "[encoder]") {
  constexpr Index batch = 80, input_size = Index{config.tokens} * config.channels;
  constexpr Index size = Index{config.tokens} * config.data_dim;
  const Encoder encoder(fit::Random(5));
  const auto input = random_input(batch);
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const fit::TrainingOptions drops{.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f};

  // Half the squared length of the data tokens, whose gradient they are.
  tape.record(drops, fit::Random(8));
  const auto output = encoder.forward(input, tape);
  Encoder expected;
  auto expected_input = input;
  double expected_loss = 0;
  for (Index i = 0; i < output.data.size(); ++i) {
    expected_loss += 0.5 * static_cast<double>(output.data.data()[i]) * static_cast<double>(output.data.data()[i]);
  }
  encoder.backward({.data = output.data}, expected, tape, {.input = expected_input});

  std::vector<int> told(static_cast<std::size_t>(batch * config.groups));
  auto input_gradient = input;
  fit::GroupSource<float> source{.batch = batch, .groups = config.groups};
  source.fill = [&](Index first, Index count, float* to) {
    std::copy_n(input.data() + first * input_size, count * input_size, to);
  };
  source.gradient = [&](Index first, Index count, const float* from) {
    std::copy_n(from, count * input_size, input_gradient.data() + first * input_size);
    for (Index g = first; g < first + count; ++g) ++told[static_cast<std::size_t>(g)];
  };
  const fit::GroupLoss<float> loss = [&](Index, Index count, const float* data, float* to) {
    double share = 0;
    for (Index i = 0; i < count * size; ++i) share += 0.5 * static_cast<double>(data[i]) * static_cast<double>(data[i]);
    if (to) std::copy_n(data, count * size, to);
    return share;
  };
  std::vector<float> first_gradient;
  for (const fit::Recompute recompute : test::recomputes) {
    fit::TrainingOptions options = drops;
    options.recompute = recompute;
    Encoder gradient;
    std::fill(told.begin(), told.end(), 0);
    CHECK(encoder.loss(source, loss, gradient, tape, options, fit::Random(8)) == Approx(expected_loss).epsilon(1e-12));
    CHECK(std::all_of(told.begin(), told.end(), [](int times) { return times == 1; }));
    CHECK(same_bits(std::vector<float>(input_gradient.data(), input_gradient.data() + input_gradient.size()),
                    std::vector<float>(expected_input.data(), expected_input.data() + expected_input.size())));
    // Chunks' shares of the last norm's gradient are added in another order.
    const auto values = test::values_of(gradient), wanted = test::values_of(expected);
    double worst = 0, most = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      worst = test::worse(worst, std::abs(static_cast<double>(values[i]) - static_cast<double>(wanted[i])));
      most = std::max(most, std::abs(static_cast<double>(wanted[i])));
    }
    CHECK(worst < 1e-5 * most);
    if (first_gradient.empty()) first_gradient = values;
    CHECK(same_bits(values, first_gradient));
  }

  // Without a gradient, what inference gives; the tape stays as it was.
  const auto inferred = encoder(input);
  double squares = 0;
  for (Index i = 0; i < inferred.data.size(); ++i) {
    squares += 0.5 * static_cast<double>(inferred.data.data()[i]) * static_cast<double>(inferred.data.data()[i]);
  }
  tape.record(drops, fit::Random(8));
  const auto recorded = encoder.forward(input, tape);
  CHECK(encoder.loss(source, loss, tape) == Approx(squares).epsilon(1e-12));
  Encoder after;
  encoder.backward({.data = recorded.data}, after, tape);
  CHECK(same_bits(test::values_of(after), test::values_of(expected)));

  Encoder untouched;
  const auto refused = [&](fit::GroupSource<float> wrong, const fit::GroupLoss<float>& of, const char* text) {
    CHECK_THROWS_WITH(encoder.loss(wrong, of, untouched, tape), Catch::Matchers::ContainsSubstring(text));
  };
  refused({batch, config.groups}, loss, "a function that fills them");
  refused(source, {}, "a loss by groups needs a function");
  auto wrong = source;
  wrong.groups = 5;
  refused(wrong, loss, "6 groups for an example, not 5");
  wrong = source;
  wrong.batch = -1;
  refused(wrong, loss, "negative");
  wrong = source;
  wrong.grid = {0, 2, 3};
  refused(wrong, loss, "grid");
}

TEST_CASE("a loss by groups may run layers and their way back on the tape", "[encoder]") {
  constexpr Index batch = 80, outputs = 5;
  using Head = fit::nn::Linear<float, outputs, config.data_dim>;
  const Encoder encoder(fit::Random(5));
  Head head;
  head.weight.data()[7] = 0.5f;
  head.weight.data()[60] = -1;
  head.bias.data()[2] = 0.25f;
  const auto input = random_input(batch);
  fit::Tape tape;

  // Half the squared length of what the head gives, whose gradient that is.
  tape.record();
  const auto output = encoder.forward(input, tape);
  const Index rows = output.data.size() / config.data_dim;
  std::vector<float> given(static_cast<std::size_t>(rows * outputs)),
      data_gradient(static_cast<std::size_t>(rows * config.data_dim));
  fit::nn::forward(head, output.data.data(), given.data(), rows, tape);
  double expected_loss = 0;
  for (const float value : given) expected_loss += 0.5 * static_cast<double>(value) * static_cast<double>(value);
  Encoder expected;
  Head expected_head;
  fit::nn::backward<float>(head, given.data(), data_gradient.data(), expected_head, rows, tape);
  fit::Tensor<float, 4> of_data(output.data.dimensions());
  std::copy(data_gradient.begin(), data_gradient.end(), of_data.data());
  encoder.backward({.data = of_data}, expected, tape);

  fit::GroupSource<float> source{.batch = batch, .groups = config.groups};
  source.fill = [&](Index first, Index count, float* to) {
    constexpr Index input_size = Index{config.tokens} * config.channels;
    std::copy_n(input.data() + first * input_size, count * input_size, to);
  };
  Head head_gradient;
  const fit::GroupLoss<float> loss = [&](Index, Index count, const float* data, float* to) {
    const fit::Arena::Scope scope(tape.arena());
    const Index tokens = count * config.tokens;
    float* y = tape.scratch<float>(tokens * outputs);
    fit::nn::forward(head, data, y, tokens, tape);
    double share = 0;
    for (Index i = 0; i < tokens * outputs; ++i) share += 0.5 * static_cast<double>(y[i]) * static_cast<double>(y[i]);
    if (to) fit::nn::backward<float>(head, y, to, head_gradient, tokens, tape);
    return share;
  };
  for (const fit::Recompute recompute : test::recomputes) {
    Encoder gradient;
    fit::set_zero(head_gradient);
    CHECK(encoder.loss(source, loss, gradient, tape, {.recompute = recompute}) == Approx(expected_loss).epsilon(1e-6));
    const auto values = test::values_of(gradient), wanted = test::values_of(expected);
    CHECK(test::relative_error(values.data(), wanted.data(), std::ssize(wanted)) < 1e-5);
    CHECK(test::relative_error(head_gradient.weight.data(), expected_head.weight.data(), head.weight.size()) < 1e-5);
    CHECK(test::relative_error(head_gradient.bias.data(), expected_head.bias.data(), head.bias.size()) < 1e-5);
  }
  CHECK(encoder.loss(source, loss, tape) == Approx(expected_loss).epsilon(1e-6));
}

TEST_CASE("a pass says how far it is, stage by stage and back", "[encoder]") {
  constexpr Index batch = 80;
  const Encoder encoder(fit::Random(5));
  const auto input = random_input(batch);
  fit::Tape tape;
  fit::GroupSource<float> source{.batch = batch, .groups = config.groups};
  source.fill = [&](Index first, Index count, float* to) {
    constexpr Index input_size = Index{config.tokens} * config.channels;
    std::copy_n(input.data() + first * input_size, count * input_size, to);
  };
  const fit::GroupLoss<float> loss = [](Index, Index count, const float*, float* to) {
    if (to) std::fill_n(to, count * config.tokens * config.data_dim, 0.0f);
    return 0.0;
  };
  using Phase = std::tuple<bool, std::size_t, fit::Part>;
  const std::vector<Phase> there{{false, 0, fit::Part::local},
                                 {false, 0, fit::Part::global},
                                 {false, 1, fit::Part::local},
                                 {false, 1, fit::Part::global},
                                 {false, 2, fit::Part::local}};
  auto both = there;
  for (auto phase = there.rbegin(); phase != there.rend(); ++phase) {
    both.emplace_back(true, std::get<1>(*phase), std::get<2>(*phase));
  }
  std::vector<Phase> phases;
  Index last = 0, all = 0;
  const fit::Watch watch = [&](const fit::PassProgress& at) {
    const Phase phase{at.backward, at.stage, at.part};
    if (phases.empty() || phases.back() != phase) {
      CHECK(last == all);
      phases.push_back(phase);
      last = 0;
      all = at.part == fit::Part::local ? batch * config.groups : batch * (at.stage == 0 ? 1 : 2);
    }
    CHECK(at.all == all);
    CHECK(at.done > last);
    last = at.done;
  };
  for (const fit::Recompute recompute : test::recomputes) {
    phases.clear();
    Encoder gradient;
    encoder.loss(source, loss, gradient, tape, {.recompute = recompute}, fit::Random(1), watch);
    CHECK((phases == both));
    CHECK(last == all);
  }
  phases.clear();
  encoder.loss(source, loss, tape, watch);
  CHECK((phases == there));
  CHECK(last == all);
}

TEST_CASE("what a source or a loss throws reaches the caller, and the tape goes on", "[encoder]") {
  constexpr Index input_size = Index{config.tokens} * config.channels, size = Index{config.tokens} * config.data_dim;
  const Encoder encoder(fit::Random(5));
  const auto input = random_input(80);
  fit::Executor executor(2);
  fit::Tape tape(executor);
  int left = 1 << 30;
  const auto spend = [&] {
    if (--left == 0) throw std::runtime_error("enough");
  };
  fit::GroupSource<float> source{.batch = 80, .groups = config.groups};
  source.fill = [&](Index first, Index count, float* to) {
    spend();
    std::copy_n(input.data() + first * input_size, count * input_size, to);
  };
  source.gradient = [&](Index, Index, const float*) { spend(); };
  const fit::GroupLoss<float> loss = [&](Index, Index count, const float* data, float* to) {
    spend();
    if (to) std::copy_n(data, count * size, to);
    return 1.0;
  };
  for (const fit::Recompute recompute : test::recomputes) {
    const auto step = [&] {
      Encoder gradient;
      encoder.loss(source, loss, gradient, tape, {.recompute = recompute});
      return test::values_of(gradient);
    };
    left = 1 << 30;
    const auto expected = step();
    const int calls = (1 << 30) - left;
    for (int k = 1; k <= calls; ++k) {
      left = k;
      CHECK_THROWS_AS(step(), std::runtime_error);
      // On a tape that has grown in steps, which gives memory back when all that was recorded has gone.
      fit::Tape grown(executor);
      Encoder gradient;
      left = k;
      CHECK_THROWS_AS(encoder.loss(source, loss, gradient, grown, {.recompute = recompute}), std::runtime_error);
      CHECK_THROWS_AS(encoder.backward({}, gradient, grown), fit::Error);
    }
    left = 1 << 30;
    CHECK(same_bits(step(), expected));
    CHECK(tape.recording());  // as loss() leaves it
    left = 1;
    CHECK_THROWS_AS(encoder.loss(source, loss, tape), std::runtime_error);
    CHECK(tape.recording());
  }
}
