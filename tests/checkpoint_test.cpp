#include <cstring>
#include <fstream>
#include <numeric>

#include <fit/fit.hpp>

#include "catch.hpp"
#include "golden.hpp"
#include "support.hpp"

namespace {

using fit::Index;

constexpr fit::EncoderConfig config{.layers = "(1)1(1)",
                                    .groups = 3,
                                    .tokens = 4,
                                    .channels = 2,
                                    .latents = 2,
                                    .data_dim = 8,
                                    .latent_dim = 12,
                                    .data_heads = 2,
                                    .latent_heads = 2};
using Encoder = fit::Encoder<config>;

template <class Model>
std::vector<double> values_of(const Model& model) {
  std::vector<double> values;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) { values.insert(values.end(), p.data, p.data + p.size); }, model);
  return values;
}

/// A file with the tensors of a model, changed by `change`, which is handed the entries.
template <class Change>
void write_changed(const std::filesystem::path& path, const Encoder& model, const fit::Metadata& metadata,
                   Change&& change) {
  std::vector<fit::SafetensorsEntry> entries;
  fit::for_each_parameter(
      [&](const fit::ParameterName& at, auto p) {
        entries.push_back({at.text(), fit::DType::F32, std::vector<Index>(p.shape.begin(), p.shape.end()), p.data});
      },
      model);
  change(entries);
  fit::write_safetensors(path, entries, metadata);
}

}  // namespace

TEST_CASE("what is saved loads again to the bit, in either precision", "[checkpoint]") {
  const test::TemporaryFolder folder;
  const Encoder model(fit::Random(1));
  fit::save(folder / "a.safetensors", model);
  Encoder loaded;
  fit::load(folder / "a.safetensors", loaded);
  CHECK(values_of(loaded) == values_of(model));
  fit::Encoder<config, double> wide;
  fit::load(folder / "a.safetensors", wide);
  CHECK(values_of(wide) == values_of(model));
  fit::save(folder / "b.safetensors", wide);
  Encoder narrow;
  fit::load(folder / "b.safetensors", narrow);
  CHECK(values_of(narrow) == values_of(model));

  const fit::SafetensorsFile file(folder / "a.safetensors");
  CHECK(file.metadata().at("config.layers") == "(1)1(1)");
  CHECK(file.metadata().at("config.latent_dim") == "12");
  CHECK(file.info("stages.0.global.0.mlp.fc1.weight").shape == std::vector<Index>{48, 12});
  CHECK(file.info("latent_positions").shape == std::vector<Index>{6, 12});
}

TEST_CASE("parameter names are exactly those of the specification", "[checkpoint]") {
  std::vector<std::string> ours, theirs;
  const fit::Encoder<fit::EncoderConfig{.layers = "(1)1(1)",
                                        .groups = 5,
                                        .tokens = 7,
                                        .channels = 5,
                                        .latents = 3,
                                        .data_dim = 24,
                                        .latent_dim = 32,
                                        .data_heads = 3,
                                        .latent_heads = 4,
                                        .mlp_ratio = 2}>
      model;
  fit::for_each_parameter([&](const fit::ParameterName& at, auto) { ours.push_back("param." + at.text()); }, model);
  const auto file = test::golden("encoder_trace");
  for (const auto& entry : file.tensors()) {
    if (entry.first.compare(0, 6, "param.") == 0) theirs.push_back(entry.first);
  }
  std::sort(ours.begin(), ours.end());
  CHECK(ours == theirs);
}

