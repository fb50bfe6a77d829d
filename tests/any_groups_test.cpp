#include <fit/fit.hpp>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;
using fit::Positions;

constexpr fit::EncoderConfig encoder_config{.layers = "(1)2(1)1",
                                            .groups = 6,
                                            .tokens = 5,
                                            .channels = 3,
                                            .latents = 2,
                                            .data_dim = 16,
                                            .latent_dim = 20,
                                            .data_heads = 2,
                                            .latent_heads = 2,
                                            .mask = fit::LatentMask::causal,
                                            .extra_tokens = 1,
                                            .extra_channels = 2};
constexpr fit::DiffusionConfig diffusion_config{.layers = "(1)1(1)",
                                                .groups = 6,
                                                .tokens = 4,
                                                .channels = 3,
                                                .latents = 2,
                                                .data_dim = 16,
                                                .latent_dim = 24,
                                                .data_heads = 2,
                                                .latent_heads = 2,
                                                .output_channels = 3,
                                                .condition_channels = 2,
                                                .self_conditioning = fit::SelfConditioning::latent};
constexpr fit::AutoregressiveConfig sequence_config{.layers = "(1)2(1)1(1)",
                                                    .groups = 6,
                                                    .tokens = 4,
                                                    .latents = 2,
                                                    .data_dim = 16,
                                                    .latent_dim = 20,
                                                    .data_heads = 2,
                                                    .latent_heads = 2,
                                                    .vocabulary = 13};

template <auto config, Positions positions, int groups = config.groups>
constexpr auto with = [] {
  auto c = config;
  c.groups = groups;
  c.latent_positions = positions;
  return c;
}();

template <int Rank, class T = float, class... Counts>
fit::Tensor<T, Rank> noise(std::uint64_t seed, Counts... counts) {
  fit::Tensor<T, Rank> tensor(Index{counts}...);
  fit::Random random(seed);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<T>(random.normal());
  return tensor;
}

fit::Tensor<std::int32_t, 3> some_ids(Index batch, Index groups, Index tokens) {
  fit::Tensor<std::int32_t, 3> ids(batch, groups, tokens);
  fit::Random random(4);
  for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>(random.below(13));
  return ids;
}

template <class View>
std::vector<float> list(const View& view) {
  return {view.data(), view.data() + view.size()};
}

template <class Model>
Model lively() {
  Model model(fit::Random(1));
  test::stir(model);
  return model;
}

/// A model with the weights of another whose file it can read.
template <class Model, class Other>
Model same_weights(const Other& other) {
  const test::TemporaryFolder folder;
  fit::save(folder / "weights", other);
  Model model;
  fit::load(folder / "weights", model);
  return model;
}

