#pragma once

#include <algorithm>
#include <initializer_list>
#include <span>

#include <fit/core/parameter.hpp>
#include <fit/core/tape.hpp>
#include <fit/kernels/cached_attention.hpp>
#include <fit/kernels/few_rows.hpp>
#include <fit/kernels/gemm.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// What a layer is.
///
/// **Parameters.** An aggregate template of Parameters and other layers, with value semantics. Its gradient, moments
/// and averages have its type. `visit` names its members, for any number of such objects side by side:
///
///     template <class T, int Width>
///     struct LayerNorm {
///       Vector<T, Width> weight, bias;
///       static void visit(auto&& f, auto&... p) { f("weight", p.weight...); f("bias", p.bias...); }
///     };
///
/// **Functions.** Free ones, found by the layer's type, their arguments always in this order:
///
///     forward(p, inputs..., output, counts..., drop-outs..., tape);
///     backward(p, output gradient, input gradients..., gradient, counts..., tape);
///     step(p, inputs..., output, caches or counts, kernels, tape);
///
/// Tensors are row-major, given by pointers; widths stand in types, counts of sequences and rows are values. `forward`
/// begins with tape.mark() and ends with tape.finish(), which leaves a record on a tape that records; `backward` begins
/// with tape.pop() of that record. What forward reads must stay as it is until backward. `step` is forward, at
/// inference, for new rows of sequences whose earlier keys and values are in caches; layers without keys need none,
/// their forward takes the kernels instead.
///
/// **Gradients.** `gradient` is always added to. For inputs there is one rule, in two halves:
///
/// - What a layer only reads to map it to its output (the inputs of Linear, MLP, Attention) lies inside a branch, is
///   seen by no one else, and its gradient is *written*.
/// - What others see as well (the input of LayerNorm, the context of Cross) gets its gradient *added* to what is there.
///   A layer that adds to its input in place (`x += ...`: Block, Cross, ResidualMLP) takes one buffer: the gradient of
///   x after it, which becomes that of x before it. One that adds to a `residual` it does not read otherwise (MLP,
///   Attention) leaves the residual's gradient as it is: the gradient of the sum is that of both summands.
///
/// So nothing is zeroed only to be added to once, and no sum has another order than it would have alone.

/// Rows that a step takes of one sequence, and its cache, in which they see `keys` rows.
template <class T>
struct CachedRows {
  T *keys_cache, *values_cache;  // [at least `keys`, width of keys]
  Index keys;                    // with the step's own rows, where it adds some
  Index rows = 1;
};

template <class T>
Index rows_of(std::span<const CachedRows<T>> sequences) {
  Index rows = 0;
  for (const CachedRows<T>& sequence : sequences) rows += sequence.rows;
  return rows;
}

/// Products side by side: kernels::multiply() or, for few rows, multiply_few_rows().
template <class T>
using ProductKernel = void (*)(std::initializer_list<kernels::Product<T>>, Workspace&);

/// Which kernels a step runs on, or forward at inference. They sum in different orders, so the choice must hang on
/// nothing that differs between two runs of which the same bits are expected. Pointers, so that only who names a kernel
/// compiles it.
template <class T>
struct StepKernels {
  ProductKernel<T> multiply = kernels::multiply<T>;
  bool single_queries = false;  // attention by cached_attention(), of one row of each sequence
};

/// mixed [rows, width of all heads] = attention of the queries q, shaped alike, of each sequence in turn over its
/// cache. A causal mask counts back from the last of the keys.
template <class T>
void attend(std::span<const CachedRows<T>> sequences, const T* q, T* mixed, const kernels::HeadCounts& heads,
            const kernels::Mask& mask, const StepKernels<T>& with, Workspace& workspace) {
  const Arena::Scope scope(workspace.arena());
  const Index width = heads.count * heads.width;
  if (with.single_queries) {
    auto* queries = workspace.arena().allocate<kernels::CachedQuery<T>>(static_cast<Index>(sequences.size()));
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const CachedRows<T>& s = sequences[i];
      FIT_ASSERT(s.rows == 1);
      const Index row = static_cast<Index>(i) * width;
      queries[i] = {q + row, s.keys_cache, s.values_cache, s.keys, mixed + row};
    }
    return kernels::cached_attention(std::span<const kernels::CachedQuery<T>>(queries, sequences.size()), heads,
                                     workspace);
  }
  for (const CachedRows<T>& s : sequences) {
    auto own = mask;
    own.offset = std::max<Index>(0, s.keys - s.rows);  // a context may be shorter than the rows
    kernels::attention<T>({1, s.rows, s.keys, heads.count, heads.width, own, {}, heads.sharing},
                          {q, s.keys_cache, s.values_cache, mixed}, workspace);
    q += s.rows * width;
    mixed += s.rows * width;
  }
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
