#include <fit/nn/block.hpp>
#include <fit/nn/cross.hpp>
#include <fit/nn/embedding.hpp>
#include <fit/nn/recompute.hpp>
#include <fit/nn/stem.hpp>
#include <fit/nn/time_embedding.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <limits>

namespace {

using fit::Index;
using fit::Random;
using fit::Tape;
using fit::TrainingOptions;
using fit::kernels::Mask;
using Sizes = fit::nn::AttentionLengths;

/// What a layer does with one of its inputs, and how the gradient of it comes back.
enum class Way {
  written,   // read; backward writes its gradient
  added,     // read; backward adds its gradient to what is there
  in_place,  // becomes the output, as the gradient of the output becomes its own
  passed,    // becomes the output; the gradient of the output is its own already
};

struct Input {
  Index size;
  Way way;
};

template <class T>
using Pointers = std::vector<T*>;

// One adaptor for each layer: its inputs, how forward makes the output y of them (y is a copy of an input that becomes
// the output), and how backward makes their gradients dx of the output's, dy.

template <int Out, int In>
struct LinearAdaptor {
  template <class T>
  using Layer = fit::nn::Linear<T, Out, In>;
  Sizes sizes;

  Index rows() const { return sizes.sequences * sizes.queries; }
  std::vector<Input> inputs() const { return {{rows() * In, Way::written}}; }
  Index outputs() const { return rows() * Out; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>& x, T* y, Tape& tape) const {
    fit::nn::forward(p, x[0], y, rows(), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, dx[0], gradient, rows(), tape);
  }
};

template <int Width>
struct LayerNormAdaptor {
  template <class T>
  using Layer = fit::nn::LayerNorm<T, Width>;
  Sizes sizes;

  Index rows() const { return sizes.sequences * sizes.queries; }
  std::vector<Input> inputs() const { return {{rows() * Width, Way::added}}; }
  Index outputs() const { return rows() * Width; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>& x, T* y, Tape& tape) const {
    fit::nn::forward(p, x[0], y, rows(), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, dx[0], gradient, rows(), tape);
  }
};

/// Branches that are all added as they are or, on a tape that records with drop_path, some of which are scaled.
template <class T>
fit::nn::PathScale<T> path(const Sizes& sizes, const Tape& tape) {
  static const T scales[] = {T(2), T(0), T(0.5)};
  REQUIRE(sizes.sequences <= 3);
  if (tape.options().drop_path == 0) return {};
  return {scales, sizes.queries};
}
fit::kernels::Dropout dropout(float rate, const Tape& tape) {
  fit::nn::Draws draws{tape.random().fork(1)};
  return fit::nn::draw_dropout(rate, draws, 0);
}

template <int Width, int Ratio>
struct MLPAdaptor {
  template <class T>
  using Layer = fit::nn::MLP<T, Width, Ratio>;
  Sizes sizes;

  Index rows() const { return sizes.sequences * sizes.queries; }
  std::vector<Input> inputs() const { return {{rows() * Width, Way::written}, {rows() * Width, Way::passed}}; }
  Index outputs() const { return rows() * Width; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>& x, T* y, Tape& tape) const {
    fit::nn::forward(p, x[0], y, rows(), path<T>(sizes, tape), dropout(tape.options().drop_units, tape), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, dx[0], gradient, rows(), tape);
  }
};

template <int Dim, int Width, int Heads, int KeyHeads = Heads>
struct SelfAttentionAdaptor {
  template <class T>
  using Layer = fit::nn::Attention<T, Dim, Dim, Width, Heads, KeyHeads>;
  Sizes sizes;

  Index outputs() const { return sizes.sequences * sizes.queries * Dim; }
  std::vector<Input> inputs() const { return {{outputs(), Way::written}, {outputs(), Way::passed}}; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>& x, T* y, Tape& tape) const {
    fit::nn::forward(p, x[0], x[0], y, sizes, path<T>(sizes, tape), dropout(tape.options().drop_attention, tape), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, dx[0], static_cast<T*>(nullptr), gradient, sizes, tape);
  }
};

template <int QueryDim, int ContextDim, int Width, int Heads, int KeyHeads = Heads>
struct AttentionAdaptor {
  template <class T>
  using Layer = fit::nn::Attention<T, QueryDim, ContextDim, Width, Heads, KeyHeads>;
  Sizes sizes;

  Index outputs() const { return sizes.sequences * sizes.queries * QueryDim; }
  std::vector<Input> inputs() const {
    return {
        {outputs(), Way::written}, {sizes.sequences * sizes.keys * ContextDim, Way::written}, {outputs(), Way::passed}};
  }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>& x, T* y, Tape& tape) const {
    fit::nn::forward(p, x[0], x[1], y, sizes, path<T>(sizes, tape), dropout(tape.options().drop_attention, tape), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, dx[0], dx[1], gradient, sizes, tape);
  }
};

template <int Width, int Ratio>
struct ResidualMLPAdaptor {
  template <class T>
  using Layer = fit::nn::ResidualMLP<T, Width, Ratio>;
  Sizes sizes;

  Index rows() const { return sizes.sequences * sizes.queries; }
  std::vector<Input> inputs() const { return {{outputs(), Way::in_place}}; }
  Index outputs() const { return rows() * Width; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>&, T* y, Tape& tape) const {
    fit::nn::forward(p, y, rows(), path<T>(sizes, tape), dropout(tape.options().drop_units, tape), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T*, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dx[0], gradient, rows(), tape);
  }
};

/// Noise levels are no input of a layer: they have no gradient, and are double in either precision.
template <int Width>
struct TimeEmbeddingAdaptor {
  template <class T>
  using Layer = fit::nn::TimeEmbedding<T, Width>;
  Sizes sizes;

  Index count() const { return sizes.sequences * sizes.queries; }
  std::vector<Input> inputs() const { return {}; }
  Index outputs() const { return count() * Width; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>&, T* y, Tape& tape) const {
    std::vector<double> levels;
    for (Index i = 0; i < count(); ++i) levels.push_back(1 / (1 + 0.37 * static_cast<double>(i)));
    fit::nn::forward(p, levels.data(), y, count(), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>&, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, gradient, count(), tape);
  }
};

