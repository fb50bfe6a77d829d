#!/bin/sh
# Builds the tests of kernels and the golden ones for 64-bit ARM with Debian's cross compiler and runs them in an
# emulator. Arguments are names of tests, as gemm, to run instead.
set -eu
cd "$(dirname "$0")/.."
. cmake/prepare.sh

prepare g++-aarch64-linux-gnu qemu-user-static libeigen3-dev libxsimd-dev nlohmann-json3-dev catch2
build=build/aarch64
mkdir -p "$build/include"
# Headers of this machine's architecture stand beside them in /usr/include.
for library in xsimd nlohmann catch2; do ln -sfn "/usr/include/$library" "$build/include/$library"; done

compile() {
  aarch64-linux-gnu-g++ -std=c++20 -O2 -Iinclude -Itests -isystem "$build/include" -isystem /usr/include/eigen3 \
    -DFIT_GOLDEN_DIR="\"$PWD/tests/golden\"" "$@"
}

[ $# -gt 0 ] || set -- simd gemm attention cached_kernels reductions mixture grouping prediction \
  encoder_golden diffusion_golden diffusion_loss sampler autoregressive_golden
compile -c tests/main.cpp -o "$build/main.o"
compile -c tests/allocations.cpp -o "$build/allocations.o"
for name; do
  compile -static "tests/${name}_test.cpp" "$build/main.o" "$build/allocations.o" -pthread -o "$build/$name"
  echo "$name"
  (cd tests && qemu-aarch64-static "../$build/$name")
done
