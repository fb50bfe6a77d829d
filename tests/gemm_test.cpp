#include <fit/kernels/gemm.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <cstring>
#include <deque>
#include <numbers>
#include <tuple>

namespace {

using fit::Index;
namespace kernels = fit::kernels;
using kernels::Activation;

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

double gelu_slope(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
}

/// What to compute, in sizes.
struct Case {
  Index rows = 1, columns = 1;
  std::vector<Index> depths = {1};
  int a_transposed = 0, b_transposed = 0;  // a bit for each of the factors
  bool bias = false, accumulate = false;
  Index rows_per_scale = 0;  // 0: not scaled
  Activation activation = Activation::none;
  float dropout = 0;
  bool in_place = false;  // GELU without its slope
  Index gap = 2;          // between the rows of operands
};

/// A product over memory of its own, misaligned and with gaps between the rows, and what must come out of it.
template <class T>
class Problem {
 public:
  explicit Problem(const Case& c, std::uint64_t seed = 1) : case_(c), c_row_(c.columns + 3) {
    product_.rows = c.rows;
    product_.columns = c.columns;
    product_.count = static_cast<int>(c.depths.size());
    const auto area = static_cast<std::size_t>(c.rows * c.columns);
    expected_.assign(area, 0);
    tolerance_.assign(area, 0);
    Index longest = 0;
    for (std::size_t f = 0; f < c.depths.size(); ++f) {
      const Index depth = c.depths[f];
      longest += depth;
      const bool a_transposed = c.a_transposed >> f & 1, b_transposed = c.b_transposed >> f & 1;
      product_.factors[f] = {operand(c.rows, depth, a_transposed, seed + 2 * f),
                             operand(depth, c.columns, b_transposed, seed + 2 * f + 1), depth};
      const auto& [a, b, k] = product_.factors[f];
      test::plain_product(c.rows, c.columns, k, a.data, a.row, a.column, b.data, b.row, b.column, expected_.data(),
                          tolerance_.data());
    }
    start_ = test::normal_values<T>(memory_size(), seed + 10);
    slope_ = test::normal_values<T>(memory_size(), seed + 11, 2);
    bias_ = test::normal_values<T>(c.columns, seed + 12);
    if (c.bias) product_.finish.bias = bias_.data();
    product_.finish.accumulate = c.accumulate;
    if (c.rows_per_scale > 0) {
      scale_ = test::normal_values<T>(c.rows / c.rows_per_scale + 1, seed + 13);
      product_.finish.row_scale = scale_.data();
      product_.finish.rows_per_scale = c.rows_per_scale;
    }
    product_.c_row = c_row_;
    product_.activation = c.activation;
    product_.dropout = {seed + 14, c.dropout};
    expect(std::sqrt(static_cast<double>(longest)));
  }

  /// The product, to be written to memory that is made for it anew.
  kernels::Product<T> fresh() {
    c_ = start_;
    activated_ = start_;
    product_.c = c_.data() + margin;
    product_.activated = case_.in_place ? product_.c : activated_.data() + margin;
    product_.slope = slope_.data() + margin;
    return product_;
  }

  /// Elements that are wrong, and elements between and around the rows that were written.
  Index faults() const {
    Index faults = 0;
    for (Index at = 0; at < memory_size(); ++at) {
      const Index i = (at - margin) / c_row_, j = (at - margin) % c_row_;
      const bool inside = at >= margin && i < case_.rows && j < case_.columns;
      const auto here = static_cast<std::size_t>(at);
      if (!inside) {
        faults += c_[here] != start_[here];
        faults += activated_[here] != start_[here];
        continue;
      }
      const auto element = static_cast<std::size_t>(i * case_.columns + j);
      const double sum = expected_[element], kept = kept_[element], slack = tolerance_[element];
      const auto wrong = [](T value, double expected, double error) {
        return !(std::abs(static_cast<double>(value) - expected) <= error);
      };
      if (case_.activation != Activation::gelu) {
        faults += wrong(c_[here], sum, slack) + (activated_[here] != start_[here]);
        continue;
      }
      // GELU and its slope are at most 1.2 times as steep as what they are of.
      const T value = case_.in_place ? c_[here] : activated_[here];
      faults += wrong(value, gelu(sum) * kept, (1.2 * slack + 8 * epsilon * std::abs(sum)) * kept);
      faults += case_.in_place ? activated_[here] != start_[here]
                               : wrong(c_[here], gelu_slope(sum) * kept, (1.2 * slack + 8 * epsilon) * kept);
    }
    return faults;
  }

