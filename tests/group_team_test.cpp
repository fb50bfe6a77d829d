// The groups of every example over a team: the numbers of one that is alone, but for rounding, and the same bits
// wherever the team's members are.
#include <fit/core/turns.hpp>
#include <fit/fit.hpp>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index, fit::IndexRange, fit::Team;

/// A team whose messages arrive when they are waited for, and not before.
class Late final : public Team {
 public:
  explicit Late(Team& team) : team_(team) {}

  int rank() const override { return team_.rank(); }
  int size() const override { return team_.size(); }
  void exchange(std::span<const Message> sends, std::span<const Message> receives) override {
    finish(start(sends, receives));
  }
  Index start(std::span<const Message> sends, std::span<const Message> receives) override {
    for (const Message& message : receives) {
      for (Index i = 0; i < message.rows; ++i) std::memset(message.row(i), 0xff, message.bytes);  // not-a-number
    }
    started_.push_back({{sends.begin(), sends.end()}, {receives.begin(), receives.end()}});
    return std::ssize(started_);
  }
  /// What was started before goes first, as the others expect it first.
  void finish(Index started) override {
    for (; finished_ < started; ++finished_) {
      const auto& [sends, receives] = started_[static_cast<std::size_t>(finished_)];
      team_.exchange(sends, receives);
    }
  }

 private:
  struct Started {
    std::vector<Message> sends, receives;
  };

  Team& team_;
  std::vector<Started> started_;
  Index finished_ = 0;
};

/// What a pass comes to: its output, zero where other members have it, its loss, and the gradient of all parameters.
template <class T>
struct Result {
  std::vector<T> output;
  double loss = 0;
  std::vector<T> gradient;
};

/// pass(tape, gradient, result) alone, or by `leaves` members of a team that are dealt to `outer` ones.
template <class Model, class Pass>
Result<typename Model::Scalar> run(Index leaves, int outer, Pass&& pass) {
  using T = typename Model::Scalar;
  Result<T> all;
  if (leaves == 0) {
    fit::Tape tape;
    Model gradient;
    pass(tape, gradient, all);
    all.gradient = test::values_of(gradient);
    return all;
  }
  fit::Solo solo;
  std::vector<double> losses;
  fit::take_turns(solo, outer, [&](Team& processes, Index) {
    const IndexRange own = fit::share_of(leaves, processes.rank(), processes.size());
    std::vector<Model> gradients(static_cast<std::size_t>(own.count));
    fit::take_turns(processes, leaves, [&](Team& member, Index number) {
      Late team(member);
      fit::Executor executor(1 + static_cast<int>(number + outer) % 2);
      fit::Tape tape(executor, team);
      Result<T> result;
      pass(tape, gradients[static_cast<std::size_t>(number - own.first)], result);
      all.output.resize(result.output.size());
      for (std::size_t i = 0; i < result.output.size(); ++i) all.output[i] += result.output[i];
      losses.push_back(result.loss);
    });
    fit::Workspace workspace;
    fit::GradientTree<Model> tree(leaves, own);
    for (Model& gradient : gradients) tree.add(gradient, workspace);
    const fit::detail::Shards shards(Model(), processes.size());
    Model& sum = fit::detail::add_over(processes, shards, tree, workspace);
    fit::detail::gather_elements(processes, shards, sum, workspace);
    all.gradient = test::values_of(sum);
  });
  for (const double loss : losses) CHECK(loss == losses[0]);
  all.loss = losses[0];
  return all;
}

/// `in_double` and `in_float` are passes; the first draws nothing.
template <class Wide, class Narrow, class InDouble, class InFloat>
void check(std::initializer_list<Index> teams, InDouble&& in_double, InFloat&& in_float) {
  const auto alone = run<Wide>(0, 1, in_double);
  for (const Index leaves : teams) {
    INFO(leaves << " members");
    const auto together = run<Wide>(leaves, 1, in_double);
    REQUIRE(together.output.size() == alone.output.size());
    CHECK(test::relative_error(together.output.data(), alone.output.data(), static_cast<Index>(alone.output.size())) <
          1e-12);
    CHECK(together.loss == Approx(alone.loss).epsilon(1e-12));
    CHECK(test::relative_error(together.gradient.data(), alone.gradient.data(),
                               static_cast<Index>(alone.gradient.size())) < 1e-11);
    const auto in_one = run<Narrow>(leaves, 1, in_float);
    for (int outer = 2; outer <= leaves; ++outer) {
      INFO(outer << " processes");
      const auto spread = run<Narrow>(leaves, outer, in_float);
      CHECK(test::same_bits(spread.output, in_one.output));
      CHECK(test::same_bits(spread.gradient, in_one.gradient));
      CHECK(spread.loss == in_one.loss);
    }
  }
}

