#pragma once

#include <string_view>

/// Breaks a precondition in a unit that checks none, and names the inline namespace of that unit.
std::string_view unchecked();