/// All bits of a step of training and of inference.
template <fit::EncoderConfig c>
std::vector<float> bits_of(const fit::Encoder<c>& encoder, fit::Tape& tape, Index groups, const fit::Grid& grid) {
  const auto input = noise<4>(1, 3, groups, c.tokens, c.channels);
  const auto extra = noise<4>(2, 3, groups, c.extra_tokens, c.extra_channels);
  auto input_gradient = input;
  fit::Encoder<c> gradient;
  const typename fit::Encoder<c>::Inputs inputs{.input = input, .extra = extra, .grid = grid};
  tape.record({.drop_path = 0.2f, .recompute = fit::Recompute::stream}, fit::Random(3));
  const auto output = encoder.forward(inputs, tape);
  encoder.backward({.data = output.data, .latents = output.latents}, gradient, tape, {.input = input_gradient});
  const auto inferred = encoder(inputs);
  std::vector<float> all = test::values_of(gradient);
  for (const auto& part : {list(output.data), list(output.latents), list(input_gradient), list(inferred.data)}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

/// Of the loss, its gradient and samples.
template <fit::DiffusionConfig c>
std::vector<float> bits_of(const fit::DiffusionDecoder<c>& denoiser, fit::Tape& tape, Index groups,
                           const fit::Grid& grid) {
  using Model = fit::DiffusionDecoder<c>;
  const auto x0 = noise<4>(1, 3, groups, c.tokens, c.channels), eps = noise<4>(2, 3, groups, c.tokens, c.channels);
  const auto condition = noise<2>(3, 3, c.condition_channels);
  fit::Tensor<double, 1> t(3);
  for (Index i = 0; i < 3; ++i) t(i) = 0.3 * static_cast<double>(i);
  Model gradient;
  fit::DiffusionLoss<Model> loss({.self_conditioning_rate = 0.7});
  const fit::TensorView<const float, 2> classes(condition);
  const double trained = loss(denoiser, x0, eps, t, classes, gradient, tape, {}, fit::Random(5), grid);
  CHECK(loss(denoiser, x0, eps, t, classes, tape, fit::Random(5), grid) == trained);
  fit::SampleOptions options{.steps = 3, .guidance = 0.5};
  options.groups = c.groups == fit::any ? groups : 0;
  options.grid = grid;
  const auto samples = fit::sample(denoiser, options, classes, fit::Random(1));
  CHECK(samples.dimension(1) == groups);
  std::vector<float> all = test::values_of(gradient), drawn = list(samples);
  all.insert(all.end(), drawn.begin(), drawn.end());
  all.push_back(static_cast<float>(trained));
  return all;
}

/// Of the loss, its gradient, logits and ids.
template <fit::AutoregressiveConfig c>
std::vector<float> bits_of(const fit::AutoregressiveDecoder<c>& decoder, fit::Tape& tape, Index groups,
                           const fit::Grid&) {
  const auto ids = some_ids(3, groups, c.tokens);
  fit::AutoregressiveDecoder<c> gradient;
  const double loss = decoder.loss(ids, gradient, tape);
  CHECK(decoder.loss(ids, tape) == loss);
  std::vector<float> all = test::values_of(gradient), logits = list(decoder(ids, tape));
  all.insert(all.end(), logits.begin(), logits.end());
  all.push_back(static_cast<float>(loss));
  fit::Generator generator(decoder, 2, fit::default_executor(), groups);
  CHECK(generator.length() == groups * c.tokens);
  generator.prompt(0, std::vector<std::int32_t>{1, 2, 3});
  for (const auto& token : generator.stream({}, fit::Random(7))) all.push_back(static_cast<float>(token.id));
  CHECK(generator.finished_all());
  return all;
}

template <template <auto, class> class Model, auto config, Positions positions>
void check_bits(const fit::Grid& grid = {}) {
  INFO(fit::detail::text_of(positions));
  const auto fixed = lively<Model<with<config, positions>, float>>();
  const auto any = same_weights<Model<with<config, positions, fit::any>, float>>(fixed);
  fit::Tape tape;
  CHECK(test::same_bits(bits_of(any, tape, config.groups, grid), bits_of(fixed, tape, config.groups, grid)));
}

template <auto c, class T>
using Encoder = fit::Encoder<c, T>;
template <auto c, class T>
using Denoiser = fit::DiffusionDecoder<c, T>;
template <auto c, class T>
using Decoder = fit::AutoregressiveDecoder<c, T>;

constexpr fit::Grid picture{.rows = 2, .columns = 3}, video{.frames = 3, .rows = 1, .columns = 2};

}  // namespace

TEST_CASE("a model of any number of groups has the bits of one of that number", "[any_groups]") {
  check_bits<Encoder, encoder_config, Positions::sin_cos>();
  check_bits<Encoder, encoder_config, Positions::sin_cos_grid>(picture);
  check_bits<Encoder, encoder_config, Positions::sin_cos_grid>(video);
  check_bits<Encoder, encoder_config, Positions::shared>();
  check_bits<Encoder, encoder_config, Positions::shared_sin_cos>();
  check_bits<Denoiser, diffusion_config, Positions::sin_cos>();
  check_bits<Denoiser, diffusion_config, Positions::sin_cos_grid>(picture);
  check_bits<Denoiser, diffusion_config, Positions::shared_sin_cos>();
  check_bits<Decoder, sequence_config, Positions::sin_cos>();
  check_bits<Decoder, sequence_config, Positions::shared>();
  check_bits<Decoder, sequence_config, Positions::shared_sin_cos>();
}

TEST_CASE("one tape and one loss serve one number of groups after another", "[any_groups]") {
  const auto encoder = lively<fit::Encoder<with<encoder_config, Positions::sin_cos, fit::any>>>();
  const auto denoiser = lively<fit::DiffusionDecoder<with<diffusion_config, Positions::shared_sin_cos, fit::any>>>();
  const auto decoder = lively<fit::AutoregressiveDecoder<with<sequence_config, Positions::shared, fit::any>>>();
  fit::Tape tape;
  for (const Index groups : {3, 40, 1, 7}) {
    INFO(groups);
    const auto check = [&](const auto& model) {
      fit::Tape fresh;
      CHECK(test::same_bits(bits_of(model, tape, groups, {}), bits_of(model, fresh, groups, {})));
    };
    check(encoder);
    check(denoiser);
    check(decoder);
  }
  using Denoiser = std::remove_const_t<decltype(denoiser)>;
  fit::DiffusionLoss<Denoiser> kept({});
  const auto condition = noise<2>(3, 2, diffusion_config.condition_channels);
  const fit::TensorView<const float, 2> classes(condition);
  fit::Tensor<double, 1> t(2);
  t.setConstant(0.4);
  for (const Index groups : {2, 500, 3}) {  // more than a piece of an example
    const auto x0 = noise<4>(1, 2, groups, 4, 3), eps = noise<4>(2, 2, groups, 4, 3);
    fit::DiffusionLoss<Denoiser> fresh({});
    CHECK(kept(denoiser, x0, eps, t, classes, tape) == fresh(denoiser, x0, eps, t, classes, tape));
  }
}

namespace {

/// Number k of the code of the place `at` out of `count`, in a code of `width` numbers: sines, then cosines.
double code(Index at, Index count, Index k, Index width) {
  const double coordinate = count > 1 ? 1000.0 * static_cast<double>(at) / static_cast<double>(count - 1) : 0.0;
  const Index sines = (width + 1) / 2, wave = k < sines ? k : k - sines;
  const double angle = coordinate / std::pow(10000.0, 2.0 * static_cast<double>(wave) / static_cast<double>(width));
  return k < sines ? std::sin(angle) : std::cos(angle);
}

/// The positions of all latents, and the same group by group.
template <Positions kind, int Slots, int Width>
std::vector<double> positions_of(const fit::nn::LatentPositions<double, fit::any, Slots, Width, kind>& p, Index groups,
                                 const fit::Grid& grid = {}) {
  std::vector<double> all(static_cast<std::size_t>(3 * groups * p.size)), each(all.size() / 3);
  fit::nn::copy_positions(p, all.data(), 3, 0, groups, groups, grid);
  for (Index g = 0; g < groups; ++g) fit::nn::write_positions(p, each.data() + g * p.size, g, 1, groups, grid);
  const auto first = all.begin(), second = first + groups * p.size, third = second + groups * p.size;
  CHECK(std::equal(first, second, second));
  CHECK(std::equal(first, second, third));
  CHECK(std::equal(first, second, each.begin()));
  return each;
}

/// Compares with expected(group, slot, k).
template <class Expected>
void check_positions(const std::vector<double>& positions, Index slots, Index width, Expected&& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto at = static_cast<Index>(i);
    worst = std::max(worst, std::abs(positions[i] - expected(at / width / slots, at / width % slots, at % width)));
  }
  CHECK(worst < 1e-10);
}

}  // namespace

