#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <fit/core/abi.hpp>
#include <fit/core/error.hpp>

namespace fit {
inline namespace FIT_ABI {

using Index = std::ptrdiff_t;

/// Every buffer of the library starts on a boundary of this many bytes: a cache line, and the widest vector.
inline constexpr std::size_t alignment = 64;

namespace detail {

/// Asks for large pages under large memory, where a system gives them only when asked: kernels that go down columns
/// meet a page with every row. Nothing depends on the answer.
inline void prefer_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::size_t page = std::size_t{2} << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory), first = (begin + page - 1) / page * page;
  const std::uintptr_t last = (begin + bytes) / page * page;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace detail

/// An owned, zero-filled array of trivial elements whose alignment does not depend on compiler flags. Copies deeply.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>, "fit: a Buffer holds trivial elements only");

 public:
  Buffer() = default;

  /// Throws Error when the count is negative or its bytes cannot be counted; std::bad_alloc when memory runs out.
  explicit Buffer(Index count) : Buffer(uninitialised(count)) {
    if (count > 0) std::memset(static_cast<void*>(data()), 0, static_cast<std::size_t>(count) * sizeof(T));
  }

  /// As the constructor, without filling the memory.
  static Buffer uninitialised(Index count) {
    require(count >= 0 && static_cast<std::size_t>(count) <= std::numeric_limits<std::size_t>::max() / 2 / sizeof(T),
            "a buffer cannot hold ", count, " elements");
    Buffer buffer;
    if (count == 0) return buffer;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    buffer.memory_.reset(static_cast<T*>(::operator new (bytes, std::align_val_t{alignment})));
    buffer.size_ = count;
    detail::prefer_large_pages(buffer.data(), bytes);
    return buffer;
  }

  Buffer(const Buffer& other) : Buffer(uninitialised(other.size_)) {
    if (size_ > 0) std::memcpy(static_cast<void*>(data()), other.data(), static_cast<std::size_t>(size_) * sizeof(T));
  }
  Buffer(Buffer&& other) noexcept : memory_(std::move(other.memory_)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    return *this;
  }

  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  Index size() const { return size_; }

 private:
  struct Delete {
    void operator()(T* memory) const { ::operator delete (memory, std::align_val_t{alignment}); }
  };
  std::unique_ptr<T, Delete> memory_;
  Index size_ = 0;
};

}  // namespace FIT_ABI
}  // namespace fit