/// This member's groups of a tensor [batch, groups, ...], and back among zeros.
template <auto config, class T, int rank>
fit::Tensor<T, rank> share(const fit::Tensor<T, rank>& whole, const Team* team) {
  if (!team) return whole;
  auto shape = whole.dimensions();
  const Index all = shape[1], size = whole.size() / std::max<Index>(1, shape[0] * all);
  const IndexRange own = fit::share_of_groups(config, all, team->rank(), team->size());
  shape[1] = own.count;
  fit::Tensor<T, rank> part(shape);
  for (Index b = 0; b < shape[0]; ++b) {
    std::copy_n(whole.data() + (b * all + own.first) * size, own.count * size, part.data() + b * own.count * size);
  }
  return part;
}
template <auto config, class T>
void put(const fit::TensorView<const T, 4>& part, Index all, const Team* team, std::vector<T>& output) {
  const Index batch = part.dimension(0), groups = part.dimension(1), size = part.dimension(2) * part.dimension(3);
  const IndexRange own = team ? fit::share_of_groups(config, all, team->rank(), team->size()) : IndexRange{0, all};
  const auto before = output.size();
  output.resize(before + static_cast<std::size_t>(batch * all * size));
  for (Index b = 0; b < batch; ++b) {
    std::copy_n(part.data() + b * groups * size, groups * size,
                output.data() + static_cast<Index>(before) + (b * all + own.first) * size);
  }
}

template <class T, class... Counts>
auto noise(std::uint64_t seed, Counts... counts) {
  fit::Tensor<T, static_cast<int>(sizeof...(Counts))> tensor(Index{counts}...);
  const auto values = test::normal_values<T>(tensor.size(), seed);
  std::copy(values.begin(), values.end(), tensor.data());
  return tensor;
}

template <class Model>
Model stirred() {
  Model model(fit::Random(3));
  test::stir(model);
  return model;
}

constexpr fit::TrainingOptions drops{.drop_path = 0.2f, .drop_units = 0.1f, .drop_attention = 0.1f};
constexpr Index groups = 5;

constexpr fit::EncoderConfig with(fit::Positions positions, fit::LatentMask mask, int count = groups) {
  return {.layers = "(1)2(1)1(1)",
          .groups = count,
          .tokens = 7,
          .channels = 3,
          .latents = 2,
          .data_dim = 12,
          .latent_dim = 24,
          .data_heads = 2,
          .latent_heads = 4,
          .latent_key_heads = 2,
          .latent_positions = positions,
          .mask = mask};
}

constexpr fit::AutoregressiveConfig causal{.layers = "(1)2(1)1(1)",
                                           .groups = groups,
                                           .tokens = 6,
                                           .latents = 64,  // so many that later groups are much more work
                                           .data_dim = 12,
                                           .latent_dim = 24,
                                           .data_heads = 2,
                                           .latent_heads = 4,
                                           .vocabulary = 11};
constexpr fit::DiffusionConfig denoiser{.layers = "(1)2(1)1(1)",
                                        .groups = groups,
                                        .tokens = 7,
                                        .channels = 3,
                                        .latents = 2,
                                        .data_dim = 12,
                                        .latent_dim = 24,
                                        .data_heads = 2,
                                        .latent_heads = 4,
                                        .output_channels = 3,
                                        .condition_channels = 4,
                                        .self_conditioning = fit::SelfConditioning::latent};

template <fit::EncoderConfig config>
void check_encoder(fit::Recompute recompute) {
  const auto pass = [&]<class T>(const fit::TrainingOptions& options, T) {
    using Model = fit::Encoder<config, T>;
    return [options, model = stirred<Model>(), input = noise<T>(1, Index{2}, groups, 7, 3),
            data_slopes = noise<T>(2, Index{2}, groups, 7, 12),
            slopes = noise<T>(3, Index{2}, groups, 2, 24)](fit::Tape& tape, Model& gradient, Result<T>& result) {
      const auto own = share<config>(input, tape.team());
      tape.record(options, fit::Random(9));
      const auto output = model.forward(own, tape);
      put<config>(output.data, groups, tape.team(), result.output);
      put<config>(output.latents, groups, tape.team(), result.output);
      const auto own_data = share<config>(data_slopes, tape.team()), own_latents = share<config>(slopes, tape.team());
      fit::Tensor<T, 4> input_gradient(own.dimensions());
      model.backward({.data = own_data, .latents = own_latents}, gradient, tape, {.input = input_gradient});
      put<config>(fit::TensorView<const T, 4>(input_gradient), groups, tape.team(), result.output);
      // And a loss by groups, at inference and in training.
      const fit::GroupSource<T> source{.batch = 2, .groups = groups, .fill = [&](Index first, Index count, T* to) {
                                         std::copy_n(input.data() + first * 21, count * 21, to);
                                       }};
      const fit::GroupLoss<T> loss = [&](Index first, Index count, const T* from, T* to) {
        double sum = 0;
        for (Index i = 0; i < count * 84; ++i) {
          const T weight = data_slopes.data()[first * 84 + i];
          sum += static_cast<double>(weight * from[i]);
          if (to) to[i] = weight;
        }
        return sum;
      };
      result.loss = model.loss(source, loss, tape);
      result.loss += model.loss(source, loss, gradient, tape, options, fit::Random(8));
    };
  };
  check<fit::Encoder<config, double>, fit::Encoder<config, float>>({2, 3, 5}, pass({.recompute = recompute}, 1.0), [&] {
    fit::TrainingOptions options = drops;
    options.recompute = recompute;
    return pass(options, 1.0f);
  }());
}