TEST_CASE("latent positions are the codes that they are said to be", "[any_groups]") {
  constexpr Index slots = 3, width = 20;
  for (const Index groups : {2, 5, 12}) {
    const fit::nn::LatentPositions<double, fit::any, 3, 20, Positions::sin_cos> plane;
    check_positions(positions_of(plane, groups), slots, width, [&](Index group, Index slot, Index k) {
      return k < 10 ? code(group, groups, k, 10) : code(slot, slots, k - 10, 10);
    });
    fit::nn::LatentPositions<double, fit::any, 3, 20, Positions::shared> shared;
    fit::nn::LatentPositions<double, fit::any, 3, 20, Positions::shared_sin_cos> coded;
    std::iota(shared.table.data(), shared.table.data() + slots * width, 1.0);
    coded.table = shared.table;
    check_positions(positions_of(shared, groups), slots, width,
                    [&](Index, Index slot, Index k) { return static_cast<double>(1 + slot * width + k); });
    check_positions(positions_of(coded, groups), slots, width, [&](Index group, Index slot, Index k) {
      return static_cast<double>(1 + slot * width + k) + code(group, groups, k, width);
    });
  }
  // With one group there is a line of slots.
  const fit::nn::LatentPositions<double, fit::any, 3, 20, Positions::sin_cos> line;
  check_positions(positions_of(line, 1), slots, width,
                  [&](Index, Index slot, Index k) { return code(slot, slots, k, width); });
}

