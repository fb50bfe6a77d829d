#pragma once

#include <fit/core/team.hpp>

#include <functional>

namespace examples {

/// work(team, threads) of the processes that run a program, and of how many threads each has, which are those asked for
/// or, for 0, all that there are for it. Linked with one_process.cpp that is a program by itself, with
/// several_processes.cpp one that mpirun starts. Returns what the program returns: what the work does, or 1 after an
/// error, which it prints.
int run_processes(int argc, char** argv, int threads, const std::function<int(fit::Team& team, int threads)>& work);

}  // namespace examples