/// A team that counts what its member sends.
class Counting final : public Team {
 public:
  explicit Counting(Team& team) : team_(team) {}

  int rank() const override { return team_.rank(); }
  int size() const override { return team_.size(); }
  void exchange(std::span<const Message> sends, std::span<const Message> receives) override {
    for (const Message& message : sends) sent += static_cast<Index>(message.size());
    team_.exchange(sends, receives);
  }

  Index sent = 0;

 private:
  Team& team_;
};

/// The memory and the messages of each member's pass(model, share of groups, tape, gradient) are what the cost says.
template <class Model, class Pass>
void check_cost(Index batch, fit::CostOptions options, Pass&& pass) {
  const auto model = stirred<Model>();
  fit::Solo solo;
  for (const int members : {2, 3, 5}) {
    fit::take_turns(solo, members, [&](Team& team, Index number) {
      fit::Executor executor(2);
      Counting counting(team);
      fit::Tape tape(executor, counting);
      Model gradient;
      options.members = members;
      options.member = static_cast<int>(number);
      options.threads = 2;
      const fit::Cost cost = fit::cost_of<typename Model::Scalar>(Model::config, batch, options);
      tape.reserve(cost.arenas);
      const std::size_t reserved = tape.capacity();
      pass(model, fit::share_of_groups(Model::config, groups, number, members).count, tape, gradient);
      CAPTURE(members, number, batch, static_cast<int>(options.options.recompute), options.training);
      CHECK(static_cast<Index>(tape.peak()) == cost.tape);
      CHECK(tape.capacity() == reserved);
      CHECK(counting.sent == cost.sent);
    });
  }
}

}  // namespace

TEST_CASE("an encoder over a team is the one that is alone", "[group_team]") {
  using fit::LatentMask, fit::Positions;
  for (const fit::Recompute recompute : test::recomputes) {
    check_encoder<with(Positions::learned, LatentMask::none)>(recompute);
    check_encoder<with(Positions::sin_cos, LatentMask::causal)>(recompute);
  }
  check_encoder<with(Positions::shared_sin_cos, LatentMask::none, fit::any)>(fit::Recompute::none);
}

TEST_CASE("under a mask members have groups of equal work, not of equal number", "[group_team]") {
  CHECK(fit::share_of_groups(causal, groups, 0, 2) == IndexRange{0, 3});
  CHECK(fit::share_of_groups(denoiser, groups, 0, 2) == IndexRange{0, 2});
  // By what the cost model counts: far from even in equal numbers, near to it as they are.
  auto long_one = causal;
  long_one.groups = 200;
  double least = 1e30, most = 0;
  for (int member = 0; member < 4; ++member) {
    const auto flops = static_cast<double>(
        fit::cost_of(long_one, 1, {.training = true, .members = 4, .member = member}).flops().total());
    least = std::min(least, flops);
    most = std::max(most, flops);
  }
  CHECK(most < 1.1 * least);
  const IndexRange last = fit::share_of_groups(long_one, 200, 3, 4);
  CHECK(last.count < 35);
  // Where most of the work is that of the logits, in equal numbers after all.
  long_one.vocabulary = 1'000'000'000;
  CHECK(fit::share_of_groups(long_one, 200, 3, 4).count == 50);
}

TEST_CASE("keys and values come by parts of their heads", "[group_team]") {
  constexpr Index rows = 192, width = 1024, dim = 16;
  struct Layer : fit::nn::Attention<float, dim, dim, width, 8, 4> {
    using Scalar = float;
  };
  Layer layer;
  fit::nn::initialise(layer, fit::Random(1));
  const auto input = noise<float>(2, rows, dim), slopes = noise<float>(3, rows, dim);
  const auto mask = fit::kernels::Mask::chunk_causal(3);
  fit::Tensor<float, 2> alone(rows, dim), alone_gradient(rows, dim);
  Layer expected;
  fit::Tape tape;
  tape.record();
  fit::nn::forward(layer, input.data(), input.data(), alone.data(), {1, rows, rows, mask}, {}, {}, tape);
  fit::nn::backward(layer, slopes.data(), alone_gradient.data(), static_cast<float*>(nullptr), expected,
                    {1, rows, rows, mask}, tape);
  for (const int threads : {1, 2, 3, 8}) {
    fit::Tensor<float, 2> together(rows, dim), gradient(rows, dim);
    Layer sum;
    fit::Solo solo;
    fit::take_turns(solo, 2, [&](Team& member, Index) {
      Late team(member);
      fit::Executor executor(threads);
      fit::Tape own_tape(executor);
      own_tape.record();
      const fit::nn::Spread spread{&team, 3, rows / 3};
      CHECK(fit::nn::detail::SpreadKeys(spread, {.heads = 8, .head_width = 128, .sharing = 2}).parts() > 1);
      const IndexRange own = spread.rows_of(team.rank());
      const Index at = own.first * dim;
      const fit::nn::AttentionLengths lengths{1, own.count, own.count, mask, spread};
      fit::nn::forward(layer, input.data() + at, input.data() + at, together.data() + at, lengths, {}, {}, own_tape);
      Layer part;
      fit::nn::backward(layer, slopes.data() + at, gradient.data() + at, static_cast<float*>(nullptr), part, lengths,
                        own_tape);
      fit::detail::add_gradient(sum, part, own_tape);
    });
    INFO(threads << " threads");
    CHECK(test::relative_error(together.data(), alone.data(), rows * dim) < 1e-5);
    CHECK(test::relative_error(gradient.data(), alone_gradient.data(), rows * dim) < 1e-5);
    const auto found = test::values_of(sum), wanted = test::values_of(expected);
    CHECK(test::relative_error(found.data(), wanted.data(), static_cast<Index>(found.size())) < 1e-5);
  }
}

