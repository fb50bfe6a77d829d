#pragma once

#include <fit/core/team.hpp>
#include <fit/models/classifier.hpp>
#include <fit/training/metrics.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include "idx.hpp"

namespace examples {

using fit::Index;

inline constexpr Index fashion_side = 28;
inline constexpr int fashion_classes = 10;

/// The classifier that classify_images trains and generate_images asks. Tokens are windows of 8 x 8 pixels, 4 apart,
/// and a row of them is a group. A pixel has five channels: itself, and how steeply it becomes brighter to the right,
/// to the left, downwards and upwards.
inline constexpr int window_side = 8, windows_apart = 4, pixel_channels = 5;
inline constexpr fit::EncoderConfig classifier_config{.layers = "(1)1(1)1",
                                                      .groups = 7,
                                                      .tokens = 7,
                                                      .channels = pixel_channels * window_side * window_side,
                                                      .latents = 2,
                                                      .data_dim = 64,
                                                      .latent_dim = 128,
                                                      .data_heads = 2,
                                                      .latent_heads = 4};
using FashionClassifier = fit::Classifier<classifier_config, fashion_classes>;

/// How training images are changed at random, besides being mirrored.
struct ImageChanges {
  Index shift = 0;   ///< by up to so many pixels either way
  double erase = 0;  ///< share of the images of which a rectangle becomes gray; Zhong et al., arXiv 1708.04896
};

/// Images and labels as the classifier takes them.
class ClassifierBatches {
 public:
  ClassifierBatches(const LabelledImages& from, Index size, const ImageChanges& changes = {})
      : from_(from),
        changes_(changes),
        groups_(size, Index{classifier_config.groups}, Index{classifier_config.tokens},
                Index{classifier_config.channels}),
        labels_(size) {}

  /// Loads images order(first) ... as many as fit; `random` is none for testing.
  template <class Order>
  void load(const Order& order, Index first, const fit::Random* random) {
    for (Index i = 0; i < labels_.dimension(0); ++i) {
      const Index at = order(first + i);
      labels_(i) = from_.labels[static_cast<std::size_t>(at)];
      fit::Random own = random ? random->fork(first + i) : fit::Random(0);
      const Index down = random ? own.below(2 * changes_.shift + 1) - changes_.shift : 0,
                  right = random ? own.below(2 * changes_.shift + 1) - changes_.shift : 0;
      const bool mirror = random && own.uniform() < 0.5;
      Bordered image = bordered(from_.images[at], down, right, mirror);
      if (random && own.uniform() < changes_.erase) erase(image, own);
      write_windows(i, (image / 255 - 0.286f) / 0.353f);  // the data set's mean and deviation
    }
  }

  const fit::Tensor<float, 4>& groups() const { return groups_; }
  const fit::Tensor<std::int32_t, 1>& labels() const { return labels_; }

 private:
  // Windows begin outside of the image by half of what they overlap, and the slopes there take one pixel more.
  static constexpr Index side = fashion_side, border = (window_side - windows_apart) / 2 + 1;
  template <Index size>
  using Pixels = Eigen::Array<float, size, size, Eigen::RowMajor>;
  using Bordered = Pixels<side + 2 * border>;

  static Bordered bordered(const std::uint8_t* pixels, Index down, Index right, bool mirror) {
    Bordered image = Bordered::Zero();
    for (Index y = std::max<Index>(down, 0); y < std::min(side, side + down); ++y) {
      for (Index x = std::max<Index>(right, 0); x < std::min(side, side + right); ++x) {
        const Index from_x = mirror ? side - 1 - (x - right) : x - right;
        image(border + y, border + x) = static_cast<float>(pixels[(y - down) * side + from_x]);
      }
    }
    return image;
  }

  static void erase(Bordered& image, fit::Random& random) {
    const Index height = 4 + random.below(9), width = 4 + random.below(9), top = random.below(side - height + 1),
                left = random.below(side - width + 1);
    image.block(border + top, border + left, height, width).setConstant(static_cast<float>(random.below(256)));
  }

  void write_windows(Index i, const Bordered& image) {
    constexpr Index seen = side + 2 * border - 2;
    const auto moved = [&](Index y, Index x) { return image.block<seen, seen>(1 + y, 1 + x); };
    const Pixels<seen> to_the_right = moved(0, 1) - moved(0, -1), downwards = moved(1, 0) - moved(-1, 0);
    // The half of a sum stands for max(0), whose intrinsic g++ 12 warns of.
    const auto rising = [](const Pixels<seen>& slope) -> Pixels<seen> { return ((slope.abs() + slope) / 2).sqrt(); };
    const std::array<Pixels<seen>, pixel_channels> channels{moved(0, 0), rising(to_the_right), rising(-to_the_right),
                                                            rising(downwards), rising(-downwards)};
    for (Index y = 0; y < classifier_config.groups; ++y) {
      for (Index x = 0; x < classifier_config.tokens; ++x) {
        float* window = &groups_(i, y, x, Index{0});
        for (const auto& channel : channels) {
          Eigen::Map<Pixels<window_side>> to(window);
          to = channel.block<window_side, window_side>(windows_apart * y, windows_apart * x);
          window += window_side * window_side;
        }
      }
    }
  }

  const LabelledImages& from_;
  ImageChanges changes_;
  fit::Tensor<float, 4> groups_;
  fit::Tensor<std::int32_t, 1> labels_;
};

/// Shows the classifier some images, and calls look(logits, labels) with what it makes of them, batch by batch.
template <class Look>
void classify(const FashionClassifier& model, const LabelledImages& set, const fit::IndexRange& images, fit::Tape& tape,
              Look&& look) {
  const auto order = [](Index i) { return i; };
  for (Index first = images.first; first < images.end();) {
    const Index size = std::min<Index>(500, images.end() - first);
    ClassifierBatches batch(set, size);
    batch.load(order, first, nullptr);
    look(model(batch.groups(), tape), batch.labels());
    first += size;
  }
}

/// The class that the classifier gives to every image.
inline std::vector<Index> classify(const FashionClassifier& model, const LabelledImages& set, fit::Tape& tape) {
  std::vector<Index> found;
  classify(model, set, {0, set.images.count}, tape, [&](const auto& logits, const auto&) {
    for (Index i = 0; i < logits.dimension(0); ++i) found.push_back(fit::best_class(logits, i));
  });
  return found;
}

/// Percentage of images that are found to be what their labels say.
inline double accuracy(const std::vector<Index>& found, const LabelledImages& set) {
  fit::Mean right;
  for (std::size_t i = 0; i < found.size(); ++i) right.add(found[i] == set.labels[i] ? 100 : 0);
  return right.value();
}
/// The same of the classes that the classifier gives to some; every member of a team looks at its share of them.
inline double accuracy(const FashionClassifier& model, const LabelledImages& set, const fit::IndexRange& images,
                       fit::Tape& tape, fit::Team& team) {
  fit::Mean own, right;
  const fit::IndexRange share = fit::share_of(images.count, team.rank(), team.size());
  classify(model, set, {images.first + share.first, share.count}, tape,
           [&](const auto& logits, const auto& labels) { own += fit::accuracy(logits, labels); });
  for (const fit::Mean& of_one : team.gather(own)) right += of_one;
  return 100 * right.value();
}

}  // namespace examples
