#pragma once

#include <cstddef>
#include <utility>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Memory of its own for every lane of an executor, at the same place from one kernel to the next: what a thread writes
/// there stays in its caches. Memory that another thread had last takes many times as long to write.
class LaneMemory {
 public:
  LaneMemory() = default;
  LaneMemory(LaneMemory&& other) noexcept : memory_(std::move(other.memory_)), room_(std::exchange(other.room_, 0)) {}
  LaneMemory& operator=(LaneMemory&& other) noexcept {
    memory_ = std::move(other.memory_);
    room_ = std::exchange(other.room_, 0);
    return *this;
  }

  /// What a lane takes so that it has `bytes`. What one asks for ahead of its use does not reach into the next one's.
  static constexpr Index room_of(Index bytes) { return bytes == 0 ? 0 : (bytes + 2 * page - 1) / page * page; }

  /// Rooms of so many bytes at least, in which nothing is kept. Throws std::bad_alloc when memory runs out.
  void reserve(Index room, Index lanes) {
    if (room <= room_ && room_ * lanes <= memory_.size()) return;
    room = (room + page - 1) / page * page;
    memory_ = {};
    room_ = 0;
    memory_ = Buffer<std::byte>::uninitialised(room * lanes);
    room_ = room;
  }

  std::byte* of(Index lane) { return memory_.data() + lane * room_; }
  /// Bytes held.
  Index capacity() const { return memory_.size(); }

 private:
  static constexpr Index page = 4096;

  Buffer<std::byte> memory_;
  Index room_ = 0;
};

}  // namespace FIT_ABI
}  // namespace fit
