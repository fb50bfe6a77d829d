#include <fit/grouping/image.hpp>
#include <fit/grouping/sequence.hpp>
#include <fit/grouping/shift.hpp>
#include <fit/grouping/video.hpp>

#include "catch.hpp"
#include "golden.hpp"
#include "support.hpp"

#include <numeric>

#include <nlohmann/json.hpp>

namespace {

using fit::Index;

/// A tensor of a golden file.
template <class T, int Rank>
fit::Tensor<T, Rank> load(const fit::SafetensorsFile& file, const std::string& name) {
  const std::vector<Index>& shape = file.info(name).shape;
  REQUIRE(shape.size() == Rank);
  Eigen::DSizes<Index, Rank> dimensions;
  std::copy(shape.begin(), shape.end(), dimensions.begin());
  fit::Tensor<T, Rank> tensor(dimensions);
  file.read(name, tensor.data(), tensor.size());
  return tensor;
}

/// 0, 1, 2, ...
template <class T, int Rank, class... Sizes>
fit::Tensor<T, Rank> counting(Sizes... sizes) {
  fit::Tensor<T, Rank> tensor(sizes...);
  std::iota(tensor.data(), tensor.data() + tensor.size(), T(0));
  return tensor;
}

template <class T, int Rank>
bool equal(const fit::Tensor<T, Rank>& a, const fit::Tensor<T, Rank>& b) {
  return a.dimensions() == b.dimensions() && std::equal(a.data(), a.data() + a.size(), b.data());
}

}  // namespace

TEST_CASE("golden groupings", "[grouping]") {
  const fit::SafetensorsFile file = test::golden("grouping");
  const auto cases = nlohmann::json::parse(file.metadata().at("config")).at("cases");
  REQUIRE(cases.size() == 8);
  for (const auto& item : cases.items()) {
    const std::string name = item.key();
    const auto& config = item.value();
    INFO(name);
    const std::string operation = config.at("operation"), input = "input." + name, output = "output." + name;
    const auto size = [&](const char* key) {
      return fit::ImageSize{config.at(key).at(0).get<Index>(), config.at(key).at(1).get<Index>()};
    };
    if (operation == "image") {
      const auto image = load<float, 4>(file, input);
      const auto groups = load<float, 4>(file, output);
      const fit::ImageGrouping grouping{size("sub_image"), size("patch")};
      CHECK(equal(fit::group_image(image, grouping), groups));
      CHECK(equal(fit::ungroup_image(groups, {image.dimension(1), image.dimension(2)}, grouping), image));
    } else if (operation == "patches") {
      const auto image = load<float, 4>(file, input);
      const auto patches = load<float, 3>(file, output);
      const fit::Order order = config.at("order") == "snake" ? fit::Order::snake : fit::Order::raster;
      CHECK(equal(fit::image_patches(image, size("patch"), order), patches));
      CHECK(equal(fit::patches_image(patches, {image.dimension(1), image.dimension(2)}, size("patch"), order), image));
    } else if (operation == "sequence") {
      const auto x = load<float, 3>(file, input);
      const auto groups = load<float, 4>(file, output);
      CHECK(equal(fit::group_sequence(x, config.at("tokens").get<Index>()), groups));
      CHECK(equal(fit::ungroup_sequence(groups), x));
    } else {
      REQUIRE(operation == "shift_right");
      const auto ids = load<std::int32_t, 3>(file, input);
      CHECK(equal(fit::shift_right(ids), load<std::int32_t, 3>(file, output)));
    }
  }
}

