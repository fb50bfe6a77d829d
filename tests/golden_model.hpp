#pragma once

#include <fit/core/parameter.hpp>
#include <fit/core/tensor.hpp>
#include <fit/models/trunk.hpp>

#include "catch.hpp"
#include "golden.hpp"
#include "support.hpp"

namespace test {

using fit::Index;

/// The values of a golden tensor, and the error of ours against it as tests/golden/README.md defines it.
struct Golden {
  fit::SafetensorsFile file;

  explicit Golden(const std::string& name) : file(test::golden(name)) {}

  /// Root mean square over all tensors whose name begins with the prefix.
  double scale(const std::string& prefix) const {
    double squares = 0, count = 0;
    for (const auto& [name, info] : file.tensors()) {
      if (name.compare(0, prefix.size(), prefix) != 0) continue;
      for (const double value : test::read<double>(file, name)) squares += value * value;
      count += static_cast<double>(info.size());
    }
    return count > 0 ? std::sqrt(squares / count) : 0;
  }

  template <class T>
  double error(const std::string& name, const T* ours, Index size, double root_mean_square) const {
    const std::vector<double> expected = test::read<double>(file, name);
    REQUIRE(static_cast<Index>(expected.size()) == size);
    double difference = 0, norm = 0;
    for (Index i = 0; i < size; ++i) {
      const double value = expected[static_cast<std::size_t>(i)], off = static_cast<double>(ours[i]) - value;
      difference += off * off;
      norm += value * value;
    }
    return std::sqrt(difference) /
           std::max(std::sqrt(norm), 0.001 * root_mean_square * std::sqrt(static_cast<double>(size)));
  }
};

template <class T>
struct Bounds;
template <>
struct Bounds<float> {
  static constexpr double output = 2e-6, gradient = 1.5e-5, input_gradient = 7e-6, key_bias = 8e-6;
};
template <>  // what is stored was rounded to float
struct Bounds<double> {
  static constexpr double output = 6e-8, gradient = 6e-8, input_gradient = 6e-8, key_bias = 1e-7;
};

/// A tensor of a golden file.
template <class T, int Rank = 4>
fit::Tensor<T, Rank> tensor(const fit::SafetensorsFile& file, const std::string& name) {
  const auto& shape = file.info(name).shape;
  REQUIRE(shape.size() == Rank);
  Eigen::DSizes<Index, Rank> dimensions;
  for (std::size_t i = 0; i < Rank; ++i) dimensions[i] = shape[i];
  fit::Tensor<T, Rank> result(dimensions);
  file.read(name, result.data(), result.size());
  return result;
}

template <class T>
double norm(const T* values, Index size) {
  double squares = 0;
  for (Index i = 0; i < size; ++i) squares += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return std::sqrt(squares);
}

inline bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// Reads every param.* of a golden file into a model, and checks that names and shapes are exactly the file's.
template <class Model>
void load_parameters(const Golden& golden, Model& model) {
  std::size_t parameters = 0, stored = 0;
  fit::for_each_parameter(
      [&](const fit::ParameterName& at, auto parameter) {
        const std::string key = "param." + at.text();
        INFO(key);
        const auto& shape = golden.file.info(key).shape;
        CHECK(std::vector<Index>(parameter.shape.begin(), parameter.shape.end()) == shape);
        golden.file.read(key, parameter.data, parameter.size);
        ++parameters;
      },
      model);
  for (const auto& entry : golden.file.tensors()) stored += entry.first.compare(0, 6, "param.") == 0;
  CHECK(parameters == stored);
}

/// Checks every parameter gradient against PREFIX.* of a golden file.
template <class Model>
void check_gradients(const Golden& golden, const std::string& prefix, const Model& gradient) {
  using T = typename Model::Scalar;
  const double scale = golden.scale(prefix);
  std::vector<T> query_bias;
  fit::for_each_parameter(
      [&](const fit::ParameterName& at, auto parameter) {
        const std::string key = prefix + at.text();
        INFO(key);
        if (ends_with(key, "query.bias")) query_bias.assign(parameter.data, parameter.data + parameter.size);
        if (ends_with(key, "key.bias")) {
          const double query = norm(query_bias.data(), parameter.size);
          CHECK(norm(parameter.data, parameter.size) / std::max(query, 0.001 * scale) < Bounds<T>::key_bias);
        } else {
          CHECK(golden.error(key, parameter.data, parameter.size, scale) < Bounds<T>::gradient);
        }
      },
      gradient);
}

/// Checks the trace of a golden file; complete() holds once every trace.* of it was seen.
template <class T>
class TraceCheck {
 public:
  TraceCheck(const Golden& golden, Index groups) : golden_(golden), groups_(groups) {}

  void operator()(std::size_t stage, fit::Part part, Index first, Index count, const T* data) {
    static const char* const parts[] = {"local", "read", "condition", "global", "write"};
    const std::string key = "trace.stages." + std::to_string(stage) + "." + parts[static_cast<int>(part)];
    if (!golden_.file.contains(key)) return;
    INFO(key);
    const auto& info = golden_.file.info(key);
    CHECK(first == 0);
    CHECK(count == info.shape[0] * groups_);
    CHECK(golden_.error(key, data, info.size(), 0) < Bounds<T>::output);
    ++seen_;
  }
  bool complete() const {
    std::size_t traces = 0;
    for (const auto& entry : golden_.file.tensors()) traces += entry.first.compare(0, 6, "trace.") == 0;
    return traces == seen_;
  }

 private:
  const Golden& golden_;
  Index groups_;
  std::size_t seen_ = 0;
};

}  // namespace test
