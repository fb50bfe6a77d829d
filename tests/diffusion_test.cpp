#include <numeric>

#include <fit/fit.hpp>

#include "allocations.hpp"
#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;
using test::same_bits;
using test::values_of;

constexpr fit::DiffusionConfig config{.layers = "(2)1(1)2(1)",
                                      .groups = 6,
                                      .tokens = 10,
                                      .channels = 3,
                                      .latents = 3,
                                      .data_dim = 24,
                                      .latent_dim = 40,
                                      .data_heads = 2,
                                      .latent_heads = 4,
                                      .mlp_ratio = 2,
                                      .output_channels = 3,
                                      .condition_channels = 5,
                                      .self_conditioning = fit::SelfConditioning::latent,
                                      .cross_mlp = true};
using Decoder = fit::DiffusionDecoder<config>;

constexpr fit::DiffusionConfig small{.layers = "(1)1(1)",
                                     .groups = 3,
                                     .tokens = 4,
                                     .channels = 2,
                                     .latents = 2,
                                     .data_dim = 8,
                                     .latent_dim = 12,
                                     .data_heads = 2,
                                     .latent_heads = 2,
                                     .mlp_ratio = 1,
                                     .output_channels = 2,
                                     .condition_channels = 5,
                                     .self_conditioning = fit::SelfConditioning::latent};
constexpr fit::DiffusionConfig with_condition_tokens = [] {
  auto c = small;
  c.condition_tokens = 3;
  return c;
}();
constexpr fit::DiffusionConfig unconditioned = [] {
  auto c = small;
  c.condition_channels = 0;
  return c;
}();
constexpr fit::DiffusionConfig bare = [] {
  auto c = unconditioned;
  c.self_conditioning = fit::SelfConditioning::none;
  return c;
}();
using Small = fit::DiffusionDecoder<small>;

constexpr fit::DiffusionObjective objective{.prediction = fit::Prediction::v,
                                            .loss_on = fit::LossOn::velocity,
                                            .self_conditioning_rate = 0.5,
                                            .condition_drop = 0.3};

template <class Tensor>
Tensor random_values(Tensor tensor, std::uint64_t seed) {
  const auto values = test::normal_values<typename Tensor::Scalar>(tensor.size(), seed);
  std::copy(values.begin(), values.end(), tensor.data());
  return tensor;
}

/// All that a decoder and its loss are given.
template <class Model>
struct Batch {
  using T = typename Model::Scalar;
  static constexpr fit::DiffusionConfig c = Model::config;

  fit::Tensor<T, 4> x0, eps, previous;
  fit::Tensor<double, 1> times;
  fit::Tensor<T, Model::condition_rank> condition;

  explicit Batch(Index size, std::uint64_t seed = 3)
      : x0(random_values(fit::Tensor<T, 4>(size, Index{c.groups}, Index{c.tokens}, Index{c.channels}), seed)),
        eps(random_values(x0, seed + 1)),
        previous(
            random_values(fit::Tensor<T, 4>(size, Index{c.groups}, Index{c.latents}, Index{c.latent_dim}), seed + 2)),
        times(size),
        condition(random_values(conditions(size), seed + 3)) {
    for (Index b = 0; b < size; ++b) times(b) = (static_cast<double>(b) + 0.5) / static_cast<double>(size);
  }

  std::optional<typename Model::ConditionView> given() const {
    if constexpr (Model::has_condition) return typename Model::ConditionView(condition);
    return {};
  }
  /// The times as noise levels.
  typename Model::Inputs inputs() const {
    typename Model::Inputs result{x0, times, given(), {}};
    if (Model::has_previous) result.previous_latents = previous;
    return result;
  }

  static auto conditions(Index size) {
    if constexpr (Model::condition_rank == 3) {
      return fit::Tensor<T, 3>(size, Index{c.condition_tokens}, Index{c.condition_channels});
    } else {
      return fit::Tensor<T, 2>(size, Index{c.condition_channels});
    }
  }
};

template <class Model>
Model stirred() {
  Model model(fit::Random(5));
  test::stir(model);
  return model;
}

/// A run of training: its state and the memory of a step.
template <class Model>
struct Run {
  fit::Tape tape;
  fit::TrainingState<Model> state{.model = stirred<Model>(), .random = fit::Random(8)};
  fit::DiffusionLoss<Model> loss{objective};
  Model gradient;

  explicit Run(fit::Executor& executor) : tape(executor) { state.average = state.model; }

