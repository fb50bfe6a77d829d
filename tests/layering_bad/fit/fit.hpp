#pragma once
#include <fit/core/base.hpp>
#include <fit/plot/chart.hpp>
#include <fit/version.hpp>
