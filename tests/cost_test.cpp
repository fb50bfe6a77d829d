#include "catch.hpp"

#include <fit/fit.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

using fit::Index;

namespace {

using fit::detail::work_count;

fit::Flops counted() { return {work_count.products, work_count.attention, work_count.executed}; }

/// What body() makes the kernels count.
template <class Body>
fit::Flops count_of(Body&& body) {
  const fit::Flops before = counted();
  body();
  const fit::Flops after = counted();
  return {after.products - before.products, after.attention - before.attention, after.executed - before.executed};
}

template <class T, class... Sizes>
auto filled(Sizes... sizes) {
  fit::Tensor<T, static_cast<int>(sizeof...(Sizes))> tensor(Index{sizes}...);
  fit::Random random(1);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<T>(random.normal());
  return tensor;
}

struct Setting {
  Index batch;
  int threads;
  fit::TrainingOptions options;
};

const Setting settings[] = {
    {1, 1, {}},
    {3, 2, {}},
    {40, 1, {.drop_path = 0.1f, .drop_units = 0.1f, .drop_attention = 0.1f}},
    {3, 1, {.recompute = fit::Recompute::stage}},
    {40, 2, {.drop_path = 0.2f, .recompute = fit::Recompute::stage}},
    {40, 1, {.drop_path = 0.2f, .recompute = fit::Recompute::stream}},
    {3, 2, {.recompute = fit::Recompute::stream, .keep_data_every = 1}},
    {40, 2, {.recompute = fit::Recompute::stream, .keep_data_every = 2}},
};

/// What a model of any number of groups is given.
constexpr int groups_of(const auto& config) { return config.groups == fit::any ? 7 : config.groups; }

/// The configuration for any number of groups.
template <auto config, fit::Positions positions>
constexpr auto any_groups = [] {
  auto c = config;
  c.groups = fit::any;
  c.latent_positions = positions;
  return c;
}();

void check(const fit::Cost& cost, const fit::Flops& flops, const fit::Tape& tape) {
  CHECK(cost.flops().products == flops.products);
  CHECK(cost.flops().attention == flops.attention);
  CHECK(cost.flops().executed == flops.executed);
  CHECK(cost.tape == static_cast<Index>(tape.peak()));
  CHECK(cost.arenas.total() == static_cast<Index>(tape.capacity()));  // no more than was reserved
  Index parameters = 0;
  fit::Flops forward, backward;
  for (const fit::PartCost& part : cost.parts) {
    parameters += part.parameters;
    forward += part.forward;
    backward += part.backward;
  }
  CHECK(cost.parameters == parameters);
  CHECK(cost.forward == forward);
  CHECK(cost.backward == backward);
  CHECK(cost.peak == cost.weights + cost.gradients + cost.optimiser + cost.activations + cost.scratch + cost.outputs);
}

/// What records hold after a forward pass.
Index kept(const fit::Cost& cost) {
  Index bytes = 0;
  for (const fit::PartCost& part : cost.parts) bytes += part.kept;
  return bytes;
}

/// Runs infer(tape), which tells the elements of its outputs, and train(tape), which tells what records hold after its
/// forward pass where it can, else -1, and holds what they take and count against the cost.
template <auto c, class T, class Model, class Infer, class Train>
void check_passes(const Setting& s, const Model& model, Infer&& infer, Train&& train, bool by_groups = false) {
  CAPTURE(s.batch, s.threads, static_cast<int>(s.options.recompute), by_groups);
  fit::Executor executor(s.threads);
  fit::Tape inference(executor), training(executor);
  fit::CostOptions options{.threads = s.threads, .groups = groups_of(c), .by_groups = by_groups};
  Index outputs = 0, records = 0;
  options.options = s.options;  // of no account at inference
  const auto inferred = fit::cost<c, T>(s.batch, options);
  inference.reserve(inferred.arenas);
  const auto pass = count_of([&] { outputs = infer(inference); });
  check(inferred, pass, inference);
  CHECK(inferred.outputs == outputs * Index{sizeof(T)});
  CHECK(kept(inferred) == 0);
  options.training = true;
  options.average = s.threads == 2;
  const auto cost = fit::cost<c, T>(s.batch, options);
  training.reserve(cost.arenas);
  const auto step = count_of([&] { records = train(training); });
  check(cost, step, training);
  if (records >= 0) CHECK(kept(cost) == records);
  CHECK(cost.weights == cost.parameters * Index{sizeof(T)});
  CHECK(cost.gradients == cost.weights);
  CHECK(cost.optimiser == cost.weights * (options.average ? 3 : 2));
  CHECK(cost.tape == cost.activations + cost.scratch + cost.outputs);
  CHECK(cost.parameters == fit::count_parameters(model));
}

template <fit::EncoderConfig c, class T>
void check_encoder(Index most_batch = 40) {
  using Encoder = fit::Encoder<c, T>;
  const Encoder encoder(fit::Random(1));
  Encoder gradient;
  constexpr int groups = groups_of(c);
  for (Setting s : settings) {
    s.batch = std::min(s.batch, most_batch);
    const auto input = filled<T>(s.batch, groups, c.tokens, c.channels);
    const auto extra = filled<T>(s.batch, groups, c.extra_tokens, c.extra_channels);
    typename Encoder::Inputs inputs{input};
    if (c.latent_positions == fit::Positions::sin_cos_grid) inputs.grid = {.rows = groups, .columns = 1};
    if (Encoder::has_extra) inputs.extra = extra;
    check_passes<c, T>(
        s, encoder,
        [&](fit::Tape& tape) {
          const auto output = encoder(inputs, tape);
          return output.data.size() + output.latents.size();
        },
        [&](fit::Tape& tape) {
          tape.record(s.options);
          const auto output = encoder.forward(inputs, tape);
          const auto records = static_cast<Index>(tape.mark().total);
          encoder.backward({output.data, output.latents}, gradient, tape);
          return records;
        });
    if constexpr (!Encoder::has_extra) {
      const auto fill = [&](Index first, Index count, T* to) {
        constexpr Index size = c.tokens * c.channels;
        std::copy_n(input.data() + first * size, count * size, to);
      };
      const fit::GroupSource<T> source{.batch = s.batch, .groups = groups, .fill = fill, .grid = inputs.grid};
      const fit::GroupLoss<T> loss = [](Index, Index count, const T* data, T* to) {
        if (to) std::copy_n(data, count * c.tokens * c.data_dim, to);
        return 0.0;
      };
      check_passes<c, T>(
          s, encoder,
          [&](fit::Tape& tape) {
            encoder.loss(source, loss, tape);
            return Index{0};
          },
          [&](fit::Tape& tape) {
            encoder.loss(source, loss, gradient, tape, s.options);
            return Index{-1};
          },
          true);
    }
  }
}

constexpr fit::EncoderConfig causal{.layers = "(2)1(1)2(1)",
                                    .groups = 6,
                                    .tokens = 100,
                                    .channels = 3,
                                    .latents = 3,
                                    .data_dim = 24,
                                    .latent_dim = 40,
                                    .data_heads = 2,
                                    .latent_heads = 4,
                                    .data_key_heads = 1,
                                    .latent_key_heads = 2,
                                    .mask = fit::LatentMask::causal,
                                    .extra_tokens = 2,
                                    .extra_channels = 5};
constexpr fit::EncoderConfig demo{.layers = "(2)2(2)2(2)",
                                  .groups = 4,
                                  .tokens = 49,
                                  .channels = 1,
                                  .latents = 8,
                                  .data_dim = 64,
                                  .latent_dim = 128,
                                  .data_heads = 2,
                                  .latent_heads = 4,
                                  .data_positions = fit::Positions::sin_cos_2d,
                                  .latent_positions = fit::Positions::sin_cos};
// The latents of 20 examples are a chunk.
constexpr fit::EncoderConfig many_latents{.layers = "(1)2(1)1",
                                          .groups = 5,
                                          .tokens = 7,
                                          .channels = 2,
                                          .latents = 40,
                                          .data_dim = 8,
                                          .latent_dim = 8,
                                          .data_heads = 1,
                                          .latent_heads = 1};
// Those of one example go through MLPs in pieces.
constexpr fit::EncoderConfig long_latents{.layers = "(1)2(1)1",
                                          .groups = 700,
                                          .tokens = 2,
                                          .channels = 2,
                                          .latents = 8,
                                          .data_dim = 8,
                                          .latent_dim = 8,
                                          .data_heads = 1,
                                          .latent_heads = 1};
// Rows of its latents' MLPs lie 4 KB apart.
constexpr fit::EncoderConfig wide{.layers = "(1)1(0)",
                                  .groups = 4,
                                  .tokens = 7,
                                  .channels = 2,
                                  .latents = 8,
                                  .data_dim = 8,
                                  .latent_dim = 256,
                                  .data_heads = 1,
                                  .latent_heads = 4};
constexpr fit::EncoderConfig plain{.layers = "(3)",
                                   .groups = 5,
                                   .tokens = 33,
                                   .channels = 8,
                                   .latents = 1,
                                   .data_dim = 32,
                                   .latent_dim = 8,
                                   .data_heads = 4,
                                   .latent_heads = 1};

}  // namespace