/// Ids are no input of a layer either.
template <int Vocabulary, int Width>
struct EmbeddingAdaptor {
  template <class T>
  using Layer = fit::nn::Embedding<T, Vocabulary, Width>;
  Sizes sizes;

  std::vector<std::int32_t> ids = [&] {
    std::vector<std::int32_t> result;
    for (Index i = 0; i < count(); ++i) result.push_back(static_cast<std::int32_t>(i * i % Vocabulary));
    return result;
  }();

  Index count() const { return sizes.sequences * sizes.queries; }
  std::vector<Input> inputs() const { return {}; }
  Index outputs() const { return count() * Width; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>&, T* y, Tape& tape) const {
    fit::nn::forward(p, ids.data(), y, count(), tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>&, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, gradient, count(), tape);
  }
};

template <int Tokens, int Channels, int Width, fit::Positions kind>
struct StemAdaptor {
  template <class T>
  using Layer = fit::nn::DataStem<T, Tokens, Channels, Width, kind>;
  Sizes sizes;

  std::vector<Input> inputs() const { return {{sizes.sequences * Tokens * Channels, Way::written}}; }
  Index outputs() const { return sizes.sequences * Tokens * Width; }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>& x, T* y, Tape& tape) const {
    fit::nn::forward(p, x[0], y, sizes.sequences, tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T* dy, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dy, dx[0], gradient, sizes.sequences, tape);
  }
};

/// A block, without attention where there are no heads, through nn/recompute.hpp, which does nothing unless the tape
/// says so.
template <int Width, int Heads, int Ratio, int KeyHeads = Heads>
struct BlockAdaptor {
  template <class T>
  using Layer = fit::nn::Block<T, Width, Heads, Ratio, KeyHeads>;
  Sizes sizes;

  Index outputs() const { return sizes.sequences * sizes.queries * Width; }
  std::vector<Input> inputs() const { return {{outputs(), Way::in_place}}; }
  template <class T>
  auto runs(const Layer<T>& p, Tape& tape) const {
    return [&](T* x) { fit::nn::forward(p, x, sizes.sequences, sizes.queries, sizes.mask, {tape.random()}, tape); };
  }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>&, T* y, Tape& tape) const {
    fit::nn::forward_recomputed(y, outputs(), tape.options().recompute != fit::Recompute::none, tape, runs<T>(p, tape));
  }
  template <class T>
  void backward(const Layer<T>& p, const T*, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward_recomputed<T>(tape.options().recompute != fit::Recompute::none, tape, runs<T>(p, tape), [&] {
      fit::nn::backward(p, dx[0], gradient, sizes.sequences, sizes.queries, tape);
    });
  }
};

template <int QueryDim, int ContextDim, int Width, int Heads, fit::nn::CrossOptions options = fit::nn::CrossOptions{}>
struct CrossAdaptor {
  template <class T>
  using Layer = fit::nn::Cross<T, QueryDim, ContextDim, Width, Heads, options>;
  Sizes sizes;

  Index outputs() const { return sizes.sequences * sizes.queries * QueryDim; }
  std::vector<Input> inputs() const {
    return {{outputs(), Way::in_place}, {sizes.sequences * sizes.keys * ContextDim, Way::added}};
  }
  template <class T>
  void forward(const Layer<T>& p, const Pointers<const T>& x, T* y, Tape& tape) const {
    fit::nn::forward(p, y, x[1], sizes, tape);
  }
  template <class T>
  void backward(const Layer<T>& p, const T*, const Pointers<T>& dx, Layer<T>& gradient, Tape& tape) const {
    fit::nn::backward(p, dx[0], dx[1], gradient, sizes, tape);
  }
};

using Values = std::vector<double>;

/// Numbers that float holds as well.
Values numbers(Index size, std::uint64_t seed, double deviation = 1) {
  const std::vector<float> values = test::normal_values<float>(size, seed, deviation);
  return {values.begin(), values.end()};
}

template <class T>
std::vector<T> rounded(const Values& values) {
  std::vector<T> result;
  for (const double value : values) result.push_back(static_cast<T>(value));
  return result;
}

template <class T>
Values widened(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}

double norm(const double* values, std::size_t size) {
  double squares = 0;
  for (std::size_t i = 0; i < size; ++i) squares += values[i] * values[i];
  return std::sqrt(squares);
}
double norm(const Values& values) { return norm(values.data(), values.size()); }

/// What a layer works on: all its parameters, its inputs, and the gradient of its output.
struct Data {
  Values parameters;
  std::vector<Values> x;
  Values dy;
};

/// What comes of it: the output, the gradients of the parameters, and those of the inputs but for the passed ones.
struct Outcome {
  Values y, parameters;
  std::vector<Values> x;
};

template <class Layer>
void read_parameters(const Values& values, Layer& layer) {
  auto from = values.begin();
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        for (Index i = 0; i < p.size; ++i) p.data[i] = static_cast<typename Layer::Scalar>(*from++);
      },
      layer);
}

/// A layer that knows its scalar type.
template <class Adaptor, class T>
struct Typed : Adaptor::template Layer<T> {
  using Scalar = T;
};

/// An adaptor's layer and inputs in T.
template <class Adaptor, class T>
class Subject {
 public:
  Subject(const Adaptor& adaptor, const Data& data) : adaptor_(adaptor), dy_(rounded<T>(data.dy)) {
    read_parameters(data.parameters, layer_);
    for (const Values& x : data.x) x_.push_back(rounded<T>(x));
  }

