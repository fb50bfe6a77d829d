#include <fit/grouping/shift.hpp>
#include <fit/io/checkpoint.hpp>
#include <fit/models/autoregressive_decoder.hpp>
#include <fit/training/clip.hpp>
#include <fit/training/cross_entropy.hpp>
#include <fit/training/ema.hpp>

#include "allocations.hpp"
#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;

constexpr fit::AutoregressiveConfig config{.layers = "(1)2(1)1(2)",
                                           .groups = 6,
                                           .tokens = 9,
                                           .latents = 3,
                                           .data_dim = 32,
                                           .latent_dim = 40,
                                           .data_heads = 2,
                                           .latent_heads = 4,
                                           .mlp_ratio = 2,
                                           .vocabulary = 21};
using Decoder = fit::AutoregressiveDecoder<config>;

fit::Tensor<std::int32_t, 3> random_ids(Index batch, std::uint64_t seed) {
  fit::Random random(seed);
  fit::Tensor<std::int32_t, 3> ids(batch, Index{config.groups}, Index{config.tokens});
  for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>(random.below(config.vocabulary));
  return ids;
}

bool equal(const Decoder& a, const Decoder& b) { return test::same_bits(test::values_of(a), test::values_of(b)); }

/// Some steps of training from where a state is, and their losses.
std::vector<double> train(fit::TrainingState<Decoder>& state, Index steps, int threads, fit::Recompute recompute) {
  fit::Executor executor(threads);
  fit::Tape tape(executor);
  Decoder gradient;
  std::vector<double> losses;
  for (Index i = 0; i < steps; ++i, ++state.step) {
    const auto ids = random_ids(5, static_cast<std::uint64_t>(state.step));
    fit::set_zero(gradient);
    losses.push_back(state.model.loss(
        ids, gradient, tape, {.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f, .recompute = recompute},
        state.random.split()));
    fit::clip_gradient(gradient, 1.0, tape);
    state.optimizer.step(state.model, gradient, 3e-3, tape);
    fit::update_average(*state.average, state.model, 0.9, tape);
  }
  return losses;
}

fit::TrainingState<Decoder> fresh() {
  fit::TrainingState<Decoder> state{.model = Decoder(fit::Random(1)), .random = fit::Random(2)};
  state.average = state.model;
  return state;
}

}  // namespace

TEST_CASE("training has the same bits for any number of threads, with recompute and after a resume",
          "[autoregressive]") {
  auto expected = fresh();
  const auto losses = train(expected, 4, 1, fit::Recompute::none);
  for (const int threads : {2, 3}) {
    auto state = fresh();
    CHECK(train(state, 4, threads, fit::Recompute::none) == losses);
    CHECK(equal(state.model, expected.model));
    CHECK(equal(*state.average, *expected.average));
  }
  for (const fit::Recompute recompute : test::recomputes) {
    auto recomputed = fresh();
    CHECK(train(recomputed, 4, 2, recompute) == losses);
    CHECK(equal(recomputed.model, expected.model));
  }

  const test::TemporaryFolder folder;
  auto first = fresh(), resumed = fresh();
  train(first, 2, 2, fit::Recompute::none);
  fit::save(folder / "state.safetensors", first);
  resumed.model = Decoder();
  fit::load(folder / "state.safetensors", resumed);
  train(resumed, 2, 2, fit::Recompute::none);
  CHECK(equal(resumed.model, expected.model));
  CHECK(equal(*resumed.average, *expected.average));
}

TEST_CASE("what is computed between forward and backward leaves the tape as it was", "[autoregressive]") {
  const Decoder decoder(fit::Random(3));
  const auto ids = fit::shift_right(random_ids(2, 4)), others = random_ids(5, 5), of_others = fit::shift_right(others);
  const auto expected = decoder(of_others);
  fit::Tape fresh;
  const double expected_loss = decoder.loss(others, fresh);
  fit::Tensor<float, 4> slopes(2, Index{config.groups}, Index{config.tokens}, Index{config.vocabulary});
  slopes.setConstant(0.25f);
  Decoder undisturbed, gradient;
  for (Decoder* const to : {&undisturbed, &gradient}) {
    fit::Tape tape;
    tape.record({.drop_units = 0.3f}, fit::Random(1));
    decoder.forward(ids, tape);
    if (to == &gradient) {
      CHECK(decoder.loss(others, tape) == expected_loss);
      const auto logits = decoder(of_others, tape);
      CHECK(test::max_error(logits.data(), expected.data(), logits.size()) == 0);
    }
    decoder.backward(slopes, *to, tape);
  }
  CHECK(equal(gradient, undisturbed));
}