TEST_CASE("an autoregressive decoder over a team is the one that is alone", "[group_team]") {
  fit::Tensor<std::int32_t, 3> ids(2, groups, 6);
  for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>((i * i + i / 3) % 11);
  for (const fit::Recompute recompute : test::recomputes) {
    const auto pass = [&]<class T>(fit::TrainingOptions options, T) {
      using Model = fit::AutoregressiveDecoder<causal, T>;
      options.recompute = recompute;
      return [&ids, options, model = stirred<Model>(), slopes = noise<T>(2, Index{2}, groups, 6, 11)](
                 fit::Tape& tape, Model& gradient, Result<T>& result) {
        const auto own = share<causal>(ids, tape.team());
        tape.record(options, fit::Random(9));
        put<causal>(model.forward(own, tape), groups, tape.team(), result.output);
        model.backward(share<causal>(slopes, tape.team()), gradient, tape);
        result.loss = model.loss(ids, tape);
        result.loss += model.loss(ids, gradient, tape, options, fit::Random(8));
      };
    };
    check<fit::AutoregressiveDecoder<causal, double>, fit::AutoregressiveDecoder<causal, float>>(
        {2, 4, 5}, pass({}, 1.0), pass(drops, 1.0f));
  }
}

TEST_CASE("a diffusion decoder over a team is the one that is alone", "[group_team]") {
  fit::Tensor<double, 1> gamma(2);
  gamma(0) = 0.3;
  gamma(1) = 0.8;
  for (const fit::Recompute recompute : test::recomputes) {
    const auto pass = [&]<class T>(fit::TrainingOptions options, T) {
      using Model = fit::DiffusionDecoder<denoiser, T>;
      options.recompute = recompute;
      return [&gamma, options, model = stirred<Model>(), noisy = noise<T>(1, Index{2}, groups, 7, 3),
              condition = noise<T>(2, Index{2}, 4), previous = noise<T>(3, Index{2}, groups, 2, 24),
              slopes = noise<T>(4, Index{2}, groups, 7, 3), latent_slopes = noise<T>(5, Index{2}, groups, 2, 24)](
                 fit::Tape& tape, Model& gradient, Result<T>& result) {
        const auto own = share<denoiser>(noisy, tape.team()), own_previous = share<denoiser>(previous, tape.team());
        tape.record(options, fit::Random(9));
        const auto output = model.forward(
            {.noisy = own, .gamma = gamma, .condition = condition, .previous_latents = own_previous}, tape);
        put<denoiser>(output.prediction, groups, tape.team(), result.output);
        put<denoiser>(output.latents, groups, tape.team(), result.output);
        const auto own_slopes = share<denoiser>(slopes, tape.team()),
                   own_latents = share<denoiser>(latent_slopes, tape.team());
        model.backward({.prediction = own_slopes, .latents = own_latents}, gradient, tape);
      };
    };
    check<fit::DiffusionDecoder<denoiser, double>, fit::DiffusionDecoder<denoiser, float>>({2, 3}, pass({}, 1.0),
                                                                                           pass(drops, 1.0f));
  }
}

TEST_CASE("a diffusion loss over a team is the one that is alone", "[group_team]") {
  fit::Tensor<double, 1> times(2);
  times(0) = 0.3;
  times(1) = 0.8;
  const auto pass = [&]<class T>(const fit::TrainingOptions& options, T) {
    using Model = fit::DiffusionDecoder<denoiser, T>;
    return [&times, options, model = stirred<Model>(), x0 = noise<T>(1, Index{2}, groups, 7, 3),
            eps = noise<T>(2, Index{2}, groups, 7, 3),
            condition = noise<T>(3, Index{2}, 4)](fit::Tape& tape, Model& gradient, Result<T>& result) {
      fit::DiffusionLoss<Model> loss({.self_conditioning_rate = 0.5, .condition_drop = 0.4});
      result.loss = loss(model, x0, eps, times, condition, tape, fit::Random(4));
      result.loss += loss(model, x0, eps, times, condition, gradient, tape, options, fit::Random(4));
    };
  };
  check<fit::DiffusionDecoder<denoiser, double>, fit::DiffusionDecoder<denoiser, float>>({2, 3}, pass({}, 1.0),
                                                                                         pass(drops, 1.0f));
}

