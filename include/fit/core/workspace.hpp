#pragma once

#include <utility>

#include <fit/core/arena.hpp>
#include <fit/core/assert.hpp>
#include <fit/core/executor.hpp>
#include <fit/core/lane_memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Threads to run on, and memory that is given back by the call that takes it: what kernels and optimisers work with.
/// For one call at a time. Refers to the executor, which must outlive it.
class Workspace {
 public:
  /// Also counts what it hands out in `joint`, which must outlive it and stay where it is.
  explicit Workspace(Executor& executor = default_executor(), Arena::Usage* joint = nullptr)
      : executor_(&executor), arena_(joint), joint_(joint) {}
  /// What was handed out stays where it is. What it held now counts where this one does.
  Workspace(Workspace&& other) noexcept
      : executor_(other.executor_), arena_(std::move(other.arena_)), lanes_(std::move(other.lanes_)) {}
  Workspace& operator=(Workspace&& other) noexcept {
    executor_ = other.executor_;
    arena_ = std::move(other.arena_);
    lanes_ = std::move(other.lanes_);
    return *this;
  }

  Executor& executor() const { return *executor_; }
  Arena& arena() { return arena_; }
  const Arena& arena() const { return arena_; }
  LaneMemory& lanes() { return lanes_; }
  const LaneMemory& lanes() const { return lanes_; }

 private:
  template <class>
  friend class LaneScratch;

  Executor* executor_;
  Arena arena_;
  LaneMemory lanes_;
  Arena::Usage* joint_ = nullptr;
  bool lanes_in_use_ = false;
};

/// While it lives, `count` elements for each lane of a workspace, uninitialised. One at a time. Throws std::bad_alloc
/// when memory runs out.
template <class T>
class LaneScratch {
 public:
  LaneScratch(Workspace& workspace, Index count) : workspace_(workspace) {
    FIT_ASSERT(count >= 0 && !workspace.lanes_in_use_);
    constexpr Index size = sizeof(T), unit = alignment;
    const Index bytes = (count * size + unit - 1) / unit * unit, lanes = workspace.executor().lanes();
    workspace.lanes_.reserve(LaneMemory::room_of(bytes), lanes);
    in_use_ = static_cast<std::size_t>(bytes * lanes);
    if (workspace.joint_) workspace.joint_->add(in_use_);
    workspace.lanes_in_use_ = true;
  }
  LaneScratch(const LaneScratch&) = delete;
  LaneScratch& operator=(const LaneScratch&) = delete;
  ~LaneScratch() {
    if (workspace_.joint_) workspace_.joint_->now -= in_use_;
    workspace_.lanes_in_use_ = false;
  }

  T* operator[](Index lane) const { return reinterpret_cast<T*>(workspace_.lanes_.of(lane)); }

 private:
  Workspace& workspace_;
  std::size_t in_use_ = 0;
};

}  // namespace FIT_ABI
}  // namespace fit