TEST_CASE("half precision files load", "[checkpoint]") {
  const test::TemporaryFolder folder;
  const Encoder model(fit::Random(1));
  std::vector<std::vector<std::uint16_t>> halves;
  write_changed(folder / "a", model, {}, [&](auto& entries) {
    for (auto& entry : entries) {
      const Index size = std::accumulate(entry.shape.begin(), entry.shape.end(), Index{1}, std::multiplies<>());
      auto& half = halves.emplace_back();
      for (Index i = 0; i < size; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, static_cast<const float*>(entry.data) + i, 4);
        half.push_back(static_cast<std::uint16_t>(bits >> 16));
      }
    }
    for (std::size_t i = 0; i < entries.size(); ++i) {
      entries[i].dtype = fit::DType::BF16;
      entries[i].data = halves[i].data();
    }
  });
  Encoder loaded;
  fit::load(folder / "a", loaded);
  const auto expected = values_of(model), found = values_of(loaded);
  for (std::size_t i = 0; i < found.size(); ++i) {
    REQUIRE(std::abs(found[i] - expected[i]) <= std::abs(expected[i]) / 128);
  }
}

TEST_CASE("a file that is not the model lists every difference and leaves the model alone", "[checkpoint]") {
  const test::TemporaryFolder folder;
  Encoder model(fit::Random(1));
  const auto before = values_of(model);
  std::vector<Index> longer(1000);
  write_changed(folder / "a", Encoder(fit::Random(2)), {{"config.groups", "4"}, {"config.layers", "(1)1(1)"}},
                [&](auto& entries) {
                  entries[0].name = "stemm.weight";
                  std::swap(entries[2].shape, entries[4].shape);  // of a norm and of positions
                  entries[2].data = longer.data();
                  entries[5].dtype = fit::DType::I32;
                });
  const std::string text = test::error_of([&] { fit::load(folder / "a", model); });
  for (const char* part : {"config.groups: expected \"3\", the file says \"4\"", "missing: stem.weight [8, 2]",
                           "unexpected: \"stemm.weight\" [8, 2]", "stem_norm.weight: expected the shape [8]",
                           "data_positions: expected the shape [4, 8], the file has [8]",
                           "latent_positions: expected floating point, the file has I32"}) {
    INFO(text);
    CHECK(test::contains(text, part));
  }
  CHECK(!test::contains(text, "config.layers"));
  CHECK(values_of(model) == before);
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "none", model); }), "none"));
  std::ofstream(folder / "empty");
  CHECK(test::error_of([&] { fit::load(folder / "empty", model); }) != "(no error)");
  CHECK(values_of(model) == before);
}

TEST_CASE("a run that is interrupted and resumed gives the bits of one that was not", "[checkpoint]") {
  const test::TemporaryFolder folder;
  fit::Executor executor(2);
  using State = fit::TrainingState<Encoder>;
  const auto step = [&](State& state) {
    fit::Tape tape(executor);
    fit::Tensor<float, 4> input(Index{2}, Index{3}, Index{4}, Index{2});
    for (Index i = 0; i < input.size(); ++i) input.data()[i] = static_cast<float>(state.random.normal());
    tape.record({.drop_path = 0.3f, .drop_units = 0.2f}, state.random.split());
    const auto views = state.model.forward(input, tape);
    Encoder gradient;
    state.model.backward({.data = views.data}, gradient, tape);
    state.optimizer.step(state.model, gradient, 1e-2, tape);
    fit::update_average(state.average, state.model, 0.9, tape);
    ++state.step;
  };
  State whole{.model = Encoder(fit::Random(1)), .random = fit::Random(4)};
  State first = whole;
  for (int i = 0; i < 6; ++i) step(whole);
  for (int i = 0; i < 3; ++i) step(first);
  fit::save(folder / "state", first);
  State second;
  fit::load(folder / "state", second);
  for (int i = 0; i < 3; ++i) step(second);
  CHECK(values_of(second) == values_of(whole));
  CHECK(second.step == 6);
  CHECK(second.optimizer.steps == 6);
  CHECK(second.random.counter() == whole.random.counter());

  fit::save(folder / "model", whole.model);
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "model", second); }), "the metadata lack state.step"));
  CHECK(values_of(second) == values_of(whole));
}

TEST_CASE("a model that cannot be written is an error and leaves the old file", "[checkpoint]") {
  const test::TemporaryFolder folder;
  CHECK(test::contains(test::error_of([&] { fit::save(folder / "none" / "a", Encoder()); }), "none"));
  CHECK(folder.files() == 0);
}
