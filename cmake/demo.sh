#!/bin/sh
# Trains the example on Fashion-MNIST: installs what is missing, builds, runs. Arguments are handed on to the example.
set -eu
cd "$(dirname "$0")/.."
. cmake/prepare.sh

prepare g++ cmake ninja-build libeigen3-dev libxsimd-dev nlohmann-json3-dev \
  zlib1g-dev libpng-dev libjpeg-dev libcli11-dev dataset-fashion-mnist
cmake --preset release -DFIT_BUILD_TESTS=OFF -DFIT_BUILD_BENCH=OFF
cmake --build --preset release --parallel --target classify_images

exec build/release/examples/classify_images "$@"