  const std::vector<T>& c() const { return c_; }
  const std::vector<T>& activated() const { return activated_; }

 private:
  static constexpr Index margin = 5;
  static constexpr double epsilon = std::numeric_limits<T>::epsilon();

  Index memory_size() const { return 2 * margin + case_.rows * c_row_; }

  /// A matrix [rows, columns], stored so or transposed, one element off every boundary.
  kernels::Operand<T> operand(Index rows, Index columns, bool is_transposed, std::uint64_t seed) {
    const Index outer = is_transposed ? columns : rows, row = (is_transposed ? rows : columns) + case_.gap;
    // Ends with the last element, so that an address sanitiser sees a read beyond it.
    const Index size = outer > 0 ? 1 + (outer - 1) * row + (row - case_.gap) : 1;
    operands_.push_back(test::normal_values<T>(size, seed));
    const T* data = operands_.back().data() + 1;
    return is_transposed ? kernels::transposed(data, row) : kernels::plain(data, row);
  }

  /// From sums and their magnitudes to what they must be when they are finished, before GELU, and how far from it a
  /// result may be.
  void expect(double root_of_depth) {
    kept_.assign(expected_.size(), 1);
    for (Index i = 0; i < case_.rows; ++i) {
      std::vector<T> kept(static_cast<std::size_t>(case_.columns), T(1));
      if (product_.dropout) {
        product_.dropout.apply(kept.data(), case_.columns, static_cast<std::uint64_t>(i * case_.columns));
      }
      for (Index j = 0; j < case_.columns; ++j) {
        const auto element = static_cast<std::size_t>(i * case_.columns + j);
        const auto here = static_cast<std::size_t>(margin + i * c_row_ + j);
        const auto column = static_cast<std::size_t>(j);
        double value = expected_[element], magnitude = tolerance_[element];
        if (case_.bias) {
          value += static_cast<double>(bias_[column]);
          magnitude += std::abs(static_cast<double>(bias_[column]));
        }
        if (case_.rows_per_scale > 0) {
          const auto scale = static_cast<double>(scale_[static_cast<std::size_t>(i / case_.rows_per_scale)]);
          value *= scale;
          magnitude *= std::abs(scale);
        }
        if (case_.accumulate) {
          value += static_cast<double>(start_[here]);
          magnitude += std::abs(static_cast<double>(start_[here]));
        }
        double error = epsilon * (3 + root_of_depth) * magnitude;
        kept_[element] = static_cast<double>(kept[column]);
        if (case_.activation == Activation::times_slope) {
          const auto factor = static_cast<double>(slope_[here]);
          error = error * std::abs(factor) + epsilon * std::abs(value * factor);
          value *= factor;
        }
        expected_[element] = value;
        tolerance_[element] = error;
      }
    }
  }

