#include <fit/grouping/shift.hpp>
#include <fit/io/generator_file.hpp>

#include <algorithm>
#include <numeric>
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
constexpr fit::AutoregressiveConfig shared_keys = [] {
  auto c = small;
  c.data_heads = 6;
  c.data_key_heads = 2;
  c.latent_heads = 4;
  c.latent_key_heads = 1;
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
  test::stir(decoder);
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
  check_cache<shared_keys, double>(1e-13);
  check_cache<plain, double>(1e-13);
  check_cache<wide_latents, double>(1e-13);
  check_cache<plain, float>(4e-6);
}

TEST_CASE("prompts in pieces, wherever these end, are one prompt", "[generation]") {
  const auto check = []<fit::AutoregressiveConfig c, class T>(const fit::AutoregressiveDecoder<c, T>& decoder) {
    const Index length = Index{c.groups} * c.tokens;
    const auto ids = random_ids(length - 1, c.vocabulary, 7);
    const auto expected = all_logits(decoder, ids);
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      fit::Random random(seed);
      fit::Generator generator(decoder);
      while (static_cast<Index>(generator.ids().size()) < length - 1) {
        const std::size_t done = generator.ids().size();
        const auto left = static_cast<Index>(ids.size() - done);
        const Index piece = std::min(left, random.below(random.below(2) == 0 ? 4 : length / 2));
        generator.prompt(std::span(ids).subspan(done, static_cast<std::size_t>(piece)));
        const auto place = static_cast<Index>(generator.ids().size());
        CHECK(test::relative_error(generator.logits().data(), expected.data() + place * c.vocabulary, c.vocabulary) <
              1e-13);
      }
    }
  };
  check(lively<small, double>(4));
  check(lively<plain, double>(5));
}

TEST_CASE("no logit depends on its own id or a later one", "[generation]") {
  const auto check = []<fit::AutoregressiveConfig c>(const fit::AutoregressiveDecoder<c>& decoder) {
    const Index length = Index{c.groups} * c.tokens;
    auto ids = random_ids(length, c.vocabulary, 8);
    const auto before = all_logits(decoder, ids);
    for (Index place = 0; place < length; ++place) {
      auto& id = ids[static_cast<std::size_t>(place)];
      const std::int32_t kept = std::exchange(id, (id + 1) % c.vocabulary);
      const auto after = all_logits(decoder, ids);
      id = kept;
      const Index seen = (place + 1) * c.vocabulary;  // logits of the places up to this one
      CHECK(std::equal(before.data(), before.data() + seen, after.data()));
      if (place + 1 < length) {
        CHECK(!std::equal(before.data() + seen, before.data() + seen + c.vocabulary, after.data() + seen));
      }
    }
  };
  check(lively<small>(1));
  check(lively<no_local>(2));
  check(lively<wide_latents>(3));
}

