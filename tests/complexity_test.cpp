#include <fit/bench/report.hpp>

#include <chrono>
#include <cmath>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>

#include "catch.hpp"
#include "support.hpp"

using fit::Index, fit::Sizes;
using namespace fit::bench;

namespace {

constexpr fit::EncoderConfig encoder{.layers = "(1)2(1)",
                                     .groups = 1,
                                     .tokens = 1,
                                     .channels = 3,
                                     .latents = 1,
                                     .data_dim = 32,
                                     .latent_dim = 48,
                                     .data_heads = 2,
                                     .latent_heads = 3};
constexpr fit::AutoregressiveConfig decoder{.layers = "(1)2(1)",
                                            .groups = 1,
                                            .tokens = 1,
                                            .latents = 1,
                                            .data_dim = 32,
                                            .latent_dim = 48,
                                            .data_heads = 2,
                                            .latent_heads = 3,
                                            .data_key_heads = 1,
                                            .latent_key_heads = 1,
                                            .vocabulary = 40};

constexpr fit::AutoregressiveConfig local_only = [] {
  auto c = decoder;
  c.layers = "(1)";
  return c;
}();

/// Its logits are most of its memory, and go through in several pieces.
constexpr fit::AutoregressiveConfig talkative = [] {
  auto c = decoder;
  c.vocabulary = 20000;
  return c;
}();

Sizes groups_of_16(Index length) { return {1, length / 16, 16, 2}; }

/// A task that takes `bytes` for each token and does as many operations as tokens, and tells when it runs.
Task counting_task(std::vector<Index>& runs, Index bytes = 1) {
  struct Counting final : Job {
    std::vector<Index>& runs;
    Index length, bytes_each;
    Counting(std::vector<Index>& to, Index of, Index each) : runs(to), length(of), bytes_each(each) {}
    void run() override { runs.push_back(length); }
    Index bytes() const override { return 2 * bytes_each * length; }
  };
  return {.passes = {Pass::forward},
          .expect =
              [=](const Sizes& sizes, Pass, int) {
                return Expected{{.products = sizes.tokens}, bytes * sizes.tokens};
              },
          .prepare = [&runs, bytes](const Sizes& sizes, Pass, fit::Executor&) -> std::unique_ptr<Job> {
            return std::make_unique<Counting>(runs, sizes.tokens, bytes);
          }};
}

Curve counting_curve(std::vector<Index>& runs, Index bytes = 1) {
  return {"counting", [](Index length) { return Sizes{1, 1, length, 1}; }, {counting_task(runs, bytes)}};
}

std::vector<fit::plot::Point> line(std::vector<double> y) {
  std::vector<fit::plot::Point> points;
  for (std::size_t i = 0; i < y.size(); ++i) points.push_back({std::exp2(static_cast<double>(i)), y[i]});
  return points;
}

/// What the kernels have counted so far.
fit::Flops counted() {
  using fit::detail::work_count;
  return {work_count.products, work_count.attention, work_count.executed};
}

}  // namespace

TEST_CASE("exponents are those of the upper half, with the error of a least-squares slope", "[complexity]") {
  const auto bent = fit_exponent(line({1, 1, 1, 1, 1, 4, 16, 64, 256}));  // five of nine count
  REQUIRE(bent);
  CHECK(bent->value == Approx(2));
  CHECK(bent->error == Approx(0).margin(1e-7));
  // y = 1, 2, 8 over x = 1, 2, 4: in powers of two the slope is 3/2, the residuals 1/6, -1/3, 1/6, their squares' sum
  // 1/6 with one degree of freedom, and the x have a sum of squares of 2.
  const auto rough = fit_exponent(line({1, 2, 8}));
  REQUIRE(rough);
  CHECK(rough->value == Approx(1.5));
  CHECK(rough->error == Approx(std::sqrt(1.0 / 12)));
  CHECK_FALSE(fit_exponent(line({1, 2})));
  CHECK_FALSE(fit_exponent(line({1, 0, 8})));
  CHECK_FALSE(fit_exponent(std::vector<fit::plot::Point>{{1, 1}, {1, 2}, {1, 3}}));

  Line part{.points = {}};
  for (const Index length : {1, 2, 4, 8, 16}) {
    const bool estimated = length > 4;
    part.points.push_back({.length = length,
                           .seconds = static_cast<double>(estimated ? 1 : length),
                           .flops = {.attention = length * length},
                           .estimated = estimated});
  }
  CHECK(part.time_exponent()->value == Approx(1));
  CHECK(part.flops_exponent()->value == Approx(2));
}