TEST_CASE("the loss in chunks is the cross entropy of the logits, and its gradient too", "[autoregressive]") {
  const Decoder decoder(fit::Random(3));
  fit::Tape tape;
  const Index batch = 100;  // 5,400 places: two chunks
  const auto ids = random_ids(batch, 4), shifted = fit::shift_right(ids);
  const auto logits = decoder(shifted, tape);
  const Index rows = ids.size(), vocabulary = config.vocabulary;
  fit::Tensor<float, 4> logits_gradient(logits.dimensions());
  const double expected = fit::cross_entropy(fit::TensorView<const float, 2>(logits.data(), rows, vocabulary),
                                             fit::TensorView<const std::int32_t, 1>(ids.data(), rows),
                                             fit::TensorView<float, 2>(logits_gradient.data(), rows, vocabulary), tape);
  CHECK(std::abs(decoder.loss(ids, tape) - expected) < 1e-6 * expected);
  Decoder gradient, by_logits;
  CHECK(std::abs(decoder.loss(ids, gradient, tape) - expected) < 1e-6 * expected);
  tape.record();
  decoder.forward(shifted, tape);
  decoder.backward(logits_gradient, by_logits, tape);
  fit::for_each_parameter(
      [&](const fit::ParameterName& name, auto a, auto b) {
        INFO(name.text());
        if (!name.text().ends_with("key.bias")) CHECK(test::relative_error(a.data, b.data, a.size) < 2e-5);
      },
      gradient, by_logits);
  // A chunk is written from its own groups' latents: its examples are as they are alone, and so is the gradient.
  const auto of_last = [&](const auto& tensor, Index each) {
    return std::vector(tensor.data() + (batch - 1) * each, tensor.data() + batch * each);
  };
  fit::Tensor<std::int32_t, 3> last(1, Index{config.groups}, Index{config.tokens});
  const Index each = last.size();
  const auto last_ids = of_last(shifted, each);
  std::copy(last_ids.begin(), last_ids.end(), last.data());
  const auto alone = decoder(last, tape);
  CHECK(test::max_error(alone.data(), of_last(logits, each * vocabulary).data(), alone.size()) < 1e-5);
  Decoder of_halves;
  for (const Index first : {Index{0}, batch / 2}) {
    const fit::TensorView<const std::int32_t, 3> half(ids.data() + first * each, batch / 2, Index{config.groups},
                                                      Index{config.tokens});
    decoder.loss(half, of_halves, tape);
  }
  const auto whole = test::values_of(gradient);
  auto halves = test::values_of(of_halves);
  for (float& value : halves) value /= 2;
  CHECK(test::relative_error(whole.data(), halves.data(), std::ssize(whole)) < 1e-5);
  for (const fit::Recompute recompute : test::recomputes) {
    Decoder again;
    decoder.loss(ids, again, tape, {.recompute = recompute});
    CHECK(equal(again, gradient));
  }
  CHECK(std::abs(fit::bits_per_dimension(std::log(256.0)) - 8) < 1e-12);
  const fit::Tensor<std::int32_t, 3> nothing(0, Index{config.groups}, Index{config.tokens});
  CHECK(decoder.loss(nothing, tape) == 0);
  CHECK(decoder(nothing).size() == 0);
}

TEST_CASE("it learns a sequence that it can only know from the groups before", "[autoregressive]") {
  fit::TrainingState<Decoder> state = fresh();
  fit::Tape tape;
  Decoder gradient;
  // Sequences of one id over and over, out of four.
  const auto batch_of = [](std::uint64_t seed) {
    auto ids = random_ids(8, seed);
    for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = ids.data()[i / 54 * 54] % 4;
    return ids;
  };
  for (Index i = 0; i < 120; ++i) {
    fit::set_zero(gradient);
    state.model.loss(batch_of(static_cast<std::uint64_t>(i) + 10), gradient, tape);
    fit::clip_gradient(gradient, 1.0, tape);
    state.optimizer.step(state.model, gradient, 3e-3, tape);
  }
  // Not to know the id costs 2 bits, once in 54 places; a model that sees one group alone pays them in all six groups.
  CHECK(fit::bits_per_dimension(state.model.loss(batch_of(1), tape)) < 3.0 * 2 / 54);
}