  std::vector<T> forward(Tape& tape) const {
    std::vector<T> y(static_cast<std::size_t>(adaptor_.outputs()), std::numeric_limits<T>::quiet_NaN());
    Pointers<const T> x;
    const auto inputs = adaptor_.inputs();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      x.push_back(x_[i].data());
      if (inputs[i].way == Way::in_place || inputs[i].way == Way::passed) y = x_[i];
    }
    adaptor_.template forward<T>(layer_, x, y.data(), tape);
    return y;
  }

  /// Into buffers that hold `before` where gradients are added, and NaN where they are written.
  Outcome backward(Tape& tape, const Data& before) const {
    Typed<Adaptor, T> gradient;
    read_parameters(before.parameters, gradient);
    std::vector<std::vector<T>> dx;
    Pointers<T> pointers;
    const auto inputs = adaptor_.inputs();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      dx.push_back(inputs[i].way == Way::in_place ? dy_ : rounded<T>(before.x[i]));
      if (inputs[i].way == Way::written) std::fill(dx[i].begin(), dx[i].end(), std::numeric_limits<T>::quiet_NaN());
    }
    for (std::vector<T>& buffer : dx) pointers.push_back(buffer.data());
    const std::vector<T> dy = dy_;
    adaptor_.template backward<T>(layer_, dy.data(), pointers, gradient, tape);
    CHECK(dy == dy_);
    Outcome outcome;
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto p) {
          outcome.parameters.insert(outcome.parameters.end(), p.data, p.data + p.size);
        },
        gradient);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      outcome.x.push_back(inputs[i].way == Way::passed ? widened(dy) : widened(dx[i]));
    }
    return outcome;
  }

  /// Both ways on a tape that records, between records of others, which must be all that is left.
  Outcome train(Tape& tape, const TrainingOptions& options, const Data& before) const {
    struct Neighbour {
      int number;
    };
    tape.record(options, Random(7));
    tape.finish(tape.mark(), Neighbour{42});
    const auto records = tape.mark().total, scratch = tape.arena().mark().total;
    const std::vector<T> y = forward(tape);
    CHECK(tape.arena().mark().total == scratch);
    Outcome outcome = backward(tape, before);
    outcome.y = widened(y);
    CHECK(tape.mark().total == records);
    CHECK(tape.arena().mark().total == scratch);
    CHECK(tape.pop<Neighbour>()->number == 42);
    CHECK(tape.mark().total == 0);
    return outcome;
  }

 private:
  Adaptor adaptor_;
  Typed<Adaptor, T> layer_;
  std::vector<std::vector<T>> x_;
  std::vector<T> dy_;
};

struct Slice {
  std::string name;
  std::size_t first, size;
};

template <class Adaptor>
std::vector<Slice> parameters() {
  std::vector<Slice> slices;
  std::size_t first = 0;
  const typename Adaptor::template Layer<double> layer;
  fit::for_each_parameter(
      [&](const fit::ParameterName& name, auto p) {
        slices.push_back({name.text(), first, static_cast<std::size_t>(p.size)});
        first += slices.back().size;
      },
      layer);
  return slices;
}

/// Noise wherever there are numbers.
template <class Adaptor>
Data noise(const Adaptor& adaptor, std::uint64_t seed, double deviation) {
  const Slice last = parameters<Adaptor>().back();
  Data data{numbers(static_cast<Index>(last.first + last.size), seed, deviation), {}, {}};
  for (const Input& input : adaptor.inputs()) data.x.push_back(numbers(input.size, ++seed));
  data.dy = numbers(adaptor.outputs(), ++seed);
  return data;
}

Data zeros_like(Data data) {
  const auto clear = [](Values& values) { std::fill(values.begin(), values.end(), 0.0); };
  clear(data.parameters);
  clear(data.dy);
  for (Values& x : data.x) clear(x);
  return data;
}

/// No bias of the keys changes a softmax.
bool without_effect(const std::string& name) { return name == "key.bias" || test::contains(name, ".key.bias"); }

/// The derivative of dy . y as `part` of the data, elements first.., moves along the direction: central differences of
/// fourth order.
template <class Adaptor>
double slope(const Adaptor& adaptor, Data& data, Values& part, std::size_t first, const Values& direction, Tape& tape,
             const TrainingOptions& options) {
  const Values start = part;
  const auto output = [&](double step) {
    for (std::size_t i = 0; i < direction.size(); ++i) part[first + i] = start[first + i] + step * direction[i];
    tape.record(options, Random(7));
    return Subject<Adaptor, double>(adaptor, data).forward(tape);
  };
  const double step = 5e-4 / norm(direction);
  const Values up = output(step), down = output(-step), far_up = output(2 * step), far_down = output(-2 * step);
  part = start;
  double result = 0;
  for (std::size_t i = 0; i < up.size(); ++i) {
    result += data.dy[i] * (8 * (up[i] - down[i]) - (far_up[i] - far_down[i]));
  }
  return result / (12 * step);
}

/// Some of the elements first..first+size-1 of a part of the data, and a direction through all of them.
template <class Adaptor>
void check_slopes(const Adaptor& adaptor, Data& data, Values& part, std::size_t first, std::size_t size,
                  const Values& gradient, double typical, Tape& tape, const TrainingOptions& options) {
  if (size == 0) return;
  Random random(first);
  Values numeric, exact;
  const std::size_t samples = std::min<std::size_t>(size, 24);
  for (std::size_t i = 0; i < samples; ++i) {
    const std::size_t at =
        first + (size == samples ? i : static_cast<std::size_t>(random.below(static_cast<Index>(size))));
    numeric.push_back(slope(adaptor, data, part, at, {1.0}, tape, options));
    exact.push_back(gradient[at]);
  }
  const auto floor = [&](std::size_t count) { return 0.001 * typical * std::sqrt(static_cast<double>(count)); };
  Values difference(samples);
  for (std::size_t i = 0; i < samples; ++i) difference[i] = numeric[i] - exact[i];
  CHECK(norm(difference) <= 1e-6 * std::max(norm(exact), floor(samples)));

  const Values direction = numbers(static_cast<Index>(size), first + 1);
  double along = 0;
  for (std::size_t i = 0; i < size; ++i) along += gradient[first + i] * direction[i];
  CHECK(std::abs(slope(adaptor, data, part, first, direction, tape, options) - along) <=
        1e-6 * std::max(norm(gradient.data() + first, size), floor(size)));
}

