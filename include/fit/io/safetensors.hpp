#pragma once

#include <fit/core/memory.hpp>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include <fit/io/atomic_file.hpp>
#include <fit/io/safetensors_header.hpp>

namespace fit {
inline namespace FIT_ABI {

static_assert(std::endian::native == std::endian::little, "fit: safetensors needs a little-endian machine");

namespace detail {

/// The number that the bits of an IEEE 754 half stand for, subnormal, infinite and NaN ones included.
inline float from_half(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  // A subnormal half is a normal float; made by a product so that flush-to-zero modes cannot touch it.
  const float subnormal = static_cast<float>(static_cast<std::int32_t>(rest)) * 0x1p-24f;
  const std::uint32_t exponent_shift = rest >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const std::uint32_t normal = (rest << 13) + exponent_shift;
  return std::bit_cast<float>(sign | (rest < 0x400u ? std::bit_cast<std::uint32_t>(subnormal) : normal));
}

inline float from_bfloat(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

/// to[i] = convert(the i-th Stored at `from`), which need not be aligned.
template <class Stored, class T, class Convert>
void convert_elements(const std::byte* from, T* to, Index count, Convert convert) {
  for (Index i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, from + i * static_cast<Index>(sizeof(Stored)), sizeof(Stored));
    to[i] = static_cast<T>(convert(value));
  }
}

constexpr bool is_floating_point(DType dtype) {
  return dtype == DType::F64 || dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

/// Elements of floating point, rounded to T.
template <class T>
void convert(DType dtype, std::span<const std::byte> from, T* to) {
  const auto count = static_cast<Index>(from.size()) / size_of(dtype);
  const auto same = [](auto value) { return value; };
  if (dtype == dtype_of<T>()) {
    if (count > 0) std::memcpy(to, from.data(), from.size());
  } else if (dtype == DType::F64) {
    convert_elements<double>(from.data(), to, count, same);
  } else if (dtype == DType::F32) {
    convert_elements<float>(from.data(), to, count, same);
  } else {
    convert_elements<std::uint16_t>(from.data(), to, count, dtype == DType::F16 ? from_half : from_bfloat);
  }
}

/// Whether the bits of an element, without its sign, are between two numbers. Of floating point they have the order of
/// the magnitudes, and options of compilers that promise finite numbers do not touch them.
template <class Bits>
bool any_between(Bits low, Bits high, std::span<const std::byte> from) {
  Index found = 0;
  for (std::size_t i = 0; i < from.size(); i += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, from.data() + i, sizeof(Bits));
    bits &= static_cast<Bits>(std::numeric_limits<std::make_signed_t<Bits>>::max());
    found += bits >= low && bits <= high;
  }
  return found > 0;
}

/// Whether elements of floating point are all finite.
inline bool all_finite(DType dtype, std::span<const std::byte> from) {
  switch (dtype) {
    case DType::F64:
      return !any_between<std::uint64_t>(0x7ff0'0000'0000'0000, 0x7fff'ffff'ffff'ffff, from);
    case DType::F32:
      return !any_between<std::uint32_t>(0x7f80'0000, 0x7fff'ffff, from);
    case DType::F16:
      return !any_between<std::uint16_t>(0x7c00, 0x7fff, from);
    default:
      return !any_between<std::uint16_t>(0x7f80, 0x7fff, from);
  }
}

/// Whether finite elements would be infinite as a T.
template <class T>
bool any_overflows(DType dtype, std::span<const std::byte> from) {
  if (dtype != DType::F64 || std::is_same_v<T, double>) return false;
  constexpr double least = 0x1.ffffffp127;  // halfway from the largest float to what would be the next one
  return any_between(std::bit_cast<std::uint64_t>(least),
                     std::bit_cast<std::uint64_t>(std::numeric_limits<double>::max()), from);
}

}  // namespace detail

/// A safetensors file (https://huggingface.co/docs/safetensors), read whole into memory and checked.
class SafetensorsFile {
 public:
  /// Throws Error with the path and the reason when the file cannot be read or is not exactly what the format says:
  /// a header of at most 100 MB that is one JSON object, every name once, every dtype known, every shape as large as
  /// its offsets span, and the data covered without holes and overlaps.
  explicit SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
    try {
      load();
    } catch (const Error& error) {
      throw Error(concatenate(path_.string(), ": ", error.what()));
    }
  }

  const std::filesystem::path& path() const { return path_; }

  /// Every tensor by its name, in alphabetical order.
  const TensorInfos& tensors() const { return header_.tensors; }
  const Metadata& metadata() const { return header_.metadata; }
  bool contains(std::string_view name) const { return tensors().contains(name); }

  /// Throws Error when there is no such tensor.
  const TensorInfo& info(std::string_view name) const {
    const auto found = tensors().find(name);
    require(found != tensors().end(), path_.string(), ": no tensor ", detail::printable(name));
    return found->second;
  }

  /// A tensor's bytes as they are stored; they live as long as the file object. Throws Error when there is none.
  std::span<const std::byte> bytes(std::string_view name) const { return bytes(info(name)); }
  /// The same for one of tensors().
  std::span<const std::byte> bytes(const TensorInfo& tensor) const {
    return {data_.data() + tensor.begin, static_cast<std::size_t>(tensor.end - tensor.begin)};
  }

  /// Copies a tensor of F64, F32, F16 or BF16 to `destination`, row-major, rounded to its type. Throws Error, without
  /// writing anything, when there is no such tensor, it has not `count` elements or another dtype, or when a finite
  /// number of it would become infinite.
  void read(std::string_view name, float* destination, Index count) const { read_real(name, destination, count); }
  void read(std::string_view name, double* destination, Index count) const { read_real(name, destination, count); }

  /// Copies a tensor of whole numbers or of bool, which are not converted: its dtype must be that of T. Throws Error as
  /// above, and for a bool that is neither 0 nor 1.
  template <std::integral T>
  void read(std::string_view name, T* destination, Index count) const {
    const TensorInfo& tensor = checked(name, count);
    require(tensor.dtype == dtype_of<T>(), path_.string(), ": tensor ", detail::printable(name), " is ",
            name_of(tensor.dtype), ", which does not convert to ", name_of(dtype_of<T>()));
    const auto from = bytes(tensor);
    require(!std::is_same_v<T, bool> ||
                std::all_of(from.begin(), from.end(), [](std::byte byte) { return byte <= std::byte{1}; }),
            path_.string(), ": tensor ", detail::printable(name), " holds a BOOL that is neither 0 nor 1");
    if (count > 0) std::memcpy(destination, from.data(), from.size());
  }

 private:
  void load() {
    std::error_code error;
    const auto status = std::filesystem::status(path_, error);
    require(std::filesystem::exists(status), "no such file");
    require(std::filesystem::is_regular_file(status), "not a regular file");
    // Once it is open, a save that replaces it changes nothing: all that follows is of one file.
    std::ifstream stream(path_, std::ios::binary | std::ios::ate);
    require(stream.is_open(), "cannot open: ", std::generic_category().message(errno));
    const auto size = static_cast<Index>(stream.tellg());
    require(stream.good() && size >= 0, "cannot read: its size cannot be had");
    require(size > 0, "the file is empty");
    stream.seekg(0);

    require(size >= 8, "not a safetensors file: ", size, " bytes cannot hold the header's length");
    std::uint64_t length = 0;
    get(stream, &length, sizeof(length));
    require(length <= detail::header_limit, "the header's length, ", length, " bytes, is over the limit of ",
            detail::header_limit);
    require(static_cast<Index>(length) <= size - 8, "the header's length, ", length,
            " bytes, is more than the file has after it, ", size - 8);
    std::string json(length, '\0');
    get(stream, json.data(), json.size());
    const Index data_bytes = size - 8 - static_cast<Index>(length);
    header_ = parse_safetensors_header(json, data_bytes);
    data_ = Buffer<std::byte>::uninitialised(data_bytes);
    get(stream, data_.data(), static_cast<std::size_t>(data_bytes));
  }

  static void get(std::ifstream& stream, void* to, std::size_t bytes) {
    stream.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    require(static_cast<std::size_t>(stream.gcount()) == bytes, "cannot read: the file ended early");
  }

  const TensorInfo& checked(std::string_view name, Index count) const {
    const TensorInfo& tensor = info(name);
    require(tensor.size() == count, path_.string(), ": tensor ", detail::printable(name), " has ", tensor.size(),
            " elements, not ", count);
    return tensor;
  }

  template <class T>
  void read_real(std::string_view name, T* destination, Index count) const {
    const TensorInfo& tensor = checked(name, count);
    require(detail::is_floating_point(tensor.dtype), path_.string(), ": tensor ", detail::printable(name), " is ",
            name_of(tensor.dtype), ", which does not convert to floating point (F64, F32, F16, BF16 do)");
    require(!detail::any_overflows<T>(tensor.dtype, bytes(tensor)), path_.string(), ": tensor ",
            detail::printable(name), " holds a number that is too large for ", name_of(dtype_of<T>()));
    detail::convert(tensor.dtype, bytes(tensor), destination);
  }

  std::filesystem::path path_;
  SafetensorsHeader header_;
  Buffer<std::byte> data_;
};

/// Writes a safetensors file with the tensors in the order given. A file at the path is replaced only once the new one
/// is complete on the disk, so that a crash leaves the one or the other. Throws Error with the path and the reason when
/// it cannot write or make_safetensors_header() refuses; then an old file is untouched and no new one is left.
inline void write_safetensors(const std::filesystem::path& path, std::span<const SafetensorsEntry> tensors,
                              const Metadata& metadata = {}) {
  std::string header;
  try {
    header = make_safetensors_header(tensors, metadata);
  } catch (const Error& error) {
    throw Error(concatenate(path.string(), ": ", error.what()));
  }
  AtomicFile file(path);
  const std::uint64_t length = header.size();
  file.write(&length, sizeof(length));
  file.write(header.data(), header.size());
  for (const SafetensorsEntry& tensor : tensors) {
    const Index count = detail::count_elements(tensor.shape, tensor.dtype, tensor.name);
    file.write(tensor.data, static_cast<std::size_t>(count * size_of(tensor.dtype)));
  }
  file.commit();
}

}  // namespace FIT_ABI
}  // namespace fit
