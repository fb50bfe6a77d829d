#pragma once

#include <atomic>

#include <fit/core/memory.hpp>

/// FIT_COUNT(member, amount) adds to what kernels count of their own work where FIT_COUNT_WORK is 1, and is nothing
/// elsewhere: floating-point operations, of which a multiply-add is two. For tests of the cost model.
#if FIT_COUNT_WORK
#define FIT_COUNT(member, amount) static_cast<void>(::fit::detail::work_count.member += (amount))
#else
#define FIT_COUNT(member, amount) static_cast<void>(0)
#endif

namespace fit {
inline namespace FIT_ABI {
namespace detail {

struct WorkCount {
  std::atomic<Index> products{0};   // of matrices
  std::atomic<Index> attention{0};  // of pairs of a query and a key that it sees
  std::atomic<Index> executed{0};   // of all pairs that are computed
};
inline WorkCount work_count;

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
