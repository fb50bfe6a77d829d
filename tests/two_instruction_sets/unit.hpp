#pragma once

#include <string_view>

/// What one translation unit found.
struct Found {
  std::string_view abi;
  int width;
  double sum;
};

Found baseline();
Found avx2();