/// What holds of every layer.
template <class Adaptor>
void check_contract(const Adaptor& adaptor, const TrainingOptions& options = {}) {
  const Sizes& sizes = adaptor.sizes;
  INFO("sequences " << sizes.sequences << ", queries " << sizes.queries << ", keys " << sizes.keys << ", chunk "
                    << sizes.mask.chunk << ", drop path " << options.drop_path << ", units " << options.drop_units
                    << ", attention " << options.drop_attention << ", recompute "
                    << static_cast<int>(options.recompute));
  fit::Executor one(1), three(3);
  Tape tape(one), other(three);
  Data data = noise(adaptor, 1, 0.4);
  const Data zeros = zeros_like(data), before = noise(adaptor, 50, 1);
  const std::vector<Slice> slices = parameters<Adaptor>();
  const Subject<Adaptor, double> subject(adaptor, data);
  const auto inputs = adaptor.inputs();
  const Outcome outcome = subject.train(tape, options, zeros);

  // Gradients are those of differences.
  double squares = norm(outcome.parameters), count = static_cast<double>(outcome.parameters.size());
  squares *= squares;
  for (const Values& x : outcome.x) {
    squares += norm(x) * norm(x);
    count += static_cast<double>(x.size());
  }
  const double typical = std::sqrt(squares / count);
  for (const Slice& slice : slices) {
    INFO(slice.name);
    check_slopes(adaptor, data, data.parameters, slice.first, slice.size, outcome.parameters, typical, tape, options);
    if (!without_effect(slice.name)) continue;
    CHECK(norm(outcome.parameters.data() + slice.first, slice.size) <=
          1e-13 * typical * std::sqrt(static_cast<double>(slice.size)));
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO("input " << i);
    REQUIRE(outcome.x[i].size() == data.x[i].size());
    check_slopes(adaptor, data, data.x[i], 0, data.x[i].size(), outcome.x[i], typical, tape, options);
  }

  // They are added to what is there, but for those that are written.
  const Outcome added = subject.train(tape, options, before);
  const auto check_added = [&](const Values& after, const Values& noise, const Values& gradient) {
    double worst = 0;
    for (std::size_t i = 0; i < after.size(); ++i) {
      const double error = std::abs(after[i] - (noise[i] + gradient[i]));
      worst = std::isnan(error) ? error : std::max(worst, error / (std::abs(noise[i]) + typical));
    }
    CHECK(worst <= 1e-13);
  };
  check_added(added.parameters, before.parameters, outcome.parameters);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO("input " << i);
    if (inputs[i].way == Way::added) {
      check_added(added.x[i], before.x[i], outcome.x[i]);
    } else {
      CHECK(added.x[i] == outcome.x[i]);
    }
  }
  CHECK(added.y == outcome.y);

  // The same bits and the same memory again, on more threads the same bits.
  const std::size_t capacity = tape.capacity(), peak = tape.peak();
  for (Tape* on : {&tape, &other}) {
    const Outcome again = subject.train(*on, options, zeros);
    CHECK(again.y == outcome.y);
    CHECK(again.parameters == outcome.parameters);
    CHECK(again.x == outcome.x);
  }
  CHECK(tape.capacity() == capacity);
  CHECK(tape.peak() == peak);

  // Float comes near.
  const Outcome coarse = Subject<Adaptor, float>(adaptor, data).train(other, options, zeros);
  const auto check_near = [&](const double* ours, const double* expected, std::size_t size, double least) {
    Values difference(size);
    for (std::size_t i = 0; i < size; ++i) difference[i] = ours[i] - expected[i];
    CHECK(norm(difference) <= 1e-5 * std::max(norm(expected, size), least * std::sqrt(static_cast<double>(size))));
  };
  check_near(coarse.y.data(), outcome.y.data(), coarse.y.size(), 0);
  for (const Slice& slice : slices) {
    INFO(slice.name);
    check_near(coarse.parameters.data() + slice.first, outcome.parameters.data() + slice.first, slice.size,
               0.1 * typical);
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO("input " << i);
    check_near(coarse.x[i].data(), outcome.x[i].data(), coarse.x[i].size(), 0.1 * typical);
  }

  // Inference is training without drop-outs.
  tape.record({.recompute = options.recompute});
  const Values trained = subject.forward(tape);
  tape.clear();
  CHECK(subject.forward(tape) == trained);
  CHECK(tape.arena().mark().total == 0);
  const bool drops = options.drop_path > 0 || options.drop_units > 0 || options.drop_attention > 0;
  if (!trained.empty()) CHECK((trained == outcome.y) == !drops);

  // No way back without a way there.
  const auto backward_alone = [&] {
    const auto before_it = tape.mark().total;
    const std::string message = test::error_of([&] { subject.backward(tape, zeros); });
    return test::contains(message, "does not find its forward") && tape.mark().total == before_it;
  };
  CHECK(backward_alone());
  tape.record(options);
  CHECK(backward_alone());
  subject.forward(tape);
  subject.backward(tape, zeros);
  CHECK(backward_alone());
  struct Foreign {};
  tape.finish(tape.mark(), Foreign{});
  CHECK(backward_alone());
}

constexpr TrainingOptions everything{.drop_path = 0.4f, .drop_units = 0.3f, .drop_attention = 0.2f};
constexpr TrainingOptions everything_twice{
    .drop_path = 0.4f, .drop_units = 0.3f, .drop_attention = 0.2f, .recompute = fit::Recompute::stage};

template <fit::nn::CrossOptions options>
void check_cross() {
  INFO("context norm " << options.context_norm << ", MLP ratio " << options.mlp_ratio);
  for (const auto& [sequences, queries, keys] :
       {std::tuple{3, 5, 11}, {1, 40, 3}, {2, 1, 1}, {0, 5, 5}, {2, 5, 0}, {2, 0, 5}}) {
    check_contract(CrossAdaptor<10, 7, 12, 3, options>{{sequences, queries, keys}});
    check_contract(CrossAdaptor<8, 8, 8, 1, options>{{sequences, queries, keys}});
  }
}

