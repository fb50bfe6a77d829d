#pragma once

#include <fit/core/arena.hpp>
#include <fit/core/executor.hpp>

namespace fit {
inline namespace FIT_ABI {

/// Threads to run on, and memory that is given back by the call that takes it: what kernels and optimisers work with.
/// For one call at a time. Refers to the executor, which must outlive it.
class Workspace {
 public:
  explicit Workspace(Executor& executor = default_executor(), Arena::Usage* joint = nullptr)
      : executor_(&executor), arena_(joint) {}

  Executor& executor() const { return *executor_; }
  Arena& arena() { return arena_; }
  const Arena& arena() const { return arena_; }

 private:
  Executor* executor_;
  Arena arena_;
};

}  // namespace FIT_ABI
}  // namespace fit