  double step(const Batch<Model>& batch, const fit::TrainingOptions& options) {
    fit::set_zero(gradient);
    const double value = loss(state.model, batch.x0, batch.eps, batch.times, batch.given(), gradient, tape, options,
                              state.random.split());
    fit::clip_gradient(gradient, 1.0, tape);
    state.optimizer.step(state.model, gradient, 1e-2, tape);
    fit::update_average(*state.average, state.model, 0.9, tape);
    ++state.step;
    return value;
  }
};

/// All that a few steps of training leave, one number after the other.
std::vector<float> train(fit::Executor& executor, const fit::TrainingOptions& options, int steps, Index size) {
  Run<Decoder> run(executor);
  const Batch<Decoder> batch(size);
  std::vector<float> seen;
  for (int step = 0; step < steps; ++step) {
    const double loss = run.step(batch, options);
    seen.push_back(static_cast<float>(loss));
    seen.push_back(static_cast<float>(loss - static_cast<double>(seen.back())));  // its last digits
    const auto values = values_of(run.gradient);
    seen.insert(seen.end(), values.begin(), values.end());
  }
  const auto values = values_of(run.state);
  seen.insert(seen.end(), values.begin(), values.end());
  return seen;
}

/// What a call throws, that has to leave the gradient and the tape's last forward as they were.
template <class Model, class Call>
std::string refused(const Model& model, const Batch<Model>& batch, Call&& call) {
  fit::Tape tape;
  Model expected, gradient;
  const auto forward = [&](Model& to, auto&& between) {
    tape.record();
    const auto views = model.forward(batch.inputs(), tape);
    const std::string text = between(views);
    model.backward({.prediction = batch.x0, .latents = batch.previous}, to, tape);
    return text;
  };
  forward(expected, [](const auto&) { return std::string(); });
  const std::string text = forward(gradient, [&](const auto&) { return test::error_of([&] { call(tape); }); });
  CHECK(same_bits(values_of(gradient), values_of(expected)));
  return text;
}

/// A loss's gradient is its slope, and there are samples.
template <fit::DiffusionConfig c>
void check_unconditioned() {
  using Model = fit::DiffusionDecoder<c, double>;
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const Batch<Model> batch(4);
  const Model model = stirred<Model>();
  Model gradient, unused;
  auto plain = objective;
  plain.self_conditioning_rate = 0;  // what comes of a first pass has no gradient
  fit::DiffusionLoss<Model> loss(plain);
  const auto value = [&](const Model& at, Model& to) {
    return loss(at, batch.x0, batch.eps, batch.times, {}, to, tape);
  };
  value(model, gradient);
  double slope = 0, sides[2];
  for (const int side : {0, 1}) {
    Model moved = model;
    fit::Random draw(8);
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto p, auto g) {
          for (Index i = 0; i < p.size; ++i) {
            const double direction = draw.normal();
            p.data[i] += (side == 0 ? -1e-6 : 1e-6) * direction;
            if (side == 0) slope += direction * g.data[i];
          }
        },
        moved, gradient);
    sides[side] = value(moved, unused);
  }
  CHECK(std::abs((sides[1] - sides[0]) / 2e-6 - slope) < 1e-6 * (1 + std::abs(slope)));
  CHECK(loss(model, batch.x0, batch.eps, batch.times, {}, tape) == value(model, unused));

  const auto samples = fit::sample(model, {.steps = 3, .prediction = fit::Prediction::v}, 5, fit::Random(1));
  CHECK(samples.dimension(0) == 5);
  CHECK(std::all_of(samples.data(), samples.data() + samples.size(), [](double x) { return std::isfinite(x); }));
}

}  // namespace

TEST_CASE("steps of diffusion training have the same bits for any number of threads", "[diffusion]") {
  const fit::TrainingOptions options{.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f};
  fit::Executor one(1);
  const auto expected = train(one, options, 3, 80);
  CHECK(std::all_of(expected.begin(), expected.end(), [](float value) { return std::isfinite(value); }));
  for (const int threads : {2, 3}) {
    INFO(threads << " threads");
    fit::Executor executor(threads);
    CHECK(same_bits(train(executor, options, 3, 80), expected));
  }
}

TEST_CASE("recompute changes no bit of diffusion training and takes less memory", "[diffusion]") {
  fit::Executor executor(2);
  fit::TrainingOptions options{.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f};
  const auto kept = train(executor, options, 2, 80);
  for (const fit::Recompute recompute : test::recomputes) {
    options.recompute = recompute;
    CHECK(same_bits(train(executor, options, 2, 80), kept));
  }

  std::size_t peaks[3] = {};
  const Batch<Decoder> batch(800);
  for (const fit::Recompute recompute : test::recomputes) {
    Run<Decoder> run(executor);
    run.step(batch, {.recompute = recompute});
    peaks[static_cast<int>(recompute)] = run.tape.peak();
  }
  CHECK(peaks[1] * 2 < peaks[0]);
  CHECK(peaks[2] < peaks[1]);
}

