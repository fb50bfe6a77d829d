#include <fstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "command.hpp"
#include "support.hpp"

namespace {

using test::text_of;

const std::string program = FIT_DISTRIBUTED_PROGRAM, mpirun = FIT_MPIRUN;

/// For a shell: the folders may have spaces.
std::string quoted(const std::string& path) { return "'" + path + "'"; }

/// The program on some processes, more of them than processors and whoever runs the tests. Open MPI leaks, which is not
/// for a sanitizer to say here.
std::string on(int processes, const std::string& arguments) {
  return "ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
         "OMPI_MCA_rmaps_base_oversubscribe=1 "
         "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe timeout 300 " +
         quoted(mpirun) + " -n " + std::to_string(processes) + " " + quoted(program) + " " + arguments;
}

/// Whether there is an MPI to test with.
bool found() {
  if (program.empty()) WARN("MPI was not found when this was configured: nothing is tested with it");
  return !program.empty();
}

/// A run's losses, step by step.
std::vector<std::string> losses_of(const std::filesystem::path& table) {
  std::ifstream stream(table);
  std::vector<std::string> losses;
  for (std::string line; std::getline(stream, line);) {
    const auto first = line.find(','), second = line.find(',', first + 1);
    losses.push_back(line.substr(second + 1, line.find(',', second + 1) - second - 1));
  }
  return losses;
}

}  // namespace

TEST_CASE("a run has the same bits on any number of processes", "[distributed]") {
  if (!found()) return;
  const test::TemporaryFolder folder;
  const auto train = [&](int processes, int leaves, int steps, const char* how = "train", const char* name = "") {
    const auto place = folder / (std::to_string(leaves) + "_" + std::to_string(processes) + name);
    test::succeed(on(processes, std::string(how) + " " + place.string() + " " + std::to_string(leaves) + " " +
                                    std::to_string(steps)));
    return place;
  };
  for (const int leaves : {4, 8}) {
    const auto alone = train(1, leaves, 20);
    CHECK(losses_of(alone / "model.csv").size() > 20);
    for (int processes = 2; processes <= 4; ++processes) {
      const auto together = train(processes, leaves, 20);
      CHECK((text_of(together / "model.safetensors") == text_of(alone / "model.safetensors")));
      CHECK(losses_of(together / "model.csv") == losses_of(alone / "model.csv"));
    }
    // Resumed on another number of processes.
    const auto resumed = train(3, leaves, 8, "train", "_resumed");
    test::succeed(on(2, "resume " + resumed.string() + " " + std::to_string(leaves) + " 20"));
    const auto whole = train(1, leaves, 8, "train", "_resumed");
    test::succeed(on(1, "resume " + whole.string() + " " + std::to_string(leaves) + " 20"));
    CHECK((text_of(resumed / "model.safetensors") == text_of(whole / "model.safetensors")));
  }
  const auto too_many = test::run_command(on(3, "train " + (folder / "few").string() + " 2 20"));
  CHECK_FALSE(too_many.success);
  CHECK(test::contains(too_many.text, "a team of 3 needs a run of as many leaves, not 2"));
}

TEST_CASE("shares of groups, parts of a batch and both have the same bits on any number of processes",
          "[distributed]") {
  if (!found()) return;
  const test::TemporaryFolder folder;
  for (const char* counts : {" 1 4", " 4 1", " 2 4"}) {
    std::vector<std::string> states, losses;
    for (int processes = 1; processes <= 4; ++processes) {
      test::succeed(on(processes, "groups " + (folder / "").string() + counts));
      states.push_back(text_of(folder / "state.safetensors"));
      losses.push_back(text_of(folder / "losses"));
      INFO(counts << " on " << processes);
      CHECK((states.back() == states[0]));
      CHECK(losses.back() == losses[0]);
    }
  }
  // Where each process has one leaf, it counts what it gives MPI against the cost model.
  for (const int processes : {2, 3, 4}) {
    test::succeed(on(processes, "groups " + (folder / "").string() + " 1 " + std::to_string(processes)));
  }
  const auto too_many = test::run_command(on(3, "groups " + (folder / "").string() + " 1 2"));
  CHECK_FALSE(too_many.success);
  CHECK(test::contains(too_many.text, "a team of 3 needs as many leaves, not 1 parts of 2 shares"));
}

TEST_CASE("columns of rows change hands, in exchanges that are waited for in any order", "[distributed]") {
  if (!found()) return;
  for (const int processes : {2, 3}) test::succeed(on(processes, "columns"));
}

TEST_CASE("a process that fails says why, and ends the others", "[distributed]") {
  if (!found()) return;
  const auto result = test::run_command(on(3, "fail"));
  CHECK_FALSE(result.success);
  CHECK(test::contains(result.text, "process 2 of 3 fails, and ends the others: the last one cannot go on"));
}

TEST_CASE("a message of another size than was expected ends all processes", "[distributed]") {
  if (!found()) return;
  const auto result = test::run_command(on(2, "sizes"));
  CHECK_FALSE(result.success);
  CHECK(test::contains(result.text, "process 0 sent 4 bytes where 8 were expected"));
}

TEST_CASE("a disk that is full ends all processes, and the last state stays whole", "[distributed]") {
  if (!found()) return;
  const test::TemporaryFolder folder;
  const std::string alone = (folder / "alone").string(), together = (folder / "together").string();
  test::succeed(on(3, "train " + together + " 4 8"));
  const std::string state = text_of(folder / "together/model_state.safetensors");
  const auto full = test::run_command(on(3, "full " + together + " 4 20"));
  CHECK_FALSE(full.success);
  CHECK(test::contains(full.text, "process 0 of 3 fails, and ends the others"));
  CHECK(test::contains(full.text, "state.safetensors"));
  CHECK((text_of(folder / "together/model_state.safetensors") == state));
  test::succeed(on(3, "resume " + together + " 4 20"));
  test::succeed(on(1, "train " + alone + " 4 8"));
  test::succeed(on(1, "resume " + alone + " 4 20"));
  CHECK((text_of(folder / "together/model.safetensors") == text_of(folder / "alone/model.safetensors")));
}

TEST_CASE("processes that die cost no more than what was not saved", "[distributed]") {
  if (!found()) return;
  const test::TemporaryFolder folder;
  test::succeed(on(1, "train " + (folder / "alone").string() + " 4 150"));
  const std::string together = (folder / "together").string();
  int deaths = 0;
  for (std::string how = "train";; how = "resume") {
    // Ten lives of less than forty batches each; to the end a process has six hundred of them or more.
    const std::string life = deaths < 10 ? " " + std::to_string(fit::Random(7).fork(deaths).below(40)) : "";
    if (test::run_command(on(2 + deaths % 2, how + " " + together + " 4 150" + life)).success) break;
    REQUIRE(++deaths <= 10);
  }
  CHECK(deaths == 10);
  CHECK((text_of(folder / "together/model.safetensors") == text_of(folder / "alone/model.safetensors")));
}