TEST_CASE("one line overtakes another where it comes to be below it for good", "[complexity]") {
  CHECK_FALSE(overtaking(line({1, 1, 3}), line({2, 2, 2})));
  CHECK(overtaking(line({1, 1, 1}), line({2, 2, 2})) == std::optional<double>(1));
  CHECK(*overtaking(line({1, 3, 1, 1}), line({2, 2, 2, 2})) > 2);
  CHECK(*overtaking(line({2, 2, 2}), line({1, 8, 16})) == Approx(std::cbrt(2.0)));
  CHECK_FALSE(overtaking(line({}), line({1})));
}

TEST_CASE("lengths double, and groups have the divisor that is nearest", "[complexity]") {
  CHECK(doublings(3, 24) == std::vector<Index>{3, 6, 12, 24});
  CHECK(doublings(3, 23) == std::vector<Index>{3, 6, 12});
  CHECK(doublings(5, 5) == std::vector<Index>{5});
  for (const auto& [from, to] : {std::pair<Index, Index>{0, 5}, {-1, 5}, {6, 5}}) {
    CHECK_THROWS_WITH(doublings(from, to), Catch::Matchers::ContainsSubstring("from a positive number"));
  }
  CHECK(nearest_divisor(1000, 10) == 10);
  CHECK(nearest_divisor(2000, 12.6) == 10);
  CHECK(nearest_divisor(4000, 15.9) == 16);
  CHECK(nearest_divisor(97, 4.6) == 1);
  CHECK(nearest_divisor(97, 97) == 97);
}

TEST_CASE("a sweep measures what a point may take, and estimates the rest at the last rate", "[complexity]") {
  std::vector<Index> runs;
  // The job takes twice the memory that is expected of it: 64 are expected to take 128.
  const Results results = sweep({counting_curve(runs)}, {.lengths = {8, 16, 32, 64, 128}, .memory = 100, .threads = 1});
  REQUIRE(results.points.size() == 5);
  for (std::size_t i = 0; i < 5; ++i) {
    const Point& point = results.points[i];
    CAPTURE(point.length);
    CHECK(point.estimated == (i >= 3));
    CHECK(point.bytes == 2 * point.length);
    CHECK(point.flops.total() == point.length);
    CHECK(point.seconds > 0);
  }
  CHECK(results.points[4].seconds == Approx(results.points[2].seconds * 4));
  const auto share = [&](std::size_t i) { return results.points[i].share_of(results.peak); };
  CHECK(share(4) == Approx(share(2)));
  CHECK(share(3) * results.peak * results.points[3].seconds == Approx(64));
  CHECK(std::count(runs.begin(), runs.end(), 64) == 0);
  CHECK(std::count(runs.begin(), runs.end(), 8) >= 4);

  // Nothing runs of what takes longer than a point may.
  runs.clear();
  const Results none = sweep({counting_curve(runs)}, {.lengths = {8}, .seconds = 1e-12, .threads = 1});
  CHECK(runs.empty());
  CHECK(none.points[0].estimated);
  CHECK(none.points[0].share_of(none.peak) == Approx(0.25));
}

TEST_CASE("the first run of a point, which brings memory in, is not counted", "[complexity]") {
  struct SlowAtFirst final : Job {
    bool first = true;
    void run() override {
      std::this_thread::sleep_for(std::chrono::milliseconds(std::exchange(first, false) ? 200 : 1));
    }
    Index bytes() const override { return 1; }
  };
  std::vector<Index> runs;
  Curve curve = counting_curve(runs);
  curve.tasks[0].prepare = [](const Sizes&, Pass, fit::Executor&) { return std::make_unique<SlowAtFirst>(); };
  // Alone, even where no more fits into the time.
  for (const double seconds : {0.001, 1.0}) {
    const Results results = sweep({curve}, {.lengths = {8}, .seconds = seconds, .threads = 1});
    CHECK(results.points[0].seconds < 0.2);
  }
}