TEST_CASE("a step of diffusion training allocates nothing after the first", "[diffusion]") {
  for (const fit::Recompute recompute : test::recomputes) {
    fit::Executor executor(2);
    Run<Decoder> run(executor);
    const Batch<Decoder> batch(80);
    long before = 0;
    for (int step = 0; step < 4; ++step) {
      if (step == 1) before = test::allocations();
      run.step(batch, {.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f, .recompute = recompute});
    }
    INFO("recompute " << static_cast<int>(recompute));
    CHECK(test::allocations() - before == 0);
  }
}

TEST_CASE("a loss without a gradient is that of training without drop-outs", "[diffusion]") {
  fit::Executor executor(2);
  const auto model = stirred<Decoder>();
  const Batch<Decoder> batch(80);
  fit::DiffusionLoss<Decoder> loss(objective);
  Decoder gradient;
  fit::Tape training(executor), evaluating(executor);
  const auto trained = [&](std::uint64_t seed) {
    return loss(model, batch.x0, batch.eps, batch.times, batch.given(), gradient, training, {}, fit::Random(seed));
  };
  const auto evaluated = [&](const Batch<Decoder>& given, std::uint64_t seed) {
    return loss(model, given.x0, given.eps, given.times, given.given(), evaluating, fit::Random(seed));
  };
  const double expected = trained(1);
  CHECK(evaluated(batch, 1) == expected);
  CHECK(evaluated(batch, 2) == trained(2));
  CHECK(evaluated(batch, 2) != expected);
  const long before = test::allocations();
  CHECK(evaluated(batch, 1) == expected);
  CHECK(test::allocations() - before == 0);
  CHECK(!evaluating.recording());
  CHECK(evaluating.peak() * 3 < training.peak());  // there are no records
  CHECK(trained(1) == expected);

  auto wrong = batch;
  wrong.times(3) = 1.5;
  CHECK(test::contains(test::error_of([&] { evaluated(wrong, 1); }), "[0, 1], not 1.5"));
  CHECK(evaluated(Batch<Decoder>(0), 1) == 0);
}

TEST_CASE("a loss takes batches of any size one after the other", "[diffusion]") {
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto model = stirred<Small>();
  fit::DiffusionLoss<Small> used(objective);
  for (const Index size : {4, 2, 0, 5, 3}) {
    INFO(size);
    const Batch<Small> batch(size);
    fit::DiffusionLoss<Small> fresh(objective);
    Small gradient, expected;
    const auto run = [&](fit::DiffusionLoss<Small>& loss, Small& to) {
      return loss(model, batch.x0, batch.eps, batch.times, batch.given(), to, tape, {}, fit::Random(1));
    };
    CHECK(run(used, gradient) == run(fresh, expected));
    CHECK(same_bits(values_of(gradient), values_of(expected)));
  }
}

TEST_CASE("what the loss is told changes what it does", "[diffusion]") {
  fit::Executor executor(2);
  const Batch<Small> batch(8);
  const auto loss_of = [&](double rate, double drop, std::uint64_t seed) {
    Run<Small> run(executor);
    auto changed = objective;
    changed.self_conditioning_rate = rate;
    changed.condition_drop = drop;
    return fit::DiffusionLoss<Small>(changed)(run.state.model, batch.x0, batch.eps, batch.times, batch.given(),
                                              run.gradient, run.tape, {}, fit::Random(seed));
  };
  CHECK(loss_of(0, 0, 1) == loss_of(0, 0, 2));
  CHECK(loss_of(0.5, 0, 1) != loss_of(0, 0, 1));
  CHECK(loss_of(0.12, 0, 1) == loss_of(0, 0, 1));  // not one whole example
  CHECK(loss_of(0, 0.5, 1) != loss_of(0, 0, 1));
  CHECK(loss_of(0, 0.5, 1) != loss_of(0, 0.5, 2));

  // All conditions dropped are conditions of zero.
  Run<Small> run(executor);
  Batch<Small> zero = batch;
  zero.condition.setZero();
  auto never = objective;
  never.self_conditioning_rate = never.condition_drop = 0;
  CHECK(fit::DiffusionLoss<Small>(never)(run.state.model, zero.x0, zero.eps, zero.times, zero.given(), run.gradient,
                                         run.tape) == loss_of(0, 1, 1));
}

