#pragma once

#include <fit/core/team.hpp>

#include <functional>

namespace examples {

/// Calls work(team, threads) with the processes that run the program and the threads that each of them has: those that
/// are asked for or, for 0, its share of the machine's processors. Linked with one_process.cpp a program runs by
/// itself, with several_processes.cpp as the processes that mpirun starts. Returns what the program returns: what the
/// work does, or not 0 after an error, which it prints.
int run_processes(int argc, char** argv, int threads, const std::function<int(fit::Team& team, int threads)>& work);

}  // namespace examples