TEST_CASE("what is drawn does not depend on threads, the batch, or when it was interrupted", "[generation]") {
  const auto decoder = lively<small>(11);
  const fit::TokenSampling sampling{.temperature = 1.3f, .top_k = 9, .top_p = 0.9f, .min_p = 0.01f};
  const auto prompt = random_ids(8, small.vocabulary, 2);
  std::vector<std::vector<std::int32_t>> expected;
  for (const int threads : {1, 2, 3}) {
    fit::Executor executor(threads);
    fit::Generator generator(decoder, 5, executor);
    for (Index s = 0; s < 5; ++s) generator.prompt(s, std::span(prompt).first(static_cast<std::size_t>(2 * s)));
    generator.finish(3);
    std::size_t drawn = 0;
    for (const auto token : generator.stream(sampling, fit::Random(4))) {
      CHECK(token.sequence != 3);
      CHECK(generator.ids(token.sequence).back() == token);
      ++drawn;
    }
    CHECK(drawn == 4 * 30 - (0 + 2 + 4 + 8));
    for (Index s = 0; s < 5; ++s) {
      const auto ids = generator.ids(s);
      if (threads == 1) expected.emplace_back(ids.begin(), ids.end());
      CHECK(std::equal(ids.begin(), ids.end(), expected[static_cast<std::size_t>(s)].begin(),
                       expected[static_cast<std::size_t>(s)].end()));
    }
  }
  CHECK(expected[3].size() == 6);
  CHECK(expected[0] != expected[1]);

  SECTION("a copy, a fork and a file go on to the bit") {
    const test::TemporaryFolder folder;
    fit::Generator whole(decoder, 2);
    whole.prompt(prompt);
    CHECK(std::equal(whole.logits(0).begin(), whole.logits(0).end(), whole.logits(1).begin()));
    for (int i = 0; i < 7; ++i) whole.next(sampling, fit::Random(5));
    auto copy = whole;
    fit::save(folder / "generator.safetensors", whole);
    fit::Generator resumed(decoder, 2);
    fit::load(folder / "generator.safetensors", resumed);
    for (fit::Generator<fit::AutoregressiveDecoder<small>>* g : {&whole, &copy, &resumed}) {
      while (!g->finished_all()) {
        g->next(sampling, fit::Random(5));
        for (Index s = 0; s < 2; ++s) {
          if (!g->finished(s)) g->logits(s);
        }
      }
    }
    for (Index s = 0; s < 2; ++s) {
      CHECK(std::equal(whole.ids(s).begin(), whole.ids(s).end(), copy.ids(s).begin(), copy.ids(s).end()));
      CHECK(std::equal(whole.ids(s).begin(), whole.ids(s).end(), resumed.ids(s).begin(), resumed.ids(s).end()));
    }
    fit::Generator forked(decoder, 3);
    forked.prompt(0, prompt);
    forked.fork(0, 2);
    CHECK(std::equal(forked.logits(0).begin(), forked.logits(0).end(), forked.logits(2).begin()));
    CHECK(forked.ids(1).empty());
    const double shared = test::max_error(forked.logits(0).data(), forked.logits(1).data(), small.vocabulary);
    CHECK(shared > 0);
    std::vector<float> before(forked.logits(2).begin(), forked.logits(2).end());
    forked.prompt(0, std::span(prompt).first(3));
    CHECK(std::equal(before.begin(), before.end(), forked.logits(2).begin()));
  }
}

TEST_CASE("sequences of a batch get the same bits as by themselves", "[generation]") {
  const auto check = [](const auto& decoder, Index apart) {
    constexpr Index batch = 6;
    using Decoder = std::remove_cvref_t<decltype(decoder)>;
    const auto ids = random_ids(1 + apart * (batch - 1), Decoder::config.vocabulary, 3);
    for (const int threads : {1, 3}) {
      fit::Executor executor(threads);
      fit::Generator together(decoder, batch, executor);
      std::vector<fit::Generator<Decoder>> alone(batch, fit::Generator(decoder));
      for (Index s = 0; s < batch; ++s) {
        const auto prompt = std::span(ids).first(static_cast<std::size_t>(1 + apart * s));
        together.prompt(s, prompt);
        alone[static_cast<std::size_t>(s)].prompt(prompt);
      }
      for (int step = 0; step < 4; ++step) {  // one id each, which all go through at once
        together.next({.temperature = 0}, fit::Random(1));
        for (Index s = 0; s < batch; ++s) {
          fit::Generator<Decoder>& one = alone[static_cast<std::size_t>(s)];
          one.next({.temperature = 0}, fit::Random(1));
          CHECK(std::ranges::equal(one.logits(), together.logits(s)));
        }
      }
    }
  };
  check(lively<plain>(12), 40);
  check(lively<small>(12), 4);  // groups end at different steps
}

TEST_CASE("an id can end a sequence", "[generation]") {
  const auto decoder = lively<small>(13);
  fit::Generator generator(decoder, 3);
  Index ended = 0;
  const fit::TokenSampling sampling{.temperature = 2, .end = 4};
  for (const auto token : generator.stream(sampling, fit::Random(6))) {
    CHECK(generator.finished(token.sequence) == (token == 4 || generator.ids(token.sequence).size() == 30));
    ended += token == 4;
  }
  CHECK(ended > 0);
  CHECK(generator.next(sampling, fit::Random(6))[0] == -1);

  fit::Generator few(decoder);
  for (const auto token : few.stream({}, fit::Random(1), 5)) CHECK(token >= 0);
  CHECK(few.ids().size() == 5);
  for (const auto token : few.stream({}, fit::Random(1))) {
    CHECK(token >= 0);
    break;
  }
  CHECK(few.ids().size() == 6);
}