TEST_CASE("leaves of a process cannot share a diffusion loss", "[group_team]") {
  using Model = fit::DiffusionDecoder<denoiser>;
  const auto model = stirred<Model>();
  const auto x0 = noise<float>(1, Index{2}, groups, 7, 3);
  const auto condition = noise<float>(3, Index{2}, 4);
  fit::Tensor<double, 1> times(2);
  times.setConstant(0.5);
  fit::DiffusionLoss<Model> loss({.self_conditioning_rate = 0.5});
  const auto together = [&] {
    fit::Solo solo;
    fit::take_turns(solo, 2, [&](Team& team, Index) {
      fit::Tape tape(fit::default_executor(), team);
      loss(model, x0, x0, times, condition, tape);
    });
  };
  CHECK(test::error_of(together) ==
        "a diffusion loss is called in the middle of another call: leaves of a process need one each");
  fit::Tape tape;
  CHECK(loss(model, x0, x0, times, condition, tape) > 0);  // it goes on
}

TEST_CASE("a team samples what one that is alone does", "[group_team]") {
  for (const fit::Sampler method : {fit::Sampler::ddim, fit::Sampler::ddpm_small}) {
    const auto pass = [&]<class T>(T) {
      using Model = fit::DiffusionDecoder<denoiser, T>;
      return [method, model = stirred<Model>(), condition = noise<T>(2, Index{3}, 4)](fit::Tape& tape, Model&,
                                                                                      Result<T>& result) {
        const Team* const team = tape.team();
        const Index first = team ? fit::share_of_groups(denoiser, groups, team->rank(), team->size()).first : 0;
        const auto samples = fit::sample(
            model, {.steps = 4, .method = method, .guidance = 1, .latent_decay = 0.3, .batch = 2}, 3,
            std::optional(typename Model::ConditionView(condition)), fit::sample_noise<T>(fit::Random(6), first), tape);
        put<denoiser>(fit::TensorView<const T, 4>(samples), groups, team, result.output);
      };
    };
    check<fit::DiffusionDecoder<denoiser, double>, fit::DiffusionDecoder<denoiser, float>>({2, 3, 5}, pass(1.0),
                                                                                           pass(1.0f));
  }
}

template <fit::Pooling pooling>
void check_classifier() {
  static constexpr auto config = with(fit::Positions::learned, fit::LatentMask::none);
  const auto pass = [&]<class T>(const fit::TrainingOptions& options, T) {
    using Model = fit::Classifier<config, 4, T, pooling>;
    return [options, model = stirred<Model>(), input = noise<T>(1, Index{2}, groups, 7, 3),
            slopes = noise<T>(2, Index{2}, 4)](fit::Tape& tape, Model& gradient, Result<T>& result) {
      const auto own = share<config>(input, tape.team());
      tape.record(options, fit::Random(9));
      const auto logits = model.forward(own, tape);
      for (Index i = 0; i < logits.size(); ++i) result.loss += static_cast<double>(logits.data()[i] * slopes.data()[i]);
      model.backward(slopes, gradient, tape);
    };
  };
  check<fit::Classifier<config, 4, double, pooling>, fit::Classifier<config, 4, float, pooling>>(
      {2, 3, 5}, pass({}, 1.0), pass(drops, 1.0f));
}

TEST_CASE("a classifier over a team is the one that is alone", "[group_team]") {
  check_classifier<fit::Pooling::latents>();
  check_classifier<fit::Pooling::data>();
}

TEST_CASE("a share of groups that is none is an error on every member", "[group_team]") {
  using Model = fit::Encoder<with(fit::Positions::learned, fit::LatentMask::none)>;
  const Model model;
  fit::Solo solo;
  const auto error_of = [&](int members, Index own) {
    return test::error_of([&] {
      fit::take_turns(solo, members, [&](Team& team, Index) {
        fit::Executor executor(1);
        fit::Tape tape(executor, team);
        model(fit::Tensor<float, 4>(1, own, 7, 3), tape);
      });
    });
  };
  CHECK(test::contains(error_of(2, 5), "the encoder's input"));
  CHECK(test::contains(error_of(2, 3), "the encoder's input"));
  CHECK(test::contains(error_of(6, 1), "a team of 6 cannot share the 5 groups"));
}

