#pragma once

#include <array>

#include <fit/core/parameter.hpp>
#include <fit/core/workspace.hpp>

namespace fit::inline FIT_ABI {

/// A run of elements of one parameter, side by side in Count models; `rank` is that of the parameter.
template <class T, std::size_t Count>
struct ParameterPiece {
  std::array<T*, Count> data;
  Index size;
  std::size_t rank;
};

/// Elements of a piece but the last of its parameter: a fixed number, so that sums over pieces have a fixed order.
inline constexpr Index piece_size = 8192;

template <class Model>
Index count_pieces(Model& model) {
  Index count = 0;
  for_each_parameter([&](const ParameterName&, auto p) { count += (p.size + piece_size - 1) / piece_size; }, model);
  return count;
}

/// Calls body(piece, number of the piece) for all elements of models of one type, in pieces, on the workspace's
/// threads. The list of pieces is made in the workspace's scratch memory.
template <class Body, class Model, class... Models>
void for_each_piece(Body&& body, Workspace& workspace, Model& model, Models&... models) {
  using T = typename std::remove_const_t<Model>::T;
  using Piece = ParameterPiece<T, 1 + sizeof...(Models)>;
  const Arena::Scope scope(workspace.arena());
  const Index count = count_pieces(model);
  Piece* pieces = workspace.arena().template allocate<Piece>(count);
  Piece* next = pieces;
  for_each_parameter(
      [&](const ParameterName&, auto first, auto... others) {
        for (Index at = 0; at < first.size; at += piece_size) {
          // A model given as constant is only read; the pieces spell it without const to be of one type.
          *next++ = {{const_cast<T*>(first.data) + at, const_cast<T*>(others.data) + at...},
                     std::min(piece_size, first.size - at),
                     first.shape.size()};
        }
      },
      model, models...);
  workspace.executor().parallel_for(count, [&](Index i, int) { body(pieces[i], i); });
}

}  // namespace fit::inline FIT_ABI