TEST_CASE("top-k, top-p and min-p leave what their definitions say", "[generation]") {
  fit::Random random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> logits(1 + static_cast<std::size_t>(random.below(40)));
    for (float& logit : logits) logit = static_cast<float>(std::floor(6 * random.normal()) / 2);  // with equals
    fit::TokenSampling sampling{.temperature = static_cast<float>(0.3 + random.uniform())};
    if (random.below(2)) sampling.top_k = 1 + static_cast<int>(random.below(12));
    if (random.below(2)) sampling.top_p = static_cast<float>(0.05 + 0.9 * random.uniform());
    if (random.below(2)) sampling.min_p = static_cast<float>(0.3 * random.uniform());
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](auto a, auto b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
    std::vector<double> weights(logits.size(), 0.0);
    const auto total = [&] { return std::accumulate(weights.begin(), weights.end(), 0.0); };
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (sampling.top_k > 0 && i >= static_cast<std::size_t>(sampling.top_k)) break;
      weights[order[i]] = std::exp(static_cast<double>(logits[order[i]]) / static_cast<double>(sampling.temperature));
    }
    double reached = 0;
    const double all = total();
    for (const std::size_t i : order) {
      if (reached >= static_cast<double>(sampling.top_p) * all * (1 + 1e-12)) weights[i] = 0;
      reached += weights[i];
    }
    for (double& weight : weights) weight *= weight >= static_cast<double>(sampling.min_p) * weights[order[0]];
    const auto choices = fit::token_choices(logits, sampling);
    std::vector<double> found(logits.size(), 0.0);
    for (std::size_t i = 0; i < choices.ids.size(); ++i) {
      found[static_cast<std::size_t>(choices.ids[i])] = choices.probabilities[i];
    }
    const double sum = total();
    for (std::size_t i = 0; i < logits.size(); ++i) CHECK(std::abs(found[i] - weights[i] / sum) < 1e-9);
  }
}

TEST_CASE("top-p and min-p at their bounds leave the likeliest", "[generation]") {
  using Ids = std::vector<std::int32_t>;
  const std::vector<float> different = {1, -2, 3, 0}, equal = {0, 0};
  CHECK(fit::token_choices(different, {.min_p = 1}).ids == Ids{2});
  CHECK(fit::token_choices(equal, {.min_p = 1}).ids == Ids{0, 1});
  CHECK(fit::token_choices(equal, {.top_p = 0.5f}).ids == Ids{0});
  CHECK(fit::token_choices(equal, {.top_p = 0.5f}).probabilities == std::vector<double>{1});
  CHECK(fit::token_choices(different, {.top_p = 1e-6f}).ids == Ids{2});
}

TEST_CASE("ids are drawn as often as their probabilities say", "[generation]") {
  const std::vector<float> logits = {0.5f, -1, 2, 1.5f, -4, 0};
  const fit::TokenSampling sampling{.temperature = 0.8f, .top_k = 4, .top_p = 0.97f};
  const auto choices = fit::token_choices(logits, sampling);
  std::vector<double> counts(logits.size(), 0.0);
  fit::Random random(2);
  constexpr int draws = 40000;
  for (int i = 0; i < draws; ++i) ++counts[static_cast<std::size_t>(fit::draw_token(logits, sampling, random))];
  double drawn = 0;
  for (std::size_t i = 0; i < choices.ids.size(); ++i) {
    const double p = choices.probabilities[i], count = counts[static_cast<std::size_t>(choices.ids[i])];
    CHECK(std::abs(count - p * draws) < 4.5 * std::sqrt(p * draws));
    drawn += count;
  }
  CHECK(drawn == draws);
  const fit::TokenSampling greedy{.temperature = 0};
  CHECK(fit::draw_token(logits, greedy, random) == 2);
  CHECK(fit::draw_token(std::vector<float>{1, 3, 3}, greedy, random) == 1);
}

