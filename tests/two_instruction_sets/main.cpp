#include <iostream>

#include "unit.hpp"

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::cout << "this processor has no AVX2\n";
    return 77;
  }
  constexpr double sum = 512 * 511 / 2;
  const Found narrow = baseline(), wide = avx2();
  for (const Found& found : {narrow, wide}) {
    std::cout << found.abi << ": registers of " << found.width << ", sum " << found.sum << '\n';
  }
  return narrow.abi != wide.abi && narrow.width == 4 && wide.width == 8 && narrow.sum == sum && wide.sum == sum ? 0 : 1;
}