TEST_CASE("ids that come from a source give the bits of those of a tensor", "[autoregressive]") {
  constexpr Index batch = 70;  // two chunks, the second of which begins inside an example
  const Decoder decoder(fit::Random(3));
  const auto ids = random_ids(batch, 4);
  fit::Tape tape;
  int bad_call = -1, calls = 0;
  fit::GroupSource<std::int32_t> source{.batch = batch, .groups = config.groups};
  source.fill = [&](Index first, Index count, std::int32_t* to) {
    REQUIRE((first >= 0 && count > 0 && first + count <= batch * config.groups));
    CHECK(count <= 2048 / config.tokens + 1);
    std::copy_n(ids.data() + first * config.tokens, count * config.tokens, to);
    if (calls++ == bad_call) to[count * config.tokens - 1] = 21;
  };
  CHECK(decoder.loss(source, tape) == decoder.loss(ids, tape));
  CHECK(calls == 4);
  for (const fit::Recompute recompute : test::recomputes) {
    const fit::TrainingOptions options{.drop_units = 0.2f, .recompute = recompute};
    Decoder expected, gradient;
    const double loss = decoder.loss(ids, expected, tape, options, fit::Random(5));
    bool back = false;
    const auto watch = [&](const fit::PassProgress& at) { back = at.backward && at.stage == 0 && at.done == at.all; };
    CHECK(decoder.loss(source, gradient, tape, options, fit::Random(5), watch) == loss);
    CHECK(equal(gradient, expected));
    CHECK(back);
  }

  const auto fails = [&](const fit::GroupSource<std::int32_t>& wrong, const char* part) {
    Decoder gradient;
    CHECK(test::contains(test::error_of([&] { decoder.loss(wrong, tape); }), part));
    CHECK(test::contains(test::error_of([&] { decoder.loss(wrong, gradient, tape); }), part));
    return gradient;
  };
  for (bad_call = 0; bad_call < 4; ++bad_call) {
    calls = 0;
    CHECK(test::contains(test::error_of([&] { decoder.loss(source, tape); }), "ids must be in 0 .. 20, not 21"));
  }
  bad_call = -1;
  auto wrong = source;
  wrong.fill = {};
  CHECK(equal(fails(wrong, "a function that fills them"), Decoder()));
  wrong = source;
  wrong.gradient = [](Index, Index, const std::int32_t*) {};
  CHECK(equal(fails(wrong, "ids have no gradient"), Decoder()));
  wrong = source;
  wrong.groups = 7;
  CHECK(equal(fails(wrong, "6 groups for an example, not 7"), Decoder()));
  wrong = source;
  wrong.batch = -1;
  CHECK(equal(fails(wrong, "negative"), Decoder()));
  wrong = source;
  wrong.grid = {0, 2, 3};
  CHECK(equal(fails(wrong, "grid"), Decoder()));
}

TEST_CASE("a step of autoregressive training allocates nothing after the first", "[autoregressive]") {
  const Decoder decoder(fit::Random(1));
  Decoder gradient;
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto ids = random_ids(3, 1);
  for (int i = 0; i < 2; ++i) decoder.loss(ids, gradient, tape, {.drop_path = 0.1f});
  const auto before = test::allocations();
  decoder.loss(ids, gradient, tape, {.drop_path = 0.1f});
  CHECK(test::allocations() == before);
}

TEST_CASE("wrong ids and gradients are errors", "[autoregressive]") {
  const Decoder decoder(fit::Random(1));
  Decoder gradient;
  fit::Tape tape;
  auto ids = random_ids(2, 1);
  const auto fails = [&](auto&& call, const char* part) {
    const std::string message = test::error_of(call);
    INFO(message);
    CHECK(test::contains(message, part));
  };
  fails([&] { decoder(fit::Tensor<std::int32_t, 3>(1, 6, 8)); }, "[batch, 6, 9], not [1, 6, 8]");
  const auto logits = decoder.forward(ids, tape);  // on a tape that does not record, inference
  CHECK(test::max_error(logits.data(), decoder(ids).data(), logits.size()) == 0);
  fails([&] { decoder.backward(fit::Tensor<float, 4>(2, 6, 9, 21), gradient, tape); }, "does not find its forward");
  tape.record();
  decoder.forward(ids, tape);
  fails([&] { decoder.backward(fit::Tensor<float, 4>(2, 6, 9, 20), gradient, tape); }, "[2, 6, 9, 21], not");
  ids(1, 2, 3) = 21;
  fails([&] { decoder(ids); }, "ids must be in 0 .. 20, not 21");
  fails([&] { decoder.loss(ids, tape); }, "not 21");
  ids(1, 2, 3) = -1;
  fails([&] { decoder.loss(ids, gradient, tape); }, "not -1");
  CHECK(equal(gradient, Decoder()));

  const test::TemporaryFolder folder;
  fit::save(folder / "decoder.safetensors", decoder);
  fit::AutoregressiveDecoder<[] {
    auto other = config;
    other.output_bias = false;
    return other;
  }()>
      other;
  fails([&] { fit::load(folder / "decoder.safetensors", other); }, "config.output_bias: expected");
}