TEST_CASE("positions on a grid are those of row, column and slot, and of a video's frame", "[any_groups]") {
  constexpr Index slots = 3, width = 22;
  const fit::nn::LatentPositions<double, fit::any, 3, 22, Positions::sin_cos_grid> p;
  for (const auto& [rows, columns] : {std::pair<Index, Index>{4, 4}, {2, 5}, {1, 3}, {3, 1}, {1, 1}}) {
    CAPTURE(rows, columns);
    const fit::Grid grid{.rows = rows, .columns = columns};
    check_positions(positions_of(p, rows * columns, grid), slots, width,
                    [&, rows = rows, columns = columns](Index group, Index slot, Index k) {
                      if (k < 6) return code(group / columns, rows, k, 6);
                      if (k < 12) return code(group % columns, columns, k - 6, 6);
                      return code(slot, slots, k - 12, 10);
                    });
  }
  for (const Index frames : {1, 4}) {
    const fit::Grid grid{.frames = frames, .rows = 2, .columns = 3};
    check_positions(positions_of(p, frames * 6, grid), slots, width, [&](Index group, Index slot, Index k) {
      if (k < 4) return code(group / 6, frames, k, 4);
      if (k < 8) return code(group / 3 % 2, 2, k - 4, 4);
      if (k < 12) return code(group % 3, 3, k - 8, 4);
      return code(slot, slots, k - 12, 10);
    });
  }
}

TEST_CASE("shared positions are learned ones that are equal in all groups, and so is their gradient", "[any_groups]") {
  using Shared = fit::Encoder<with<encoder_config, Positions::shared, fit::any>>;
  using Learned = fit::Encoder<with<encoder_config, Positions::learned>>;
  const auto shared = lively<Shared>();
  const test::TemporaryFolder folder;
  fit::save(folder / "shared", shared);
  Learned learned;
  const auto missing =
      fit::load_part(folder / "shared", learned, [](std::string_view name) { return name != "latent_positions"; });
  CHECK(missing.empty());
  const auto positions = [](auto& model) {
    fit::ParameterView<float> found{};
    fit::for_each_parameter(
        [&](const fit::ParameterName& name, auto p) {
          if (name.part == "latent_positions") found = p;
        },
        model);
    return found;
  };
  auto own = shared;
  const auto slots = positions(own), groups = positions(learned);
  REQUIRE(slots.size == 2 * 20);
  REQUIRE(groups.size == 6 * slots.size);
  for (Index i = 0; i < groups.size; ++i) groups.data[i] = slots.data[i % slots.size];

  const auto input = noise<4>(1, 3, 6, 5, 3), extra = noise<4>(2, 3, 6, 1, 2);
  Shared shared_gradient;
  Learned learned_gradient;
  const auto step = [&](const auto& model, auto& gradient) {
    fit::Tape tape;
    tape.record();
    const auto output = model.forward({.input = input, .extra = extra}, tape);
    model.backward({.latents = output.latents}, gradient, tape);
    return list(output.latents);
  };
  CHECK(test::same_bits(step(shared, shared_gradient), step(learned, learned_gradient)));
  const auto got = positions(shared_gradient), of_groups = positions(learned_gradient);
  std::vector<double> sum(static_cast<std::size_t>(slots.size));
  for (Index i = 0; i < of_groups.size; ++i) sum[static_cast<std::size_t>(i % slots.size)] += of_groups.data[i];
  CHECK(test::relative_error(got.data, sum.data(), slots.size) < 1e-5);
}