TEST_CASE("the cost of an encoder is what its tape takes and its kernels count", "[cost]") {
  check_encoder<causal, float>();
  check_encoder<demo, float>();
  check_encoder<many_latents, double>();
  check_encoder<long_latents, float>(2);
  check_encoder<wide, float>();
  check_encoder<plain, float>();
  check_encoder<any_groups<causal, fit::Positions::sin_cos>, float>();
  check_encoder<any_groups<causal, fit::Positions::sin_cos_grid>, float>();
  check_encoder<any_groups<demo, fit::Positions::shared>, float>();
  check_encoder<any_groups<many_latents, fit::Positions::shared_sin_cos>, double>();
}

namespace {

template <fit::DiffusionConfig c>
void check_diffusion() {
  using Decoder = fit::DiffusionDecoder<c>;
  const Decoder decoder(fit::Random(1));
  Decoder gradient;
  constexpr int groups = groups_of(c);
  for (const Setting& s : settings) {
    const auto noisy = filled<float>(s.batch, groups, c.tokens, c.channels);
    const auto previous = filled<float>(s.batch, groups, c.latents, c.latent_dim);
    fit::Tensor<double, 1> gamma(s.batch);
    gamma.setConstant(0.5);
    typename Decoder::Inputs inputs{noisy, gamma};
    if (c.latent_positions == fit::Positions::sin_cos_grid) inputs.grid = {.rows = groups, .columns = 1};
    const auto condition = [&] {
      if constexpr (c.condition_tokens > 0)
        return filled<float>(s.batch, c.condition_tokens, c.condition_channels);
      else
        return filled<float>(s.batch, c.condition_channels);
    }();
    if (Decoder::has_condition) inputs.condition = typename Decoder::ConditionView(condition);
    if (Decoder::has_previous) inputs.previous_latents = previous;
    check_passes<c, float>(
        s, decoder,
        [&](fit::Tape& tape) {
          const auto output = decoder(inputs, tape);
          return output.prediction.size() + output.latents.size();
        },
        [&](fit::Tape& tape) {
          tape.record(s.options);
          const auto output = decoder.forward(inputs, tape);
          const auto records = static_cast<Index>(tape.mark().total);
          decoder.backward({.prediction = output.prediction}, gradient, tape);
          return records;
        });
    fit::GroupSource<float> source{.batch = s.batch, .groups = groups, .grid = inputs.grid};
    source.fill = [&](Index first, Index count, float* to) {
      constexpr Index size = c.tokens * c.channels;
      std::copy_n(noisy.data() + first * size, count * size, to);
    };
    const fit::GroupLoss<float> loss = [](Index, Index count, const float* prediction, float* to) {
      if (to) std::copy_n(prediction, count * c.tokens * c.output_channels, to);
      return 0.0;
    };
    const typename Decoder::GroupInputs by_groups{source, gamma, inputs.condition, inputs.previous_latents};
    check_passes<c, float>(
        s, decoder,
        [&](fit::Tape& tape) {
          decoder.loss(by_groups, loss, tape);
          return Index{0};
        },
        [&](fit::Tape& tape) {
          decoder.loss(by_groups, loss, gradient, tape, s.options);
          return Index{-1};
        },
        true);
  }
}

constexpr fit::DiffusionConfig labelled{.layers = "(2)2(2)2(2)",
                                        .groups = 4,
                                        .tokens = 49,
                                        .channels = 4,
                                        .latents = 8,
                                        .data_dim = 64,
                                        .latent_dim = 128,
                                        .data_heads = 2,
                                        .latent_heads = 4,
                                        .output_channels = 4,
                                        .condition_channels = 10,
                                        .self_conditioning = fit::SelfConditioning::latent};
constexpr fit::DiffusionConfig bare{.layers = "(1)2(2)1",
                                    .groups = 4,
                                    .tokens = 9,
                                    .channels = 4,
                                    .latents = 8,
                                    .data_dim = 32,
                                    .latent_dim = 48,
                                    .data_heads = 2,
                                    .latent_heads = 4,
                                    .latent_key_heads = 1,
                                    .mask = fit::LatentMask::causal,
                                    .output_channels = 4,
                                    .condition_channels = 6,
                                    .condition_tokens = 3,
                                    .local_attention = false,
                                    .cross_mlp = true,
                                    .cross_context_norm = false};
constexpr fit::DiffusionConfig unconditional{.layers = "(2)",
                                             .groups = 3,
                                             .tokens = 9,
                                             .channels = 2,
                                             .latents = 2,
                                             .data_dim = 16,
                                             .latent_dim = 12,
                                             .data_heads = 2,
                                             .latent_heads = 2,
                                             .output_channels = 2};

template <fit::AutoregressiveConfig c>
void check_autoregressive() {
  using Decoder = fit::AutoregressiveDecoder<c>;
  const Decoder decoder(fit::Random(1));
  Decoder gradient;
  constexpr int groups = groups_of(c);
  for (const Setting& s : settings) {
    fit::Tensor<std::int32_t, 3> ids(s.batch, groups, c.tokens);
    check_passes<c, float>(
        s, decoder, [&](fit::Tape& tape) { return decoder(ids, tape).size(); },
        [&](fit::Tape& tape) {
          decoder.loss(ids, gradient, tape, s.options);
          return Index{-1};
        });
  }
  fit::Generator generator(decoder, 1, fit::default_executor(), groups);
  constexpr fit::GenerationCost cost = fit::generation_cost_of([] {
    auto counted = c;
    counted.groups = groups;
    return counted;
  }());
  CHECK(cost.caches == static_cast<Index>(generator.cache_bytes()));
  const auto flops = count_of([&] {
    fit::Generator<Decoder> one(decoder, 1, fit::default_executor(), groups);
    while (!one.finished_all()) one.next({}, fit::Random(1));
  });
  CHECK(cost.flops.products == flops.products);
  CHECK(cost.flops.attention == flops.attention);
  CHECK(cost.flops.executed == flops.executed);
}

constexpr fit::AutoregressiveConfig letters{.layers = "(2)2(1)1(1)",
                                            .groups = 7,
                                            .tokens = 20,
                                            .latents = 4,
                                            .data_dim = 48,
                                            .latent_dim = 64,
                                            .data_heads = 4,
                                            .latent_heads = 4,
                                            .vocabulary = 100};
constexpr fit::AutoregressiveConfig unshared{.layers = "(1)2(1)1",
                                             .groups = 3,
                                             .tokens = 33,
                                             .latents = 18,
                                             .data_dim = 16,
                                             .latent_dim = 24,
                                             .data_heads = 2,
                                             .latent_heads = 4,
                                             .data_key_heads = 1,
                                             .latent_key_heads = 2,
                                             .data_positions = fit::Positions::sin_cos,
                                             .latent_positions = fit::Positions::sin_cos,
                                             .vocabulary = 3000,
                                             .shared_embedding = false,
                                             .output_bias = false,
                                             .keep_unused_latents = true};

}  // namespace