/// A layer with noise in its parameters.
template <class Layer>
Layer stirred() {
  Layer layer;
  Random random(6);
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        for (Index i = 0; i < p.size; ++i)
          p.data[i] = static_cast<std::remove_reference_t<decltype(*p.data)>>(random.normal());
      },
      layer);
  return layer;
}

double distance(const Values& a, const Values& b) {
  Values off(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) off[i] = a[i] - b[i];
  return norm(off) / norm(b);
}

/// Sequences whose rows go through a block as they come, `together` at a time or one of each sequence, against all of
/// them at once.
template <int Width, int Heads, int KeyHeads = Heads>
void check_block_steps(Index sequences, Index length, Index together, const fit::nn::StepKernels<double>& with) {
  INFO(sequences << " x " << length << ", " << together << " at a time, few rows "
                 << (with.multiply == fit::kernels::multiply_few_rows<double>));
  using Block = fit::nn::Block<double, Width, Heads, 2, KeyHeads>;
  constexpr Index key_width = Width / Heads * KeyHeads;
  const auto block = stirred<Block>();
  const Values x = numbers(sequences * length * Width, 3);
  Values expected = x, found = x, keys(static_cast<std::size_t>(sequences * length * key_width)), values(keys);
  fit::Executor executor(2);
  Tape tape(executor);
  fit::nn::forward(block, expected.data(), sequences, length, Mask::causal(), {tape.random()}, tape);
  const auto row = [&](Index s, Index first) { return (s * length + first) * Width; };
  for (Index first = 0; first < length; first += together) {
    const Index rows = std::min(together, length - first);
    std::vector<fit::nn::CachedRows<double>> caches;
    Values step;
    for (Index s = 0; s < sequences; ++s) {
      const Index cache = s * length * key_width;
      caches.push_back({keys.data() + cache, values.data() + cache, first + rows, rows});
      step.insert(step.end(), x.data() + row(s, first), x.data() + row(s, first + rows));
    }
    fit::nn::step(block, step.data(), std::span<const fit::nn::CachedRows<double>>(caches), Mask::causal(), with, tape);
    for (Index s = 0; s < sequences; ++s) {
      std::copy_n(step.data() + s * rows * Width, rows * Width, found.data() + row(s, first));
    }
  }
  CHECK(distance(found, expected) < 1e-13);
  CHECK(tape.arena().mark().total == 0);
}

template <fit::nn::CrossOptions options>
void check_cross_steps(bool few) {
  const auto kernel = few ? fit::kernels::multiply_few_rows<double> : fit::nn::StepKernels<double>{}.multiply;
  INFO("context norm " << options.context_norm << ", MLP ratio " << options.mlp_ratio << ", few rows " << few);
  constexpr Index queries = 5, keys = 11, width = 12;
  const auto cross = stirred<fit::nn::Cross<double, 10, 7, width, 3, options>>();
  const Values context = numbers(2 * keys * 7, 4);
  Values expected = numbers(2 * queries * 10, 5), found = expected, key_cache(2 * keys * width), value_cache(key_cache);
  Tape tape;
  fit::nn::forward(cross, expected.data(), context.data(), {2, queries, keys}, tape);
  fit::nn::step_context(cross, context.data(), key_cache.data(), value_cache.data(), 2 * keys, {.multiply = kernel},
                        tape);
  for (Index i = 0; i < queries; i += few ? 1 : queries) {
    const Index rows = few ? 1 : queries;
    Values step;
    std::vector<fit::nn::CachedRows<double>> caches;
    for (Index s = 0; s < 2; ++s) {
      const double* from = found.data() + (s * queries + i) * 10;
      step.insert(step.end(), from, from + rows * 10);
      caches.push_back({key_cache.data() + s * keys * width, value_cache.data() + s * keys * width, keys, rows});
    }
    fit::nn::step(cross, step.data(), std::span<const fit::nn::CachedRows<double>>(caches),
                  {.multiply = kernel, .single_queries = few}, tape);
    for (Index s = 0; s < 2; ++s)
      std::copy_n(step.data() + s * rows * 10, rows * 10, found.data() + (s * queries + i) * 10);
  }
  CHECK(distance(found, expected) < 1e-13);
  CHECK(tape.arena().mark().total == 0);
}

}  // namespace

TEST_CASE("a step is forward for new rows", "[layers]") {
  for (const bool few : {false, true}) {
    const auto kernel = few ? fit::kernels::multiply_few_rows<double> : fit::nn::StepKernels<double>{}.multiply;
    check_block_steps<12, 3>(1, 40, 7, {.multiply = kernel});
    check_block_steps<12, 3>(3, 20, 20, {.multiply = kernel});
    check_block_steps<9, 1>(2, 5, 1, {.multiply = kernel, .single_queries = true});
    check_block_steps<12, 6, 2>(2, 9, 4, {.multiply = kernel});
    check_block_steps<12, 6, 2>(2, 9, 1, {.multiply = kernel, .single_queries = true});
    check_block_steps<12, 3>(5, 300, 1, {.multiply = kernel, .single_queries = true});
    check_cross_steps<fit::nn::CrossOptions{}>(few);
    check_cross_steps<fit::nn::CrossOptions{.context_norm = true, .mlp_ratio = 2}>(few);
    check_cross_steps<fit::nn::CrossOptions{.context_norm = false, .mlp_ratio = 2}>(few);
  }
}

TEST_CASE("embeddings and stems", "[layers]") {
  for (const auto& [sequences, length] : {std::pair{1, 1}, {3, 7}, {0, 4}}) {
    check_contract(EmbeddingAdaptor<5, 19>{{sequences, length}});
    check_contract(StemAdaptor<6, 3, 10, fit::Positions::learned>{{sequences, length}});
    check_contract(StemAdaptor<9, 3, 10, fit::Positions::sin_cos_2d>{{sequences, length}});
  }
}