TEST_CASE("what a member of a team holds and sends is what the cost says", "[group_team]") {
  for (const Index batch : {1, 3}) {
    for (const fit::Recompute recompute : test::recomputes) {
      const fit::TrainingOptions training{.drop_path = 0.1f, .recompute = recompute};
      const auto by_tensors = [&]<class Model>(Model*) {
        check_cost<Model>(batch, {.training = true, .options = training, .groups = groups},
                          [&](const Model& model, Index own, fit::Tape& tape, Model& gradient) {
                            const fit::Tensor<float, 4> input(batch, own, 7, 3), data(batch, own, 7, 12),
                                latents(batch, own, 2, 24);
                            tape.record(training);
                            model.forward(input, tape);
                            model.backward({.data = data, .latents = latents}, gradient, tape);
                          });
      };
      using fit::LatentMask, fit::Positions;
      by_tensors(static_cast<fit::Encoder<with(Positions::learned, LatentMask::none)>*>(nullptr));
      by_tensors(static_cast<fit::Encoder<with(Positions::shared_sin_cos, LatentMask::causal, fit::any)>*>(nullptr));
      using BySource = fit::Encoder<with(Positions::sin_cos, LatentMask::none)>;
      check_cost<BySource>(batch, {.training = true, .options = training, .by_groups = true},
                           [&](const BySource& model, Index, fit::Tape& tape, BySource& gradient) {
                             const fit::GroupSource<float> source{
                                 .batch = batch, .groups = groups, .fill = [](Index, Index count, float* to) {
                                   std::fill_n(to, count * 21, 0.5f);
                                 }};
                             const fit::GroupLoss<float> loss = [](Index, Index count, const float*, float* to) {
                               if (to) std::fill_n(to, count * 84, 0.5f);
                               return 1.0;
                             };
                             model.loss(source, loss, gradient, tape, training);
                           });
      using Decoder = fit::AutoregressiveDecoder<causal>;
      check_cost<Decoder>(batch, {.training = true, .options = training},
                          [&](const Decoder& model, Index, fit::Tape& tape, Decoder& gradient) {
                            const fit::Tensor<std::int32_t, 3> ids(batch, groups, 6);
                            model.loss(ids, gradient, tape, training);
                          });
    }
  }
  CHECK(test::contains(test::error_of([] { fit::cost<causal>(1, {.members = 6}); }), "members must be 1 to the 5"));
  CHECK(test::contains(test::error_of([] { fit::cost<causal>(1, {.members = 2, .member = 2}); }), "not 2 and 2"));
}

TEST_CASE("members of a team drop units of their own, and whole paths together", "[group_team]") {
  const fit::Random random(3);
  fit::nn::Draws first{random, 2, 0, 3}, second{random, 2, 1, 3}, next{random, 3, 0, 3};
  const auto of_first = fit::nn::draw_dropout(0.5f, first, 100), of_second = fit::nn::draw_dropout(0.5f, second, 100);
  const auto of_next = fit::nn::draw_dropout(0.5f, next, 100);
  CHECK(of_first.key == of_second.key);
  CHECK(of_second.offset == of_first.offset + 100);
  CHECK(of_next.offset == of_first.offset + 300);
  fit::Tape tape;
  tape.record({.drop_path = 0.5f});
  const auto one = fit::nn::draw_path<float>(40, 1, first, tape),
             other = fit::nn::draw_path<float>(40, 1, second, tape);
  CHECK(std::equal(one.scale, one.scale + 40, other.scale));
}

