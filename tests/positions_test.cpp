#include <fit/nn/positions.hpp>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index;

std::vector<double> values(const fit::Buffer<double>& codes) { return {codes.data(), codes.data() + codes.size()}; }

}  // namespace

TEST_CASE("a line of one position is at zero", "[positions]") {
  CHECK(values(fit::nn::line_code<double>(1, 4)) == std::vector<double>{0, 0, 1, 1});
  CHECK(values(fit::nn::line_code<double>(1, 5)) == std::vector<double>{0, 0, 0, 1, 1});
  CHECK(values(fit::nn::line_code<double>(1, 1)) == std::vector<double>{0});
  CHECK(values(fit::nn::line_code<double>(2, 2)) == std::vector<double>{0, 1, std::sin(1000.0), std::cos(1000.0)});
  CHECK(fit::nn::line_code<double>(0, 4).size() == 0);
}

TEST_CASE("a plane of one row or one column is a line", "[positions]") {
  for (const Index count : {1, 2, 5}) {
    INFO(count);
    const auto line = values(fit::nn::line_code<double>(count, 6));
    CHECK(values(fit::nn::plane_code<double>(1, count, 6)) == line);
    CHECK(values(fit::nn::plane_code<double>(count, 1, 6)) == line);
  }
}

TEST_CASE("a plane has its row's code and its column's", "[positions]") {
  const auto plane = values(fit::nn::plane_code<double>(2, 3, 4));
  const auto rows = values(fit::nn::line_code<double>(2, 2)), columns = values(fit::nn::line_code<double>(3, 2));
  for (std::size_t i = 0; i < 6; ++i) {
    for (std::size_t k = 0; k < 2; ++k) {
      CHECK(plane[4 * i + k] == rows[2 * (i / 3) + k]);
      CHECK(plane[4 * i + 2 + k] == columns[2 * (i % 3) + k]);
    }
  }
}
