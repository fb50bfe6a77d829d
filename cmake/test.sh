#!/bin/sh
# Runs the tests: installs what is missing, builds, tests. Arguments are handed on to CMake's configuration.
set -eu
cd "$(dirname "$0")/.."
. cmake/prepare.sh

prepare g++ cmake ninja-build libeigen3-dev libxsimd-dev nlohmann-json3-dev catch2 libbenchmark-dev \
  zlib1g-dev libpng-dev libjpeg-dev libcli11-dev dataset-fashion-mnist pkg-config python3-numpy python3-dev \
  pybind11-dev libopenmpi-dev openmpi-bin
cmake --preset release "$@"
cmake --build --preset release --parallel
exec ctest --preset release --parallel "$(getconf _NPROCESSORS_ONLN)"
