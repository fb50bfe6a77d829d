// A layer of one's own in the library's form: y = gain * x, with a gain for each of Width features. Its gradient is
// checked against differences, and an optimiser trains it.
#include <fit/fit.hpp>

#include <cmath>
#include <cstdio>

template <class T, int Width>
struct Gain {
  using Scalar = T;

  fit::Vector<T, Width> gain;

  static void visit(auto&& f, auto&... p) { f("gain", p.gain...); }
};

struct GainRecord {
  const void* x;
};

/// y [rows, Width] from x [rows, Width].
template <class T, int Width>
void forward(const Gain<T, Width>& p, const T* x, T* y, fit::Index rows, fit::Tape& tape) {
  const auto start = tape.mark();
  for (fit::Index i = 0; i < rows * Width; ++i) y[i] = p.gain.data()[i % Width] * x[i];
  tape.finish(start, GainRecord{x});
}

/// Writes x_gradient, and adds to `gradient`.
template <class T, int Width>
void backward(const Gain<T, Width>& p, const T* y_gradient, T* x_gradient, Gain<T, Width>& gradient, fit::Index rows,
              fit::Tape& tape) {
  const auto saved = tape.pop<GainRecord>();
  const T* x = static_cast<const T*>(saved->x);
  for (fit::Index i = 0; i < rows * Width; ++i) {
    x_gradient[i] = p.gain.data()[i % Width] * y_gradient[i];
    gradient.gain.data()[i % Width] += y_gradient[i] * x[i];
  }
}

int main() {
  constexpr fit::Index rows = 5, width = 3;
  using Layer = Gain<double, width>;
  Layer layer;
  for (fit::Index j = 0; j < width; ++j) layer.gain.data()[j] = 1 + static_cast<double>(j);
  fit::Tensor<double, 2> x(rows, width), y(rows, width), x_gradient(rows, width);
  fit::Random random(1);
  for (fit::Index i = 0; i < x.size(); ++i) x.data()[i] = random.normal();

  // The loss is half the squared length of y, so y is its own gradient.
  fit::Tape tape;
  const auto loss = [&] {
    tape.record();
    forward(layer, x.data(), y.data(), rows, tape);
    double sum = 0;
    for (fit::Index i = 0; i < y.size(); ++i) sum += y.data()[i] * y.data()[i] / 2;
    return sum;
  };
  Layer gradient;
  const double before = loss();
  backward(layer, y.data(), x_gradient.data(), gradient, rows, tape);
  const double step = 1e-6;
  layer.gain.data()[1] += step;
  const double difference = (loss() - before) / step;
  std::printf("gradient %.6f, by differences %.6f\n", gradient.gain.data()[1], difference);

  fit::TrainingState<Layer> state{.model = layer};
  for (int i = 0; i < 100; ++i) {
    state.update(gradient, {.learning_rate = 0.05}, tape);
    layer = state.model;
    loss();
    backward(layer, y.data(), x_gradient.data(), gradient, rows, tape);
  }
  std::printf("loss %.4f, after 100 steps %.4f\n", before, loss());
  return std::abs(gradient.gain.data()[1]) < 1 && loss() < before / 100 ? 0 : 1;
}
