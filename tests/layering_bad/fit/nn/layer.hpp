#pragma once
#include <fit/core/base.hpp>