TEST_CASE("a step over leaves is that of the mean of its parts", "[group_team]") {
  using Model = fit::AutoregressiveDecoder<causal, double>;
  const auto ids_of = [](Index part) {
    fit::Tensor<std::int32_t, 3> ids(2, groups, 6);
    for (Index i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>((i * i + i / 3 + part) % 11);
    return ids;
  };
  fit::TrainingState<Model> alone{.model = stirred<Model>()};
  Model gradient;
  fit::Tape tape;
  double loss = 0;
  for (Index part = 0; part < 3; ++part) loss += alone.model.loss(ids_of(part), gradient, tape) / 3;
  fit::detail::scale_gradient(gradient, 1.0 / 3, tape);
  const double norm = alone.update(gradient, {}, tape);
  fit::Solo solo;
  std::vector<std::vector<double>> models;
  for (const int members : {1, 2, 6}) {
    for (const auto goes_back : {fit::GoesBack::often, fit::GoesBack::once}) {
      fit::take_turns(solo, members, [&](Team& member, Index) {
        Late team(member);
        fit::Executor executor(1);
        fit::ShardedState<Model> state(team, stirred<Model>());
        fit::Leaves<Model> leaves(team, {.parts = 3, .shares = 2}, executor);
        const double mean = leaves.pass(
            [&](fit::Tape& of_leaf, Model& to, Index part) { return state.model.loss(ids_of(part), to, of_leaf); },
            goes_back);
        CHECK(mean == Approx(loss).epsilon(1e-12));
        CHECK(leaves.update(state, {}) == Approx(norm).epsilon(1e-10));
        models.push_back(test::values_of(state.model));
        const auto expected = test::values_of(alone.model);
        CHECK(test::max_error(models.back().data(), expected.data(), static_cast<Index>(expected.size())) < 1e-7);
        CHECK(test::same_bits(models.back(), models.front()));
      });
    }
  }
}

TEST_CASE("a pass that goes back more often than it says is an error", "[group_team]") {
  using Model = fit::AutoregressiveDecoder<causal>;
  const fit::Tensor<std::int32_t, 3> ids(1, groups, 6);
  fit::Solo solo;
  fit::take_turns(solo, 2, [&](Team& team, Index) {
    fit::Executor executor(1);
    fit::ShardedState<Model> state(team, stirred<Model>());
    fit::Leaves<Model> leaves(team, {.shares = 2}, executor);
    Model other;
    const auto error_of = [&](Model* second) {
      return test::error_of([&] {
        leaves.pass(
            [&](fit::Tape& tape, Model& gradient, Index) {
              if (second) return state.model.loss(ids, *second, tape);
              return state.model.loss(ids, gradient, tape) + state.model.loss(ids, gradient, tape);
            },
            fit::GoesBack::once);
      });
    };
    CHECK(error_of(nullptr) == "a pass that goes back once has gone back through a trunk again");
    CHECK(error_of(&other) == "a pass adds to another gradient than the one that it was given");
    // Afterwards all is as it was: a pass may go back twice.
    leaves.pass([&](fit::Tape& tape, Model& gradient, Index) {
      return state.model.loss(ids, gradient, tape) + state.model.loss(ids, gradient, tape);
    });
    leaves.update(state, {});
    CHECK(test::contains(test::error_of([&] { leaves.update(state, {}); }), "follows a pass"));
  });
}

TEST_CASE("an update over leaves that is refused may be made again, one that fails is over", "[group_team]") {
  using Model = fit::AutoregressiveDecoder<causal>;
  fit::Solo solo;
  std::vector<std::vector<float>> once, twice;
  for (const bool wrong_before : {false, true}) {
    fit::take_turns(solo, 2, [&](Team& team, Index) {
      fit::Executor executor(1);
      fit::ShardedState<Model> state(team, stirred<Model>());
      fit::Leaves<Model> leaves(team, {.parts = 4}, executor);
      const auto pass = [&](float factor) {
        leaves.pass([&](fit::Tape& tape, Model& gradient, Index part) {
          fit::Tensor<std::int32_t, 3> ids(1, groups, 6);
          ids.setConstant(static_cast<std::int32_t>(part));
          const double loss = state.model.loss(ids, gradient, tape);
          fit::for_each_parameter([&](const fit::ParameterName&, auto p) { p.data[0] *= factor; }, gradient);
          return loss;
        });
      };
      pass(1);
      if (wrong_before) {
        CHECK(test::contains(test::error_of([&] { leaves.update(state, {.clip = 0}); }), "must be positive"));
      }
      leaves.update(state, {});
      once.push_back(test::values_of(state.model));
      pass(std::numeric_limits<float>::infinity());
      CHECK(test::contains(test::error_of([&] { leaves.update(state, {}); }), "is not finite"));
      CHECK(test::contains(test::error_of([&] { leaves.update(state, {}); }), "follows a pass"));
      pass(1);
      leaves.update(state, {});
      twice.push_back(test::values_of(state.model));
    });
  }
  for (const auto& models : {once, twice}) {
    REQUIRE(models.size() == 4);
    for (const auto& model : models) CHECK(test::same_bits(model, models[0]));
  }
}

TEST_CASE("leaves that cannot be, and sums that are not complete, are errors", "[group_team]") {
  using Model = fit::AutoregressiveDecoder<causal>;
  fit::Solo solo;
  fit::Executor executor(1);
  fit::Workspace workspace(executor);
  for (const fit::LeafCounts& counts :
       {fit::LeafCounts{0, 1}, fit::LeafCounts{1, -1}, fit::LeafCounts{(Index{1} << 62) + 1, 4}}) {
    CHECK(test::contains(test::error_of([&] { fit::Leaves<Model>(solo, counts, executor); }), "leaves are at least"));
    CHECK(
        test::contains(test::error_of([&] { fit::process_cost_of(causal, 1, counts, 1, 0); }), "leaves are at least"));
  }
  fit::ShardedState<Model> state(solo, stirred<Model>());
  fit::GradientTree<Model> tree(2, {0, 2}), other(2, {0, 1});
  CHECK(test::error_of([&] { state.sum(tree, workspace); }) == "a sum over 2 leaves is not complete");
  tree.add(Model(), workspace);
  CHECK(test::error_of([&] { state.sum(tree, workspace); }) == "a sum over 2 leaves is not complete");
  other.add(Model(), workspace);
  CHECK(test::error_of([&] { state.sum(other, workspace); }) == "a member's leaves are 2 from 0 on, not 1 from 0 on");
}

namespace {

/// A decoder that counts how many of them have been made from nothing, as gradients are.
struct Counted : fit::AutoregressiveDecoder<causal> {
  Counted() { ++made; }
  explicit Counted(const fit::Random& random) : fit::AutoregressiveDecoder<causal>(random) {}

  static inline Index made = 0;
};

}  // namespace

TEST_CASE("what a process holds in a step over leaves is what the cost says", "[group_team]") {
  const fit::TrainingOptions training{.recompute = fit::Recompute::stage};
  fit::Solo solo;
  for (const fit::LeafCounts counts : {fit::LeafCounts{1, 3}, fit::LeafCounts{3, 2}}) {
    for (const int processes : {1, 2, 3}) {
      fit::take_turns(solo, processes, [&](Team& team, Index process) {
        const fit::ProcessCost cost =
            fit::process_cost_of(causal, 2, counts, processes, team.rank(), {.options = training, .average = true});
        fit::Executor executor(1);
        fit::ShardedState<Counted> state(team, Counted(fit::Random(1)), {}, fit::Random(2), true);
        Counted::made = 0;
        fit::Leaves<Counted> leaves(team, counts, executor);
        const IndexRange own = fit::share_of(counts.parts * counts.shares, process, processes);
        REQUIRE(cost.arenas.size() == leaves.tapes().size());
        for (std::size_t i = 0; i < cost.arenas.size(); ++i) leaves.tapes()[i].reserve(cost.arenas[i]);
        for (int step = 0; step < 2; ++step) {
          leaves.pass([&](fit::Tape& tape, Counted& gradient, Index) {
            return state.model.loss(fit::Tensor<std::int32_t, 3>(2, groups, 6), gradient, tape, training);
          });
          leaves.update(state, {});
        }
        CAPTURE(counts.parts, counts.shares, processes, process);
        constexpr Index size = sizeof(float), piece = size * fit::detail::piece_size;
        const auto within_a_piece = [&](Index found, Index said) { return std::abs(found - said) <= piece; };
        CHECK(cost.weights == size * fit::count_parameters(state.model));
        CHECK(within_a_piece(size * state.average->size(), cost.optimiser / 3));
        CHECK(within_a_piece(size * state.optimizer.first_moment.size(), cost.optimiser / 3));
        Index tapes = 0;
        for (fit::Tape& tape : leaves.tapes()) tapes += static_cast<Index>(tape.capacity());
        CHECK(tapes == cost.tapes());
        CHECK(cost.gradients == own.count * cost.weights);
        if (processes == 1) CHECK(Counted::made == own.count);
        // What changes hands, by itself.
        fit::Workspace workspace(executor);
        fit::GradientTree<Counted> tree(counts.parts * counts.shares, own);
        while (!tree.complete()) tree.add(Counted(), workspace);
        state.update(state.sum(tree, workspace), {}, workspace);
        const Index found = static_cast<Index>(workspace.arena().peak());
        const Index share = cost.weights / processes;
        CHECK(found <= cost.exchange + (1 << 13));  // and lists
        CHECK(found >= cost.exchange / (share + piece) * share);
        if (processes == 1) CHECK(cost.exchange == 0);
        // And when it does so early.
        const fit::ProcessCost early =
            fit::process_cost_of(causal, 2, counts, processes, team.rank(), {}, fit::GoesBack::once);
        if (processes != counts.parts * counts.shares) {
          CHECK(early.exchange == cost.exchange);
          return;
        }
        fit::Workspace early_workspace(executor);
        Counted gradient;
        fit::detail::GradientExchange<Counted>(team, state.shards(), gradient, early_workspace).finish();
        const Index found_early = static_cast<Index>(early_workspace.arena().peak());
        CHECK(found_early <= early.exchange);
        CHECK(found_early > cost.weights - processes * piece);
      });
    }
  }
  CHECK(test::error_of([] { fit::process_cost_of(causal, 1, {2, 2}, 5, 0); }) == "process 0 of 5 has none of 4 leaves");
}

TEST_CASE("what a process holds in a run with leaves is what the cost says", "[group_team]") {
  fit::Workspace workspace;
  Counted gradient;
  for (Index leaves = 2; leaves <= 17; ++leaves) {
    for (int processes = 1; processes <= std::min<Index>(leaves, 4); ++processes) {
      for (int process = 0; process < processes; ++process) {
        const fit::ProcessCost cost = fit::run_cost_of(causal, 2, leaves, processes, process);
        Counted::made = 0;
        fit::GradientTree<Counted> tree(leaves, fit::share_of(leaves, process, processes));
        while (!tree.complete()) tree.add(gradient, workspace);
        CAPTURE(leaves, processes, process);
        CHECK(cost.gradients == (1 + Counted::made) * cost.weights);
        CHECK(cost.tapes() == fit::cost<causal>(2, {.training = true}).arenas.total());
      }
    }
  }
  const fit::ProcessCost alone = fit::run_cost_of(causal, 2, 1, 1, 0);
  CHECK(alone.peak() == 4 * alone.weights + alone.tapes());
}
