#include "allocations.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> count{0}, failing{0};

}  // namespace

long test::allocations() { return count; }
void test::fail_allocation(long which) { failing = which > 0 ? count + which : 0; }

// The address sanitizer has operators of its own, which must be left as a set.
#if !defined(__SANITIZE_ADDRESS__)
#define FIT_COUNTS_ALLOCATIONS
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#undef FIT_COUNTS_ALLOCATIONS
#endif
#endif

#ifdef FIT_COUNTS_ALLOCATIONS

void* operator new(std::size_t size) {
  if (++count == failing) throw std::bad_alloc();
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  if (++count == failing) throw std::bad_alloc();
  const auto unit = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(unit, (size + unit) / unit * unit)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#endif
