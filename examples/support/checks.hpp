#pragma once

#include <cmath>
#include <cstdlib>
#include <string>

#include <CLI/CLI.hpp>

namespace examples {

/// Checks of an option's number that NaN and infinity do not pass, as they do CLI11's own.
inline CLI::Validator number_check(bool (*holds)(double), const std::string& wanted) {
  return CLI::Validator(
      [holds, wanted](const std::string& text) {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        const bool good = !text.empty() && *end == '\0' && std::isfinite(value) && holds(value);
        return good ? std::string() : "must be " + wanted + ", not " + text;
      },
      wanted);
}
inline const CLI::Validator positive = number_check([](double value) { return value > 0; }, "a positive number");
inline const CLI::Validator not_negative =
    number_check([](double value) { return value >= 0; }, "0 or a positive number");
inline const CLI::Validator finite = number_check([](double) { return true; }, "a number");

}  // namespace examples