  Case case_;
  Index c_row_;
  kernels::Product<T> product_;
  std::deque<std::vector<T>> operands_;
  std::vector<T> start_, slope_, bias_, scale_, c_, activated_;
  std::vector<double> expected_, tolerance_, kept_;
};

struct Threads {
  fit::Executor executors[4]{fit::Executor(1), fit::Executor(2), fit::Executor(3), fit::Executor(7)};
  fit::Workspace one{executors[0]}, two{executors[1]}, three{executors[2]}, seven{executors[3]};
};

Threads& threads() {
  static Threads threads;
  return threads;
}

/// Computes a problem with 1 thread, checks it, and finds the same bits with 2, 3 and 7.
template <class T>
Index faults_of(const Case& c) {
  Problem<T> problem(c);
  kernels::multiply({problem.fresh()}, threads().one);
  fit::Arena& arena = threads().one.arena();
  {  // NaN where operands were packed: all that is read of them must be packed anew.
    const fit::Arena::Scope scope(arena);
    const auto room = static_cast<Index>(arena.peak() / sizeof(T));
    std::fill_n(arena.allocate<T>(room), room, std::numeric_limits<T>::quiet_NaN());
    const auto own = threads().one.lanes().capacity() / static_cast<Index>(sizeof(T));
    std::fill_n(reinterpret_cast<T*>(threads().one.lanes().of(0)), own, std::numeric_limits<T>::quiet_NaN());
  }
  kernels::multiply({problem.fresh()}, threads().one);
  Index faults = problem.faults();
  const std::vector<T> result = problem.c(), activated = problem.activated();
  faults += threads().one.arena().mark().total != 0;  // all given back
  for (fit::Workspace* workspace : {&threads().two, &threads().three, &threads().seven}) {
    kernels::multiply({problem.fresh()}, *workspace);
    faults += std::memcmp(problem.c().data(), result.data(), result.size() * sizeof(T)) != 0;
    faults += std::memcmp(problem.activated().data(), activated.data(), activated.size() * sizeof(T)) != 0;
    faults += workspace->arena().mark().total != 0;
  }
  return faults;
}

template <class T>
void check_sizes() {
  constexpr Index w = fit::simd::width<T>, tile = kernels::tile_rows<T>;
  Index cases = 0;
  for (const Index columns : {Index{0}, Index{1}, w - 1, w, w + 1, 2 * w - 1, 2 * w, 2 * w + 1}) {
    for (const Index rows : {Index{0}, Index{1}, tile - 1, tile, tile + 1, 2 * w + 1}) {
      for (const Index depth : {Index{0}, Index{1}, Index{3}, w, 2 * w + 1}) {
        for (int transposed = 0; transposed < 4; ++transposed) {
          const Case c{rows, columns, {depth}, transposed & 1, transposed >> 1};
          Problem<T> problem(c);
          kernels::multiply({problem.fresh()}, cases++ % 5 == 0 ? threads().three : threads().one);
          INFO(rows << " x " << columns << " x " << depth << ", transposed " << transposed);
          CHECK(problem.faults() == 0);
        }
      }
    }
  }
}

/// Everything that may become of the sums, at a few awkward sizes.
template <class T>
void check_finishes() {
  constexpr Index w = fit::simd::width<T>, tile = kernels::tile_rows<T>;
  for (const auto& [rows, columns] : {std::pair{tile + 2, 2 * w + 3}, std::pair{2 * tile, 4 * w},
                                      std::pair{tile + 1, 3 * w}, std::pair{Index{3}, w - 1}}) {
    for (const Activation activation : {Activation::none, Activation::gelu, Activation::times_slope}) {
      for (int options = 0; options < 16; ++options) {
        Case c{rows, columns, {w + 2}, options & 1, options >> 1 & 1};
        c.bias = options & 1;
        c.accumulate = options >> 1 & 1;
        c.rows_per_scale = options >> 2 & 1 ? 1 + rows / 3 : 0;
        c.dropout = options >> 3 & 1 ? 0.3f : 0.0f;
        c.activation = activation;
        INFO(rows << " x " << columns << ", options " << options << ", activation " << static_cast<int>(activation));
        CHECK(faults_of<T>(c) == 0);
        if (activation != Activation::gelu) continue;
        c.in_place = true;
        CHECK(faults_of<T>(c) == 0);
      }
    }
  }
}

template <class T>
void check_factors() {
  constexpr Index w = fit::simd::width<T>;
  for (int transposed = 0; transposed < 8; ++transposed) {
    Case c{2 * w + 1, 3 * w + 1, {5, 2 * w, 1}, transposed, 7 - transposed};
    c.bias = c.accumulate = true;
    c.rows_per_scale = 2;
    c.activation = transposed % 2 ? Activation::gelu : Activation::none;
    c.dropout = 0.5f;
    INFO(transposed);
    CHECK(faults_of<T>(c) == 0);
  }
  for (const std::vector<Index>& depths : {std::vector<Index>{0, 3}, std::vector<Index>{3, 0}, std::vector<Index>{0, 0},
                                           std::vector<Index>{600, 0, 513}}) {
    Case c{4, w + 1, depths, 1, 2};
    c.bias = true;
    INFO(depths.size() << " factors, the first of depth " << depths[0]);
    CHECK(faults_of<T>(c) == 0);
    c.activation = Activation::gelu;
    CHECK(faults_of<T>(c) == 0);
  }
}

template <class T>
void check_large() {
  for (const Index depth :
       {Index{512}, Index{513}, Index{1100}, kernels::depth_at_once, kernels::depth_at_once + 1, Index{9000}}) {
    for (int transposed = 0; transposed < 4; ++transposed) {
      Case c{37, 2 * fit::simd::width<T> * 3 + 5, {depth}, transposed & 1, transposed >> 1};
      c.bias = c.accumulate = true;
      c.rows_per_scale = 5;
      INFO(depth << " deep, transposed " << transposed);
      for (const Activation activation : {Activation::none, Activation::gelu, Activation::times_slope}) {
        c.activation = activation;
        CHECK(faults_of<T>(c) == 0);
      }
      c.activation = Activation::gelu;
      c.in_place = true;
      CHECK(faults_of<T>(c) == 0);
    }
  }
  // Whole panels that are packed, and one register more.
  constexpr Index w = fit::simd::width<T>;
  for (const auto& [rows, columns] : {std::pair{Index{37}, 16 * w}, std::pair{Index{37}, 17 * w},
                                      std::pair{21 * Index{kernels::tile_rows<T>}, 4 * w}}) {
    for (int transposed = 0; transposed < 4; ++transposed) {
      CHECK(faults_of<T>({rows, columns, {300}, transposed & 1, transposed >> 1}) == 0);
    }
  }
  Case wide{131, 301, {96}, 0, 1};  // several blocks each way
  wide.bias = true;
  CHECK(faults_of<T>(wide) == 0);
  wide.activation = Activation::gelu;
  wide.dropout = 0.1f;
  CHECK(faults_of<T>(wide) == 0);
  wide.in_place = true;
  CHECK(faults_of<T>(wide) == 0);
  wide.activation = Activation::times_slope;
  wide.depths = {40, 560};
  CHECK(faults_of<T>(wide) == 0);
  // Left operands that are packed for several blocks next to each other, in either order of blocks and depths.
  wide.a_transposed = 3;
  CHECK(faults_of<T>(wide) == 0);
  wide.depths = {560, 40, 560};
  wide.a_transposed = 5;
  CHECK(faults_of<T>(wide) == 0);
  wide.a_transposed = 7;
  CHECK(faults_of<T>(wide) == 0);
  // Rows of left operands that collide, and are copied tile by tile unless, on many threads, a block is one panel wide;
  // beside some that do not.
  Case colliding{9 * kernels::tile_rows<T> + 10, 9 * w + 3, {1024, 40, 1536}, 4};
  colliding.gap = 0;
  colliding.bias = true;
  for (const Index depth : {1024, 2048}) {
    CHECK((kernels::packed_left_size<T>(colliding.rows, colliding.columns, depth, depth, 1) > 0) ==
          (kernels::tile_rows<T> > 8));
  }
  CHECK(faults_of<T>(colliding) == 0);
  colliding.depths = {2048};
  colliding.a_transposed = 0;
  colliding.activation = Activation::gelu;
  CHECK(faults_of<T>(colliding) == 0);
  colliding.depths = {1020};  // a depth of no whole registers
  colliding.gap = 4;
  CHECK(faults_of<T>(colliding) == 0);
  // Enough rows for blocks next to each other to share what is packed.
  Case high{32 * kernels::tile_rows<T> + 5, 8 * kernels::panel_width<T> + 7, {520, 3}, 3};
  CHECK(faults_of<T>(high) == 0);
}

/// Gradients of few weights, whose depth threads share out: right operands packed and read directly, an odd number of
/// pieces, several strips of rows, and more pieces than go at once.
template <class T>
void check_deep() {
  for (const auto& [rows, columns, depth, transposed] :
       {std::tuple{64, 256, 6272, 0}, {256, 64, 5000, 0}, {17, 31, 9000, 1}, {30, 16, 4100, 0}, {360, 360, 5200, 0}}) {
    Case c{rows, columns, {depth}, 1, transposed};
    c.accumulate = true;
    for (const int lanes : {2, 3}) CHECK(kernels::depth_pieces(rows, columns, depth, lanes) > 0);
    INFO(rows << " x " << columns << " x " << depth);
    CHECK(faults_of<T>(c) == 0);
  }
  CHECK(kernels::depth_pieces(360, 360, 5200, 2) * kernels::depth_block < 5200);
}

template <class T>
void check_products() {
  Case cases[] = {{5, 40, {33}},     {64, 3, {7}, 1},        {17, 31, {5000}, 1}, {30, 70, {65}, 0, 1},
                  {9, 0, {4}, 1, 1}, {17, 31, {9000}, 1, 1}, {1, 1, {1, 1}, 2},   {300, 290, {8200}, 1}};
  for (const int deep : {2, 5, 7}) cases[deep].accumulate = true;
  CHECK(kernels::depth_pieces(300, 290, 8200, 2) * kernels::depth_block < 8200);  // more pieces than go at once
  for (fit::Workspace* workspace : {&threads().one, &threads().two, &threads().seven}) {
    for (std::size_t count = 0; count <= std::size(cases); ++count) {
      std::deque<Problem<T>> problems;
      std::vector<kernels::Product<T>> products;
      for (std::size_t i = 0; i < count; ++i) {
        problems.emplace_back(cases[i], 100 * i);
        products.push_back(problems.back().fresh());
      }
      kernels::multiply(std::span<const kernels::Product<T>>(products), *workspace);
      Index faults = 0;
      for (std::size_t i = 0; i < count; ++i) {
        faults += problems[i].faults();
        // The others at its side change no bit.
        Problem<T> alone(cases[i], 100 * i);
        kernels::multiply({alone.fresh()}, threads().one);
        faults += alone.c() != problems[i].c();
      }
      INFO(count << " products on " << workspace->executor().lanes() << " threads");
      CHECK(faults == 0);
    }
  }
  const std::vector<kernels::Product<T>> nine(9);
  const std::string text =
      test::error_of([&] { kernels::multiply(std::span<const kernels::Product<T>>(nine), threads().one); });
  CHECK(text == "multiply takes at most 8 products, not 9");
}

template <class T>
void check_gelu() {
  constexpr Index w = fit::simd::width<T>;
  constexpr double epsilon = std::numeric_limits<T>::epsilon();
  for (Index count = 0; count <= 2 * w + 1; ++count) {
    std::vector<T> x = test::normal_values<T>(count, 3, 2), y(static_cast<std::size_t>(count + 1), T(77));
    const std::vector<T> factors = test::normal_values<T>(count + 1, 4);
    std::vector<T> slope = x, beside = y, gradient = factors;
    slope.push_back(T(78));
    kernels::gelu(x.data(), y.data(), count);
    kernels::gelu_and_slope(slope.data(), beside.data(), count);
    kernels::times_slope(slope.data(), gradient.data(), count);
    Index faults = (y.back() != T(77)) + (beside != y) + (slope.back() != T(78)) + (gradient.back() != factors.back());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto at = static_cast<double>(x[i]);
      faults += !(std::abs(static_cast<double>(y[i]) - gelu(at)) <= (6 + at * at) * epsilon * std::abs(gelu(at)));
      faults += !(std::abs(static_cast<double>(slope[i]) - gelu_slope(at)) <= 8 * epsilon);
      faults += gradient[i] != factors[i] * slope[i];
    }
    std::vector<T> in_place = x;
    kernels::gelu(in_place.data(), in_place.data(), count);
    faults += !std::equal(in_place.begin(), in_place.end(), y.begin());
    INFO(count);
    CHECK(faults == 0);
  }
  // Over the whole range, each side of zero. Far below it the slope is nothing, and the value too.
  constexpr Index count = 24001;
  std::vector<T> x(count), y(count);
  for (Index i = 0; i < count; ++i)
    x[static_cast<std::size_t>(i)] = static_cast<T>(-12 + 0.001 * static_cast<double>(i));
  std::vector<T> slope = x;
  kernels::gelu_and_slope(slope.data(), y.data(), count);
  double worst = 0, worst_slope = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto at = static_cast<double>(x[i]);
    worst = test::worse(worst, std::abs(static_cast<double>(y[i]) - gelu(at)) / (std::abs(at) + 1e-30));
    worst_slope = test::worse(worst_slope, std::abs(static_cast<double>(slope[i]) - gelu_slope(at)));
  }
  CHECK(worst < 3 * epsilon);
  CHECK(worst_slope < 6 * epsilon);
}

}  // namespace

