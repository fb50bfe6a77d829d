#pragma once

#include <algorithm>
#include <initializer_list>
#include <span>

#include <fit/core/assert.hpp>
#include <fit/core/workspace.hpp>
#include <fit/kernels/scratch.hpp>
#include <fit/simd/batch.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace kernels {

/// sums[j] += sum over the rows of x[i, j]
template <class T>
struct ColumnSum {
  const T* x;  // [rows, columns]
  Index rows, columns;
  T* sums;  // [columns]
};

/// Several column sums at once. Rows are summed in blocks of a fixed size and the blocks in order, so that the result
/// does not depend on the threads.
template <class T>
void add_column_sums(std::span<const ColumnSum<T>> jobs, Workspace& workspace) {
  constexpr Index w = simd::width<T>, row_block = column_sums_block, column_block = 16 * w;
  Executor& executor = workspace.executor();
  const Arena::Scope scope(workspace.arena());
  for (const auto& job : jobs) {
    FIT_ASSERT(job.rows >= 0 && job.columns >= 0);
    FIT_ASSERT(job.rows == 0 || job.columns == 0 || (job.x && job.sums && job.x != job.sums));
  }
  Index tasks = 0;
  for (const auto& job : jobs) tasks += (job.columns + column_block - 1) / column_block;
  const auto blocks_of = [&](const ColumnSum<T>& job) { return (job.rows + row_block - 1) / row_block; };
  Index slices = 0, room = 0;
  for (const auto& job : jobs) {
    slices = std::max(slices, blocks_of(job));
    room += column_sums_size(job.rows, job.columns);
  }
  T* partial = workspace.arena().allocate<T>(room);
  // A task is the same share of every job, so that a thread goes on with the rows it had before.
  executor.parallel_for(slices, [&](Index slice, int) {
    T* of_job = partial;
    for (const auto& job : jobs) {
      const Index blocks = blocks_of(job);
      for (Index block = blocks * slice / slices; block < blocks * (slice + 1) / slices; ++block) {
        T* to = of_job + block * job.columns;
        const Index first = block * row_block, last = std::min(first + row_block, job.rows);
        for (Index start = 0; start < job.columns; start += column_block) {
          const Index end = std::min(start + column_block, job.columns);
          std::copy(job.x + first * job.columns + start, job.x + first * job.columns + end, to + start);
          for (Index i = first + 1; i < last; ++i) {
            const T* x = job.x + i * job.columns;
            for (Index j = start; j < end; ++j) to[j] += x[j];
          }
        }
      }
      of_job += blocks * job.columns;
    }
  });
  executor.parallel_for(tasks, [&](Index task, int) {
    const T* from = partial;
    for (const auto& job : jobs) {
      const Index here = (job.columns + column_block - 1) / column_block;
      if (task >= here) {
        task -= here;
        from += blocks_of(job) * job.columns;
        continue;
      }
      const Index start = task * column_block, end = std::min(start + column_block, job.columns);
      for (Index block = 0; block < blocks_of(job); ++block) {
        for (Index j = start; j < end; ++j) job.sums[j] += from[block * job.columns + j];
      }
      return;
    }
  });
}

template <class T>
void add_column_sums(std::initializer_list<ColumnSum<T>> jobs, Workspace& workspace) {
  add_column_sums(std::span<const ColumnSum<T>>(jobs.begin(), jobs.size()), workspace);
}

}  // namespace kernels
}  // namespace FIT_ABI
}  // namespace fit
