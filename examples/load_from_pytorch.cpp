// Loads parameters that a PyTorch program saved under other names, and compares what the encoder makes of an input
// with what PyTorch made of it: load_from_pytorch tests/golden/encoder_trace.safetensors
#include <fit/fit.hpp>

#include <cmath>
#include <cstdio>
#include <string>

constexpr fit::EncoderConfig config{.layers = "(1)1(1)",
                                    .groups = 5,
                                    .tokens = 7,
                                    .channels = 5,
                                    .latents = 3,
                                    .data_dim = 24,
                                    .latent_dim = 32,
                                    .data_heads = 3,
                                    .latent_heads = 4,
                                    .mlp_ratio = 2};

fit::Tensor<float, 4> read(const fit::SafetensorsFile& file, const std::string& name) {
  const auto& shape = file.info(name).shape;
  fit::Tensor<float, 4> tensor(shape.at(0), shape.at(1), shape.at(2), shape.at(3));
  file.read(name, tensor.data(), tensor.size());
  return tensor;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: load_from_pytorch FILE\n");
    return 2;
  }
  try {
    const fit::SafetensorsFile file(argv[1]);
    fit::Encoder<config> encoder;
    // A file with the library's own names needs only fit::load(). Here each name has "param." in front.
    fit::for_each_parameter([&](const fit::ParameterName& name,
                                auto parameter) { file.read("param." + name.text(), parameter.data, parameter.size); },
                            encoder);
    const auto [data, latents] = encoder(read(file, "input.x"));
    const auto expected = read(file, "output.latents");
    double largest = 0;
    for (fit::Index i = 0; i < latents.size(); ++i) {
      largest =
          std::max(largest, std::abs(static_cast<double>(latents.data()[i]) - static_cast<double>(expected.data()[i])));
    }
    std::printf("%td parameters; latents differ from PyTorch's by at most %.1e\n", fit::count_parameters(encoder),
                largest);
    return largest < 1e-5 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "load_from_pytorch: %s\n", error.what());
    return 1;
  }
}