TEST_CASE("products of every size and layout", "[gemm]") {
  check_sizes<float>();
  check_sizes<double>();
}

TEST_CASE("bias, scale, accumulation and activation", "[gemm]") {
  check_finishes<float>();
  check_finishes<double>();
}

TEST_CASE("several factors", "[gemm]") {
  check_factors<float>();
  check_factors<double>();
}

TEST_CASE("deep and wide products", "[gemm]") {
  check_large<float>();
  check_large<double>();
}

TEST_CASE("gradients of few weights", "[gemm]") {
  check_deep<float>();
  check_deep<double>();
}

TEST_CASE("several products at once", "[gemm]") {
  check_products<float>();
  check_products<double>();
}

TEST_CASE("a second run allocates nothing", "[gemm]") {
  fit::Workspace workspace(threads().executors[1]);
  const fit::Arena& arena = workspace.arena();
  Problem<float> problem({60, 500, {700}, 0, 1});
  kernels::multiply({problem.fresh()}, workspace);
  const std::size_t capacity = arena.capacity(), peak = arena.peak();
  CHECK(peak >= sizeof(float) * 500 * 700);
  kernels::multiply({problem.fresh()}, workspace);
  CHECK(arena.capacity() == capacity);
  CHECK(arena.peak() == peak);
}