TEST_CASE("a classifier takes any number of groups", "[any_groups]") {
  constexpr auto config = [] {
    auto c = with<encoder_config, Positions::sin_cos_grid>;
    c.extra_tokens = c.extra_channels = 0;
    return c;
  }();
  constexpr auto free = with<config, Positions::sin_cos_grid, fit::any>;
  const auto fixed = lively<fit::Classifier<config, 4>>();
  const auto any = same_weights<fit::Classifier<free, 4>>(fixed);
  const auto input = noise<4>(1, 3, 6, 5, 3);
  const auto step = [&]<class Model>(const Model& model) {
    Model gradient;
    fit::Tape tape;
    tape.record();
    const auto logits = model.forward(input, tape, picture);
    model.backward(logits, gradient, tape);
    auto all = test::values_of(gradient), inferred = list(model(input, picture));
    all.insert(all.end(), inferred.begin(), inferred.end());
    return all;
  };
  CHECK(test::same_bits(step(any), step(fixed)));
  CHECK(list(any(input, picture)) != list(any(input, video)));
  const auto larger = noise<4>(1, 2, 400, 5, 3);
  CHECK(any(larger, {.rows = 20, .columns = 20}).dimension(0) == 2);
  CHECK(test::contains(test::error_of([&] { any(larger); }), "the grid must have as many groups as an example, 400"));
}

TEST_CASE("generation of any number of groups is that of the decoder for so many", "[any_groups]") {
  const auto check = [](const auto& decoder, Index groups) {
    const auto ids = some_ids(1, groups, 4);
    const auto expected = decoder(fit::shift_right(ids));
    fit::Generator generator(decoder, 1, fit::default_executor(), groups);
    for (Index i = 0; i < ids.size(); ++i) {
      CHECK(test::relative_error(generator.logits().data(), expected.data() + i * 13, 13) < 1e-5);
      generator.prompt(std::span(ids.data() + i, 1));
    }
    CHECK(generator.finished());
  };
  const auto plane = lively<fit::AutoregressiveDecoder<with<sequence_config, Positions::sin_cos, fit::any>>>();
  const auto shared = lively<fit::AutoregressiveDecoder<with<sequence_config, Positions::shared, fit::any>>>();
  for (const Index groups : {1, 3, 9}) {
    check(plane, groups);
    check(shared, groups);
  }
  // Codes of groups are stretched to their number; where there are none, a longer plan says the same.
  const auto start = [](const auto& decoder, Index groups) {
    fit::Generator generator(decoder, 1, fit::default_executor(), groups);
    std::vector<std::int32_t> ids;
    for (const auto& token : generator.stream({}, fit::Random(7), 12)) ids.push_back(token);
    const auto logits = generator.groups() > 3 ? list(generator.logits()) : std::vector<float>();
    return std::pair(ids, logits);
  };
  CHECK(start(shared, 3).first == start(shared, 30).first);
  CHECK(start(shared, 4) == start(shared, 30));
  CHECK(start(plane, 4) != start(plane, 30));
}

TEST_CASE("a source of any number of groups on a grid gives what tensors give, one of no example nothing",
          "[any_groups]") {
  static constexpr auto config = [] {
    auto c = with<encoder_config, Positions::sin_cos_grid, fit::any>;
    c.extra_tokens = c.extra_channels = 0;
    return c;
  }();
  constexpr Index size = Index{config.tokens} * config.data_dim, input_size = Index{config.tokens} * config.channels;
  const auto encoder = lively<fit::Encoder<config>>();
  const fit::GroupLoss<float> loss = [](Index, Index count, const float* data, float* to) {
    if (to) std::fill_n(to, count * size, 1.0f);
    return std::accumulate(data, data + count * size, 0.0);
  };
  fit::Tape tape;
  const auto sum_of = [&](const auto& input, const fit::Grid& grid) {
    const auto data = encoder({.input = input, .grid = grid}).data;
    return std::accumulate(data.data(), data.data() + data.size(), 0.0);
  };
  Index filled = 0;
  const auto loss_of = [&](const auto& input, const fit::Grid& grid, fit::Encoder<config>& gradient) {
    fit::GroupSource<float> source{.batch = input.dimension(0), .groups = input.dimension(1)};
    source.grid = grid;
    source.fill = [&](Index first, Index count, float* to) {
      std::copy_n(input.data() + first * input_size, count * input_size, to);
      filled += count;
    };
    const double inferred = encoder.loss(source, loss, tape), learnt = encoder.loss(source, loss, gradient, tape);
    CHECK(learnt == inferred);
    return inferred;
  };
  fit::Encoder<config> gradient;
  const auto input = noise<4>(1, 3, 6, config.tokens, config.channels);
  const double high = loss_of(input, {.rows = 3, .columns = 2}, gradient), wide = loss_of(input, picture, gradient);
  CHECK(high == Approx(sum_of(input, {.rows = 3, .columns = 2})).epsilon(1e-9));
  CHECK(wide == Approx(sum_of(input, picture)).epsilon(1e-9));
  CHECK(high != Approx(wide).epsilon(1e-6));
  CHECK(filled == 4 * 3 * 6);

  fit::Encoder<config> nothing;
  CHECK(loss_of(noise<4>(1, 0, 6, config.tokens, config.channels), picture, nothing) == 0);
  CHECK(filled == 4 * 3 * 6);
  const auto values = test::values_of(nothing);
  CHECK(std::all_of(values.begin(), values.end(), [](float value) { return value == 0; }));
}

