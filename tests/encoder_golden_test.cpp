#include <fit/models/encoder.hpp>

#include "catch.hpp"
#include "golden.hpp"
#include "support.hpp"

namespace {

using fit::Index;
using fit::Mask;
using fit::Positions;

constexpr fit::EncoderConfig trace{.layers = "(1)1(1)",
                                   .groups = 5,
                                   .tokens = 7,
                                   .channels = 5,
                                   .latents = 3,
                                   .data_dim = 24,
                                   .latent_dim = 32,
                                   .data_heads = 3,
                                   .latent_heads = 4,
                                   .mlp_ratio = 2};
constexpr fit::EncoderConfig causal_no_local{.layers = "(0)2(0)",
                                             .groups = 4,
                                             .tokens = 16,
                                             .channels = 12,
                                             .latents = 4,
                                             .data_dim = 16,
                                             .latent_dim = 40,
                                             .data_heads = 2,
                                             .latent_heads = 5,
                                             .mlp_ratio = 1,
                                             .data_positions = Positions::sin_cos,
                                             .mask = Mask::causal};
constexpr fit::EncoderConfig extra_sin_cos{.layers = "(1)2(1)1(1)",
                                           .groups = 3,
                                           .tokens = 9,
                                           .channels = 6,
                                           .latents = 2,
                                           .data_dim = 16,
                                           .latent_dim = 24,
                                           .data_heads = 4,
                                           .latent_heads = 2,
                                           .mlp_ratio = 3,
                                           .data_positions = Positions::sin_cos_2d,
                                           .latent_positions = Positions::sin_cos,
                                           .extra_tokens = 3,
                                           .extra_channels = 4};

constexpr fit::EncoderConfig local_only{.layers = "(2)",
                                        .groups = 3,
                                        .tokens = 8,
                                        .channels = 3,
                                        .latents = 2,
                                        .data_dim = 32,
                                        .latent_dim = 12,
                                        .data_heads = 4,
                                        .latent_heads = 2,
                                        .latent_positions = Positions::sin_cos,
                                        .extra_tokens = 1,
                                        .extra_channels = 7};
constexpr fit::EncoderConfig simd_one_stage{.layers = "(1)1",
                                            .groups = 2,
                                            .tokens = 16,
                                            .channels = 8,
                                            .latents = 8,
                                            .data_dim = 64,
                                            .latent_dim = 16,
                                            .data_heads = 2,
                                            .latent_heads = 1,
                                            .mlp_ratio = 1,
                                            .mask = Mask::causal};

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

template <class T>
fit::Tensor<T, 4> tensor(const fit::SafetensorsFile& file, const std::string& name) {
  const auto& shape = file.info(name).shape;
  fit::Tensor<T, 4> result(shape.at(0), shape.at(1), shape.at(2), shape.at(3));
  file.read(name, result.data(), result.size());
  return result;
}

template <class T>
double norm(const T* values, Index size) {
  double squares = 0;
  for (Index i = 0; i < size; ++i) squares += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return std::sqrt(squares);
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

template <fit::EncoderConfig config, class T>
void check(const std::string& name) {
  INFO(name << (std::is_same_v<T, float> ? " in float" : " in double"));
  const Golden golden("encoder_" + name);
  fit::Encoder<config, T> encoder;
  std::size_t parameters = 0;
  fit::for_each_parameter(
      [&](const fit::ParameterName& at, auto parameter) {
        const std::string key = "param." + at.text();
        INFO(key);
        const auto& shape = golden.file.info(key).shape;
        CHECK(std::vector<Index>(parameter.shape.begin(), parameter.shape.end()) == shape);
        golden.file.read(key, parameter.data, parameter.size);
        ++parameters;
      },
      encoder);
  std::size_t stored = 0;
  for (const auto& entry : golden.file.tensors()) stored += entry.first.compare(0, 6, "param.") == 0;
  CHECK(parameters == stored);

  const auto x = tensor<T>(golden.file, "input.x");
  fit::Tensor<T, 4> extra;
  if constexpr (config.extra_tokens > 0) extra = tensor<T>(golden.file, "input.extra");
  fit::Executor executor(2);
  fit::Tape tape(executor);

  std::size_t traced = 0;
  const fit::Trace<T> trace_of = [&](std::size_t stage, fit::Part part, Index first, Index count, const T* data) {
    static const char* const parts[] = {"local", "read", "condition", "global", "write"};
    const std::string key = "trace.stages." + std::to_string(stage) + "." + parts[static_cast<int>(part)];
    if (!golden.file.contains(key)) return;
    INFO(key);
    CHECK(first == 0);
    const Index size = golden.file.info(key).size();
    CHECK(count == golden.file.info(key).shape[0] * config.groups);
    CHECK(golden.error(key, data, size, 0) < Bounds<T>::output);
    ++traced;
  };
  typename fit::Encoder<config, T>::Output output;
  if constexpr (config.extra_tokens > 0) {
    output = encoder(x, extra, tape, trace_of);
  } else {
    output = encoder(x, tape, trace_of);
  }
  CHECK(golden.error("output.data", output.data.data(), output.data.size(), 0) < Bounds<T>::output);
  CHECK(golden.error("output.latents", output.latents.data(), output.latents.size(), 0) < Bounds<T>::output);
  std::size_t traces = 0;
  for (const auto& entry : golden.file.tensors()) traces += entry.first.compare(0, 6, "trace.") == 0;
  CHECK(traced == traces);

  const double grad_scale = golden.scale("grad."), input_scale = golden.scale("grad_input.");
  for (const bool recompute : {false, true}) {
    INFO("recompute " << recompute);
    tape.record({.recompute = recompute});
    const auto views = [&] {
      if constexpr (config.extra_tokens > 0) {
        return encoder.forward(x, extra, tape);
      } else {
        return encoder.forward(x, tape);
      }
    }();
    CHECK(test::max_error(views.data.data(), output.data.data(), output.data.size()) == 0);
    CHECK(test::max_error(views.latents.data(), output.latents.data(), output.latents.size()) == 0);
    fit::Encoder<config, T> gradient;
    auto x_gradient = x;
    auto extra_gradient = extra;
    typename fit::Encoder<config, T>::InputGradients inputs{.input = x_gradient};
    if (config.extra_tokens > 0) inputs.extra = extra_gradient;
    encoder.backward(
        {.data = tensor<T>(golden.file, "cotangent.data"), .latents = tensor<T>(golden.file, "cotangent.latents")},
        gradient, tape, inputs);
    std::vector<T> query_bias;
    fit::for_each_parameter(
        [&](const fit::ParameterName& at, auto parameter) {
          const std::string key = "grad." + at.text();
          INFO(key);
          if (ends_with(key, "query.bias")) query_bias.assign(parameter.data, parameter.data + parameter.size);
          if (ends_with(key, "key.bias")) {
            const double query = norm(query_bias.data(), parameter.size);
            CHECK(norm(parameter.data, parameter.size) / std::max(query, 0.001 * grad_scale) < Bounds<T>::key_bias);
          } else {
            CHECK(golden.error(key, parameter.data, parameter.size, grad_scale) < Bounds<T>::gradient);
          }
        },
        gradient);
    CHECK(golden.error("grad_input.x", x_gradient.data(), x_gradient.size(), input_scale) < Bounds<T>::input_gradient);
    if (config.extra_tokens > 0) {
      CHECK(golden.error("grad_input.extra", extra_gradient.data(), extra_gradient.size(), input_scale) <
            Bounds<T>::input_gradient);
    }
  }
}

}  // namespace

TEST_CASE("encoder_trace", "[encoder_golden]") {
  check<trace, float>("trace");
  check<trace, double>("trace");
}
TEST_CASE("encoder_causal_no_local", "[encoder_golden]") {
  check<causal_no_local, float>("causal_no_local");
  check<causal_no_local, double>("causal_no_local");
}
TEST_CASE("encoder_extra_sin_cos", "[encoder_golden]") {
  check<extra_sin_cos, float>("extra_sin_cos");
  check<extra_sin_cos, double>("extra_sin_cos");
}
TEST_CASE("encoder_local_only", "[encoder_golden]") {
  check<local_only, float>("local_only");
  check<local_only, double>("local_only");
}
TEST_CASE("encoder_simd_one_stage", "[encoder_golden]") {
  check<simd_one_stage, float>("simd_one_stage");
  check<simd_one_stage, double>("simd_one_stage");
}