TEST_CASE("a tape that was not reserved grows to no more of the threads' own memory than the cost says", "[cost]") {
  for (const int threads : {1, 2, 3}) {
    fit::Executor executor(threads);
    fit::Tape tape(executor);
    const fit::Encoder<demo> model(fit::Random(1));
    fit::Encoder<demo> gradient;
    fit::Tensor<float, 4> input(41, Index{demo.groups}, Index{demo.tokens}, Index{demo.channels});
    tape.record();
    const auto [data, latents] = model.forward(input, tape);
    model.backward({.data = data, .latents = latents}, gradient, tape);
    INFO(threads << " threads");
    const auto cost = fit::cost<demo>(41, {.training = true, .threads = threads});
    CHECK(static_cast<fit::Workspace&>(tape).lanes().capacity() == cost.arenas.lanes);
  }
}

TEST_CASE("the cost of a diffusion decoder is what its tape takes and its kernels count", "[cost]") {
  check_diffusion<labelled>();
  check_diffusion<bare>();
  check_diffusion<unconditional>();
  check_diffusion<any_groups<labelled, fit::Positions::shared_sin_cos>>();
  check_diffusion<any_groups<unconditional, fit::Positions::sin_cos_grid>>();
}

TEST_CASE("the cost of an autoregressive decoder is what its tape takes and its kernels count", "[cost]") {
  check_autoregressive<letters>();
  check_autoregressive<unshared>();
  check_autoregressive<any_groups<letters, fit::Positions::shared>>();
}

