#pragma once

#include <fit/core/tensor.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

template <class X>
inline constexpr bool is_row_major = true;
template <class X>
requires requires { X::Layout; }
inline constexpr bool is_row_major<X> = static_cast<int>(X::Layout) == static_cast<int>(Eigen::RowMajor);

template <class X>
inline constexpr std::size_t rank_of = X::Dimensions::count;

/// A Tensor, a TensorView or an Eigen tensor of at least this rank: dense, row-major, of trivial elements.
template <class X, std::size_t Rank>
concept TensorFrom = requires(const X& x) {
  { x.data() } -> std::convertible_to<const ScalarOf<X>*>;
  requires is_row_major<X>;
  requires std::is_trivially_copyable_v<ScalarOf<X>>;
  requires(rank_of<X> >= Rank);
};

/// The same of exactly this rank.
template <class X, std::size_t Rank>
concept TensorOf = requires {
  requires TensorFrom<X, Rank>;
  requires(rank_of<X> == Rank);
};

template <class X>
std::array<Index, rank_of<X>> shape_of(const X& x) {
  std::array<Index, rank_of<X>> shape;
  for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = x.dimensions()[i];
  return shape;
}

/// What messages call the function and the sizes.
struct BoxNames {
  std::string_view function, whole, box, patch;
};

/// How [B, F, H, W, c] lies in boxes: size / box of them along each axis, each with box / patch patches. An image is a
/// video of one frame.
struct Boxes {
  using Axes = std::array<Index, 3>;
  std::string_view function;
  Axes size, box, patch;
  Index most_channels = std::numeric_limits<Index>::max();

  /// Throws Error unless the boxes divide the whole and the patches the boxes.
  Boxes(const BoxNames& names, const Axes& whole, const Axes& outer, const Axes& inner)
      : function(names.function), size(whole), box(outer), patch(inner) {
    constexpr std::string_view axes[] = {"frames", "height", "width"};
    for (std::size_t i = 0; i < 3; ++i) {
      most_channels /= std::max<Index>(1, std::max(size[i], box[i]));
      require(most_channels > 0, names.function, ": the ", names.whole, " has more pixels than can be counted");
      require(patch[i] > 0, names.function, ": the ", names.patch, "'s ", axes[i], " must be positive, not ", patch[i]);
      require(box[i] > 0, names.function, ": the ", names.box, "'s ", axes[i], " must be positive, not ", box[i]);
      require(size[i] >= 0 && size[i] % box[i] == 0, names.function, ": the ", names.whole, "'s ", axes[i], ", ",
              size[i], ", must be a multiple of the ", names.box, "'s, ", box[i]);
      require(box[i] % patch[i] == 0, names.function, ": the ", names.box, "'s ", axes[i], ", ", box[i],
              ", must be a multiple of the ", names.patch, "'s, ", patch[i]);
    }
  }

  /// Boxes, patches in a box, pixels in a patch.
  Index groups() const { return size[0] / box[0] * (size[1] / box[1]) * (size[2] / box[2]); }
  Index tokens() const { return box[0] / patch[0] * (box[1] / patch[1]) * (box[2] / patch[2]); }
  Index pixels() const { return patch[0] * patch[1] * patch[2]; }

  /// [B, H, W, c] or [B, F, H, W, c] -> groups [B, T, n, C] or, of a single box, [B, n, C]; `snake` runs through every
  /// odd row of patches from its end. Throws Error when the output has another shape, and for a view of null.
  template <class X, int Rank>
  void group(const X& whole, const TensorView<ScalarOf<X>, Rank>& groups, bool snake = false) const {
    const Index channels = whole.dimension(rank_of<X> - 1);
    require_shape(whole, shape_of(whole), function, ": the input");
    require_shape(groups, shape_of_groups<Rank>(whole), function, ": the output");
    for_each_row(whole.dimension(0), channels, snake,
                 [&](Index at, Index grouped) { copy_row(groups.data() + grouped, whole.data() + at, channels); });
  }
  template <int Rank, class X>
  Tensor<ScalarOf<X>, Rank> grouped(const X& whole, bool snake = false) const {
    Tensor<ScalarOf<X>, Rank> groups(Eigen::DSizes<Index, Rank>(shape_of_groups<Rank>(whole)));
    group<X, Rank>(whole, groups, snake);
    return groups;
  }

