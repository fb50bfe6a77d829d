// What tests/distributed_test.cpp runs under mpirun, on any number of processes. It writes what must not depend on
// their number.
#include <fit/distributed/world.hpp>
#include <fit/fit.hpp>
#include <fit/run/run.hpp>

#include <sys/resource.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

using fit::Index;

Index sent = 0;  // bytes that MPI was given

}  // namespace

/// MPI's own name for this is PMPI_Isend: whoever wants to count puts a function in between.
extern "C" int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  int bytes = 0;
  MPI_Type_size(type, &bytes);
  sent += Index{count} * bytes;
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}

namespace {

constexpr fit::EncoderConfig config{.layers = "(1)1(1)",
                                    .groups = 4,
                                    .tokens = 6,
                                    .channels = 3,
                                    .latents = 2,
                                    .data_dim = 24,
                                    .latent_dim = 40,
                                    .data_heads = 2,
                                    .latent_heads = 2};
using Model = fit::Classifier<config, 3>;

/// A batch of four whose classes follow from it.
void make(Index number, fit::Tensor<float, 4>& input, fit::Tensor<std::int32_t, 1>& classes) {
  fit::Random random = fit::Random(11).fork(number);
  for (Index i = 0; i < input.size(); ++i) input.data()[i] = static_cast<float>(random.normal());
  for (Index i = 0; i < classes.size(); ++i) classes(i) = static_cast<std::int32_t>((number + i) % 3);
}

/// Trains with drop-outs, in `leaves` of twelve batches. With a `life`, one process is killed after so many of them and
/// some microseconds.
int train(fit::World& world, const std::filesystem::path& folder, Index leaves, Index steps, bool resume, Index life) {
  fit::Executor executor(1 + world.rank() % 2);
  fit::Tape tape(executor);
  fit::ShardedState<Model> state(world, Model(fit::Random(1)), {.weight_decay = 0.1}, fit::Random(2), true);
  fit::Run run(state, {.folder = folder,
                       .steps = steps,
                       .rate = {.peak = 1e-2, .warm_up = 3},
                       .accumulate = 12,
                       .leaves = leaves,
                       .batch = 4,
                       .evaluate_every = 5,
                       .save_every = 1,
                       .log_every = 1,
                       .resume = resume,
                       .terminal = nullptr});
  Model gradient;
  fit::Tensor<float, 4> input(4, 4, 6, 3);
  fit::Tensor<std::int32_t, 1> classes(4);
  fit::Tensor<float, 2> slopes(4, Index{3});
  const bool dies = life >= 0 && life % world.size() == world.rank();
  for (Index batch = 0; run.next(); ++batch) {
    if (dies && batch == life) {
      std::thread([=] {
        std::this_thread::sleep_for(std::chrono::microseconds(life * 37 % 1500));
        std::raise(SIGKILL);
      }).detach();
    }
    make(run.batch(), input, classes);
    tape.record({.drop_path = 0.1f, .drop_units = 0.1f, .drop_attention = 0.1f}, state.random.fork(run.batch()));
    const auto logits = state.model.forward(input, tape);
    const double loss = fit::cross_entropy(logits, classes, slopes, tape);
    state.model.backward(slopes, gradient, tape);
    run.update(gradient, loss, tape, {{"accuracy", fit::accuracy(logits, classes).value()}});
    if (run.evaluates()) run.evaluated("score", static_cast<double>(state.step));
  }
  return run.finish();
}

using Encoder = fit::Encoder<config>;

/// What the step of a member sends: the cost model's, the mean of the losses, and for the update what is not its own of
/// its gradient, the squares of its pieces, and its parameters.
Index bytes_of_step(const fit::World& world, const fit::TrainingOptions& options) {
  const int members = world.size();
  const fit::Cost cost = fit::cost<config>(
      2, {.training = true, .options = options, .by_groups = true, .members = members, .member = world.rank()});
  const fit::detail::Shards shards(Encoder(), members);
  const Index own = shards.elements_of(world.rank()).count, others = members - 1;
  return cost.sent + others * static_cast<Index>(sizeof(double)) +
         static_cast<Index>(sizeof(float)) * (cost.parameters - own) +
         others * (static_cast<Index>(sizeof(double)) * shards.pieces_of(world.rank()).count +
                   static_cast<Index>(sizeof(float)) * own);
}

/// Trains an encoder by a loss of its groups, with drop-outs; writes its state and losses.
int train_by_groups(fit::World& world, const std::filesystem::path& folder, const fit::LeafCounts& counts) {
  fit::Executor executor(1 + world.rank() % 2);
  fit::ShardedState<Encoder> state(world, Encoder(fit::Random(1)), {.weight_decay = 0.1}, fit::Random(2), true);
  fit::Leaves<Encoder> leaves(world, counts, executor);
  std::string losses;
  for (Index step = 0; step < 20; ++step) {
    const fit::TrainingOptions options{.drop_path = 0.1f,
                                       .drop_units = 0.1f,
                                       .drop_attention = 0.1f,
                                       .recompute = step % 2 == 0 ? fit::Recompute::none : fit::Recompute::stream};
    sent = 0;
    const double loss = leaves.pass(
        [&](fit::Tape& tape, Encoder& gradient, Index part) {
          const fit::Random random = fit::Random(11).fork(step, part);
          const fit::GroupSource<float> source{
              .batch = 2, .groups = config.groups, .fill = [&](Index first, Index count, float* to) {
                for (Index i = 0; i < count * 18; ++i) {
                  fit::Random own = random.fork(first * 18 + i);
                  to[i] = static_cast<float>(own.normal());
                }
              }};
          const fit::GroupLoss<float> loss_of = [&](Index first, Index count, const float* data, float* slopes) {
            double sum = 0;
            for (Index i = 0; i < count * 6 * 24; ++i) {
              const float off = data[i] - static_cast<float>((first + i) % 3 - 1);
              sum += off * off;
              if (slopes) slopes[i] = 2 * off;
            }
            return sum;
          };
          return state.model.loss(source, loss_of, gradient, tape, options, random);
        },
        fit::GoesBack::once);
    losses += std::to_string(loss) + " " + std::to_string(leaves.update(state, {.learning_rate = 1e-2})) + "\n";
    if (counts.parts == 1 && counts.shares == world.size()) {
      const Index expected = bytes_of_step(world, options);
      fit::require(sent == expected, "a step has sent ", sent, " bytes, not ", expected);
    }
  }
  fit::save(folder / "state.safetensors", state);
  world.lead([&] { std::ofstream(folder / "losses") << losses; });
  return 0;
}

/// Columns of rows to the next process and from the one before, in exchanges of which the second is waited for first.
int exchange_columns(fit::World& world) {
  constexpr Index rows = 300, width = 40, exchanges = 2;
  const int next = (world.rank() + 1) % world.size(), before = (world.rank() + world.size() - 1) % world.size();
  std::vector<Index> own(rows * width), got(rows * width, -1);
  for (Index i = 0; i < rows * width; ++i) own[static_cast<std::size_t>(i)] = 100'000 * world.rank() + i;
  std::array<Index, exchanges> started{};
  for (Index k = 0; k < exchanges; ++k) {
    // Columns 10 k + 3 to 10 k + 7.
    const auto message = [&](int with, std::vector<Index>& of) {
      return fit::Team::Message{with, of.data() + 10 * k + 3, 5 * sizeof(Index), rows, width * sizeof(Index)};
    };
    const fit::Team::Message to = message(next, own), from = message(before, got);
    started[static_cast<std::size_t>(k)] = world.start({&to, 1}, {&from, 1});
  }
  world.poll();
  world.finish(started[1]);
  world.finish(started[0]);
  for (Index i = 0; i < rows * width; ++i) {
    const Index column = i % width;
    const bool changes = column < 10 * exchanges && column % 10 >= 3 && column % 10 < 8;
    const Index found = got[static_cast<std::size_t>(i)], expected = changes ? 100'000 * before + i : -1;
    fit::require(found == expected, "element ", i, " is ", found, ", not ", expected);
  }
  return 0;
}

/// From now on this process cannot write a file of more than so many bytes, as on a disk that is full.
void limit_files(rlim_t bytes) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{bytes, bytes};
  fit::require(setrlimit(RLIMIT_FSIZE, &limit) == 0, "a process cannot limit its files");
}

}  // namespace

int main(int argc, char** argv) {
  fit::World world(argc, argv);
  return world.run([&] {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "fail") {
      fit::require(world.rank() != world.size() - 1, "the last one cannot go on");
      world.gather(1);  // which never ends
    }
    if (what == "sizes") {
      std::array<int, 2> numbers{};
      const fit::Team::Message message{1 - world.rank(), numbers.data(), world.leads() ? sizeof(int) : 2 * sizeof(int)};
      if (world.leads()) {
        world.exchange({&message, 1}, {});
      } else {
        world.exchange({}, {&message, 1});
      }
      return 0;
    }
    const auto number = [&](int i) { return argc > i ? static_cast<Index>(std::atol(argv[i])) : -1; };
    if (what == "columns") return exchange_columns(world);
    if (what == "groups") return train_by_groups(world, argv[2], {.parts = number(3), .shares = number(4)});
    if (what == "full" && world.leads()) limit_files(100'000);
    return train(world, argv[2], number(3), number(4), what != "train", number(5));
  });
}