TEST_CASE("the cost of a step of sampling is what its tape takes and its kernels count", "[cost]") {
  const fit::DiffusionDecoder<labelled> decoder(fit::Random(1));
  const auto condition = filled<float>(3, labelled.condition_channels);
  const fit::NoiseSchedule flow = fit::RectifiedFlow{};
  for (const bool guided : {false, true}) {
    for (const bool heun : {false, true}) {
      fit::Executor executor(2);
      fit::Tape tape(executor);
      fit::SampleOptions options;
      options.steps = 2;
      options.method = heun ? fit::Sampler::heun : fit::Sampler::ddim;
      options.schedule = flow;
      options.prediction = fit::Prediction::velocity;
      options.guidance = guided ? 1 : 0;
      const auto flops = count_of([&] {
        fit::sample(decoder, options, 3, fit::TensorView<const float, 2>(condition),
                    fit::sample_noise<float>(fit::Random(1)), tape);
      });
      const auto cost = fit::sampling_cost_of(labelled, 3, guided, heun, 2);
      CHECK(cost.tape == static_cast<Index>(tape.peak()));
      // The last step of Heun's method is one of Euler's.
      const auto last = fit::sampling_cost_of(labelled, 3, guided, false, 2);
      CHECK(cost.flops + last.flops == flops);
      CHECK(cost.evaluations == (guided ? 2 : 1) * (heun ? 2 : 1));
    }
  }
}

