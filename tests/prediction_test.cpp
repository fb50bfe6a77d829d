#include <fit/diffusion/prediction.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <limits>

namespace {

using fit::detail::estimates_of, fit::Index, fit::NoiseShares, fit::Prediction, fit::Range;

constexpr Prediction kinds[] = {Prediction::eps, Prediction::x0, Prediction::v, Prediction::velocity};

}  // namespace

TEST_CASE("estimates divide by 1e-5 where less is left", "[prediction]") {
  for (const double left : {0.0, 1e-9, 1e-5}) {
    INFO(left);
    const auto signal = estimates_of(Prediction::eps, {left, 1, left});
    const auto noise = estimates_of(Prediction::x0, {1, left, 1});
    CHECK(signal.x0_of_x == 1 / 1e-5);
    CHECK(signal.x0_of_p == -1 / 1e-5);
    CHECK(noise.eps_of_x == 1 / 1e-5);
    CHECK(noise.eps_of_p == -1 / 1e-5);
  }
  CHECK(estimates_of(Prediction::eps, {2e-5, 1, 0}).x0_of_x == 1 / 2e-5);
  CHECK(estimates_of(Prediction::x0, {1, 2e-5, 1}).eps_of_x == 1 / 2e-5);
}

TEMPLATE_TEST_CASE("clipped estimates are finite at both ends of time", "[prediction]", float, double) {
  const Range range{-0.5, 0.75};
  const std::vector<TestType> x = {-3, -0.25f, 0, 0.5f, 2}, prediction = {2, 0, -1, 0.25f, -4};
  const auto count = static_cast<Index>(x.size());
  for (const NoiseShares& shares : {NoiseShares{1, 0, 1}, NoiseShares{0, 1, 0}}) {
    for (const Prediction kind : kinds) {
      for (const bool consistent : {false, true}) {
        INFO("signal " << shares.keep << ", prediction " << static_cast<int>(kind) << ", consistent " << consistent);
        std::vector<TestType> x0(x.size()), eps(x.size());
        fit::detail::estimate(prediction.data(), x.data(), x0.data(), eps.data(), count, kind, shares, range,
                              consistent);
        const auto e = estimates_of(kind, shares);
        for (std::size_t i = 0; i < x.size(); ++i) {
          const auto at = static_cast<double>(x[i]), p = static_cast<double>(prediction[i]);
          const double clean = std::clamp(e.x0_of_x * at + e.x0_of_p * p, range.low, range.high);
          const double noise = consistent || kind == Prediction::x0
                                   ? (at - shares.keep * clean) / std::max(shares.lose, 1e-5)
                                   : e.eps_of_x * at + e.eps_of_p * p;
          const double slack = 4 * static_cast<double>(std::numeric_limits<TestType>::epsilon());
          CHECK(std::abs(static_cast<double>(x0[i]) - clean) <= slack);
          CHECK(std::isfinite(eps[i]));
          CHECK(std::abs(static_cast<double>(eps[i]) - noise) <= slack * (1 + std::abs(noise)));
        }
      }
    }
  }
}