TEST_CASE("a user's function changes the logits", "[generation]") {
  const auto decoder = lively<small>(14);
  fit::Generator generator(decoder);
  fit::TokenSampling sampling;
  sampling.adjust = [](std::span<const std::int32_t> ids, std::span<float> logits) {
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (i != ids.size() % 3) logits[i] = -std::numeric_limits<float>::infinity();
    }
  };
  for (const auto token : generator.stream(sampling, fit::Random(1))) {
    CHECK(token == static_cast<std::int32_t>((generator.ids().size() - 1) % 3));
  }
  generator = fit::Generator(decoder);
  sampling.adjust = [](auto, std::span<float> logits) {
    std::fill(logits.begin(), logits.end(), -std::numeric_limits<float>::infinity());
  };
  CHECK(test::contains(test::error_of([&] { generator.next(sampling, fit::Random(1)); }), "no id may follow"));
  CHECK(generator.ids().empty());
}

TEST_CASE("a generator may be given its own ids, moved, and assigned", "[generation]") {
  using Small = fit::Generator<fit::AutoregressiveDecoder<small>>;
  const auto decoder = lively<small>(16);
  fit::Generator generator(decoder, 2);
  const auto ids = random_ids(4, small.vocabulary, 9);
  generator.prompt(0, ids);
  generator.prompt(generator.ids(0));
  generator.prompt(1, generator.ids(1));
  const std::vector<std::int32_t> expected = {ids[0], ids[1], ids[2], ids[3], ids[0], ids[1], ids[2], ids[3]};
  CHECK(std::equal(expected.begin(), expected.end(), generator.ids(0).begin(), generator.ids(0).end()));
  CHECK(std::equal(expected.begin(), expected.end(), generator.ids(1).begin(), generator.ids(1).end()));

  fit::Generator half(decoder, 2);
  half.finish(1);
  half.prompt(std::span<const std::int32_t>{});
  CHECK(half.finished(1));
  CHECK(!half.finished(0));

  auto moved = std::move(generator);
  CHECK(moved.ids(0).size() == 8);
  generator.prompt(ids);  // it has no sequences
  {
    fit::Executor two(2);
    Small other(decoder, 1, two);
    generator = Small(decoder);
    other = generator;  // and goes on with the executor of the other
    generator = other;
  }
  generator.prompt(ids);
  CHECK(generator.ids().size() == 4);
}

TEST_CASE("a stream whose user throws is at its end", "[generation]") {
  const auto decoder = lively<small>(17);
  fit::Generator generator(decoder, 2);
  fit::TokenSampling sampling;
  int calls = 0;  // the sixth is for the third id of the second sequence
  sampling.adjust = [&](std::span<const std::int32_t>, std::span<float>) {
    if (++calls == 6) throw std::runtime_error("enough");
  };
  auto stream = generator.stream(sampling, fit::Random(1));
  auto at = stream.begin();
  for (int i = 0; i < 3; ++i) ++at;
  CHECK_THROWS_AS(++at, std::runtime_error);
  CHECK(at == stream.end());
  CHECK(generator.ids(0).size() == 2);
  CHECK(generator.ids(1).size() == 2);
}

