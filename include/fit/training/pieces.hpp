#pragma once

#include <algorithm>
#include <tuple>

#include <fit/core/index_range.hpp>
#include <fit/core/parameter.hpp>
#include <fit/core/workspace.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// Elements of a piece but the last of its parameter: a fixed number, so that sums over pieces have a fixed order.
inline constexpr Index piece_size = 8192;

template <class T>
Index count_pieces(const Parameters<T>& parameters) {
  Index count = 0;
  parameters.for_each([&](const ParameterName&, auto p) { count += (p.size + piece_size - 1) / piece_size; });
  return count;
}

/// A run of elements of one parameter, side by side in models of one type.
struct Piece {
  Index number;
  Index parameter;  // in the visitor's order
  Index size;
};

/// Calls body(piece, pointer to its first element in each of the models...) for the pieces `own` of models of one type,
/// on the workspace's threads. The list of pieces is made in the workspace's scratch memory.
template <class Body, class... Ts>
void for_each_piece(const IndexRange& own, Workspace& workspace, Body&& body, const Parameters<Ts>&... models) {
  const Arena::Scope scope(workspace.arena());
  Piece* const pieces = workspace.arena().allocate<Piece>(own.count);
  const auto list = [&]<class T>(const Parameters<T>& parameters) {
    T** const elements = workspace.arena().allocate<T*>(own.count);
    Index number = 0, parameter = 0;
    parameters.for_each([&](const ParameterName&, auto p) {
      for (Index at = 0; at < p.size; at += piece_size, ++number) {
        const Index i = number - own.first;
        if (i < 0 || i >= own.count) continue;
        pieces[i] = {number, parameter, std::min(piece_size, p.size - at)};
        elements[i] = p.data + at;
      }
      ++parameter;
    });
    return elements;
  };
  const std::tuple elements{list(models)...};
  workspace.executor().parallel_for(own.count, [&](Index i, int) {
    std::apply([&](auto... of_model) { body(pieces[i], of_model[i]...); }, elements);
  });
}
template <class Body, class T, class... Ts>
void for_each_piece(Workspace& workspace, Body&& body, const Parameters<T>& model, const Parameters<Ts>&... models) {
  for_each_piece({0, count_pieces(model)}, workspace, body, model, models...);
}

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