TEST_CASE("wrong numbers of groups and wrong grids are errors", "[any_groups]") {
  const fit::Encoder<with<encoder_config, Positions::shared, fit::any>> shared;
  const fit::Encoder<with<encoder_config, Positions::sin_cos_grid, fit::any>> grid;
  const fit::Encoder<with<encoder_config, Positions::sin_cos_grid>> fixed;
  const fit::DiffusionDecoder<with<diffusion_config, Positions::sin_cos_grid, fit::any>> denoiser;
  const fit::DiffusionDecoder<with<diffusion_config, Positions::shared>> six;
  const fit::AutoregressiveDecoder<with<sequence_config, Positions::shared, fit::any>> decoder;
  const auto says = [](const std::string& part, auto&& body) {
    const std::string text = test::error_of(body);
    INFO(text);
    CHECK(test::contains(text, part));
  };
  const auto run = [](const auto& encoder, Index groups, Index extra_groups, const fit::Grid& of = {}) {
    const auto input = noise<4>(1, 2, groups, 5, 3), extra = noise<4>(2, 2, extra_groups, 1, 2);
    encoder({.input = input, .extra = extra, .grid = of});
  };
  says("an example must have 1 to ", [&] { run(shared, 0, 0); });
  says("extra tokens must have the shape [2, 4, 1, 2], not [2, 3, 1, 2]", [&] { run(shared, 4, 3); });
  says("must have the shape [batch, any, 5, 3], not [2, 4, 5, 2]",
       [&] { shared({.input = noise<4>(1, 2, 4, 5, 2), .extra = noise<4>(1, 2, 4, 1, 2)}); });
  says("must have the shape [batch, 6, 5, 3], not [2, 4, 5, 3]", [&] { run(fixed, 4, 4, {.rows = 2, .columns = 2}); });
  says("a grid is for latent positions that are sin_cos_grid", [&] { run(shared, 6, 6, picture); });
  for (const fit::Grid& wrong :
       {fit::Grid{}, fit::Grid{.rows = 2, .columns = 2}, fit::Grid{.rows = 6},
        fit::Grid{.frames = 2, .rows = 2, .columns = 3}, fit::Grid{.frames = -1, .rows = 2, .columns = 3},
        fit::Grid{.rows = -2, .columns = -3}, fit::Grid{.rows = Index{1} << 62, .columns = 4}}) {
    says(fit::concatenate("the grid must have as many groups as an example, 6, and not be one of ", wrong.frames,
                          " frames, ", wrong.rows, " rows and ", wrong.columns, " columns"),
         [&] { run(grid, 6, 6, wrong); });
    says("the grid must have as many groups", [&] { run(fixed, 6, 6, wrong); });
  }
  const auto classes = noise<2>(1, 2, 2);
  const auto sample = [&](const auto& model, Index groups, const fit::Grid& of) {
    fit::SampleOptions options{.steps = 1};
    options.groups = groups;
    options.grid = of;
    fit::sample(model, options, fit::TensorView<const float, 2>(classes), fit::Random(1));
  };
  says("samples options.groups of them, at least 1, not 0", [&] { sample(denoiser, 0, picture); });
  says("the grid must have as many groups as an example, 7", [&] { sample(denoiser, 7, picture); });
  says("an example must have 1 to ", [&] { sample(denoiser, Index{1} << 58, picture); });
  says("this denoiser samples 6 groups, and not options.groups, 7", [&] { sample(six, 7, {}); });
  says("must be told how many its sequences have, 1 to 2147483647, not -1", [&] { fit::Generator generator(decoder); });
  const fit::AutoregressiveDecoder<sequence_config> learned;
  says("this decoder generates 6 groups, not 7", [&] { fit::Generator(learned, 1, fit::default_executor(), 7); });
  // A batch of none may have more groups than can be counted.
  const fit::TensorView<const float, 4> none(nullptr, Index{0}, Index{1} << 58, Index{5}, Index{3});
  const fit::TensorView<const float, 4> no_extra(nullptr, Index{0}, Index{1} << 58, Index{1}, Index{2});
  says("an example must have 1 to ", [&] { shared({.input = none, .extra = no_extra}); });
  run(fixed, 6, 6, picture);
}

