#pragma once

#include <string_view>

#include <fit/core/tensor.hpp>

#include <fit/grouping/boxes.hpp>

namespace fit {
inline namespace FIT_ABI {

struct ImageSize {
  Index height = 0, width = 0;
};

/// An image is cut into sub-images, the groups, and each of them into patches, the tokens; both in raster order.
///
///     fit::Tensor<float, 4> groups = fit::group_image(images, {.sub_image = {14, 14}, .patch = {2, 2}});
///
/// Images, groups and patches below may be a Tensor, a TensorView or a row-major Eigen tensor. Overloads that end in an
/// output write to it instead of allocating; it must not overlap the input. Every Error leaves the output untouched.
struct ImageGrouping {
  ImageSize sub_image, patch;
};

/// The order in which an image's patches follow each other: row by row, or with every odd row reversed.
enum class Order { raster, snake };

namespace detail {

inline Boxes image_boxes(std::string_view function, const ImageSize& size, const ImageGrouping& grouping) {
  const auto& [sub_image, patch] = grouping;
  return Boxes({function, "image", "sub-image", "patch"}, {1, size.height, size.width},
               {1, sub_image.height, sub_image.width}, {1, patch.height, patch.width});
}

/// The whole image as one box.
inline Boxes whole_image(std::string_view function, const ImageSize& size, const ImageSize& patch) {
  const BoxNames names{function, "image", "image", "patch"};
  return Boxes(names, {1, size.height, size.width}, {1, size.height, size.width}, {1, patch.height, patch.width});
}

template <class Image>
ImageSize image_size(const Image& image) {
  return {image.dimension(1), image.dimension(2)};
}

}  // namespace detail

/// image [B, H, W, c] -> groups [B, T, n, C], T sub-images of n patches of C = patch height * patch width * c values in
/// (row, column, channel) order. Throws Error when the sub-images do not divide the image, the patches not the
/// sub-images, or the output has another shape.
template <detail::TensorOf<4> Image>
void group_image(const Image& image, const ImageGrouping& grouping, TensorView<detail::ScalarOf<Image>, 4> groups) {
  detail::image_boxes("group_image", detail::image_size(image), grouping).group(image, groups);
}

template <detail::TensorOf<4> Image>
Tensor<detail::ScalarOf<Image>, 4> group_image(const Image& image, const ImageGrouping& grouping) {
  return detail::image_boxes("group_image", detail::image_size(image), grouping).template grouped<4>(image);
}

/// The inverse: groups [B, T, n, C] -> image [B, H, W, c]. Throws Error as group_image(), and when the groups have
/// another shape than the grouping of such an image.
template <detail::TensorOf<4> Groups>
void ungroup_image(const Groups& groups, const ImageGrouping& grouping, TensorView<detail::ScalarOf<Groups>, 4> image) {
  detail::image_boxes("ungroup_image", detail::image_size(image), grouping).ungroup("the groups", groups, image);
}

template <detail::TensorOf<4> Groups>
Tensor<detail::ScalarOf<Groups>, 4> ungroup_image(const Groups& groups, const ImageSize& size,
                                                  const ImageGrouping& grouping) {
  return detail::image_boxes("ungroup_image", size, grouping).template ungrouped<4>("the groups", groups);
}

/// image [B, H, W, c] -> patches [B, P, C], C in (row, column, channel) order: for models that take every patch as a
/// group of its own. Throws Error when the patches do not divide the image or the output has another shape.
template <detail::TensorOf<4> Image>
void image_patches(const Image& image, const ImageSize& patch, Order order,
                   TensorView<detail::ScalarOf<Image>, 3> patches) {
  detail::whole_image("image_patches", detail::image_size(image), patch).group(image, patches, order == Order::snake);
}

template <detail::TensorOf<4> Image>
Tensor<detail::ScalarOf<Image>, 3> image_patches(const Image& image, const ImageSize& patch,
                                                 Order order = Order::raster) {
  const detail::Boxes boxes = detail::whole_image("image_patches", detail::image_size(image), patch);
  return boxes.grouped<3>(image, order == Order::snake);
}

/// The inverse: patches [B, P, C] -> image [B, H, W, c]. Throws Error as image_patches(), and when the patches have
/// another shape than those of such an image.
template <detail::TensorOf<3> Patches>
void patches_image(const Patches& patches, const ImageSize& patch, Order order,
                   TensorView<detail::ScalarOf<Patches>, 4> image) {
  const detail::Boxes boxes = detail::whole_image("patches_image", detail::image_size(image), patch);
  boxes.ungroup("the patches", patches, image, order == Order::snake);
}

template <detail::TensorOf<3> Patches>
Tensor<detail::ScalarOf<Patches>, 4> patches_image(const Patches& patches, const ImageSize& size,
                                                   const ImageSize& patch, Order order = Order::raster) {
  const detail::Boxes boxes = detail::whole_image("patches_image", size, patch);
  return boxes.ungrouped<4>("the patches", patches, order == Order::snake);
}

}  // namespace FIT_ABI
}  // namespace fit