TEST_CASE("linear layers", "[layers]") {
  for (const auto& [sequences, length] : {std::pair{1, 1}, {3, 7}, {2, 300}, {0, 4}}) {
    check_contract(LinearAdaptor<19, 7>{{sequences, length}});
    check_contract(LinearAdaptor<1, 40>{{sequences, length}});
  }
  check_contract(LinearAdaptor<5, 600>{{1, 3}});
}

TEST_CASE("a linear layer need not give its input's gradient", "[layers]") {
  const LinearAdaptor<5, 3> adaptor{{2, 4}};
  const Data data = noise(adaptor, 1, 1), zeros = zeros_like(data);
  Tape tape;
  const Outcome expected = Subject<LinearAdaptor<5, 3>, double>(adaptor, data).train(tape, {}, zeros);
  fit::nn::Linear<double, 5, 3> layer, gradient;
  Values y(40);
  tape.record();
  fit::nn::forward(layer, data.x[0].data(), y.data(), 8, tape);
  fit::nn::backward(layer, data.dy.data(), static_cast<double*>(nullptr), gradient, 8, tape);
  CHECK(test::max_error(gradient.weight.data(), expected.parameters.data(), 15) == 0);
  CHECK(test::max_error(gradient.bias.data(), expected.parameters.data() + 15, 5) == 0);
}

TEST_CASE("layer norms", "[layers]") {
  for (const auto& [sequences, length] : {std::pair{1, 1}, {3, 7}, {2, 70}, {0, 4}}) {
    check_contract(LayerNormAdaptor<19>{{sequences, length}});
    check_contract(LayerNormAdaptor<3>{{sequences, length}});
  }
}

TEST_CASE("perceptrons", "[layers]") {
  for (const TrainingOptions& options :
       {TrainingOptions{}, TrainingOptions{.drop_units = 0.3f}, TrainingOptions{.drop_path = 0.5f}, everything}) {
    check_contract(MLPAdaptor<12, 3>{{3, 7}}, options);
    check_contract(MLPAdaptor<9, 1>{{2, 20}}, options);
  }
  check_contract(MLPAdaptor<8, 70>{{2, 2}}, {.drop_units = 0.3f});
  check_contract(MLPAdaptor<12, 3>{{0, 7}});
}

TEST_CASE("residual perceptrons", "[layers]") {
  for (const TrainingOptions& options :
       {TrainingOptions{}, TrainingOptions{.drop_units = 0.3f}, TrainingOptions{.drop_path = 0.5f}, everything}) {
    check_contract(ResidualMLPAdaptor<12, 3>{{3, 7}}, options);
  }
  check_contract(ResidualMLPAdaptor<9, 1>{{2, 20}});
  check_contract(ResidualMLPAdaptor<12, 3>{{0, 7}});
}

TEST_CASE("time embeddings", "[layers]") {
  for (const auto& [sequences, length] : {std::pair{1, 1}, {3, 7}, {2, 70}, {0, 4}}) {
    check_contract(TimeEmbeddingAdaptor<12>{{sequences, length}});
    check_contract(TimeEmbeddingAdaptor<20>{{sequences, length}});
  }
}

TEST_CASE("a time embedding tells noise levels apart that are one number in float", "[layers]") {
  const fit::nn::TimeEmbedding<float, 16> layer = [] {
    Typed<TimeEmbeddingAdaptor<16>, float> noisy;
    read_parameters(noise(TimeEmbeddingAdaptor<16>{{1, 1}}, 1, 1).parameters, noisy);
    return noisy;
  }();
  const double levels[] = {0.8, 0.8 + 1e-8, 0, 1, 0.8};
  REQUIRE(static_cast<float>(levels[0]) == static_cast<float>(levels[1]));
  float tokens[5][16];
  Tape tape;
  fit::nn::forward(layer, levels, tokens[0], 5, tape);
  CHECK(test::max_error(tokens[0], tokens[4], 16) == 0);
  CHECK(test::max_error(tokens[0], tokens[1], 16) > 0);
  CHECK(test::max_error(tokens[0], tokens[1], 16) < 1e-3);
  CHECK(test::max_error(tokens[0], tokens[2], 16) > 0.1);
  CHECK(test::max_error(tokens[0], tokens[3], 16) > 0.1);
  CHECK(test::max_error(tokens[2], tokens[3], 16) > 0.1);
}

TEST_CASE("attention to itself", "[layers]") {
  for (const Mask mask : {Mask::none(), Mask::causal(), Mask::chunk_causal(3)}) {
    for (const TrainingOptions& options :
         {TrainingOptions{}, TrainingOptions{.drop_attention = 0.3f}, TrainingOptions{.drop_path = 0.5f}}) {
      check_contract(SelfAttentionAdaptor<10, 12, 3>{{3, 8, 8, mask}}, options);
    }
    check_contract(SelfAttentionAdaptor<7, 10, 2>{{1, 70, 70, mask}}, {.drop_path = 0.5f, .drop_attention = 0.3f});
  }
  check_contract(SelfAttentionAdaptor<10, 12, 4, 2>{{3, 8, 8, Mask::causal()}}, {.drop_attention = 0.3f});
  check_contract(SelfAttentionAdaptor<12, 12, 4, 1>{{2, 8, 8}});
  check_contract(SelfAttentionAdaptor<10, 12, 3>{{2, 1, 1}});
  check_contract(SelfAttentionAdaptor<10, 12, 3>{{0, 8, 8}});
}

TEST_CASE("attention to a context", "[layers]") {
  for (const TrainingOptions& options : {TrainingOptions{}, TrainingOptions{.drop_attention = 0.3f},
                                         TrainingOptions{.drop_path = 0.5f, .drop_attention = 0.3f}}) {
    check_contract(AttentionAdaptor<10, 7, 12, 3>{{3, 5, 11}}, options);
    check_contract(AttentionAdaptor<7, 10, 6, 1>{{2, 20, 3}}, options);
  }
  check_contract(AttentionAdaptor<10, 10, 12, 3>{{2, 6, 6, Mask::causal()}});
  check_contract(AttentionAdaptor<10, 7, 12, 6, 2>{{3, 5, 11}});
  for (const auto& [sequences, queries, keys] : {std::tuple{2, 0, 5}, {2, 5, 0}, {0, 5, 5}}) {
    check_contract(AttentionAdaptor<10, 7, 12, 3>{{sequences, queries, keys}});
  }
}