TEST_CASE("videos are cut as the formula says", "[grouping]") {
  constexpr Index B = 2, F = 8, H = 12, W = 12, c = 3, bf = 4, bh = 6, bw = 6, pf = 2, ph = 2, pw = 3;
  const auto video = counting<std::int32_t, 5>(B, F, H, W, c);
  const fit::VideoGrouping grouping{.box = {bf, bh, bw}, .patch = {pf, ph, pw}};
  const fit::Tensor<std::int32_t, 4> groups = fit::group_video(video, grouping);
  REQUIRE(groups.dimension(0) == B);
  REQUIRE(groups.dimension(1) == (F / bf) * (H / bh) * (W / bw));
  REQUIRE(groups.dimension(2) == (bf / pf) * (bh / ph) * (bw / pw));
  REQUIRE(groups.dimension(3) == pf * ph * pw * c);
  Index wrong = 0;
  for (Index b = 0; b < B; ++b) {
    for (Index f = 0; f < F; ++f) {
      for (Index y = 0; y < H; ++y) {
        for (Index x = 0; x < W; ++x) {
          for (Index k = 0; k < c; ++k) {
            const Index group = (f / bf * (H / bh) + y / bh) * (W / bw) + x / bw;
            const Index token = (f % bf / pf * (bh / ph) + y % bh / ph) * (bw / pw) + x % bw / pw;
            const Index value = ((f % pf * ph + y % ph) * pw + x % pw) * c + k;
            wrong += groups(b, group, token, value) != video(b, f, y, x, k);
          }
        }
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(equal(fit::ungroup_video(groups, {F, H, W}, grouping), video));
}

TEST_CASE("a video of one frame is an image", "[grouping]") {
  const auto image = counting<float, 4>(2, 8, 12, 2);
  const auto video = counting<float, 5>(2, 1, 8, 12, 2);
  const auto groups = fit::group_image(image, {.sub_image = {4, 6}, .patch = {2, 3}});
  CHECK(equal(fit::group_video(video, {.box = {1, 4, 6}, .patch = {1, 2, 3}}), groups));
}

TEST_CASE("snake order turns back on odd rows", "[grouping]") {
  const auto image = counting<int, 4>(1, 3, 4, 1);
  const auto patches = fit::image_patches(image, {1, 1}, fit::Order::snake);
  const int expected[] = {0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11};
  CHECK(std::equal(patches.data(), patches.data() + patches.size(), expected));
}

TEST_CASE("inputs and outputs of every kind", "[grouping]") {
  auto image = counting<double, 4>(1, 4, 4, 1);
  const fit::ImageGrouping grouping{.sub_image = {2, 2}, .patch = {1, 2}};
  const auto expected = fit::group_image(image, grouping);
  const Eigen::Tensor<double, 4, Eigen::RowMajor> eigen = image.eigen();
  const fit::TensorView<const double, 4> constant = image;
  CHECK(equal(fit::group_image(image.eigen(), grouping), expected));
  CHECK(equal(fit::group_image(constant, grouping), expected));
  CHECK(equal(fit::group_image(eigen, grouping), expected));

  fit::Tensor<double, 4> groups(1, 4, 2, 2), back(1, 4, 4, 1);
  fit::group_image(constant, grouping, groups);
  CHECK(equal(groups, expected));
  fit::ungroup_image(groups.eigen(), grouping, back.eigen());
  CHECK(equal(back, image));

  fit::Tensor<double, 3> patches(1, 8, 2);
  fit::image_patches(image, {2, 1}, fit::Order::snake, patches);
  CHECK(equal(patches, fit::image_patches(image, {2, 1}, fit::Order::snake)));
  back.setZero();
  fit::patches_image(patches, {2, 1}, fit::Order::snake, back);
  CHECK(equal(back, image));

  const auto video = counting<double, 5>(1, 1, 4, 4, 1);
  fit::Tensor<double, 5> back_video(1, 1, 4, 4, 1);
  fit::group_video(video, {{1, 2, 2}, {1, 1, 2}}, groups);
  CHECK(equal(groups, expected));
  fit::ungroup_video(groups, {{1, 2, 2}, {1, 1, 2}}, back_video);
  CHECK(equal(back_video, video));

  const auto ids = counting<std::int32_t, 2>(2, 6);
  fit::Tensor<std::int32_t, 3> grouped(2, 3, 2);
  fit::Tensor<std::int32_t, 2> flat(2, 6);
  fit::group_sequence(ids, 2, grouped);
  CHECK(equal(grouped, fit::group_sequence(ids, 2)));
  fit::ungroup_sequence(grouped, flat);
  CHECK(equal(flat, ids));

  const auto shifted = fit::shift_right(grouped);
  fit::shift_right(grouped, grouped);  // in place
  CHECK(equal(grouped, shifted));
  const std::int32_t expected_ids[] = {0, 0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 10};
  CHECK(std::equal(shifted.data(), shifted.data() + 12, expected_ids));
}

TEST_CASE("sequences keep all axes behind their own", "[grouping]") {
  const auto x = counting<double, 5>(2, 6, 3, 4, 5);
  const auto groups = fit::group_sequence(x, 2);
  CHECK(fit::shape_text(groups.dimensions()) == "[2, 3, 2, 3, 4, 5]");
  CHECK(std::equal(groups.data(), groups.data() + groups.size(), x.data()));
  CHECK(equal(fit::ungroup_sequence(groups), x));
}

TEST_CASE("nothing to group", "[grouping]") {
  const fit::Tensor<float, 4> none(0, 4, 4, 3), no_channels(2, 4, 4, 0);
  const auto groups = fit::group_image(none, {{2, 2}, {1, 1}});
  CHECK(groups.dimension(0) == 0);
  CHECK(groups.dimension(1) == 4);
  CHECK(fit::ungroup_image(groups, {4, 4}, {{2, 2}, {1, 1}}).dimension(3) == 3);
  CHECK(fit::image_patches(no_channels, {2, 2}).dimension(2) == 0);
  CHECK(fit::group_sequence(fit::Tensor<float, 2>(2, 0), 3).dimension(1) == 0);
  CHECK(fit::shift_right(fit::Tensor<int, 3>(3, 0, 2)).size() == 0);
}

TEST_CASE("groupings that do not fit are refused", "[grouping]") {
  const fit::Tensor<float, 4> image(1, 28, 24, 1);
  const auto says = [](auto&& call, const char* part) {
    const std::string text = test::error_of(call);
    INFO(text);
    INFO(part);
    CHECK(test::contains(text, part));
  };
  says(
      [&] {
        fit::group_image(image, {{15, 12}, {1, 1}});
      },
      "group_image: the image's height, 28, must be a multiple of the sub-image's, 15");
  says(
      [&] {
        fit::group_image(image, {{14, 7}, {1, 1}});
      },
      "the image's width, 24, must be a multiple of the sub-image's, 7");
  says(
      [&] {
        fit::group_image(image, {{14, 12}, {3, 1}});
      },
      "the sub-image's height, 14, must be a multiple of the patch's, 3");
  says([&] { fit::group_image(image, {{14, 12}, {2, 0}}); }, "the patch's width must be positive, not 0");
  says([&] { fit::group_image(image, {{-14, 12}, {2, 2}}); }, "the sub-image's height must be positive, not -14");
  says([&] { fit::group_image(image, {}); }, "the patch's height must be positive");
  says(
      [&] {
        fit::image_patches(image, {5, 2});
      },
      "image_patches: the image's height, 28, must be a multiple of the patch's, 5");

  fit::Tensor<float, 4> groups(1, 4, 42, 4);
  groups.setConstant(7);
  says(
      [&] {
        fit::group_image(image, {{7, 12}, {7, 2}}, groups);
      },
      "group_image: the output must have the shape [1, 8, 6, 14], not [1, 4, 42, 4]");
  CHECK(groups(0, 0, 0, 0) == 7);
  const fit::ImageGrouping grouping{{14, 12}, {2, 2}};
  says(
      [&] {
        fit::ungroup_image(groups, {28, 28}, grouping);
      },
      "ungroup_image: the image's width, 28, must be a multiple");
  says([&] { fit::ungroup_image(groups, {-28, 24}, grouping); }, "the image's height, -28, must be");
  says(
      [&] {
        fit::ungroup_image(groups, {28, 48}, grouping);
      },
      "the groups must have the shape [1, 8, 42, 4], not [1, 4, 42, 4]");
  says(
      [&] {
        fit::ungroup_image(groups, {28, 24}, {{14, 12}, {2, 3}});
      },
      "the groups' last axis, 4, must be a multiple of the 6 pixels of a patch");
  fit::Tensor<float, 4> wrong(2, 28, 24, 1);
  says([&] { fit::ungroup_image(groups, grouping, wrong); },
       "ungroup_image: the output must have the shape [1, 28, 24, 1], not [2, 28, 24, 1]");
  fit::Tensor<float, 3> patches(1, 6, 8);
  says(
      [&] {
        fit::patches_image(patches, {4, 4}, {2, 2});
      },
      "patches_image: the patches must have the shape [1, 4, 8], not [1, 6, 8]");
  says([&] { fit::patches_image(patches, {3, 8}, {3, 1}); }, "last axis, 8, must be a multiple of the 3 pixels");
  says([&] { fit::image_patches(wrong, {2, 2}, fit::Order::raster, patches); }, "image_patches: the output must have");

  const fit::Tensor<float, 5> video(1, 4, 6, 8, 2);
  says(
      [&] {
        fit::group_video(video, {{3, 2, 2}, {1, 1, 1}});
      },
      "group_video: the video's frames, 4, must be a multiple of the box's, 3");
  says(
      [&] {
        fit::group_video(video, {{2, 2, 4}, {1, 1, 3}});
      },
      "the box's width, 4, must be a multiple of the patch's, 3");
  says([&] { fit::ungroup_video(groups, {4, 6, 8}, {{2, 2, 4}, {1, 1, 1}}); }, "ungroup_video: the groups must have");

  const fit::Tensor<float, 3> sequence(2, 15, 4);
  says([&] { fit::group_sequence(sequence, 4); },
       "group_sequence: the sequence's length, 15, must be a multiple of the tokens of a group, 4");
  says([&] { fit::group_sequence(sequence, 0); }, "the tokens of a group must be positive, not 0");
  says([&] { fit::group_sequence(sequence, 5, groups); },
       "group_sequence: the output must have the shape [2, 3, 5, 4], not [1, 4, 42, 4]");
  const fit::TensorView<float, 4> null(nullptr, 2, 3, 5, 4);
  says([&] { fit::group_sequence(sequence, 5, null); }, "not [2, 3, 5, 4] of no elements at all: it is a view of null");
  fit::Tensor<float, 3> flat(2, 16, 4);
  says([&] { fit::ungroup_sequence(fit::group_sequence(sequence, 5), flat); },
       "ungroup_sequence: the output must have");
  says([&] { fit::shift_right(sequence, flat); },
       "shift_right: the output must have the shape [2, 15, 4], not [2, 16, 4]");
}

TEST_CASE("views of null are refused", "[grouping]") {
  const fit::TensorView<const float, 4> image(nullptr, 1, 4, 4, 3);
  const fit::TensorView<const float, 3> sequence(nullptr, 1, 4, 3);
  const fit::TensorView<const std::int32_t, 3> ids(nullptr, 1, 4, 3);
  const auto refused = [](auto&& call) { CHECK(test::contains(test::error_of(call), "a view of null")); };
  refused([&] { fit::group_image(image, {{2, 2}, {1, 1}}); });
  refused([&] { fit::ungroup_image(image, {4, 4}, {{2, 2}, {1, 1}}); });
  refused([&] { fit::group_sequence(sequence, 2); });
  refused([&] { fit::ungroup_sequence(sequence); });
  refused([&] { fit::shift_right(ids); });
}

TEST_CASE("an empty tensor of more channels or tokens than can be counted is refused", "[grouping]") {
  const fit::Tensor<float, 4> images(0, 4, 4, Index{1} << 62);
  CHECK(test::contains(test::error_of([&] {
                         fit::group_image(images, {.sub_image = {4, 4}, .patch = {2, 2}});
                       }),
                       "4611686018427387904 channels are more than can be counted"));
  const fit::Tensor<float, 3> groups(0, Index{1} << 40, Index{1} << 40);
  CHECK(
      test::contains(test::error_of([&] { fit::ungroup_sequence(groups); }), "1099511627776 tokens cannot be counted"));
}

TEST_CASE("an image of more pixels than can be counted is refused", "[grouping]") {
  const fit::Tensor<float, 4> groups(0, 1, 1, 1);
  const fit::Index huge = fit::Index{1} << 40;
  CHECK(test::contains(test::error_of([&] {
                         fit::ungroup_image(groups, {huge, huge}, {.sub_image = {huge, huge}, .patch = {1, 1}});
                       }),
                       "more pixels than can be counted"));
}