TEST_CASE("memory that runs out is an estimate, and a sweep that is stopped keeps what it has", "[complexity]") {
  std::vector<Index> runs;
  Curve curve = counting_curve(runs);
  curve.tasks[0].prepare = [inner = curve.tasks[0].prepare](const Sizes& sizes, Pass pass, fit::Executor& executor) {
    if (sizes.tokens == 16) throw std::bad_alloc();
    return inner(sizes, pass, executor);
  };
  std::vector<Index> told;
  const Results results = sweep({curve}, {.lengths = {8, 16, 32},
                                          .threads = 1,
                                          .on_point =
                                              [&](const Point& point, const Results& so_far) {
                                                CHECK(so_far.points.back().length == point.length);
                                                told.push_back(point.length);
                                              },
                                          .stop = [&] { return told.size() == 2; }});
  REQUIRE(results.points.size() == 2);
  CHECK_FALSE(results.points[0].estimated);
  CHECK(results.points[1].estimated);
  CHECK(told == std::vector<Index>{8, 16});
  CHECK(sweep({curve}, {.lengths = {8}, .seconds = 1e-12, .threads = 1, .stop = [] { return true; }}).points.empty());
}

TEST_CASE("wrong sweeps say what was expected, before anything runs", "[complexity]") {
  std::vector<Index> runs;
  const std::vector<Curve> curves{counting_curve(runs)};
  const auto refusal = [&](const std::vector<Curve>& of, const SweepOptions& options) {
    return test::error_of([&] { sweep(of, options); });
  };
  CHECK(refusal({}, {}) == "a sweep needs at least one curve and one length");
  CHECK(refusal(curves, {.lengths = {}}) == "a sweep needs at least one curve and one length");
  CHECK(refusal(curves, {.lengths = {0, 8}}) == "lengths must be positive and ascend, but 0 follows 0");
  CHECK(refusal(curves, {.lengths = {-8}}) == "lengths must be positive and ascend, but -8 follows 0");
  CHECK(refusal(curves, {.lengths = {8, 8}}) == "lengths must be positive and ascend, but 8 follows 8");
  for (const double seconds : {0.0, std::numeric_limits<double>::infinity()}) {
    CHECK(refusal(curves, {.lengths = {8}, .seconds = seconds}).starts_with("a point needs some time"));
  }
  CHECK(refusal(curves, {.lengths = {8}, .memory = 0}) == "a memory limit must be positive, not 0");
  CHECK(refusal(curves, {.lengths = {8}, .threads = 0}) == "an executor needs at least 1 thread, not 0");
  CHECK(refusal({curve<encoder>("mine", groups_of_16)}, {.lengths = {32, 40}}) ==
        "curve mine makes 2 groups of 16 tokens of a length of 40: choose lengths that it divides");
  CHECK(refusal({curve<encoder>("mine", groups_of_16)}, {.lengths = {8}}).starts_with("curve mine needs a batch of 1"));
  CHECK(refusal({curve<encoder>("mine", groups_of_16)}, {.lengths = {Index{1} << 40}})
            .starts_with("the operations of curve mine cannot be counted"));
  CHECK(refusal({curve<encoder>("yours, mine", groups_of_16)}, {.lengths = {32}}).starts_with("the name of a curve"));
  const std::vector<Curve> alike{counting_curve(runs), counting_curve(runs)};
  CHECK(refusal(alike, {.lengths = {8}}) == "two curves are called counting, with the same work, width and mask");
  CHECK(refusal({{"bare", groups_of_16, {}}}, {.lengths = {32}}) == "curve bare needs sizes and at least one task");
  CHECK(refusal({{"bare", {}, {counting_task(runs)}}}, {.lengths = {32}}) ==
        "curve bare needs sizes and at least one task");
  CHECK(
      refusal({{"bare", groups_of_16, {Task{}}}}, {.lengths = {32}}).starts_with("a task of curve bare needs passes"));
  const auto many_latents = [](Index length) { return Sizes{1, 1, length, Index{1} << 32}; };
  CHECK(refusal({{"wide", many_latents, {attention_task<encoder>()}}}, {.lengths = {32}})
            .starts_with("the operations of attention over such sequences"));
  CHECK(refusal({counting_curve(runs, 0)}, {.lengths = {32}}) ==
        "a task of curve counting has nothing to do at a length of 32");
  CHECK(runs.empty());
}

TEST_CASE("a task is causal where its latents are", "[complexity]") {
  static constexpr fit::EncoderConfig causal = [] {
    auto c = encoder;
    c.mask = fit::LatentMask::causal;
    return c;
  }();
  CHECK(model_task<causal>().causal);
  CHECK(attention_task<decoder>().causal);
  CHECK_FALSE(layer_task<encoder>().causal);
}

