#pragma once

#include <algorithm>
#include <limits>
#include <thread>

#if __has_include(<unistd.h>)
#include <sys/resource.h>
#include <unistd.h>
#define EXAMPLES_HAS_SYSCONF 1
#else
#define EXAMPLES_HAS_SYSCONF 0
#endif

namespace examples {

/// As many threads as are asked for; for 0, one for each processor.
inline int threads(int wanted) {
  return wanted > 0 ? wanted : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

/// Of the machine, in bytes; infinity where it cannot be known.
inline double physical_memory() {
#if EXAMPLES_HAS_SYSCONF
  return static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGE_SIZE));
#else
  return std::numeric_limits<double>::infinity();
#endif
}

/// The most that this process has had in memory, in bytes, as far as the system says.
inline double peak_memory() {
#if EXAMPLES_HAS_SYSCONF
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return 1024 * static_cast<double>(usage.ru_maxrss);
#else
  return 0;
#endif
}

}  // namespace examples
