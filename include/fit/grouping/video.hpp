#pragma once

#include <string_view>

#include <fit/core/tensor.hpp>

#include <fit/grouping/boxes.hpp>

namespace fit {
inline namespace FIT_ABI {

struct VideoSize {
  Index frames = 0, height = 0, width = 0;
};

/// A video is cut into boxes, the groups, and each of them into patches, the tokens; both in (frame, row, column)
/// order. Inputs and outputs are as for ImageGrouping.
struct VideoGrouping {
  VideoSize box, patch;
};

namespace detail {

inline Boxes video_boxes(std::string_view function, const VideoSize& size, const VideoGrouping& grouping) {
  const auto axes = [](const VideoSize& of) { return Boxes::Axes{of.frames, of.height, of.width}; };
  return Boxes({function, "video", "box", "patch"}, axes(size), axes(grouping.box), axes(grouping.patch));
}

template <class Video>
VideoSize video_size(const Video& video) {
  return {video.dimension(1), video.dimension(2), video.dimension(3)};
}

}  // namespace detail

/// video [B, F, H, W, c] -> groups [B, T, n, C], T boxes of n patches of C values in (frame, row, column, channel)
/// order. Throws Error when the boxes do not divide the video, the patches not the boxes, or the output has another
/// shape.
template <detail::TensorOf<5> Video>
void group_video(const Video& video, const VideoGrouping& grouping, TensorView<detail::ScalarOf<Video>, 4> groups) {
  detail::video_boxes("group_video", detail::video_size(video), grouping).group(video, groups);
}

template <detail::TensorOf<5> Video>
Tensor<detail::ScalarOf<Video>, 4> group_video(const Video& video, const VideoGrouping& grouping) {
  return detail::video_boxes("group_video", detail::video_size(video), grouping).template grouped<4>(video);
}

/// The inverse: groups [B, T, n, C] -> video [B, F, H, W, c]. Throws Error as group_video(), and when the groups have
/// another shape than the grouping of such a video.
template <detail::TensorOf<4> Groups>
void ungroup_video(const Groups& groups, const VideoGrouping& grouping, TensorView<detail::ScalarOf<Groups>, 5> video) {
  detail::video_boxes("ungroup_video", detail::video_size(video), grouping).ungroup("the groups", groups, video);
}

template <detail::TensorOf<4> Groups>
Tensor<detail::ScalarOf<Groups>, 5> ungroup_video(const Groups& groups, const VideoSize& size,
                                                  const VideoGrouping& grouping) {
  return detail::video_boxes("ungroup_video", size, grouping).template ungrouped<5>("the groups", groups);
}

}  // namespace FIT_ABI
}  // namespace fit