namespace {

template <fit::AutoregressiveConfig c>
void check_weights_read() {
  const fit::AutoregressiveDecoder<c> decoder;
  Index read = 0;
  fit::for_each_parameter(
      [&](const fit::ParameterName& name, auto parameter) {
        const std::string text = name.text();
        const auto has = [&](const char* part) { return text.find(part) != std::string::npos; };
        const bool in_stage = has(".local.") || (has(".write.") && !has("context") && !has("key") && !has("value"));
        const bool embedding = has(c.shared_embedding ? "token_embedding" : "output_embedding");
        if (in_stage || embedding || has("data_norm") || has("output_bias")) read += parameter.size;
      },
      decoder);
  CHECK(fit::generation_reads_of(c, 0).weights == read * Index{sizeof(float)});
}

}  // namespace

TEST_CASE("the bytes that an id of generation reads are those of what it goes through", "[cost]") {
  check_weights_read<letters>();
  check_weights_read<unshared>();
  // Two groups of two tokens, one layer of width 8 and four latents: an id sees one or two keys of its group, and the
  // keys and values of four latents.
  constexpr fit::AutoregressiveConfig tiny{.layers = "(1)1(0)",
                                           .groups = 2,
                                           .tokens = 2,
                                           .latents = 4,
                                           .data_dim = 8,
                                           .latent_dim = 8,
                                           .data_heads = 2,
                                           .latent_heads = 2,
                                           .vocabulary = 5};
  for (const Index key : {8, 4}) {  // width of keys and values, of one head that is shared by both or of two
    auto c = tiny;
    c.data_key_heads = c.latent_key_heads = static_cast<int>(key / 4);
    for (const Index position : {0, 1, 2, 3}) {
      const fit::GenerationReads reads = fit::generation_reads_of(c, position);
      CHECK(reads.caches == 2 * key * 4 * (position % 2 + 1) + 2 * 8 * 4 * 4);
      // Tokens, read, the write's norm, keys and values, one global block, and the latents of the groups so far.
      // The last group's end changes nothing that follows.
      if (position >= 2) {
        CHECK(reads.group_end == 0);
        continue;
      }
      const Index attention = 4 * (8 * 8 + 8), shared = 2 * (8 * 8 + 8) + 2 * (key * 8 + key);
      const Index norm = 2 * 8, mlp = 8 * 32 + 32 + 32 * 8 + 8;
      CHECK(reads.group_end == 4 * (2 * 8 + (attention + 2 * norm) + (norm + 2 * (8 * 8 + 8)) +
                                    (shared + 2 * norm + mlp) + 2 * key * 4 * (position / 2 + 1)));
    }
  }
  CHECK_THROWS_AS(fit::generation_reads_of(tiny, 4), fit::Error);
  CHECK_THROWS_AS(fit::generation_reads_of(tiny, -1), fit::Error);
}

TEST_CASE("groups of the length's cube root, about, are the cheapest for one latent each", "[cost]") {
  constexpr fit::EncoderConfig narrow{.layers = "(1)1(0)",
                                      .groups = 1,
                                      .tokens = 1,
                                      .channels = 1,
                                      .latents = 1,
                                      .data_dim = 8,
                                      .latent_dim = 8,
                                      .data_heads = 1,
                                      .latent_heads = 1};
  const auto flops = [&](Index tokens, Index length) {
    auto c = narrow;
    c.tokens = static_cast<int>(tokens);
    c.groups = static_cast<int>(length / tokens);
    return fit::cost_of(c, 1, {.training = true}).flops().total();
  };
  for (const Index length : {Index{1} << 12, Index{1} << 15, Index{1} << 20, Index{3 * 5 * 7 * 11}, Index{97}}) {
    const Index best = fit::cheapest_tokens(narrow, length);
    CHECK(length % best == 0);
    for (Index tokens = 1; tokens <= length; ++tokens) {
      if (length % tokens == 0) CHECK(flops(best, length) <= flops(tokens, length));
    }
  }
  constexpr int best = fit::cheapest_tokens(narrow, 1 << 12);
  CHECK(best >= 8);
  CHECK(best <= 64);
  CHECK_THROWS_AS(fit::cheapest_tokens(narrow, 0), fit::Error);
}