TEST_CASE("a decoder that is saved loads again to the bit, in either precision", "[diffusion]") {
  const test::TemporaryFolder folder;
  const Small model(fit::Random(1));
  fit::save(folder / "model", model);
  Small loaded;
  fit::load(folder / "model", loaded);
  CHECK(same_bits(values_of(loaded), values_of(model)));
  fit::DiffusionDecoder<small, double> wide;
  fit::load(folder / "model", wide);
  const auto exact = values_of(wide);
  CHECK(std::equal(exact.begin(), exact.end(), values_of(model).begin()));

  const fit::SafetensorsFile file(folder / "model");
  CHECK(file.metadata().at("config.kind") == "diffusion");
  CHECK(file.metadata().at("config.condition_channels") == "5");
  CHECK(file.metadata().at("config.self_conditioning") == "latent");
  CHECK(file.info("condition_projection.weight").shape == std::vector<Index>{12, 5});
  CHECK(file.info("time_embedding.fc1.weight").shape == std::vector<Index>{12, 3});
  CHECK(file.info("previous_latents.mlp.fc1.weight").shape == std::vector<Index>{12, 12});
}

TEST_CASE("a decoder's file of another configuration is refused", "[diffusion]") {
  const test::TemporaryFolder folder;
  fit::save(folder / "tokens", fit::DiffusionDecoder<with_condition_tokens>(fit::Random(1)));
  fit::save(folder / "bare", fit::DiffusionDecoder<bare>(fit::Random(1)));
  fit::save(folder / "encoder", fit::Encoder<fit::EncoderConfig{.layers = "(1)1(1)",
                                                                .groups = 3,
                                                                .tokens = 4,
                                                                .channels = 2,
                                                                .latents = 2,
                                                                .data_dim = 8,
                                                                .latent_dim = 12,
                                                                .data_heads = 2,
                                                                .latent_heads = 2}>(fit::Random(1)));
  Small model(fit::Random(2));
  const auto before = values_of(model);
  const auto error = [&](const char* name) { return test::error_of([&] { fit::load(folder / name, model); }); };
  // The parameters have the same names and shapes: the configuration alone tells the two apart.
  CHECK(test::contains(error("tokens"), R"(config.condition_tokens: expected "0", the file says "3")"));
  CHECK(!test::contains(error("tokens"), "missing"));
  for (const char* part :
       {R"(config.condition_channels: expected "5", the file says "0")",
        R"(config.self_conditioning: expected "latent", the file says "none")",
        "missing: condition_projection.weight [12, 5]", "missing: previous_latents_norm.weight [12]"}) {
    CHECK(test::contains(error("bare"), part));
  }
  CHECK(test::contains(error("encoder"), R"(config.kind: expected "diffusion", the file says "encoder")"));
  fit::TrainingState<Small> state;
  CHECK(test::contains(test::error_of([&] { fit::load(folder / "tokens", state); }), "the metadata lack state.step"));
  CHECK(same_bits(values_of(model), before));
}

TEST_CASE("diffusion training that is interrupted and resumed gives the bits of one that was not", "[diffusion]") {
  const test::TemporaryFolder folder;
  fit::Executor executor(2);
  const auto steps = [&](Run<Small>& run, int count) {
    for (int i = 0; i < count; ++i) {
      run.step(Batch<Small>(8, run.state.random.bits()), {.drop_path = 0.3f, .drop_units = 0.2f});
    }
  };
  Run<Small> whole(executor), first(executor), second(executor);
  steps(whole, 6);
  steps(first, 3);
  fit::save(folder / "state", first.state);
  fit::load(folder / "state", second.state);
  steps(second, 3);
  CHECK(same_bits(values_of(second.state), values_of(whole.state)));
  CHECK(second.state.step == 6);
  CHECK(second.state.optimizer.steps == 6);
  CHECK(second.state.random.counter() == whole.state.random.counter());
  CHECK(!same_bits(values_of(first.state), values_of(whole.state)));
}