TEST_CASE("what runs does the work and takes the memory that the cost model has for it", "[complexity]") {
  fit::Executor executor(2);
  const auto check = [&](const Task& task, Pass pass, double tolerance) {
    const Sizes sizes{1, 24, 16, 2};
    CAPTURE(name_of(task.work), name_of(pass), task.causal);
    const auto job = task.prepare(sizes, pass, executor);
    job->run();
    const fit::Flops before = counted();
    job->run();
    const fit::Flops after = counted();
    const Expected expected = task.expect(sizes, pass, 2);
    CHECK(after.products - before.products == expected.flops.products);
    CHECK(after.attention - before.attention == expected.flops.attention);
    CHECK(after.executed - before.executed == expected.flops.executed);
    CHECK(static_cast<double>(job->bytes()) == Approx(static_cast<double>(expected.bytes)).epsilon(tolerance));
  };
  for (const Pass pass : {Pass::forward, Pass::forward_backward}) {
    check(attention_task<encoder>(), pass, 0.02);
    check(attention_task<decoder>(), pass, 0.02);
    check(model_task<encoder>(), pass, 0.05);
    check(model_task<decoder>(), pass, 0.2);
    check(model_task<talkative>(), pass, 0.02);
    check(layer_task<encoder>(), pass, 0.2);
  }
  for (const fit::Recompute recompute : test::recomputes) {
    check(model_task<encoder>({.recompute = recompute}), Pass::forward_backward, 0.1);
    check(model_task<decoder>({.recompute = recompute}), Pass::forward_backward, 0.3);
  }
  const Sizes sizes{1, 24, 16, 2};
  // Half as many heads of keys are half the keys.
  CHECK(attention_task<local_only>().expect(sizes, Pass::forward, 0).bytes == 4 * 3 * 24 * 16 * 32);
  // Without scratch: four tensors of the data's size; with their gradients eight, and a number for each row and head.
  CHECK(attention_task<encoder>().expect(sizes, Pass::forward, 0).bytes == 4 * 4 * 24 * 16 * 32);
  CHECK(attention_task<encoder>().expect(sizes, Pass::forward_backward, 0).bytes ==
        4 * (8 * 24 * 16 * 32 + 24 * 16 * 2));
  for (const auto& [attention, layer, model] :
       {std::array{attention_task<encoder>(), layer_task<encoder>(), model_task<encoder>()},
        {attention_task<decoder>(), layer_task<decoder>(), model_task<decoder>()}}) {
    for (const Pass pass : {Pass::forward, Pass::forward_backward}) {
      const fit::Flops alone = attention.expect(sizes, pass, 1).flops, stages = layer.expect(sizes, pass, 1).flops;
      const fit::Flops whole = model.expect(sizes, pass, 1).flops;
      CHECK(alone.products == 0);
      CHECK(alone.attention == whole.attention);
      CHECK(alone.executed == whole.executed);
      CHECK(stages.attention == whole.attention);
      CHECK(stages.products < whole.products);
      CHECK(stages.products > whole.products / 2);
    }
  }
}

TEST_CASE("results become rows, lines and charts", "[complexity]") {
  const std::vector<Curve> curves{curve<encoder>("fit", groups_of_16),
                                  {"full",
                                   [](Index length) {
                                     return Sizes{1, 1, length, 1};
                                   },
                                   {model_task<decoder>()}}};
  const Results results = sweep(curves, {.lengths = {32, 64, 128}, .seconds = 1, .threads = 2});
  REQUIRE(results.points.size() == 18);
  std::ostringstream csv;
  write_csv(csv, results);
  const std::string text = csv.str();
  CHECK(std::count(text.begin(), text.end(), '\n') == 19);
  CHECK(text.find("\nfit,attention,32,0,forward,32,2,16,2,") != std::string::npos);
  CHECK(text.find("\nfull,model,32,1,forward+backward,128,1,128,1,") != std::string::npos);
  const std::vector<Line> lines = lines_of(results);
  REQUIRE(lines.size() == 6);
  for (const Line& of : lines) {
    CHECK(of.points.size() == 3);
    REQUIRE(of.time_exponent());
    REQUIRE(of.flops_exponent());
    if (of.curve == "full") CHECK(of.flops_exponent()->value > 1);
  }
  const fit::plot::Figure drawn = figure(results);
  REQUIRE(drawn.charts.size() == 12);  // attention and model of the encoder, model of the decoder
  CHECK(drawn.charts[0].title == "attention, width 32: time, forward");
  CHECK(drawn.charts[0].series[0].points.size() == 3);
  CHECK(drawn.charts[0].guides.size() == 3);
  CHECK(drawn.charts[11].title == "model, causal, width 32: share of peak");
}
