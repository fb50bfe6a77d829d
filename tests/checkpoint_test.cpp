#include <cstring>
#include <fstream>
#include <new>
#include <numeric>

#include <fit/fit.hpp>

#include "allocations.hpp"
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

/// A small thing that can be saved, in two precisions.
template <class T>
struct Pair {
  using Scalar = T;
  fit::Matrix<T, 2, 3> weight;
  fit::Vector<T, 2> bias;

  explicit Pair(T value) {
    std::fill_n(weight.data(), weight.size(), value);
    std::fill_n(bias.data(), bias.size(), value);
  }
  static void visit(auto&& f, auto&... p) {
    f("weight", p.weight...);
    f("bias", p.bias...);
  }
};

/// How often a call runs out of memory when its first allocation fails, then its second, and so on until it succeeds.
template <class Call, class Check>
long failures(Call&& call, Check&& check) {
  for (long count = 0;; ++count) {
    test::fail_allocation(count + 1);
    try {
      call();
      test::fail_allocation(0);
      return count;
    } catch (const std::bad_alloc&) {
      test::fail_allocation(0);
      check();
    }
  }
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

TEST_CASE("parameters that are not finite are refused unless they are allowed", "[checkpoint]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "a";
  for (const double bad :
       {std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    Encoder source(fit::Random(1)), model(fit::Random(2));
    const auto before = test::values_of(model);
    // The last parameter, so that all others would have been written.
    std::string last;
    fit::for_each_parameter(
        [&](const fit::ParameterName& at, auto p) {
          last = at.text();
          if (last == "latent_norm.bias") p.data[p.size - 1] = static_cast<float>(bad);
        },
        source);
    REQUIRE(last == "latent_norm.bias");
    fit::save(path, source);
    const std::string text = test::error_of([&] { fit::load(path, model); });
    INFO(text);
    CHECK(test::contains(text, "latent_norm.bias: holds numbers that are not finite"));
    CHECK(std::count(text.begin(), text.end(), '\n') == 1);
    CHECK(test::same_bits(test::values_of(model), before));
    fit::load(path, model, {.allow_non_finite = true});
    CHECK(test::same_bits(test::values_of(model), test::values_of(source)));

    fit::TrainingState<Encoder> state{.model = Encoder(fit::Random(1)), .average = source};
    fit::save(path, state);
    const std::string of_state = test::error_of([&] { fit::load(path, state); });
    CHECK(test::contains(of_state, "\n  average.latent_norm.bias: holds numbers that are not finite"));
    fit::load(path, state, {.allow_non_finite = true});
  }

  for (const auto& [dtype, bits] : {std::pair{fit::DType::F16, 0xfc00},
                                    {fit::DType::BF16, 0xff80},
                                    {fit::DType::F16, 0x7bff},
                                    {fit::DType::BF16, 0x7f7f}}) {
    std::vector<std::uint16_t> halves(1000);
    halves[3] = static_cast<std::uint16_t>(bits);
    write_changed(path, Encoder(), {}, [&, type = dtype](auto& entries) {
      entries.back().dtype = type;
      entries.back().data = halves.data();
    });
    Encoder model;
    const std::string text = test::error_of([&] { fit::load(path, model); });
    CHECK(test::contains(text,
                         (bits & 0x8000) != 0 ? "latent_norm.bias: holds numbers that are not finite" : "(no error)"));
  }
}

TEST_CASE("parameters that would become infinite are refused", "[checkpoint]") {
  const test::TemporaryFolder folder;
  fit::Encoder<config, double> source(fit::Random(1)), wide;
  fit::for_each_parameter(
      [&](const fit::ParameterName& at, auto p) {
        if (at.text() == "latent_norm.bias") p.data[0] = -1e300;
      },
      source);
  fit::save(folder / "a", source);
  Encoder model(fit::Random(2));
  const auto before = test::values_of(model);
  for (const bool allowed : {false, true}) {
    const std::string text = test::error_of([&] { fit::load(folder / "a", model, {.allow_non_finite = allowed}); });
    CHECK(test::contains(text, "latent_norm.bias: holds numbers that are too large for F32"));
    CHECK(test::same_bits(test::values_of(model), before));
  }
  fit::load(folder / "a", wide);
  CHECK(test::same_bits(test::values_of(wide), test::values_of(source)));
}

TEST_CASE("a file takes tensors and texts beside a model's", "[checkpoint]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "a";
  const Encoder model(fit::Random(1));
  const float mean[] = {1, 2, 3};
  const std::int64_t labels[] = {-5, 7};
  const fit::SaveOptions beside{
      .tensors = {{"extra.mean", fit::DType::F32, {3}, mean}, {"extra.labels", fit::DType::I64, {2, 1}, labels}},
      .metadata = {{"run", "7"}}};
  fit::save(path, model, beside);
  Encoder loaded;
  fit::load(path, loaded);
  CHECK(test::same_bits(test::values_of(loaded), test::values_of(model)));
  {
    const fit::SafetensorsFile file(path);
    float read_mean[3];
    std::int64_t read_labels[2];
    file.read("extra.mean", read_mean, 3);
    file.read("extra.labels", read_labels, 2);
    CHECK(std::equal(mean, mean + 3, read_mean));
    CHECK(std::equal(labels, labels + 2, read_labels));
    CHECK(file.metadata().at("run") == "7");
    CHECK(file.metadata().at("config.groups") == "3");
  }
  fit::TrainingState<Encoder> state{.model = model, .step = 5}, resumed;
  fit::save(path, state, beside);
  fit::load(path, resumed);
  CHECK(resumed.step == 5);
  CHECK(fit::SafetensorsFile(path).contains("extra.mean"));

  const auto error = [&](const fit::SaveOptions& options) {
    return test::error_of([&] { fit::save(path, model, options); });
  };
  CHECK(test::contains(error({.tensors = {{"mean", fit::DType::F32, {3}, mean}}}),
                       R"(must begin with "extra.", not be "mean")"));
  CHECK(
      test::contains(error({.metadata = {{"config.groups", "4"}}}), R"(the metadata's "config.groups" may not begin)"));
  CHECK(test::contains(error({.metadata = {{"state.step", "4"}}}), R"(the metadata's "state.step" may not begin)"));
  fit::load(path, resumed);  // the file is still there
  write_changed(path, model, {}, [&](auto& entries) { entries.push_back({"extra", fit::DType::F32, {3}, mean}); });
  CHECK(test::contains(test::error_of([&] { fit::load(path, loaded); }), R"(unexpected: "extra" [3])"));
}

TEST_CASE("a part of a model is loaded, the rest and what is not there stays", "[checkpoint]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "a";
  const fit::Classifier<config, 5> old(fit::Random(1));
  fit::save(path, old);
  const auto values = [](auto& model, std::string_view begin) {
    std::vector<float> found;
    fit::for_each_parameter(
        [&](const fit::ParameterName& at, auto p) {
          if (at.text().starts_with(begin)) found.insert(found.end(), p.data, p.data + p.size);
        },
        model);
    return found;
  };
  const auto not_the_head = [](std::string_view name) { return !name.starts_with("head."); };

  // Another head.
  fit::Classifier<config, 7> model(fit::Random(2));
  const auto before = test::values_of(model);
  const auto head = values(model, "head.");
  CHECK(fit::load_part(path, model, not_the_head).empty());
  CHECK(values(model, "encoder.") == values(old, "encoder."));
  CHECK(values(model, "head.") == head);

  // By a prefix; other parts stay.
  fit::Classifier<config, 5> some(fit::Random(3));
  const auto stem = values(some, "encoder.stem"), rest = values(some, "encoder.l");
  CHECK(fit::load_part(path, some, [](std::string_view name) { return name.starts_with("encoder.stages."); }).empty());
  CHECK(values(some, "encoder.stages.") == values(old, "encoder.stages."));
  CHECK(values(some, "encoder.stem") == stem);
  CHECK(values(some, "encoder.l") == rest);

  // What the file does not have, in the order of the model.
  constexpr fit::EncoderConfig deeper = [] {
    auto c = config;
    c.layers = "(1)1(2)";
    return c;
  }();
  fit::Classifier<deeper, 5> deep(fit::Random(4));
  const auto fresh = values(deep, "encoder.stages.1.local.1.");
  const std::vector<std::string> missing = fit::load_part(path, deep, not_the_head);
  REQUIRE(missing.size() == 16);
  CHECK(missing.front() == "encoder.stages.1.local.1.attention_norm.weight");
  CHECK(missing.back() == "encoder.stages.1.local.1.mlp.fc2.bias");
  CHECK(values(deep, "encoder.stages.1.local.1.") == fresh);
  CHECK(values(deep, "encoder.stages.1.local.0.") == values(old, "encoder.stages.1.local.0."));

  // Errors change nothing.
  model = fit::Classifier<config, 7>(fit::Random(2));
  const auto error = [&](auto wanted, const fit::LoadOptions& options = {}) {
    const std::string text = test::error_of([&] { static_cast<void>(fit::load_part(path, model, wanted, options)); });
    CHECK(test::same_bits(test::values_of(model), before));
    return text;
  };
  const auto all = [](std::string_view) { return true; };
  CHECK(test::contains(error(all), "head.weight: expected the shape [7, 12], the file has [5, 12]"));
  CHECK(test::contains(error([](std::string_view name) { return name.starts_with("Encoder"); }),
                       "no parameter of the model is wanted"));
  auto astray = old;
  astray.head.bias.data()[0] = NAN;
  fit::for_each_parameter(
      [](const fit::ParameterName& at, auto p) {
        if (at.text() == "encoder.stem.weight") p.data[0] = NAN;
      },
      astray);
  fit::save(path, astray);
  CHECK(test::contains(error(not_the_head), "encoder.stem.weight: holds numbers that are not finite"));
  CHECK(fit::load_part(path, model, not_the_head, {.allow_non_finite = true}).empty());
  CHECK(std::isnan(values(model, "encoder.stem.weight")[0]));

  // The averaged model of a training run.
  const fit::TrainingState<Encoder> state{.model = Encoder(fit::Random(5)), .average = Encoder(fit::Random(6))};
  fit::save(path, state);
  fit::TrainingState<Encoder> other{.average = Encoder(), .step = 3};
  CHECK(fit::load_part(path, other, [](std::string_view name) { return name.starts_with("average."); }).empty());
  CHECK(values(other, "average.") == values(state, "average."));
  CHECK(test::same_bits(test::values_of(other.model), test::values_of(Encoder())));
  CHECK(other.step == 3);
}

TEST_CASE("a causal encoder's file says so, and is none for an encoder without a mask", "[checkpoint]") {
  constexpr fit::EncoderConfig causal = [] {
    auto c = config;
    c.mask = fit::LatentMask::causal;
    return c;
  }();
  const test::TemporaryFolder folder;
  fit::save(folder / "a", fit::Encoder<causal>(fit::Random(1)));
  CHECK(fit::SafetensorsFile(folder / "a").metadata().at("config.mask") == "causal");
  Encoder model(fit::Random(2));
  const auto before = test::values_of(model);
  const std::string text = test::error_of([&] { fit::load(folder / "a", model); });
  CHECK(test::contains(text, R"(config.mask: expected "none", the file says "causal")"));
  CHECK(test::same_bits(test::values_of(model), before));
  fit::save(folder / "a", model);
  CHECK(fit::SafetensorsFile(folder / "a").metadata().at("config.mask") == "none");
}

TEST_CASE("a training state has a moving average where its file has one", "[checkpoint]") {
  const test::TemporaryFolder folder;
  using State = fit::TrainingState<Encoder>;
  const State without{.model = Encoder(fit::Random(1))};
  const State with{.model = Encoder(fit::Random(2)), .average = Encoder(fit::Random(3))};
  CHECK(fit::count_parameters(without) == 3 * fit::count_parameters(Encoder()));
  CHECK(fit::count_parameters(with) == 4 * fit::count_parameters(Encoder()));
  for (const State& before : {without, with}) {
    for (const State& saved : {without, with}) {
      fit::save(folder / "state", saved);
      State state = before;
      fit::load(folder / "state", state);
      CHECK(state.average.has_value() == saved.average.has_value());
      CHECK(test::same_bits(test::values_of(state), test::values_of(saved)));

      State bad = saved;
      fit::for_each_parameter([](const fit::ParameterName&, auto p) { p.data[0] = NAN; }, bad.model);
      fit::save(folder / "state", bad);
      state = before;
      CHECK_THROWS_AS(fit::load(folder / "state", state), fit::Error);
      CHECK(state.average.has_value() == before.average.has_value());
      CHECK(test::same_bits(test::values_of(state), test::values_of(before)));
    }
  }
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
    fit::update_average(*state.average, state.model, 0.9, tape);
    ++state.step;
  };
  State whole{.model = Encoder(fit::Random(1)), .average = Encoder(fit::Random(1)), .random = fit::Random(4)};
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

TEST_CASE("a save or a load that runs out of memory changes nothing", "[checkpoint]") {
  const test::TemporaryFolder folder;
  const Pair<float> one(1), two(2);
  const auto path = folder / "a-name-that-does-not-fit-into-a-string-object", link = folder / "link";
  fit::save(path, one);
  std::filesystem::create_symlink(path, link);
  const auto unchanged = [&] {
    Pair<float> loaded(0);
    fit::load(path, loaded);
    return test::values_of(loaded) == test::values_of(one) && folder.files() == 2;
  };
  const long saves = failures([&] { fit::save(link, two); }, [&] { CHECK(unchanged()); });
  Pair<double> loaded(3);
  const long loads = failures([&] { fit::load(link, loaded); },
                              [&] { CHECK(test::values_of(loaded) == test::values_of(Pair<double>(3))); });
  CHECK(test::values_of(loaded) == test::values_of(Pair<double>(2)));
  const long before = test::allocations();
  Pair<double> counted(1);
  CHECK((saves > 0) == (test::allocations() > before));  // where allocations are counted
  CHECK((loads > 0) == (test::allocations() > before));
}

TEST_CASE("a model that cannot be written is an error and leaves the old file", "[checkpoint]") {
  const test::TemporaryFolder folder;
  CHECK(test::contains(test::error_of([&] { fit::save(folder / "none" / "a", Encoder()); }), "none"));
  CHECK(folder.files() == 0);
}

TEST_CASE("a field that a file does not have stands at its default", "[checkpoint]") {
  const test::TemporaryFolder folder;
  static constexpr fit::EncoderConfig causal = [] {
    auto c = Encoder::config;
    c.mask = fit::LatentMask::causal;
    return c;
  }();
  Encoder model(fit::Random(1)), same;
  fit::Encoder<causal> masked;
  constexpr auto shared_keys = [] {
    auto c = Encoder::config;
    c.latent_key_heads = 1;
    return c;
  }();
  fit::Encoder<shared_keys> sharing;
  // As if there had been no masks when the file was written; and a file of another program, which says nothing.
  fit::Metadata older;
  for (const auto& [field, value] : fit::fields_of(Encoder::config)) {
    if (field != "mask" && !field.ends_with("key_heads")) older["config." + field] = value;
  }
  write_changed(folder / "older", model, older, [](auto&) {});
  write_changed(folder / "foreign", model, {}, [](auto&) {});
  fit::load(folder / "foreign", masked);
  fit::load(folder / "older", same);
  CHECK(test::same_bits(test::values_of(same), test::values_of(model)));
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "older", masked); }),
                       R"(config.mask: expected "causal", the file says "none" by saying nothing)"));
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "older", sharing); }),
                       R"(config.latent_key_heads: expected "1", the file says "0" by saying nothing)"));
}

TEST_CASE("as many key heads as heads are the same model, said or not", "[checkpoint]") {
  auto said = Encoder::config;
  said.data_key_heads = said.data_heads;
  said.latent_key_heads = said.latent_heads;
  CHECK(fit::fields_of(said) == fit::fields_of(Encoder::config));
  said.latent_key_heads = 1;
  CHECK(fit::fields_of(said) != fit::fields_of(Encoder::config));
}