TEST_CASE("inputs of another shape are errors that say what was expected", "[diffusion]") {
  const auto model = stirred<Small>();
  const Batch<Small> batch(4);
  const auto error = [&](auto&& change) {
    auto inputs = batch.inputs();
    change(inputs);
    const std::string text = refused(model, batch, [&](fit::Tape& tape) { model.forward(inputs, tape); });
    CHECK(refused(model, batch, [&](fit::Tape& tape) { model(inputs, tape); }) == text);
    return text;
  };
  using Inputs = Small::Inputs;
  const fit::Tensor<float, 4> noisy(4, 3, 5, 2), longer(5, 3, 4, 2), latents(4, 3, 2, 8), fewer_latents(3, 3, 2, 12);
  const fit::Tensor<double, 1> gamma(3);
  const fit::Tensor<float, 2> condition(4, 6), fewer(1, 5);
  CHECK(error([&](Inputs& i) { i.noisy = noisy; }) ==
        "the decoder's noisy input must have the shape [batch, 3, 4, 2], not [4, 3, 5, 2]");
  CHECK(error([&](Inputs& i) { i.noisy = longer; }) == "gamma must have the shape [5], not [4]");
  CHECK(error([&](Inputs& i) { i.gamma = gamma; }) == "gamma must have the shape [4], not [3]");
  CHECK(error([&](Inputs& i) { i.condition = condition; }) == "the condition must have the shape [4, 5], not [4, 6]");
  CHECK(error([&](Inputs& i) { i.condition = fewer; }) == "the condition must have the shape [4, 5], not [1, 5]");
  CHECK(error([&](Inputs& i) { i.condition.reset(); }) == "this decoder needs a condition");
  CHECK(error([&](Inputs& i) { i.previous_latents = latents; }) ==
        "the previous latents must have the shape [4, 3, 2, 12], not [4, 3, 2, 8]");
  CHECK(error([&](Inputs& i) { i.previous_latents = fewer_latents; }) ==
        "the previous latents must have the shape [4, 3, 2, 12], not [3, 3, 2, 12]");
  for (const double level : {-0.1, 1.1, std::nan("")}) {
    auto levels = batch.times;
    levels(2) = level;
    CHECK(test::contains(error([&](Inputs& i) { i.gamma = levels; }), "gamma must be in [0, 1]"));
  }

  // On a tape that does not record a forward pass is inference, and there is no way back.
  fit::Tape idle;
  const auto expected = model(batch.inputs());
  const auto views = model.forward(batch.inputs(), idle);
  CHECK(test::max_error(views.prediction.data(), expected.prediction.data(), expected.prediction.size()) == 0);
  Small gradient;
  CHECK(test::contains(test::error_of([&] { model.backward({}, gradient, idle); }), "does not find its forward"));
  CHECK(test::contains(test::error_of([&] {
                         model({batch.x0, fit::Tensor<double, 1>(3), batch.condition, batch.previous});
                       }),
                       "gamma must have the shape [4], not [3]"));
}

TEST_CASE("a decoder takes no more than its configuration has", "[diffusion]") {
  using Tokens = fit::DiffusionDecoder<with_condition_tokens>;
  const Tokens tokens(fit::Random(5));
  const Batch<Tokens> batch(4);
  auto inputs = batch.inputs();
  const fit::Tensor<float, 3> condition(4, 2, 5);
  inputs.condition = condition;
  CHECK(refused(tokens, batch, [&](fit::Tape& tape) { tokens.forward(inputs, tape); }) ==
        "the condition must have the shape [4, 3, 5], not [4, 2, 5]");

  using Bare = fit::DiffusionDecoder<bare>;
  const Bare alone(fit::Random(5));
  const Batch<Bare> plain(4);
  auto more = plain.inputs();
  const fit::Tensor<float, 2> vector(4, 5);
  more.condition = vector;
  CHECK(refused(alone, plain, [&](fit::Tape& tape) { alone.forward(more, tape); }) ==
        "this decoder takes no condition");
  more = plain.inputs();
  more.previous_latents = plain.previous;
  CHECK(refused(alone, plain, [&](fit::Tape& tape) { alone.forward(more, tape); }) ==
        "this decoder takes no previous latents");
}

TEST_CASE("gradients of another shape, and backward before forward, are errors", "[diffusion]") {
  const auto model = stirred<Small>();
  const Batch<Small> batch(4);
  Small gradient;
  const auto error = [&](const Small::OutputGradients& outputs, const Small::InputGradients& inputs) {
    return refused(model, batch, [&](fit::Tape& tape) { model.backward(outputs, gradient, tape, inputs); });
  };
  fit::Tensor<float, 4> wrong(3, 3, 4, 2);
  fit::Tensor<float, 2> condition(4, 6);
  CHECK(error({.prediction = wrong}, {}) ==
        "the gradient of the prediction must have the shape [4, 3, 4, 2], not [3, 3, 4, 2]");
  CHECK(error({.latents = wrong}, {}) ==
        "the gradient of the latents must have the shape [4, 3, 2, 12], not [3, 3, 4, 2]");
  CHECK(error({}, {.noisy = wrong}) ==
        "the gradient of the noisy input must have the shape [4, 3, 4, 2], not [3, 3, 4, 2]");
  CHECK(error({}, {.condition = condition}) == "the gradient of the condition must have the shape [4, 5], not [4, 6]");
  CHECK(error({}, {.previous_latents = wrong}) ==
        "the gradient of the previous latents must have the shape [4, 3, 2, 12], not [3, 3, 4, 2]");
  CHECK(same_bits(values_of(gradient), values_of(Small())));

  fit::Tape tape;
  tape.record();
  CHECK(test::contains(test::error_of([&] { model.backward({}, gradient, tape); }), "backward does not find"));
}

