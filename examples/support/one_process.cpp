#include "processes.hpp"

#include <cstdio>
#include <exception>

#include "machine.hpp"

int examples::run_processes(int, char** argv, int threads, const std::function<int(fit::Team&, int)>& work) {
  fit::Solo team;
  try {
    return work(team, examples::threads(threads));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