TEST_CASE("wrong prompts, options and files are errors that change nothing", "[generation]") {
  const auto decoder = lively<small>(15);
  fit::Generator generator(decoder, 2);
  const auto good = random_ids(29, small.vocabulary, 1);
  generator.prompt(1, good);
  const auto fails = [&](auto&& call, const char* part) {
    const std::string message = test::error_of(call);
    INFO(message);
    CHECK(test::contains(message, part));
    CHECK(generator.ids(0).empty());
    CHECK(generator.ids(1).size() == 29);
  };
  const std::vector<std::int32_t> high = {3, 17}, low = {-1}, two = {1, 2};
  fails([&] { generator.prompt(0, high); }, "ids must be in 0 .. 16, not 17");
  fails([&] { generator.prompt(low); }, "not -1");
  fails([&] { generator.prompt(two); }, "a prompt of 2 ids is too long: the model has room for 30");
  fails([&] { generator.prompt(random_ids(31, 17, 1)); }, "too long");
  fails([&] { generator.prompt(2, two); }, "there are sequences 0 .. 1, but not 2");
  fails([&] { generator.ids(-1); }, "but not -1");
  fails([&] { generator.fork(7, 7); }, "but not 7");
  fails([&] { fit::Generator(decoder, Index{1} << 60); }, "can be counted");
  fails([&] { fit::Generator(decoder, 0); }, "at least 1");
  fails([&] { generator.next({.temperature = -1}, fit::Random(1)); }, "temperature");
  fails([&] { generator.next({.top_k = -1}, fit::Random(1)); }, "top_k");
  fails([&] { generator.next({.top_p = 0}, fit::Random(1)); }, "top_p");
  fails([&] { generator.next({.min_p = 1.5f}, fit::Random(1)); }, "min_p");
  fails([&] { generator.next({.end = 17}, fit::Random(1)); }, "end of a sequence");
  CHECK(test::contains(test::error_of([] { fit::token_choices(std::vector<float>{0, NAN}, {}); }), "logit 1"));
  generator.finish(0);
  fails([&] { generator.logits(0); }, "finished");
  fails([&] { generator.prompt(0, two); }, "finished");

  const test::TemporaryFolder folder;
  const auto path = folder / "generator.safetensors";
  fit::save(path, generator);
  fit::Generator three(decoder, 3);
  CHECK(test::contains(test::error_of([&] { fit::load(path, three); }), "holds 2 sequences, the generator 3"));
  const auto other = lively<no_local>(1);
  fit::Generator unlike(other, 2);
  CHECK(test::contains(test::error_of([&] { fit::load(path, unlike); }), "config.layers"));
  CHECK(unlike.ids(1).empty());
  const auto precise = lively<small, double>(15);
  fit::Generator double_generator(precise, 2);
  fit::save(path, double_generator);
  fails([&] { fit::load(path, generator); }, "logits must be F32 [17], not F64 [17]");
  fit::save(path, decoder);
  fails([&] { fit::load(path, generator); }, "generator.batch");
}

TEST_CASE("each position of each sequence draws with a number of its own", "[generation]") {
  // Zero parameters: all logits are equal, and what is drawn is the random number alone.
  const fit::AutoregressiveDecoder<small> even;
  fit::Generator generator(even, 2);
  const fit::Random random(9, 4);
  const std::vector<float> logits(small.vocabulary, 0.0f);
  for (Index position = 0; position < generator.length(); ++position) {
    const auto drawn = generator.next({}, random);
    for (Index sequence = 0; sequence < 2; ++sequence) {
      fit::Random own = random.fork(sequence, position);
      CHECK(drawn[static_cast<std::size_t>(sequence)] == fit::draw_token(logits, {}, own));
    }
  }
  for (Index sequence = 0; sequence < 2; ++sequence) {
    const auto ids = generator.ids(sequence);
    CHECK(std::set(ids.begin(), ids.end()).size() > 8);
  }
  CHECK(!std::ranges::equal(generator.ids(0), generator.ids(1)));
}

TEST_CASE("generators that share a batch draw what one does", "[generation]") {
  const auto decoder = lively<small>(3);
  const fit::Random random(5);
  fit::Generator all(decoder, 5), first(decoder, 2), rest(decoder, 3);
  rest.count_from(2);
  while (!all.finished_all()) {
    all.next({}, random);
    first.next({}, random);
    rest.next({}, random);
  }
  for (Index i = 0; i < 5; ++i) CHECK(std::ranges::equal(all.ids(i), i < 2 ? first.ids(i) : rest.ids(i - 2)));
  CHECK(test::error_of([&] { rest.count_from(-1); }) == "sequences are counted from 0 or more, not from -1");
}

