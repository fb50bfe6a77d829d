#pragma once

#include <fit/core/error.hpp>
#include <fit/core/parameter.hpp>
#include <fit/core/random.hpp>
#include <fit/core/training_options.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace test {

using fit::Index;

inline constexpr fit::Recompute recomputes[] = {fit::Recompute::none, fit::Recompute::stage, fit::Recompute::stream};

/// `count` normal numbers, the same ones for the same seed.
template <class T>
std::vector<T> normal_values(Index count, std::uint64_t seed, double deviation = 1) {
  fit::Random random(seed);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(deviation * random.normal());
  return values;
}

/// Noise on every parameter: weights and biases that start at zero would hide what is behind them.
template <class Model>
void stir(Model& model) {
  fit::Random random(6);
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        for (Index i = 0; i < p.size; ++i) p.data[i] += static_cast<typename Model::Scalar>(0.1 * random.normal());
      },
      model);
}

/// The larger of two errors; NaN when either is, which std::max may forget.
template <class T>
T worse(T worst, T error) {
  return std::isnan(worst) || error <= worst ? worst : error;
}

/// max |a - b|; NaN when an element of either is.
template <class A, class B>
double max_error(const A* a, const B* b, Index count) {
  double worst = 0;
  for (Index i = 0; i < count; ++i) {
    worst = worse(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return worst;
}

/// |a - b| / |b| in Euclidean norms, or |a| when b is zero.
template <class A, class B>
double relative_error(const A* a, const B* b, Index count) {
  double difference = 0, norm = 0;
  for (Index i = 0; i < count; ++i) {
    const double expected = static_cast<double>(b[i]), error = static_cast<double>(a[i]) - expected;
    difference += error * error;
    norm += expected * expected;
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// c(i, j) += sum over k of a(i, k) b(k, j) in double, operands by their two strides, c [rows, columns] packed; and
/// into `magnitude`, laid out as c, the sum of |a(i, k) b(k, j)|, against which rounding errors are to be held.
template <class T>
void plain_product(Index rows, Index columns, Index depth, const T* a, Index a_row, Index a_column, const T* b,
                   Index b_row, Index b_column, double* c, double* magnitude) {
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j) {
      for (Index k = 0; k < depth; ++k) {
        const double product =
            static_cast<double>(a[i * a_row + k * a_column]) * static_cast<double>(b[k * b_row + j * b_column]);
        c[i * columns + j] += product;
        magnitude[i * columns + j] += std::abs(product);
      }
    }
  }
}

/// The message of the fit::Error that a call throws; "(no error)" when it throws none.
template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const fit::Error& error) {
    return error.what();
  }
  return "(no error)";
}

/// All parameters of a model or state, one after the other.
template <class Model>
std::vector<typename Model::Scalar> values_of(const Model& model) {
  std::vector<typename Model::Scalar> values;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) { values.insert(values.end(), p.data, p.data + p.size); }, model);
  return values;
}

/// Equal to the bit, so that NaN equals itself and 0 is not -0.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// All bytes of a file, which must be there: two that are not would be equal.
inline std::string text_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  fit::require(stream.is_open(), path.string(), " is not there");
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

/// An empty folder of its own, removed with all it holds.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::random_device random;
    path_ =
        std::filesystem::temp_directory_path() / ("fit-test-" + std::to_string(random()) + std::to_string(random()));
    std::filesystem::create_directory(path_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  std::ptrdiff_t files() const {
    return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator());
  }

 private:
  std::filesystem::path path_;
};

}  // namespace test
