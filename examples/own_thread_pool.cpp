// Runs an encoder on the threads of a program's own Eigen pool, and on one thread: the results have the same bits.
#include <fit/fit.hpp>

#include <cstdio>
#include <cstring>

constexpr fit::EncoderConfig config{.layers = "(1)1(1)",
                                    .groups = 8,
                                    .tokens = 32,
                                    .channels = 3,
                                    .latents = 4,
                                    .data_dim = 32,
                                    .latent_dim = 64,
                                    .data_heads = 2,
                                    .latent_heads = 4};

int main() {
  const fit::Encoder<config> encoder(fit::Random(1));
  fit::Tensor<float, 4> input(2, 8, 32, 3);
  fit::sample_noise<float>(fit::Random(2))(0, 0, input);

  Eigen::ThreadPool pool(2);   // the program's, with other work to do as well
  fit::Executor shared(pool);  // its threads and the calling one; both must outlive what uses them
  fit::Tape tape(shared);
  const auto [data, latents] = encoder(input, tape);

  fit::Executor alone(1);
  fit::Tape other(alone);
  const auto [data_alone, latents_alone] = encoder(input, other);
  const bool same =
      std::memcmp(data.data(), data_alone.data(), static_cast<std::size_t>(data.size()) * sizeof(float)) == 0;
  std::printf("%d threads and one: %s\n", shared.lanes(), same ? "the same bits" : "different bits");
  return same ? 0 : 1;
}
