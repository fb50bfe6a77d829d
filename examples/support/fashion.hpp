#pragma once

#include <fit/core/team.hpp>
#include <fit/grouping/image.hpp>
#include <fit/models/classifier.hpp>
#include <fit/training/metrics.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "idx.hpp"

namespace examples {

using fit::Index;

inline constexpr Index fashion_side = 28;
inline constexpr int fashion_classes = 10;

/// The classifier that classify_images trains and generate_images asks. A row of seven 4 x 4 patches is a group.
inline constexpr fit::ImageGrouping classifier_grouping{.sub_image = {4, fashion_side}, .patch = {4, 4}};
inline constexpr fit::EncoderConfig classifier_config{.layers = "(1)1(1)1",
                                                      .groups = 7,
                                                      .tokens = 7,
                                                      .channels = 16,
                                                      .latents = 2,
                                                      .data_dim = 64,
                                                      .latent_dim = 128,
                                                      .data_heads = 2,
                                                      .latent_heads = 4};
using FashionClassifier = fit::Classifier<classifier_config, fashion_classes>;

/// Images and labels as the classifier takes them; for training each image is mirrored and shifted at random.
class ClassifierBatches {
 public:
  ClassifierBatches(const LabelledImages& from, Index size, Index shift = 0)
      : from_(from),
        shift_(shift),
        images_(size, fashion_side, fashion_side, 1),
        groups_(size, classifier_config.groups, classifier_config.tokens, classifier_config.channels),
        labels_(size) {}

  /// Loads images order(first) ... as many as fit; `random` is none for testing.
  template <class Order>
  void load(const Order& order, Index first, const fit::Random* random) {
    constexpr Index side = fashion_side;
    for (Index i = 0; i < labels_.dimension(0); ++i) {
      const Index at = order(first + i);
      labels_(i) = from_.labels[static_cast<std::size_t>(at)];
      fit::Random own = random ? random->fork(first + i) : fit::Random(0);
      const Index down = random ? own.below(2 * shift_ + 1) - shift_ : 0,
                  right = random ? own.below(2 * shift_ + 1) - shift_ : 0;
      const bool mirror = random && own.uniform() < 0.5;
      const std::uint8_t* pixels = from_.images[at];
      for (Index y = 0; y < side; ++y) {
        for (Index x = 0; x < side; ++x) {
          const Index from_y = y - down, turned = x - right, from_x = mirror ? side - 1 - turned : turned;
          const bool inside = from_y >= 0 && from_y < side && from_x >= 0 && from_x < side;
          const float value = inside ? static_cast<float>(pixels[from_y * side + from_x]) / 255 : 0;
          images_(i, y, x, 0) = (value - 0.286f) / 0.353f;  // the data set's mean and deviation
        }
      }
    }
    fit::group_image(images_, classifier_grouping, groups_);
  }

  const fit::Tensor<float, 4>& groups() const { return groups_; }
  const fit::Tensor<std::int32_t, 1>& labels() const { return labels_; }

 private:
  const LabelledImages& from_;
  Index shift_;
  fit::Tensor<float, 4> images_, groups_;
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
/// The same of the classes that the classifier gives; every member of a team looks at its share of the images.
inline double accuracy(const FashionClassifier& model, const LabelledImages& set, fit::Tape& tape, fit::Team& team) {
  fit::Mean own, right;
  classify(model, set, fit::share_of(set.images.count, team.rank(), team.size()), tape,
           [&](const auto& logits, const auto& labels) { own += fit::accuracy(logits, labels); });
  for (const fit::Mean& of_one : team.gather(own)) right += of_one;
  return 100 * right.value();
}

}  // namespace examples
