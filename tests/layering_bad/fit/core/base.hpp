#pragma once
#include <fit/nn/layer.hpp>
#include <fit/version.hpp>