TEST_CASE("a product without rows or columns reads nothing", "[gemm]") {
  const kernels::Factors<float> deep{kernels::plain<float>(nullptr, 9000), kernels::transposed<float>(nullptr, 9000),
                                     9000};
  fit::Workspace workspace(threads().executors[1]);
  kernels::multiply<float>({{.rows = 0, .columns = 40, .factors = {deep}, .c_row = 40},
                            {.rows = 40, .columns = 0, .factors = {deep}, .c_row = 0}},
                           workspace);
  CHECK(workspace.arena().peak() == 0);
}

TEST_CASE("a plain left operand is copied where its rows collide in the caches", "[gemm]") {
  const bool many = kernels::tile_rows<float> > 8;
  CHECK((kernels::packed_left_size<float>(100, 100, 300, 1024, 1) > 0) == many);
  CHECK((kernels::packed_left_size<double>(100, 100, 300, 512, 1) > 0) == many);
  CHECK(kernels::packed_left_size<float>(100, 100, 300, 512, 1) == 0);
  CHECK(kernels::packed_left_size<float>(8, 100, 300, 1024, 1) == 0);
  CHECK(kernels::packed_left_size<float>(100, 1, 300, 1024, 1) == 0);
}

TEST_CASE("a deeper product packs no more at a time", "[gemm]") {
  const auto peak_of = [](Index depth) {
    fit::Workspace workspace(threads().executors[1]);
    Problem<float> problem({60, 200, {depth}, 1});
    kernels::multiply({problem.fresh()}, workspace);
    return workspace.arena().peak();
  };
  const std::size_t peak = peak_of(kernels::depth_at_once);
  CHECK(peak > peak_of(kernels::depth_at_once / 2));
  CHECK(peak_of(5 * kernels::depth_at_once / 2) == peak);
}