TEST_CASE("a file of a number of groups is one of any, and the other way round", "[any_groups]") {
  using Any = fit::Encoder<with<encoder_config, Positions::shared, fit::any>>;
  using Six = fit::Encoder<with<encoder_config, Positions::shared>>;
  using Seven = fit::Encoder<with<encoder_config, Positions::shared, 7>>;
  using Coded = fit::Encoder<with<encoder_config, Positions::sin_cos, fit::any>>;
  const test::TemporaryFolder folder;
  const auto any = lively<Any>();
  fit::save(folder / "any", any);
  CHECK(fit::SafetensorsFile(folder / "any").metadata().at("config.groups") == "any");
  CHECK(fit::SafetensorsFile(folder / "any").metadata().at("config.latent_positions") == "shared");
  CHECK(fit::SafetensorsFile(folder / "any").info("latent_positions").shape == std::vector<Index>{2, 20});
  Any again;
  Six six;
  Seven seven;
  Coded coded;
  fit::load(folder / "any", again);
  fit::load(folder / "any", six);
  CHECK(test::same_bits(test::values_of(again), test::values_of(any)));
  CHECK(test::same_bits(test::values_of(six), test::values_of(any)));
  fit::save(folder / "six", six);
  CHECK(fit::SafetensorsFile(folder / "six").metadata().at("config.groups") == "6");
  fit::load(folder / "six", again = Any());
  CHECK(test::same_bits(test::values_of(again), test::values_of(any)));
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "six", seven); }), R"(config.groups: expected "7")"));
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "any", coded); }), "config.latent_positions"));
  const fit::TrainingState<Any> state{.model = any, .average = any, .step = 5, .random = fit::Random(2)};
  fit::save(folder / "state", state);
  fit::TrainingState<Six> resumed;
  fit::load(folder / "state", resumed);
  CHECK(resumed.step == 5);
  CHECK(test::same_bits(test::values_of(*resumed.average), test::values_of(any)));
}

TEST_CASE("a generator's file says for how many groups its caches are", "[any_groups]") {
  const auto decoder = lively<fit::AutoregressiveDecoder<with<sequence_config, Positions::sin_cos, fit::any>>>();
  const auto planned = [&](Index groups) { return fit::Generator(decoder, 1, fit::default_executor(), groups); };
  const test::TemporaryFolder folder;
  auto generator = planned(9), resumed = planned(9), shorter = planned(8);
  for (int i = 0; i < 14; ++i) generator.next({}, fit::Random(3));
  fit::save(folder / "generator", generator);
  fit::load(folder / "generator", resumed);
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "generator", shorter); }),
                       R"(config.groups must be "8", not "9")"));
  CHECK(test::contains(test::error_of([&] { shorter.restore(generator.sequences()); }), "another configuration"));
  while (!generator.finished_all()) {
    CHECK(generator.next({}, fit::Random(3))[0] == resumed.next({}, fit::Random(3))[0]);
  }
  CHECK(resumed.finished_all());
  CHECK(resumed.ids().size() == 36);
}
