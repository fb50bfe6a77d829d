#pragma once

#include <fit/io/safetensors.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace test {

/// tests/golden/<name>.safetensors
inline fit::SafetensorsFile golden(const std::string& name) {
  return fit::SafetensorsFile(std::filesystem::path(FIT_GOLDEN_DIR) / (name + ".safetensors"));
}

/// A whole tensor of a file, converted to T: float, double or std::int32_t.
template <class T>
std::vector<T> read(const fit::SafetensorsFile& file, std::string_view name) {
  std::vector<T> values(static_cast<std::size_t>(file.info(name).size()));
  file.read(name, values.data(), static_cast<fit::Index>(values.size()));
  return values;
}

}  // namespace test
