#pragma once

#include <algorithm>

#include <fit/core/index_range.hpp>
#include <fit/core/parameter.hpp>
#include <fit/core/workspace.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// Elements of a piece but the last of its parameter: a fixed number, so that sums over pieces have a fixed order.
inline constexpr Index piece_size = 8192;

template <class Model>
Index count_pieces(Model& model) {
  Index count = 0;
  for_each_parameter([&](const ParameterName&, auto p) { count += (p.size + piece_size - 1) / piece_size; }, model);
  return count;
}

/// Calls body(piece, number of the piece) for all elements of models of one type, in pieces, or for pieces first ..
/// first + count - 1 alone, on the workspace's threads. A Piece is a run of elements of one parameter, side by side in
/// the models: an aggregate of a pointer into each of them, to const for those that are, then Index size and the number
/// of the parameter in the visitor's order. The list of pieces is made in the workspace's scratch memory.
template <class Piece, class Body, class Model, class... Models>
void for_each_piece_in(const IndexRange& own, Body&& body, Workspace& workspace, Model& model, Models&... models) {
  const Arena::Scope scope(workspace.arena());
  const Index count = count_pieces(model);
  Piece* pieces = workspace.arena().allocate<Piece>(count);
  Piece* next = pieces;
  Index parameter = 0;
  for_each_parameter(
      [&](const ParameterName&, auto first, auto... others) {
        for (Index at = 0; at < first.size; at += piece_size) {
          *next++ = {first.data + at, others.data + at..., std::min(piece_size, first.size - at), parameter};
        }
        ++parameter;
      },
      model, models...);
  workspace.executor().parallel_for(own.count, [&](Index i, int) { body(pieces[own.first + i], own.first + i); });
}
template <class Piece, class Body, class Model, class... Models>
void for_each_piece(Body&& body, Workspace& workspace, Model& model, Models&... models) {
  for_each_piece_in<Piece>({0, count_pieces(model)}, body, workspace, model, models...);
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