TEST_CASE("the activation and its slope", "[gemm]") {
  check_gelu<float>();
  check_gelu<double>();
}

TEST_CASE("drop-out keeps its share, scaled, and does not see the cuts", "[gemm]") {
  constexpr Index count = 100000;
  for (const float rate : {0.1f, 0.5f, 0.9f}) {
    const kernels::Dropout dropout{17, rate};
    std::vector<float> whole(count, 2.0f), parts = whole, other = whole;
    dropout.apply(whole.data(), count, 5);
    for (Index at = 0, step = 1; at < count; at += step, step = step % 13 + 1) {
      dropout.apply(parts.data() + at, std::min(step, count - at), static_cast<std::uint64_t>(at) + 5);
    }
    CHECK(parts == whole);
    Index dropped = 0, wrong = 0;
    for (const float value : whole) {
      dropped += value == 0;
      wrong += value != 0 && std::abs(value - 2 / (1 - rate)) > 1e-4f;
    }
    CHECK(wrong == 0);
    CHECK(std::abs(static_cast<double>(dropped) / count - static_cast<double>(rate)) < 0.01);
    kernels::Dropout{18, rate}.apply(other.data(), count, 5);
    CHECK(other != whole);
  }
  CHECK(!kernels::Dropout{});
  // Over the border where the number's lower half begins again.
  const kernels::Dropout dropout{17, 0.5f};
  constexpr std::uint64_t border = (std::uint64_t{1} << 32) - 50;
  std::vector<double> whole(100, 1.0), parts = whole;
  dropout.apply(whole.data(), 100, border);
  for (Index i = 0; i < 100; ++i) dropout.apply(parts.data() + i, 1, border + static_cast<std::uint64_t>(i));
  CHECK(parts == whole);
}
