#pragma once

#include <array>
#include <cstdio>
#include <string>

#include "catch.hpp"

namespace test {

/// What a command prints on both streams, and whether it succeeded.
struct CommandResult {
  std::string text;
  bool success;
};

inline CommandResult run_command(const std::string& command) {
  CommandResult result{{}, false};
  std::FILE* const pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> part;
  while (const std::size_t count = std::fread(part.data(), 1, part.size(), pipe))
    result.text.append(part.data(), count);
  result.success = pclose(pipe) == 0;
  return result;
}

/// What a command prints, which must succeed.
inline std::string succeed(const std::string& command) {
  const CommandResult result = run_command(command);
  INFO(command << "\n" << result.text);
  CHECK(result.success);
  return result.text;
}

}  // namespace test
