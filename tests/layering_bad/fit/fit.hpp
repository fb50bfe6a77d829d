#pragma once
#include <fit/core/base.hpp>
#include <fit/version.hpp>
