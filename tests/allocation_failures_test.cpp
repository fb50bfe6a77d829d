#include <fit/generation/generator.hpp>
#include <fit/models/encoder.hpp>

#include "allocations.hpp"
#include "catch.hpp"
#include "support.hpp"

#include <memory>

namespace {

using fit::Index;

/// Whether a call ends by std::bad_alloc when the allocation of this number fails.
template <class Call>
bool fails(long allocation, Call&& call) {
  test::fail_allocation(allocation);
  try {
    call();
  } catch (const std::bad_alloc&) {
    test::fail_allocation(0);
    return true;
  }
  test::fail_allocation(0);
  return false;
}

/// Where operator new is not ours, under the address sanitizer, nothing fails.
bool can_fail() { return test::allocations() > 0; }

}  // namespace

TEST_CASE("an arena that gets no more memory stays as it was", "[allocation_failures]") {
  fit::Arena arena;
  char* const first = arena.allocate<char>(1);
  const bool failed = fails(1, [&] { arena.allocate<char>(1 << 20); });
  CHECK(failed == can_fail());
  if (!failed) return;
  CHECK(arena.allocate<char>(1) == first + 64);
  CHECK(arena.peak() == 128);
}

TEST_CASE("an executor that cannot start its threads throws", "[allocation_failures]") {
  long allocation = 0;
  for (bool failed = true; failed;) {
    std::unique_ptr<fit::Executor> executor;
    failed = fails(++allocation, [&] { executor = std::make_unique<fit::Executor>(4); });
    CHECK(failed == !executor);
    if (executor) CHECK(executor->lanes() == 4);
  }
  if (can_fail()) CHECK(allocation > 4);
}

TEST_CASE("a training step that runs out of memory throws, and the next one is as ever", "[allocation_failures]") {
  constexpr fit::EncoderConfig config{.layers = "(1)1(1)",
                                      .groups = 3,
                                      .tokens = 5,
                                      .channels = 2,
                                      .latents = 2,
                                      .data_dim = 16,
                                      .latent_dim = 24,
                                      .data_heads = 2,
                                      .latent_heads = 2};
  fit::Encoder<config> encoder(fit::Random{7});
  fit::Tensor<float, 4> data(9, config.groups, config.tokens, config.channels);
  data.setConstant(0.5f);
  const auto step = [&](fit::Encoder<config>& gradient, fit::Tape& tape) {
    tape.record({.drop_attention = 0.1f}, fit::Random{1});
    const auto output = encoder.forward(data, tape);
    encoder.backward({.latents = output.latents}, gradient, tape);
  };
  fit::Encoder<config> expected;
  fit::Tape undisturbed;
  step(expected, undisturbed);

  long allocation = 0;
  for (bool failed = true; failed;) {
    fit::Executor executor(3);
    fit::Tape tape(executor);
    fit::Encoder<config> interrupted, gradient;
    failed = fails(++allocation, [&] { step(interrupted, tape); });
    step(gradient, tape);
    REQUIRE(test::same_bits(test::values_of(gradient), test::values_of(expected)));
    const long before = test::allocations();
    step(gradient, tape);
    REQUIRE(test::allocations() == before);
  }
  if (can_fail()) CHECK(allocation > 4);
}

TEST_CASE("a generator that runs out of memory goes on to the ids that it would have drawn", "[allocation_failures]") {
  static constexpr fit::AutoregressiveConfig config{.layers = "(1)1(1)1(1)",
                                                    .groups = 3,
                                                    .tokens = 2,
                                                    .latents = 2,
                                                    .data_dim = 16,
                                                    .latent_dim = 24,
                                                    .data_heads = 2,
                                                    .latent_heads = 2,
                                                    .vocabulary = 7};
  fit::AutoregressiveDecoder<config> decoder(fit::Random{7});
  test::stir(decoder);
  fit::Executor executor(1);
  const std::vector<std::int32_t> ids{1, 4, 2, 6, 3};
  fit::Generator undisturbed(decoder, 1, executor);
  undisturbed.prompt(ids);
  const auto logits = undisturbed.logits();
  const std::vector<float> expected(logits.begin(), logits.end());

  long allocation = 0;
  for (bool failed = true; failed;) {
    fit::Generator generator(decoder, 1, executor);
    failed = fails(++allocation, [&] { generator.prompt(ids); });
    // The ids are there, or none of them is.
    if (generator.ids(0).empty()) generator.prompt(ids);
    const auto found = generator.logits();
    REQUIRE(std::ranges::equal(found, expected));
  }
  if (can_fail()) CHECK(allocation > 2);

  // Of a batch all sequences have them, or none.
  allocation = 0;
  for (bool failed = true; failed;) {
    fit::Generator generator(decoder, 3, executor);
    failed = fails(++allocation, [&] { generator.prompt(ids); });
    if (generator.ids(0).empty()) generator.prompt(ids);
    for (Index sequence = 0; sequence < 3; ++sequence) {
      REQUIRE(std::ranges::equal(generator.ids(sequence), ids));
      REQUIRE(std::ranges::equal(generator.logits(sequence), expected));
    }
  }
  if (can_fail()) CHECK(allocation > 2);

  // One that is assigned to is the other, or stays what it was.
  static constexpr fit::AutoregressiveConfig free = [] {
    auto c = config;
    c.groups = fit::any;
    c.latent_positions = fit::Positions::shared;
    return c;
  }();
  const fit::AutoregressiveDecoder<free> any_groups(fit::Random{7});
  const fit::Generator longer(any_groups, 2, executor, 64);
  allocation = 0;
  for (bool failed = true; failed;) {
    fit::Generator generator(any_groups, 2, executor, 4);
    failed = fails(++allocation, [&] { generator = longer; });
    REQUIRE(generator.groups() == (failed ? 4 : 64));
  }
  if (can_fail()) CHECK(allocation > 2);
}