TEST_CASE("a prompt of all sequences goes after what each has", "[generation]") {
  const auto decoder = lively<small>(3);
  const auto first = random_ids(5, small.vocabulary, 1), second = random_ids(5, small.vocabulary, 2),
             both = random_ids(4, small.vocabulary, 3);
  fit::Generator together(decoder, 2);
  together.prompt(0, first);
  together.prompt(1, second);
  together.prompt(both);
  for (const Index sequence : {0, 1}) {
    INFO(sequence);
    auto ids = sequence == 0 ? first : second;
    ids.insert(ids.end(), both.begin(), both.end());
    fit::Generator alone(decoder);
    alone.prompt(ids);
    CHECK(std::ranges::equal(together.ids(sequence), ids));
    CHECK(test::relative_error(together.logits(sequence).data(), alone.logits().data(), small.vocabulary) < 1e-5);
  }
}

TEST_CASE("a prompt of all sequences gives each the bits that it has by itself, in whatever pieces it came",
          "[generation]") {
  const auto decoder = lively<small>(3);
  const auto ids = random_ids(4, small.vocabulary, 1), both = random_ids(3, small.vocabulary, 3);
  const auto piecewise = [&](auto& generator, Index sequence) {
    for (const std::int32_t& id : ids) generator.prompt(sequence, std::span(&id, 1));
  };
  fit::Generator together(decoder, 2), at_once(decoder), one_by_one(decoder);
  together.prompt(0, ids);
  piecewise(together, 1);
  at_once.prompt(ids);
  piecewise(one_by_one, 0);
  for (auto* generator : {&together, &at_once, &one_by_one}) generator->prompt(both);
  CHECK(std::ranges::equal(together.logits(0), at_once.logits()));
  CHECK(std::ranges::equal(together.logits(1), one_by_one.logits()));
}

TEST_CASE("a generator goes on from the sequences of another", "[generation]") {
  const auto decoder = lively<small>(3);
  const auto ids = random_ids(13, small.vocabulary, 1);
  fit::Generator whole(decoder), taken(decoder), two(decoder, 2);
  whole.prompt(ids);
  taken.restore(whole.sequences());
  CHECK(std::ranges::equal(taken.ids(), whole.ids()));
  CHECK(std::ranges::equal(taken.logits(), whole.logits()));
  for (int i = 0; i < 10; ++i) {
    CHECK(taken.next({.temperature = 0}, fit::Random(1))[0] == whole.next({.temperature = 0}, fit::Random(1))[0]);
  }
  CHECK(two.cache_bytes() == 2 * whole.cache_bytes());
  // Of each stage with latents: keys and values of local blocks and tokens for read over a group, of write over the
  // latents, and of global blocks over those of all groups, each array rounded up to a cache line.
  const auto line = [](Index values) { return (values + 15) / 16 * 16; };
  const Index local = 2 * line(6 * 24), read = line(6 * 24), write = 2 * line(3 * 20), global = 2 * line(15 * 20);
  CHECK(static_cast<Index>(whole.cache_bytes()) == 4 * ((1 + 2 + 1) * local + 2 * (read + write) + (2 + 1) * global));
  CHECK(test::contains(test::error_of([&] { two.restore(whole.sequences()); }), "2 sequences cannot go on from 1"));
  const auto other = lively<no_local>(3);
  CHECK(test::contains(test::error_of([&] { taken.restore(fit::Generator(other).sequences()); }),
                       "another configuration"));
  const auto refused = [&](auto&& change) {
    auto sequences = whole.sequences();
    change(sequences[0]);
    return test::error_of([&] { taken.restore(std::move(sequences)); });
  };
  CHECK(test::contains(refused([](auto& s) { s.processed = 100; }), "does not go with its caches"));
  CHECK(test::contains(refused([](auto& s) { s.ids.assign(31, 0); }), "does not go with its caches"));
  CHECK(test::contains(refused([](auto& s) { s.ids[3] = 17; }), "ids must be in 0 .. 16, not 17"));
  CHECK(test::contains(refused([](auto& s) { s.memory = {}; }), "does not go with its caches"));
  CHECK(test::contains(refused([](auto& s) { auto gone = std::move(s); }), "another configuration"));
}
