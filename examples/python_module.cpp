#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string>

#include <fit/fit.hpp>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

constexpr fit::EncoderConfig config{
    .layers = "(1)2(1)", .groups = 4, .tokens = 16, .channels = 3, .latents = 2,
    .data_dim = 32, .latent_dim = 64, .data_heads = 2, .latent_heads = 4};
using Model = fit::Classifier<config, 5>;

/// NumPy copies an array only where it is of another type, or not row-major.
template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T, int Rank>
fit::TensorView<const T, Rank> view_of(const Array<T>& array) {
  fit::require(array.ndim() == Rank, "an array of ", Rank, " dimensions is needed, not one of ", array.ndim());
  typename fit::TensorView<const T, Rank>::Dimensions dimensions;
  for (int i = 0; i < Rank; ++i) dimensions[static_cast<std::size_t>(i)] = array.shape(i);
  return {array.data(), dimensions};
}

/// Whole numbers of any size.
fit::Tensor<std::int32_t, 1> targets_of(const py::array& labels) {
  const char kind = labels.dtype().kind();
  if (kind != 'i' && kind != 'u') throw py::type_error("labels must be whole numbers");
  const Array<std::int64_t> array(labels);
  const auto from = view_of<std::int64_t, 1>(array);
  fit::Tensor<std::int32_t, 1> targets(from.dimensions());
  for (fit::Index i = 0; i < from.size(); ++i) {
    targets(i) = static_cast<std::int32_t>(from(i));
    fit::require(targets(i) == from(i), "a label must be a class, not ", from(i));
  }
  return targets;
}

/// A model and its training. Python's other threads run meanwhile, and must leave a call's arrays as they are; calls of
/// one model wait for each other.
class Classifier {
  std::mutex mutex_;

  template <class Call>
  auto locked(Call&& call) {
    const py::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    return call();
  }

 public:
  explicit Classifier(std::uint64_t seed) {
    state_.model = Model(fit::Random(seed));
    state_.random = fit::Random(seed + 1);
  }

  py::array_t<float> logits(const Array<float>& x) {
    const auto images = view_of<float, 4>(x);
    py::array_t<float> result({images.dimension(0), fit::Index{5}});
    float* to = result.mutable_data();
    locked([&] {
      const fit::Tensor<float, 2> found = state_.model(images, tape_);
      std::copy_n(found.data(), found.size(), to);
    });
    return result;
  }

  double loss(const Array<float>& x, const py::array& labels) {
    const auto images = view_of<float, 4>(x);
    const auto targets = targets_of(labels);
    return locked([&] { return fit::cross_entropy(state_.model(images, tape_), targets, tape_); });
  }

  double train_step(const Array<float>& x, const py::array& labels, double rate) {
    const auto images = view_of<float, 4>(x);
    const auto targets = targets_of(labels);
    return locked([&] {
      fit::set_zero(gradient_);  // whatever an error has left
      tape_.record({}, state_.random.split());
      const auto found = state_.model.forward(images, tape_);
      fit::Tensor<float, 2> slopes(found.dimensions());
      const double value = fit::cross_entropy(found, targets, slopes, tape_);
      state_.model.backward(slopes, gradient_, tape_);
      state_.update(gradient_, {.learning_rate = rate}, tape_);
      return value;
    });
  }

  void save(const std::string& path) { locked([&] { fit::save(path, state_.model); }); }
  void load(const std::string& path) { locked([&] { fit::load(path, state_.model); }); }

 private:
  fit::TrainingState<Model> state_;
  Model gradient_;
  fit::Tape tape_;
};

}  // namespace

PYBIND11_MODULE(fit_classifier, module) {
  py::register_exception<fit::Error>(module, "Error", PyExc_ValueError);
  py::class_<Classifier>(module, "Classifier")
      .def(py::init<std::uint64_t>(), py::arg("seed") = 7)
      .def("__call__", &Classifier::logits, py::arg("x"))
      .def("loss", &Classifier::loss, py::arg("x"), py::arg("labels"))
      .def("train_step", &Classifier::train_step, py::arg("x"), py::arg("labels"), py::arg("rate") = 1e-3)
      .def("save", &Classifier::save, py::arg("path"))
      .def("load", &Classifier::load, py::arg("path"));
}
