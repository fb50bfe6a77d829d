#include <fit/io/generator_file.hpp>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;

constexpr fit::AutoregressiveConfig config{.layers = "(1)1(1)",
                                           .groups = 3,
                                           .tokens = 4,
                                           .latents = 2,
                                           .data_dim = 8,
                                           .latent_dim = 12,
                                           .data_heads = 2,
                                           .latent_heads = 2,
                                           .vocabulary = 11};
using Decoder = fit::AutoregressiveDecoder<config>;
using Generator = fit::Generator<Decoder>;

}  // namespace

TEST_CASE("sequences of any length, whole ones too, go on from a file as they would have", "[generator_file]") {
  const test::TemporaryFolder folder;
  Decoder decoder(fit::Random(1));
  test::stir(decoder);
  const Index length = Generator(decoder).length();
  for (Index count = 0; count <= length; ++count) {
    INFO(count);
    Generator generator(decoder, 2), resumed(decoder, 2);
    for (Index i = 0; i < count; ++i) generator.next({}, fit::Random(3));
    if (count % 2 == 0 && !generator.finished(1)) generator.logits(1);  // so that position is processed, too
    fit::save(folder / "a", generator);
    fit::load(folder / "a", resumed);
    for (Index s = 0; s < 2; ++s) {
      CHECK(resumed.finished(s) == (count == length));
      CHECK(std::ranges::equal(resumed.ids(s), generator.ids(s)));
    }
    if (count == length) {
      CHECK(test::contains(test::error_of([&] { resumed.logits(0); }), "is finished"));
      continue;
    }
    for (Index s = 0; s < 2; ++s) CHECK(std::ranges::equal(resumed.logits(s), generator.logits(s)));
    while (!generator.finished_all()) {
      generator.next({}, fit::Random(3));
      resumed.next({}, fit::Random(3));
    }
    CHECK(resumed.finished_all());
    for (Index s = 0; s < 2; ++s) CHECK(std::ranges::equal(resumed.ids(s), generator.ids(s)));
  }
}

TEST_CASE("sequences that are counted from another number go on from a file as they would have", "[generator_file]") {
  const test::TemporaryFolder folder;
  Decoder decoder(fit::Random(1));
  test::stir(decoder);
  Generator generator(decoder, 2), resumed(decoder, 2), other(decoder, 2);
  generator.count_from(2);
  fit::save(folder / "a", generator);
  fit::load(folder / "a", resumed);
  CHECK(resumed.first() == 2);
  for (Index i = 0; i < resumed.length(); ++i) {
    generator.next({}, fit::Random(3));
    resumed.next({}, fit::Random(3));
    other.next({}, fit::Random(3));
  }
  for (Index s = 0; s < 2; ++s) CHECK(std::ranges::equal(resumed.ids(s), generator.ids(s)));
  CHECK(!std::ranges::equal(resumed.ids(0), other.ids(0)));
}

TEST_CASE("a file whose counts do not go with its ids is refused", "[generator_file]") {
  const test::TemporaryFolder folder;
  Decoder decoder(fit::Random(1));
  Generator whole(decoder);
  while (!whole.finished_all()) whole.next({}, fit::Random(3));
  fit::save(folder / "whole", whole);
  const fit::SafetensorsFile file(folder / "whole");
  std::vector<fit::SafetensorsEntry> entries;
  for (const auto& [name, info] : file.tensors()) {
    entries.push_back({name, info.dtype, info.shape, file.bytes(name).data()});
  }
  const std::int32_t ids[config.groups * config.tokens + 1] = {};
  const auto error = [&](const char* key, const char* value, Index count) {
    auto changed = entries;
    for (auto& entry : changed) {
      if (entry.name == "sequence.0.ids") entry.shape = {count}, entry.data = ids;
    }
    fit::Metadata metadata = file.metadata();
    metadata[key] = value;
    fit::write_safetensors(folder / "changed", changed, metadata);
    Generator generator(decoder);
    const std::string text = test::error_of([&] { fit::load(folder / "changed", generator); });
    CHECK(generator.ids().empty());
    return text;
  };
  const char *processed = "sequence.0.processed", *finished = "sequence.0.finished";
  REQUIRE(file.metadata().at(processed) == "12");
  CHECK(test::contains(error(finished, "0", 12), "does not go with 12 ids"));
  CHECK(test::contains(error(finished, "1", 13), "does not go with 13 ids"));
  CHECK(test::contains(error(processed, "13", 12), "13, does not go with 12 ids"));
  CHECK(test::contains(error(processed, "11", 9), "11, does not go with 9 ids"));
  CHECK(test::contains(error(processed, "-1", 12), "-1, does not go with 12 ids"));
}
