#pragma once

#include <fit/core/memory.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <fit/io/atomic_file.hpp>
#include <fit/io/dtype.hpp>
#include <fit/io/input_file.hpp>
#include <fit/io/safetensors_header.hpp>

namespace fit {
inline namespace FIT_ABI {

/// A safetensors file (https://huggingface.co/docs/safetensors), read whole into memory and checked.
class SafetensorsFile {
 public:
  /// Throws Error with the path and the reason when the file cannot be read or is not exactly what the format says:
  /// a header of at most 100 MB that is one JSON object, every name once, every dtype known, every shape as large as
  /// its offsets span, and the data covered without holes and overlaps.
  explicit SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
    detail::naming(path_.string(), [&] { load(); });
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

  /// Copies a tensor to `destination`, row-major: F64, F32, F16 and BF16 rounded to float or double; whole numbers and
  /// bool are not converted, their dtype must be that of T. Throws Error, without writing anything, when there is no
  /// such tensor, it has not `count` elements or another dtype, when a finite number of it would become infinite, and
  /// for a bool that is neither 0 nor 1.
  template <class T>
  void read(std::string_view name, T* destination, Index count) const {
    const TensorInfo& tensor = info(name);
    detail::read_elements(concatenate(path_.string(), ": tensor ", detail::printable(name)), tensor.dtype,
                          bytes(tensor), destination, count);
  }

 private:
  void load() {
    detail::InputFile file(path_);
    const Index size = file.size();
    require(size > 0, "the file is empty");
    require(size >= 8, "not a safetensors file: ", size, " bytes cannot hold the header's length");
    std::uint64_t length = 0;
    file.get(&length, sizeof(length));
    require(length <= detail::header_limit, "the header's length, ", length, " bytes, is over the limit of ",
            detail::header_limit);
    require(static_cast<Index>(length) <= size - 8, "the header's length, ", length,
            " bytes, is more than the file has after it, ", size - 8);
    std::string json(length, '\0');
    file.get(json.data(), json.size());
    const Index data_bytes = size - 8 - static_cast<Index>(length);
    header_ = parse_safetensors_header(json, data_bytes);
    data_ = Buffer<std::byte>::uninitialised(data_bytes);
    file.get(data_.data(), static_cast<std::size_t>(data_bytes));
  }

  std::filesystem::path path_;
  SafetensorsHeader header_;
  Buffer<std::byte> data_;
};

namespace detail {

/// What comes in a file before the tensors' bytes, which follow each other in the order given.
inline std::string safetensors_start(const std::filesystem::path& path, std::span<const SafetensorsEntry> tensors,
                                     const Metadata& metadata) {
  return naming(path.string(), [&] {
    const std::string header = make_safetensors_header(tensors, metadata);
    const std::uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header;
  });
}

inline void write_elements(AtomicFile& file, const SafetensorsEntry& tensor) {
  const Index count = count_elements(tensor.shape, tensor.dtype, tensor.name);
  file.write(tensor.data, static_cast<std::size_t>(count * size_of(tensor.dtype)));
}

}  // namespace detail

/// Writes a safetensors file with the tensors in the order given. A file at the path is replaced only once the new one
/// is complete on the disk, so that a crash leaves the one or the other. Throws Error with the path and the reason when
/// it cannot write or make_safetensors_header() refuses; then an old file is untouched and no new one is left.
inline void write_safetensors(const std::filesystem::path& path, std::span<const SafetensorsEntry> tensors,
                              const Metadata& metadata = {}) {
  const std::string start = detail::safetensors_start(path, tensors, metadata);
  AtomicFile file(path);
  file.write(start.data(), start.size());
  for (const SafetensorsEntry& tensor : tensors) detail::write_elements(file, tensor);
  file.commit();
}

}  // namespace FIT_ABI
}  // namespace fit
