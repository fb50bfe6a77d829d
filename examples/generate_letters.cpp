// Learns a sentence by heart, byte for byte, and says it from its first word on.
#include <fit/fit.hpp>

#include <cstdio>
#include <string>

constexpr fit::AutoregressiveConfig config{.layers = "(1)1(1)",
                                           .groups = 8,
                                           .tokens = 8,
                                           .latents = 4,
                                           .data_dim = 32,
                                           .latent_dim = 64,
                                           .data_heads = 2,
                                           .latent_heads = 4,
                                           .vocabulary = 128};
using Model = fit::AutoregressiveDecoder<config>;

int main() {
  const std::string sentence = "Local blocks within a group, global ones on latents of them all.";  // of 64 bytes
  fit::Tensor<std::int32_t, 3> ids(1, 8, 8);
  std::copy(sentence.begin(), sentence.end(), ids.data());

  fit::TrainingState<Model> state{.model = Model(fit::Random(1))};
  Model gradient;
  fit::Tape tape;
  while (state.step < 200) {
    const double nats = state.model.loss(ids, gradient, tape);
    state.update(gradient, {.learning_rate = 3e-3}, tape);
    if (state.step % 40 == 0) std::printf("step %td: %.3f bits a byte\n", state.step, fit::bits_per_dimension(nats));
  }

  fit::Generator generator(state.model);
  const std::string start = "Local ";
  generator.prompt(std::vector<std::int32_t>(start.begin(), start.end()));
  std::string said = start;
  for (const std::int32_t id : generator.stream({.temperature = 0}, fit::Random(2))) said += static_cast<char>(id);
  std::printf("%s\n", said.c_str());
  return said == sentence ? 0 : 1;
}