TEST_CASE("a sum over a mask is that of its terms", "[cost]") {
  using fit::kernels::Mask;
  for (const Index chunk : {1, 2, 3, 7, 16, 100}) {
    for (const Index offset : {0, 1, 9}) {
      const Mask mask{chunk, offset};
      for (Index keys = 0; keys < 40; keys += 3) {
        for (const Index first : {0, 2, 13}) {
          for (const Index step : {1, 3, 14}) {
            Index visible = 0;
            for (Index i = 0; i < 30; ++i) visible += mask.visible_keys(first + i * step, keys);
            REQUIRE(mask.sum_of_visible_keys({first, step, 30}, keys) == visible);
          }
        }
      }
    }
  }
  CHECK(Mask::none().sum_of_visible_keys({0, 1, 1000000}, 77) == 77000000);
}

TEST_CASE("what no model can be has no cost", "[cost]") {
  const auto refused = [](fit::EncoderConfig c, const char* text, Index batch = 1, int threads = 1) {
    CHECK_THROWS_WITH(fit::cost_of(c, batch, {.threads = threads}), Catch::Matchers::ContainsSubstring(text));
  };
  auto c = demo;
  c.groups = 0;
  refused(c, "groups = 0");
  c = demo;
  c.extra_tokens = -1;
  refused(c, "extra_tokens = -1");
  c = demo;
  c.layers = "(2";
  refused(c, "the layer string \"(2\"");
  refused(demo, "batch = 0", 0);
  refused(demo, "threads = 0", 1, 0);
  c = demo;
  c.layers = "(2)";
  c.tokens = 2000000000;
  refused(c, "too large", 100);
  c = demo;
  c.data_heads = 7;
  refused(c, "data_dim = 64 is no multiple of data_heads = 7");
  c = demo;
  c.latent_heads = 3;
  refused(c, "latent_dim = 128 is no multiple of latent_heads = 3");
  c = demo;
  c.latent_key_heads = 3;
  refused(c, "latent_heads = 4 is no multiple of latent_key_heads = 3");
  c.latent_key_heads = -1;
  refused(c, "latent_key_heads = -1");
  c = demo;
  c.extra_tokens = 3;
  refused(c, "extra_tokens and extra_channels");
  c = demo;
  c.groups = fit::any;
  c.latent_positions = fit::Positions::learned;
  CHECK_THROWS_WITH(fit::cost_of(c, 1, {.groups = 4}), Catch::Matchers::ContainsSubstring("learned"));
  const auto refused_options = [](const fit::CostOptions& options, const char* text) {
    CHECK_THROWS_WITH(fit::cost_of(causal, 1, options), Catch::Matchers::ContainsSubstring(text));
  };
  refused_options({.by_groups = true}, "by_groups");
  refused_options({.training = true, .options = {.drop_path = -1}}, "drop_path must be in [0, 1)");
  refused_options({.training = true, .options = {.keep_data_every = -3}}, "keep_data_every");
  CHECK_THROWS_AS(fit::cost_of(letters, 1, {.by_groups = true}), fit::Error);
  auto d = unconditional;
  d.latent_dim = 8;
  CHECK_THROWS_WITH(fit::cost_of(d, 1), Catch::Matchers::ContainsSubstring("at least 12, not 8"));
  d = unconditional;
  d.condition_tokens = 8;
  CHECK_THROWS_WITH(fit::cost_of(d, 1), Catch::Matchers::ContainsSubstring("condition_tokens need condition_channels"));
  CHECK_THROWS_WITH(fit::process_cost_of(demo, 1, {.shares = (Index{1} << 32) + 1}, 1, 0),
                    Catch::Matchers::ContainsSubstring("shares must be an int"));
  c = demo;
  c.latents = 2000000000;
  CHECK_THROWS_WITH(fit::cheapest_tokens(c, 97), Catch::Matchers::ContainsSubstring("no group size"));
}