TEST_CASE("a gradient that was moved from is an error where its first part is a stage's", "[diffusion]") {
  static constexpr auto ends_with_latents = [] {
    auto c = bare;
    c.layers = "(1)1";
    return c;
  }();
  using Model = fit::DiffusionDecoder<ends_with_latents>;
  const Model decoder(fit::Random(1));
  Model gradient;
  const Model taken = std::move(gradient);
  const auto noisy = random_values(fit::Tensor<float, 4>(2, 3, 4, 2), 1);
  const auto latents = random_values(fit::Tensor<float, 4>(2, 3, 2, 12), 2);
  fit::Tensor<double, 1> gamma(2);
  gamma.setConstant(0.5);
  fit::Tape tape;
  tape.record();
  decoder.forward({.noisy = noisy, .gamma = gamma}, tape);
  CHECK(test::contains(test::error_of([&] { decoder.backward({.latents = latents}, gradient, tape); }), "moved away"));
}

TEST_CASE("a loss refuses wrong objectives and batches and leaves the gradient alone", "[diffusion]") {
  const auto error_of = [](auto&& change) {
    auto changed = objective;
    change(changed);
    return test::error_of([&] { fit::DiffusionLoss<Small>{changed}; });
  };
  using Objective = fit::DiffusionObjective;
  CHECK(test::contains(error_of([](Objective& o) { o.scale = 0; }), "scale"));
  CHECK(test::contains(error_of([](Objective& o) { o.self_conditioning_rate = 1.1; }), "self-conditioning rate"));
  CHECK(test::contains(error_of([](Objective& o) { o.condition_drop = -0.1; }), "dropped conditions"));
  CHECK(test::contains(error_of([](Objective& o) { o.x0_clip = fit::Range{1, 1}; }), "low < high"));
  CHECK(test::contains(error_of([](Objective& o) { o.schedule = fit::RectifiedFlow{}; }), "not with v"));

  const auto model = stirred<Small>();
  const Batch<Small> batch(4);
  Small gradient;
  fit::DiffusionLoss<Small> loss(objective);
  const auto error = [&](const Batch<Small>& given, const fit::Tensor<float, 2>* condition) {
    return refused(model, batch, [&](fit::Tape& tape) {
      std::optional<Small::ConditionView> view;
      if (condition) view = *condition;
      loss(model, given.x0, given.eps, given.times, view, gradient, tape);
    });
  };
  auto changed = batch;
  changed.x0 = fit::Tensor<float, 4>(4, 3, 4, 1);
  CHECK(error(changed, &batch.condition) == "x0 must have the shape [batch, 3, 4, 2], not [4, 3, 4, 1]");
  changed = batch;
  changed.eps = fit::Tensor<float, 4>(3, 3, 4, 2);
  CHECK(error(changed, &batch.condition) == "eps must have the shape [4, 3, 4, 2], not [3, 3, 4, 2]");
  changed = batch;
  changed.times = fit::Tensor<double, 1>(5);
  CHECK(error(changed, &batch.condition) == "t must have the shape [4], not [5]");
  changed = batch;
  changed.times(3) = 1.5;
  CHECK(test::contains(error(changed, &batch.condition), "[0, 1], not 1.5"));
  for (const auto& [rows, columns] : {std::pair{4, 6}, {1, 5}, {3, 5}, {5, 5}}) {
    const fit::Tensor<float, 2> condition(rows, columns);
    CHECK(error(batch, &condition) == "the condition must have the shape [4, 5], not [" + std::to_string(rows) + ", " +
                                          std::to_string(columns) + "]");
  }
  CHECK(error(batch, nullptr) == "this decoder needs a condition");
  CHECK(same_bits(values_of(gradient), values_of(Small())));
}

TEST_CASE("an empty batch passes through a decoder and its loss", "[diffusion]") {
  const auto model = stirred<Small>();
  const Batch<Small> none(0);
  const auto output = model({none.x0, fit::Tensor<double, 1>(0), none.condition, none.previous});
  CHECK(output.prediction.dimensions() == Eigen::DSizes<Index, 4>(0, 3, 4, 2));
  CHECK(output.latents.dimensions() == Eigen::DSizes<Index, 4>(0, 3, 2, 12));
  fit::Executor executor(2);
  Run<Small> run(executor);
  CHECK(run.step(none, {.drop_path = 0.5f, .recompute = fit::Recompute::stage}) == 0);
  CHECK(same_bits(values_of(run.gradient), values_of(Small())));
}

