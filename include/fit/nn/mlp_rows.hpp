#pragma once

#include <algorithm>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

/// Rows of a block's MLP that go through together, as its hidden units are the largest tensors that there are: those of
/// all sequences or, of one long sequence, some.
constexpr Index mlp_rows(Index sequences, Index length) {
  return sequences == 1 ? std::min<Index>(length, 2048) : sequences * length;
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