TEST_CASE("the cost of a model of any number of groups is that of one with the number that is asked about", "[cost]") {
  constexpr auto free = any_groups<demo, fit::Positions::sin_cos>;
  static_assert(fit::cost<free>(2, {.training = true, .groups = 4}).peak ==
                fit::cost<demo>(2, {.training = true}).peak);
  const auto text = [](const auto& config, int groups) {
    std::ostringstream out;
    out << fit::summary_of(config, 2, {.groups = groups});
    return out.str();
  };
  CHECK(text(free, 4) == text(demo, 0));
  CHECK(text(free, 5) != text(demo, 4));
  CHECK_THROWS_WITH(fit::cost<free>(2),
                    "the cost of a model of any number of groups needs options.groups, at least 1, not 0");
  CHECK_THROWS_WITH(fit::cost<demo>(2, {.groups = 5}), "this model has 4 groups, and not options.groups, 5");
  CHECK_THROWS_AS(fit::summary<free>(), fit::Error);
  const fit::CostOptions shared{.training = true, .groups = 16, .members = 4};
  CHECK(fit::summary_of(free, 2, shared).cost.sent == fit::cost_of(free, 2, shared).sent);
  CHECK_THROWS_AS(fit::sampling_cost_of(any_groups<labelled, fit::Positions::shared>, 1), fit::Error);
  CHECK(fit::cheapest_tokens(free, 784) == fit::cheapest_tokens(demo, 784));
}

TEST_CASE("a summary has a line for every part, and they add up to the cost", "[cost]") {
  const fit::CostOptions options{.training = true, .threads = 2};
  const fit::Summary summary = fit::summary<labelled>(3, options);
  const fit::Cost cost = fit::cost<labelled>(3, options);
  CHECK(summary.title == "diffusion (2)2(2)2(2), batch 3, training step");
  std::vector<std::string> names;
  Index parameters = 0;
  double share = 0;
  for (const fit::SummaryLine& line : summary.lines) {
    names.push_back(line.name);
    parameters += line.parameters;
    share += line.share;
  }
  CHECK(names == std::vector<std::string>{"stem", "stages.0.local x 2", "stages.0.read", "stages.0.condition",
                                          "stages.0.global x 2", "stages.0.write", "stages.1.local x 2",
                                          "stages.1.read", "stages.1.condition", "stages.1.global x 2",
                                          "stages.1.write", "stages.2.local x 2", "head"});
  CHECK(parameters == cost.parameters);
  CHECK(std::abs(share - 1) < 1e-12);
  CHECK(summary.lines[4].shape == std::array<Index, 4>{3, 4, 8, 128});
  CHECK(summary.lines[4].flops() + summary.lines[9].flops() ==
        cost.of(fit::Part::global).forward + cost.of(fit::Part::global).backward);

  std::ostringstream text;
  text << summary;
  CHECK(text.str().find("stages.0.global x 2     [3, 4, 8, 128]              396544") != std::string::npos);
  CHECK(text.str().find("peak ") != std::string::npos);
}

TEST_CASE("a summary for a member of a team has the shapes of its share", "[cost]") {
  const fit::CostOptions options{.training = true, .members = 2, .member = 1};
  const fit::Summary whole = fit::summary<labelled>(3, {.training = true}), part = fit::summary<labelled>(3, options);
  REQUIRE(whole.lines.size() == part.lines.size());
  for (std::size_t i = 0; i < whole.lines.size(); ++i) {
    const auto& [batch, groups, rows, width] = whole.lines[i].shape;
    INFO(whole.lines[i].name);
    // What is of an example, and not of a group, each member has.
    if (whole.lines[i].name.find("condition") != std::string::npos) continue;
    CHECK(part.lines[i].shape == std::array<Index, 4>{batch, groups / 2, rows, width});
  }
}

TEST_CASE("members of a team compute together what the cost says", "[cost]") {
  // Heads that go back in parts of two and three: three of them by themselves would take fewer products.
  constexpr fit::EncoderConfig spread{.layers = "(1)1(1)",
                                      .groups = 32,
                                      .tokens = 4,
                                      .channels = 3,
                                      .latents = 8,
                                      .data_dim = 16,
                                      .latent_dim = 320,
                                      .data_heads = 1,
                                      .latent_heads = 5};
  using Encoder = fit::Encoder<spread>;
  const Encoder encoder(fit::Random(1));
  fit::CostOptions options{.training = true, .threads = 4, .members = 2};
  fit::Flops expected{};
  for (options.member = 0; options.member < 2; ++options.member) expected += fit::cost<spread>(1, options).flops();
  fit::Solo solo;
  const fit::Flops flops = count_of([&] {
    fit::take_turns(solo, 2, [&](fit::Team& team, Index) {
      fit::Executor executor(4);
      fit::Tape tape(executor, team);
      const auto input = filled<float>(1, 16, 4, 3), data = filled<float>(1, 16, 4, 16);
      Encoder gradient;
      tape.record();
      encoder.forward(input, tape);
      encoder.backward({.data = data}, gradient, tape);
    });
  });
  CHECK(flops.products == expected.products);
  CHECK(flops.attention == expected.attention);
  CHECK(flops.executed == expected.executed);
}

