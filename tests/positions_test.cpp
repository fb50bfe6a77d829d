#include <fit/nn/positions.hpp>

#include <algorithm>
#include <vector>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;

std::vector<double> values(const fit::Buffer<double>& codes) { return {codes.data(), codes.data() + codes.size()}; }

}  // namespace

TEST_CASE("a line of one position is at zero", "[positions]") {
  CHECK(values(fit::nn::make_codes<double>(1, 1, 4)) == std::vector<double>{0, 0, 1, 1});
  CHECK(values(fit::nn::make_codes<double>(1, 1, 5)) == std::vector<double>{0, 0, 0, 1, 1});
  CHECK(values(fit::nn::make_codes<double>(1, 1, 1)) == std::vector<double>{0});
  CHECK(values(fit::nn::make_codes<double>(1, 2, 2)) == std::vector<double>{0, 1, std::sin(1000.0), std::cos(1000.0)});
  CHECK(fit::nn::make_codes<double>(1, 0, 4).size() == 0);
}

TEST_CASE("a plane of one row or one column is a line", "[positions]") {
  for (const Index count : {1, 2, 5}) {
    INFO(count);
    const auto line = values(fit::nn::make_codes<double>(1, count, 6));
    CHECK(values(fit::nn::make_codes<double>(count, 1, 6)) == line);
  }
}

TEST_CASE("a plane has its row's code and its column's", "[positions]") {
  const auto plane = values(fit::nn::make_codes<double>(2, 3, 4));
  const auto rows = values(fit::nn::make_codes<double>(1, 2, 2)),
             columns = values(fit::nn::make_codes<double>(1, 3, 2));
  for (std::size_t i = 0; i < 6; ++i) {
    for (std::size_t k = 0; k < 2; ++k) {
      CHECK(plane[4 * i + k] == rows[2 * (i / 3) + k]);
      CHECK(plane[4 * i + 2 + k] == columns[2 * (i % 3) + k]);
    }
  }
}

TEST_CASE("codes of equal sizes are made once", "[positions]") {
  const float* codes = fit::nn::position_codes<float>(2, 3, 4);
  CHECK(fit::nn::position_codes<float>(2, 3, 4) == codes);
  CHECK(fit::nn::position_codes<float>(3, 2, 4) != codes);
  const auto fresh = fit::nn::make_codes<float>(2, 3, 4);
  CHECK(std::equal(codes, codes + 24, fresh.data()));
}