TEST_CASE("blocks", "[layers]") {
  for (const Mask mask : {Mask::none(), Mask::causal(), Mask::chunk_causal(3)}) {
    for (const TrainingOptions& options :
         {TrainingOptions{}, TrainingOptions{.recompute = fit::Recompute::stage}, TrainingOptions{.drop_path = 0.4f},
          TrainingOptions{.drop_units = 0.3f}, TrainingOptions{.drop_attention = 0.3f}, everything, everything_twice}) {
      check_contract(BlockAdaptor<12, 3, 2>{{3, 8, 8, mask}}, options);
    }
  }
  check_contract(BlockAdaptor<8, 1, 1>{{1, 33, 33}}, everything_twice);
  check_contract(BlockAdaptor<12, 6, 2, 3>{{3, 8, 8, Mask::causal()}}, everything_twice);
  check_contract(BlockAdaptor<12, 3, 2>{{0, 8, 8}});
  check_contract(BlockAdaptor<12, 3, 2>{{3, 0, 0}}, everything_twice);
}

TEST_CASE("a head of keys that is shared is one that is repeated", "[layers]") {
  constexpr int width = 12, heads = 6, key_heads = 2, head_width = width / heads, sharing = heads / key_heads;
  const auto shared = stirred<fit::nn::Block<double, width, heads, 2, key_heads>>();
  auto repeated = stirred<fit::nn::Block<double, width, heads, 2>>();
  // The parameters of a shared head's elements, and where they are repeated: body(to, from, count).
  const auto for_repeated = [](auto& many, auto& few, auto&& body) {
    const auto lines = [&](auto& many_linear, auto& few_linear) {
      for (int i = 0; i < width; ++i) {
        const int from = i / head_width / sharing * head_width + i % head_width;
        body(many_linear.weight.data() + i * width, few_linear.weight.data() + from * width, width);
        body(many_linear.bias.data() + i, few_linear.bias.data() + from, 1);
      }
    };
    lines(many.attention.key, few.attention.key);
    lines(many.attention.value, few.attention.value);
  };
  repeated.attention_norm = shared.attention_norm;
  repeated.attention.query = shared.attention.query;
  repeated.attention.output = shared.attention.output;
  repeated.residual_mlp = shared.residual_mlp;
  for_repeated(repeated, shared, [](double* to, const double* from, int count) { std::copy_n(from, count, to); });

  const Index rows = 2 * 9 * width;
  const Values x = numbers(rows, 3), dy = numbers(rows, 4);
  const auto run = [&](const auto& block, auto& gradient, Values& y, Values& dx) {
    Tape tape;
    tape.record();
    y = x;
    dx = dy;
    fit::nn::forward(block, y.data(), 2, 9, Mask::causal(), {tape.random()}, tape);
    fit::nn::backward(block, dx.data(), gradient, 2, 9, tape);
  };
  fit::nn::Block<double, width, heads, 2, key_heads> of_shared, summed;
  fit::nn::Block<double, width, heads, 2> of_repeated;
  Values y_shared, dx_shared, y_repeated, dx_repeated;
  run(shared, of_shared, y_shared, dx_shared);
  run(repeated, of_repeated, y_repeated, dx_repeated);
  CHECK(y_shared == y_repeated);
  CHECK(distance(dx_shared, dx_repeated) < 1e-14);
  for_repeated(of_repeated, summed, [](const double* from, double* to, int count) {
    for (int i = 0; i < count; ++i) to[i] += from[i];
  });
  const auto close = [&](const auto& a, const auto& b) {
    const Values first(a.data(), a.data() + a.size()), second(b.data(), b.data() + b.size());
    CHECK(distance(first, second) < 1e-13);
  };
  close(of_shared.attention.key.weight, summed.attention.key.weight);
  close(of_shared.attention.value.weight, summed.attention.value.weight);
  close(of_shared.attention.value.bias, summed.attention.value.bias);
  close(of_shared.attention.query.weight, of_repeated.attention.query.weight);
}

TEST_CASE("blocks without attention", "[layers]") {
  constexpr TrainingOptions both{.drop_path = 0.4f, .drop_units = 0.3f},
      both_twice{.drop_path = 0.4f, .drop_units = 0.3f, .recompute = fit::Recompute::stage};
  for (const TrainingOptions& options :
       {TrainingOptions{}, TrainingOptions{.recompute = fit::Recompute::stage}, TrainingOptions{.drop_path = 0.4f},
        TrainingOptions{.drop_units = 0.3f}, both, both_twice}) {
    check_contract(BlockAdaptor<12, 0, 2>{{3, 8}}, options);
  }
  check_contract(BlockAdaptor<12, 0, 2>{{0, 8}});
  check_contract(BlockAdaptor<12, 0, 2>{{3, 0}});
}

TEST_CASE("computing a block again gives the gradients that keeping it does", "[layers]") {
  const BlockAdaptor<12, 3, 2> adaptor{{3, 8, 8, Mask::causal()}};
  const Data data = noise(adaptor, 1, 0.4), before = noise(adaptor, 50, 1);
  const Subject<BlockAdaptor<12, 3, 2>, float> subject(adaptor, data);
  Tape tape;
  const Outcome kept = subject.train(tape, everything, before);
  const Outcome again = subject.train(tape, everything_twice, before);
  CHECK(again.y == kept.y);
  CHECK(again.x == kept.x);
  CHECK(again.parameters == kept.parameters);
  // Other random numbers, other results; the tape of a block to be computed again holds little more than its input.
  tape.record(everything, Random(8));
  CHECK(widened(subject.forward(tape)) != kept.y);
  const std::size_t whole = tape.mark().total;
  tape.record(everything_twice, Random(8));
  subject.forward(tape);
  CHECK(tape.mark().total < whole / 4);
}