TEST_CASE("numbers of a summary have three digits", "[cost]") {
  using fit::detail::short_text;
  CHECK(short_text(0, "B") == "0 B");
  CHECK(short_text(999, "B") == "999 B");
  CHECK(short_text(1000, "B") == "1.00 kB");
  CHECK(short_text(12345, "B") == "12.3 kB");
  CHECK(short_text(999499, "B") == "999 kB");
  CHECK(short_text(999501, "B") == "1.00 MB");
  CHECK(short_text(9996, "FLOP") == "10.0 kFLOP");
  CHECK(short_text(2.5e13, "FLOP") == "25.0 TFLOP");
}

TEST_CASE("the step of a team is what its busiest member computes and sends", "[cost]") {
  constexpr fit::MemberSpeed speed{1e9, 1e10};
  constexpr fit::EncoderConfig shared{.layers = "(1)2(1)",
                                      .groups = fit::any,
                                      .tokens = 16,
                                      .channels = 8,
                                      .latents = 2,
                                      .data_dim = 32,
                                      .latent_dim = 64,
                                      .data_heads = 2,
                                      .latent_heads = 4,
                                      .latent_positions = fit::Positions::sin_cos};
  const fit::CostOptions options{.training = true, .groups = 12, .by_groups = true, .members = 5, .member = 4};
  const fit::Cost cost = fit::cost<shared>(1, options);
  const fit::StepTime step = fit::shared_step(shared, 1, options, speed);
  CHECK(step.computing == Approx(static_cast<double>(cost.flops().total()) / 1e9));
  const double update = 2 * 0.8 * static_cast<double>(cost.weights);
  CHECK(step.sending == Approx(8 * (static_cast<double>(cost.sent) + update) / 1e10));
  for (const int members : {1, 2, 3, 4, 6, 12}) {
    fit::CostOptions of = options;
    of.members = members;
    double most = 0;
    for (of.member = 0; of.member < members; ++of.member) {
      most = std::max(most, static_cast<double>(fit::cost<shared>(1, of).flops().total()) / 1e9);
    }
    CHECK(fit::shared_step(shared, 1, of, speed).computing == Approx(most));
    if (members == 1) CHECK(fit::shared_step(shared, 1, of, speed).sending == 0);
  }
  auto masked = shared;
  masked.mask = fit::LatentMask::causal;
  masked.latents = 64;
  double longest = 0;
  for (int member = 0; member < 5; ++member) {
    const fit::Cost of_one =
        fit::cost_of(masked, 1, {.training = true, .groups = 12, .by_groups = true, .members = 5, .member = member});
    const double sent = static_cast<double>(of_one.sent) + 2 * 0.8 * static_cast<double>(of_one.weights);
    longest = std::max(longest, static_cast<double>(of_one.flops().total()) / 1e9 + 8 * sent / 1e10);
  }
  CHECK(fit::shared_step(masked, 1, options, speed).seconds() == Approx(longest));

  constexpr fit::EncoderConfig plain{.layers = "(3)",
                                     .groups = 1,
                                     .tokens = 192,
                                     .channels = 8,
                                     .latents = 1,
                                     .data_dim = 32,
                                     .latent_dim = 8,
                                     .data_heads = 4,
                                     .latent_heads = 1,
                                     .data_key_heads = 2,
                                     .data_positions = fit::Positions::sin_cos};
  const fit::Cost of_plain = fit::cost<plain>(2, {.training = true, .by_groups = true});
  const double tokens = 4.0 * 2 * 192, weights = 2 * 0.75 * static_cast<double>(of_plain.weights);
  // Three blocks: keys and values of 16 numbers each, forward, and on the way back with gradients of as many.
  CHECK(fit::ring_step(plain, 2, 4, speed).sending == Approx(8 * (3 * 3 * tokens * 32 * 0.75 + weights) / 1e10));
  // Queries, keys, values and outputs: 32 + 16 + 16 + 32, of a fourth of the tokens; and their gradients.
  CHECK(fit::ulysses_step(plain, 2, 4, speed).sending == Approx(8 * (2 * 3 * tokens / 4 * 96 * 0.75 + weights) / 1e10));
  CHECK(fit::ring_step(plain, 2, 4, speed).computing ==
        Approx(static_cast<double>(of_plain.flops().total()) / 4 / 1e9));
  CHECK(fit::ring_step(plain, 2, 1, speed).sending == 0);
  CHECK_THROWS_AS(fit::ring_step(shared, 1, 2, speed), fit::Error);
  CHECK_THROWS_AS(fit::ulysses_step(plain, 1, 5, speed), fit::Error);
  CHECK_THROWS_AS(fit::ring_step(plain, 1, 0, speed), fit::Error);
  CHECK_THROWS_AS(fit::ring_step(plain, 1, 2, {0, 1}), fit::Error);
}