TEST_CASE("what a denoiser makes of an example does not depend on its batch", "[diffusion]") {
  const Decoder decoder(fit::Random(5));
  fit::Tape tape;
  const auto whole = decoder(Batch<Decoder>(80).inputs(), tape);
  auto one = Batch<Decoder>(1);
  one.times(0) = Batch<Decoder>(80).times(0);
  // The random numbers of a smaller batch begin those of a larger one.
  const auto first = decoder(one.inputs(), tape);
  CHECK(test::max_error(first.prediction.data(), whole.prediction.data(), first.prediction.size()) == 0);
  CHECK(test::max_error(first.latents.data(), whole.latents.data(), first.latents.size()) == 0);
}

TEST_CASE("decoders without a condition are trained and sampled", "[diffusion]") {
  check_unconditioned<bare>();
  check_unconditioned<unconditioned>();
}

TEST_CASE("the way back from the latents alone is that from both with a prediction that counts nothing",
          "[diffusion]") {
  const auto model = stirred<Small>();
  const Batch<Small> batch(4);
  fit::Executor executor(2);
  fit::Tape tape(executor);
  const auto run = [&](bool both) {
    tape.record();
    const auto views = model.forward(batch.inputs(), tape);
    const fit::Tensor<float, 4> nothing(views.prediction.dimensions());
    Small gradient;
    Small::OutputGradients outputs{.latents = views.latents};
    if (both) outputs.prediction = nothing;
    fit::Tensor<float, 4> noisy(batch.x0.dimensions());
    model.backward(outputs, gradient, tape, {.noisy = noisy});
    auto values = values_of(gradient);
    values.insert(values.end(), noisy.data(), noisy.data() + noisy.size());
    return values;
  };
  const auto alone = run(false);
  CHECK(same_bits(alone, run(true)));
  CHECK(std::any_of(alone.begin(), alone.end(), [](float value) { return value != 0; }));
}

TEST_CASE("a decoder's loss by groups is that of its predictions, with the gradients and the latents", "[diffusion]") {
  constexpr Index batch = 80;  // two chunks of groups
  constexpr Index input_size = Index{config.tokens} * config.channels;
  const auto model = stirred<Decoder>();
  const Batch<Decoder> given(batch);
  fit::Tape tape;
  // Half the squared length of the prediction, whose gradient that is.
  const auto inferred = model(given.inputs(), tape);
  double squares = 0;
  for (Index i = 0; i < inferred.prediction.size(); ++i) {
    squares += 0.5 * std::pow(static_cast<double>(inferred.prediction.data()[i]), 2);
  }
  tape.record();
  const auto views = model.forward(given.inputs(), tape);
  Decoder expected;
  fit::Tensor<float, 4> noisy_gradient(given.x0.dimensions());
  model.backward({.prediction = views.prediction}, expected, tape, {.noisy = noisy_gradient});

  fit::Tensor<float, 4> told(given.x0.dimensions()), predictions(inferred.prediction.dimensions());
  fit::GroupSource<float> source{.batch = batch, .groups = config.groups};
  source.fill = [&](Index first, Index count, float* to) {
    std::copy_n(given.x0.data() + first * input_size, count * input_size, to);
  };
  source.gradient = [&](Index first, Index count, const float* from) {
    std::copy_n(from, count * input_size, told.data() + first * input_size);
  };
  const fit::GroupLoss<float> loss = [&](Index first, Index count, const float* prediction, float* to) {
    std::copy_n(prediction, count * input_size, predictions.data() + first * input_size);
    if (to) std::copy_n(prediction, count * input_size, to);
    double share = 0;
    for (Index i = 0; i < count * input_size; ++i) share += 0.5 * std::pow(static_cast<double>(prediction[i]), 2);
    return share;
  };
  auto latents = given.previous;  // in the place of the previous ones
  const Decoder::GroupInputs inputs{source, given.times, given.given(), given.previous, latents};
  const Decoder::GroupInputs in_place{source, given.times, given.given(), latents, latents};
  CHECK(model.loss(in_place, loss, tape) == Approx(squares).epsilon(1e-9));
  CHECK(test::max_error(latents.data(), inferred.latents.data(), latents.size()) == 0);
  CHECK(test::max_error(predictions.data(), inferred.prediction.data(), predictions.size()) == 0);
  for (const fit::Recompute recompute : test::recomputes) {
    Decoder gradient;
    latents.setZero();
    CHECK(model.loss(inputs, loss, gradient, tape, {.recompute = recompute}) == Approx(squares).epsilon(1e-9));
    CHECK(test::max_error(latents.data(), inferred.latents.data(), latents.size()) == 0);
    const auto values = values_of(gradient), wanted = values_of(expected);
    CHECK(test::relative_error(values.data(), wanted.data(), std::ssize(wanted)) < 1e-5);
    CHECK(test::relative_error(told.data(), noisy_gradient.data(), told.size()) < 1e-5);
  }

  const auto error = [&](const Decoder::GroupInputs& wrong, const fit::GroupLoss<float>& of) {
    Decoder gradient;
    const std::string text = test::error_of([&] { model.loss(wrong, of, gradient, tape); });
    CHECK(test::error_of([&] { model.loss(wrong, of, tape); }) == text);
    CHECK(same_bits(values_of(gradient), values_of(Decoder())));
    return text;
  };
  CHECK(test::contains(error(inputs, {}), "a loss by groups needs a function"));
  CHECK(test::contains(error({{.batch = batch, .groups = 6}, given.times, given.given()}, loss), "that fills them"));
  auto wrong = source;
  wrong.groups = 7;
  CHECK(test::contains(error({wrong, given.times, given.given()}, loss), "6 groups for an example, not 7"));
  wrong = source;
  wrong.batch = 79;
  CHECK(test::contains(error({wrong, given.times, given.given()}, loss), "gamma must have the shape [79], not [80]"));
  CHECK(test::contains(error({source, given.times}, loss), "needs a condition"));
  const fit::Tensor<float, 4> three(3, 6, 3, 40);
  fit::Tensor<float, 4> other(80, 6, 3, 41);
  CHECK(test::contains(error({source, given.times, given.given(), three}, loss), "the previous latents must have"));
  CHECK(test::contains(error({source, given.times, given.given(), {}, other}, loss), "the latents must have"));
}