TEST_CASE("what a block drops does not depend on how its sequences are cut in chunks", "[layers]") {
  constexpr Index sequences = 7, length = 3, size = length * 8;
  using Block = fit::nn::Block<double, 8, 2, 2>;
  const auto block = stirred<Block>();
  const Values x = numbers(sequences * size, 3);
  for (const TrainingOptions& options : {TrainingOptions{.drop_path = 0.5f}, TrainingOptions{.drop_units = 0.5f},
                                         TrainingOptions{.drop_attention = 0.5f}}) {
    Tape tape;
    tape.record(options);
    const auto run = [&](Values& y, Index first, Index count) {
      fit::nn::forward(block, y.data() + first * size, count, length, Mask::none(), {Random(4), first}, tape);
    };
    Values whole = x, pieces = x, misplaced = x;
    run(whole, 0, sequences);
    for (const auto& [first, count] : {std::pair{Index{0}, Index{2}}, {2, 1}, {3, 4}}) run(pieces, first, count);
    CHECK(pieces == whole);
    // The numbers of a sequence are its own.
    fit::nn::forward(block, misplaced.data(), sequences, length, Mask::none(), {Random(4), 1}, tape);
    CHECK(misplaced != whole);
  }
}

TEST_CASE("a long sequence goes through a block's MLP in pieces, or waits for the way back", "[layers]") {
  // Without attention, rows are the same whether they are one sequence, which is cut, or one each, which are not.
  using Block = fit::nn::Block<float, 8, 0, 2>;
  const auto block = stirred<Block>();
  constexpr Index rows = 9001;
  const auto input = test::normal_values<float>(rows * 8, 1), upward = test::normal_values<float>(rows * 8, 2);
  struct Seen {
    std::vector<float> output, input_gradient, gradient;
  };
  const auto run = [&](const TrainingOptions& options, Index sequences, bool again) {
    Tape tape;
    tape.record(options);
    Seen seen{input, upward, {}};
    Block gradient;
    fit::nn::forward(block, seen.output.data(), sequences, rows / sequences, Mask::none(), {Random(5)}, tape, again);
    fit::nn::backward(block, seen.input_gradient.data(), gradient, sequences, rows / sequences, tape);
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto p) { seen.gradient.insert(seen.gradient.end(), p.data, p.data + p.size); },
        gradient);
    return seen;
  };
  const TrainingOptions units{.drop_units = 0.3f}, both{.drop_path = 0.5f, .drop_units = 0.3f};
  for (const TrainingOptions& options : {TrainingOptions{}, units, both}) {
    const Seen cut = run(options, 1, false), late = run(options, 1, true);
    CHECK(test::same_bits(late.input_gradient, cut.input_gradient));
    CHECK(test::same_bits(late.gradient, cut.gradient));
    if (options.drop_path > 0) continue;
    const Seen whole = run(options, rows, false);
    CHECK(test::same_bits(cut.output, whole.output));
    CHECK(test::same_bits(cut.input_gradient, whole.input_gradient));
    CHECK(test::relative_error(cut.gradient.data(), whole.gradient.data(), std::ssize(whole.gradient)) < 1e-5);
  }
}

TEST_CASE("a block drops the branches of whole sequences", "[layers]") {
  constexpr std::size_t sequences = 400, size = 3 * 4;
  const fit::nn::Block<double, 4, 1, 1> block = [] {
    Typed<BlockAdaptor<4, 1, 1>, double> layer;
    read_parameters(noise(BlockAdaptor<4, 1, 1>{{1, 1, 1}}, 1, 1).parameters, layer);
    return layer;
  }();
  const Values x = numbers(sequences * size, 3);
  const auto run = [&](const TrainingOptions& options) {
    Tape tape;
    Values y = x;
    tape.record(options, Random(3));
    fit::nn::forward(block, y.data(), sequences, 3, Mask::none(), {tape.random()}, tape);
    return y;
  };
  const Values y = run({.drop_path = 0.5f}), whole = run({});
  std::size_t untouched = 0, mixed = 0;
  double share = 0;
  for (std::size_t s = 0; s < sequences; ++s) {
    std::size_t same = 0;
    double moved = 0, moves = 0;
    for (std::size_t i = s * size; i < (s + 1) * size; ++i) {
      same += y[i] == x[i];
      moved += (y[i] - x[i]) * (whole[i] - x[i]);
      moves += (whole[i] - x[i]) * (whole[i] - x[i]);
    }
    untouched += same == size;
    mixed += same != 0 && same != size;
    share += moved / moves / static_cast<double>(sequences);
  }
  CHECK(mixed == 0);
  // A quarter loses both branches; those that are left make up for it. Five deviations.
  CHECK(std::abs(static_cast<double>(untouched) - 100) < 44);
  CHECK(std::abs(share - 1) < 0.2);
}

TEST_CASE("cross attention", "[layers]") {
  check_cross<fit::nn::CrossOptions{}>();
  check_cross<fit::nn::CrossOptions{.context_norm = true, .mlp_ratio = 2}>();
  check_cross<fit::nn::CrossOptions{.context_norm = false, .mlp_ratio = 0}>();
  check_cross<fit::nn::CrossOptions{.context_norm = false, .mlp_ratio = 2}>();
}

TEST_CASE("a cross layer has the parameters of its options and no others", "[layers]") {
  const auto has = [](const std::vector<Slice>& slices, const char* name) {
    return std::any_of(slices.begin(), slices.end(), [&](const Slice& s) { return test::contains(s.name, name); });
  };
  const auto plain = parameters<CrossAdaptor<8, 8, 8, 1>>();
  CHECK(has(plain, "context_norm"));
  CHECK(!has(plain, "mlp"));
  const auto other =
      parameters<CrossAdaptor<8, 8, 8, 1, fit::nn::CrossOptions{.context_norm = false, .mlp_ratio = 2}>>();
  CHECK(!has(other, "context_norm"));
  CHECK(has(other, "mlp_norm.weight"));
  CHECK(has(other, "mlp.fc2.bias"));
}
