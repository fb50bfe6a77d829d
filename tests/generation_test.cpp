#include <fit/generation/generator.hpp>

#include <map>
#include <set>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;

constexpr fit::AutoregressiveConfig small{.layers = "(1)2(2)1(1)",
                                          .groups = 5,
                                          .tokens = 6,
                                          .latents = 3,
                                          .data_dim = 24,
                                          .latent_dim = 20,
                                          .data_heads = 3,
                                          .latent_heads = 2,
                                          .mlp_ratio = 2,
                                          .vocabulary = 17};
constexpr fit::AutoregressiveConfig no_local = [] {
  auto c = small;
  c.layers = "(0)2(0)";
  c.shared_embedding = false;
  c.output_bias = false;
  return c;
}();
constexpr fit::AutoregressiveConfig plain = [] {
  auto c = small;
  c.layers = "(3)";
  c.groups = 1;
  c.tokens = 300;  // more than a piece of keys
  return c;
}();
constexpr fit::AutoregressiveConfig wide_latents = [] {
  auto c = small;
  c.layers = "(1)1(1)1";
  c.latents = 20;
  c.keep_unused_latents = true;
  return c;
}();

/// A decoder that is not near its initial values, whose logits say little.
template <fit::AutoregressiveConfig config, class T = float>
fit::AutoregressiveDecoder<config, T> lively(std::uint64_t seed) {
  fit::AutoregressiveDecoder<config, T> decoder{fit::Random(seed)};
  fit::Random random(seed + 1);
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        for (Index i = 0; i < p.size; ++i) p.data[i] += static_cast<T>(0.15 * random.normal());
      },
      decoder);
  return decoder;
}

std::vector<std::int32_t> random_ids(Index count, Index vocabulary, std::uint64_t seed) {
  fit::Random random(seed);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  for (auto& id : ids) id = static_cast<std::int32_t>(random.below(vocabulary));
  return ids;
}

template <fit::AutoregressiveConfig c, class T>
fit::Tensor<T, 4> all_logits(const fit::AutoregressiveDecoder<c, T>& decoder, const std::vector<std::int32_t>& ids) {
  fit::Tensor<std::int32_t, 3> tensor(1, c.groups, c.tokens);
  std::copy(ids.begin(), ids.end(), tensor.data());
  return decoder(fit::shift_right(tensor));
}

/// Prompts of many lengths, then the rest id by id: the logits of every place against those of the whole sequence.
template <fit::AutoregressiveConfig c, class T>
void check_cache(double bound) {
  const auto decoder = lively<c, T>(3);
  constexpr Index length = Index{c.groups} * c.tokens, n = c.tokens;
  const auto ids = random_ids(length, c.vocabulary, 5);
  const auto expected = all_logits(decoder, ids);
  for (const Index prompt : {Index{0}, Index{1}, n - 1, n, n + 1, 2 * n, 3 * n + 2, length - 1}) {
    if (prompt >= length) continue;
    INFO("a prompt of " << prompt);
    fit::Generator generator(decoder);
    generator.prompt(std::span(ids).first(static_cast<std::size_t>(prompt)));
    for (Index place = prompt; place < length; ++place) {
      const auto logits = generator.logits();
      const T* row = expected.data() + place * c.vocabulary;
      if (!(test::relative_error(logits.data(), row, c.vocabulary) < bound)) FAIL("place " << place);
      generator.prompt(std::span(ids).subspan(static_cast<std::size_t>(place), 1));
    }
    CHECK(generator.finished());
  }
}

}  // namespace

TEST_CASE("cached logits are those of the whole sequence, at every place and after any prompt", "[generation]") {
  check_cache<small, float>(4e-6);
  check_cache<small, double>(1e-13);
  check_cache<no_local, double>(1e-13);
  check_cache<plain, double>(1e-13);
  check_cache<wide_latents, double>(1e-13);
  check_cache<plain, float>(4e-6);
}