TEST_CASE("a diffusion loss of sources has the bits of that of tensors", "[diffusion]") {
  constexpr Index batch = 80, size = Index{config.tokens} * config.channels;
  const auto model = stirred<Decoder>();
  const Batch<Decoder> given(batch);
  fit::Executor executor(2);
  fit::Tape tape(executor);
  fit::DiffusionLoss<Decoder> loss(objective), other(objective);
  const auto source_of = [&](const fit::Tensor<float, 4>& from) {
    fit::GroupSource<float> source{.batch = batch, .groups = config.groups};
    source.fill = [&](Index first, Index count, float* to) {
      std::copy_n(from.data() + first * size, count * size, to);
    };
    return source;
  };
  const fit::DiffusionLoss<Decoder>::Sources sources{source_of(given.x0), source_of(given.eps), given.times,
                                                     given.given()};
  const fit::Random random(9);
  CHECK(loss(model, sources, tape, random) ==
        other(model, given.x0, given.eps, given.times, given.given(), tape, random));
  for (const fit::Recompute recompute : test::recomputes) {
    const fit::TrainingOptions options{.drop_path = 0.2f, .recompute = recompute};
    Decoder gradient, expected;
    Index back = 0;
    const auto watch = [&](const fit::PassProgress& at) { back += at.backward && at.stage == 0 && at.done == at.all; };
    CHECK(loss(model, sources, gradient, tape, options, random, watch) ==
          other(model, given.x0, given.eps, given.times, given.given(), expected, tape, options, random));
    CHECK(same_bits(values_of(gradient), values_of(expected)));
    CHECK(back == 2);  // its groups, and its latents
  }
  const auto error = [&](auto&& change) {
    auto wrong = sources;
    change(wrong);
    Decoder gradient;
    const std::string text = test::error_of([&] { loss(model, wrong, gradient, tape); });
    CHECK(same_bits(values_of(gradient), values_of(Decoder())));
    return text;
  };
  using Sources = fit::DiffusionLoss<Decoder>::Sources;
  CHECK(test::contains(error([](Sources& s) { s.eps.fill = {}; }), "a source of eps that fills groups"));
  CHECK(test::contains(error([](Sources& s) { s.x0.fill = {}; }), "a function that fills them"));
  CHECK(test::contains(error([](Sources& s) { s.x0.gradient = [](Index, Index, const float*) {}; }), "no gradient"));
  CHECK(test::contains(error([](Sources& s) { s.eps.batch = 3; }), "80 x 6 groups, not 3 x 6"));
  CHECK(test::contains(error([](Sources& s) { s.x0.groups = s.eps.groups = 5; }), "6 groups for an example, not 5"));
  CHECK(test::contains(error([](Sources& s) { s.x0.batch = s.eps.batch = -1; }), "negative"));
  CHECK(test::contains(error([](Sources& s) { s.x0.batch = s.eps.batch = 79; }), "t must have the shape [79]"));
}