  /// The inverse. Throws Error when the groups are not of this shape, or the output.
  template <class X, int Rank>
  void ungroup(std::string_view what, const X& groups, const TensorView<ScalarOf<X>, Rank>& whole,
               bool snake = false) const {
    const auto shape = shape_of_whole<Rank>(what, groups);
    require_shape(groups, shape_of(groups), function, ": the input");
    require_shape(whole, shape, function, ": the output");
    for_each_row(shape.front(), shape.back(), snake,
                 [&](Index at, Index grouped) { copy_row(whole.data() + at, groups.data() + grouped, shape.back()); });
  }
  template <int Rank, class X>
  Tensor<ScalarOf<X>, Rank> ungrouped(std::string_view what, const X& groups, bool snake = false) const {
    Tensor<ScalarOf<X>, Rank> whole(Eigen::DSizes<Index, Rank>(shape_of_whole<Rank>(what, groups)));
    ungroup<X, Rank>(what, groups, whole, snake);
    return whole;
  }

 private:
  template <int Rank, class X>
  auto shape_of_groups(const X& whole) const {
    const Index batch = whole.dimension(0), values = pixels() * counted(whole.dimension(rank_of<X> - 1));
    if constexpr (Rank == 4) return std::array<Index, 4>{batch, groups(), tokens(), values};
    if constexpr (Rank == 3) return std::array<Index, 3>{batch, tokens(), values};
  }

  template <int Rank, class X>
  auto shape_of_whole(std::string_view what, const X& x) const {
    auto shape = shape_of(x);
    const Index values = shape.back();
    require(values % pixels() == 0, function, ": ", what, "' last axis, ", values, ", must be a multiple of the ",
            pixels(), " pixels of a patch");
    shape[shape.size() - 2] = tokens();
    if constexpr (rank_of<X> == 4) shape[1] = groups();
    require_shape(x, shape, function, ": ", what);
    const Index batch = shape[0], channels = counted(values / pixels());
    if constexpr (Rank == 5) return std::array<Index, 5>{batch, size[0], size[1], size[2], channels};
    if constexpr (Rank == 4) return std::array<Index, 4>{batch, size[1], size[2], channels};
  }

  /// Channels, of which an empty tensor may have any number.
  Index counted(Index channels) const {
    require(channels <= most_channels, function, ": ", channels, " channels are more than can be counted");
    return channels;
  }

  /// Calls copy(offset in [B, F, H, W, c], offset in [B, groups, tokens, pixels, c]) for every row of pixels of every
  /// patch, in the order of the groups.
  template <class Copy>
  void for_each_row(Index batch, Index channels, bool snake, Copy copy) const {
    const Index pixel_row = size[2] * channels, frame = size[1] * pixel_row, row = patch[2] * channels;
    Index grouped = 0;
    const auto copy_patch = [&](Index corner) {
      for (Index f = 0; f < patch[0]; ++f) {
        for (Index y = 0; y < patch[1]; ++y, grouped += row) copy(corner + f * frame + y * pixel_row, grouped);
      }
    };
    const auto copy_box = [&](Index corner) {
      for (Index f = 0; f < box[0]; f += patch[0]) {
        for (Index y = 0; y < box[1]; y += patch[1]) {
          const Index first = corner + f * frame + y * pixel_row;
          const bool backward = snake && y / patch[1] % 2 == 1;
          for (Index x = 0; x < box[2]; x += patch[2]) {
            copy_patch(first + (backward ? box[2] - patch[2] - x : x) * channels);
          }
        }
      }
    };
    for (Index b = 0; b < batch; ++b) {
      for (Index f = 0; f < size[0]; f += box[0]) {
        for (Index y = 0; y < size[1]; y += box[1]) {
          for (Index x = 0; x < size[2]; x += box[2]) {
            copy_box((b * size[0] + f) * frame + y * pixel_row + x * channels);
          }
        }
      }
    }
  }

  template <class T>
  void copy_row(T* to, const T* from, Index channels) const {
    if (channels > 0) std::memcpy(to, from, static_cast<std::size_t>(patch[2] * channels) * sizeof(T));
  }
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
