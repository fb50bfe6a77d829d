#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <fit/core/error.hpp>
#include <fit/core/random.hpp>

namespace fit {
inline namespace FIT_ABI {

/// How an id is drawn from logits: changed by `adjust`, divided by the temperature, then cut by top_k, top_p and min_p
/// in this order, each among what the one before has left.
struct TokenSampling {
  float temperature = 1;  ///< 0 is greedy: the largest logit, the lowest id of equals
  int top_k = 0;          ///< keep the k likeliest; 0 for all
  float top_p = 1;  ///< keep the likeliest whose probabilities reach p together. Holtzman et al., arXiv 1904.09751
  float min_p = 0;  ///< keep those of at least p times the likeliest. Nguyen et al., arXiv 2407.01082
  std::optional<std::int32_t> end = {};  ///< an id after which a sequence is finished
  /// Told of a sequence's ids so far, changes its logits in place; minus infinity forbids an id.
  std::function<void(std::span<const std::int32_t> ids, std::span<float> logits)> adjust = {};
};

namespace detail {

inline void check(const TokenSampling& s) {
  require(s.temperature >= 0 && std::isfinite(s.temperature), "the temperature must be finite and not negative, not ",
          s.temperature);
  require(s.top_k >= 0, "top_k must not be negative, but is ", s.top_k);
  require(s.top_p > 0 && s.top_p <= 1, "top_p must be in (0, 1], not ", s.top_p);
  require(s.min_p >= 0 && s.min_p <= 1, "min_p must be in [0, 1], not ", s.min_p);
}

}  // namespace detail

/// The ids that may be drawn, and their probabilities, which sum to 1. Likeliest first, the lower id of equals, where
/// top_k or top_p has cut; else in order.
struct TokenChoices {
  std::vector<std::int32_t> ids;
  std::vector<double> probabilities;
};

/// What a sampling leaves of logits [V]; `adjust` has been applied before. Throws Error for wrong options, a logit that
/// is NaN or plus infinity, or when every id is forbidden.
inline TokenChoices token_choices(std::span<const float> logits, const TokenSampling& sampling) {
  detail::check(sampling);
  TokenChoices choices;
  const auto logit = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
  for (std::size_t i = 0; i < logits.size(); ++i) {
    require(logits[i] < std::numeric_limits<float>::infinity(), "logit ", i, " must be finite or minus infinity, not ",
            logits[i]);
    if (logits[i] > -std::numeric_limits<float>::infinity()) choices.ids.push_back(static_cast<std::int32_t>(i));
  }
  require(!choices.ids.empty(), "no id may follow: all of the ", logits.size(), " logits are minus infinity");
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
  };
  const std::int32_t best = *std::min_element(choices.ids.begin(), choices.ids.end(), likelier);
  if (sampling.temperature == 0) return {{best}, {1}};
  if (sampling.top_k > 0 || sampling.top_p < 1) {
    std::size_t kept = choices.ids.size();
    if (sampling.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(sampling.top_k));
    const auto end = choices.ids.begin() + static_cast<std::ptrdiff_t>(kept);
    std::partial_sort(choices.ids.begin(), end, choices.ids.end(), likelier);
    choices.ids.erase(end, choices.ids.end());
  }

  const double highest = static_cast<double>(logit(best)), temperature = static_cast<double>(sampling.temperature);
  double total = 0;
  for (const std::int32_t id : choices.ids) {
    choices.probabilities.push_back(std::exp((static_cast<double>(logit(id)) - highest) / temperature));
    total += choices.probabilities.back();
  }
  if (sampling.top_p < 1) {
    std::size_t kept = 0;
    double reached = 0;
    while (kept < choices.ids.size() && reached < static_cast<double>(sampling.top_p) * total) {
      reached += choices.probabilities[kept++];
    }
    choices.ids.resize(kept);
    choices.probabilities.resize(kept);
  }
  std::size_t kept = 0;
  total = 0;
  for (std::size_t i = 0; i < choices.ids.size(); ++i) {
    if (choices.probabilities[i] < static_cast<double>(sampling.min_p)) continue;  // the likeliest has 1 so far
    choices.ids[kept] = choices.ids[i];
    choices.probabilities[kept++] = choices.probabilities[i];
    total += choices.probabilities[i];
  }
  choices.ids.resize(kept);
  choices.probabilities.resize(kept);
  for (double& probability : choices.probabilities) probability /= total;
  return choices;
}

/// An id drawn from logits [V] with one uniform number of `random`. Throws Error as token_choices().
inline std::int32_t draw_token(std::span<const float> logits, const TokenSampling& sampling, Random& random) {
  const TokenChoices choices = token_choices(logits, sampling);
  double left = random.uniform();
  for (std::size_t i = 0; i + 1 < choices.ids.size(); ++i) {
    left -= choices.probabilities[i];
    if (left < 0) return choices.ids[i];
  }
  return choices.ids.back();
}

}  // namespace FIT_ABI
}  // namespace fit
