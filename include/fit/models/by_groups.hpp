#pragma once

#include <fit/models/arguments.hpp>
#include <fit/models/chunks.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// A model's input that a source makes and the loss of its output, for some groups at a time, in place of tensors that
/// hold them; or none of these.
template <class T>
struct ByGroups {
  const GroupSource<T>* source = nullptr;
  const GroupLoss<T>* loss = nullptr;
  double* total = nullptr;  // of the losses

  /// The groups' input, `each` elements of a group: that of a tensor, or what the source makes, which is kept as long
  /// as what a layer allocates.
  const T* read(const Chunk& groups, const T* input, Index each, Tape& tape) const {
    if (!source) return groups.of(input, each);
    T* tokens = tape.allocate<T>(groups.count * each);
    source->fill(groups.number, groups.count, tokens);
    return tokens;
  }

  /// Runs back(to), which writes the input's gradient: to a tensor, to what the source is told, or nowhere, null.
  template <class Back>
  void read_backward(const Chunk& groups, T* input_gradient, Index each, Tape& tape, Back&& back) const {
    const bool told = source && source->gradient;
    T* to = told ? tape.scratch<T>(groups.count * each) : groups.of(input_gradient, each);
    back(to);
    if (told) source->gradient(groups.number, groups.count, to);
  }

  /// Adds the loss of the output, `each` elements of a group, that forward(output) writes; then, if `goes_back`, calls
  /// back(output_gradient).
  template <class Forward, class Back>
  void add_loss(const Chunk& groups, Index each, bool goes_back, Tape& tape, Forward&& forward, Back&& back) const {
    const Tape::Recording recording(tape, goes_back);
    const Arena::Scope scope(tape.arena());
    T* output = tape.scratch<T>(groups.count * each);
    T* gradient = goes_back ? tape.scratch<T>(groups.count * each) : nullptr;
    forward(output);
    *total += (*loss)(groups.number, groups.count, output, gradient);
    if (goes_back) back(gradient);
  }
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
