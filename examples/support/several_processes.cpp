#include <fit/distributed/world.hpp>

#include "processes.hpp"

int examples::run_processes(int argc, char** argv, int threads, const std::function<int(fit::Team&, int)>& work) {
  fit::World world(argc, argv);
  return world.run([&] { return work(world, threads > 0 ? threads : world.threads()); });
}
