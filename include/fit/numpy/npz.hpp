#pragma once

#include <cstddef>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fit/numpy/npy.hpp>
#include <fit/numpy/zip_reader.hpp>
#include <fit/numpy/zip_writer.hpp>

namespace fit {
inline namespace FIT_ABI {

/// A .npz archive, as numpy.savez() and numpy.savez_compressed() write it: a zip file of .npy files. Needs zlib: link
/// -lz.
class NpzFile {
 public:
  /// Reads the list of arrays. Throws Error with the path and the reason when the file cannot be read or is no zip file
  /// of .npy files, each name once, as they are or deflated, none encrypted.
  explicit NpzFile(std::filesystem::path path) : path_(std::move(path)), zip_(open(path_)) {
    for (const auto& [name, entry] : zip_.entries()) {
      require(name.ends_with(suffix), path_.string(), ": ", detail::printable(name), " is no .npy file");
    }
  }

  const std::filesystem::path& path() const { return path_; }

  /// In alphabetical order, without ".npy".
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, entry] : zip_.entries()) result.push_back(name.substr(0, name.size() - suffix.size()));
    return result;
  }
  bool contains(std::string_view name) const { return zip_.entries().contains(file_of(name)); }

  /// Throws Error when there is no such array, and for a .npy file or bytes that are not what they should be.
  NpyArray read(std::string_view name) {
    const std::string what = concatenate(path_.string(), ": array ", detail::printable(name));
    const auto found = zip_.entries().find(file_of(name));
    require(found != zip_.entries().end(), path_.string(), ": no array ", detail::printable(name));
    return detail::naming(what, [&] { return read(found->second, what); });
  }

 private:
  static constexpr std::string_view suffix = ".npy";

  static std::string file_of(std::string_view name) { return std::string(name) += suffix; }

  static detail::ZipReader open(const std::filesystem::path& path) {
    return detail::naming(path.string(), [&] { return detail::ZipReader(path); });
  }

  NpyArray read(const detail::ZipEntry& entry, const std::string& what) {
    detail::ZipEntryBytes from(zip_, entry);
    const detail::NpyHeader header =
        detail::read_npy_header([&](void* to, std::size_t bytes) { from.get(to, static_cast<Index>(bytes)); });
    const Index bytes = detail::bytes_of(header), left = entry.size - from.given();
    require(bytes == left, "its shape takes ", bytes, " bytes, but there are ", left, " after the header");
    // Deflate cannot make more than 1,032 bytes of one: nothing is reserved for sizes that are not true.
    require(bytes / 1032 <= entry.stored, "a damaged zip file: more bytes than can have been deflated");
    auto elements = Buffer<std::byte>::uninitialised(bytes);
    from.get(elements.data(), bytes);
    from.finish();
    return {what, header.dtype, header.shape, detail::in_order(header, std::move(elements))};
  }

  std::filesystem::path path_;
  detail::ZipReader zip_;
};

/// An array of a .npz archive: `elements` row-major.
struct NpzEntry {
  std::string name;  ///< without ".npy"
  DType dtype;
  std::vector<Index> shape;
  const void* elements;
};

/// Writes a .npz archive, as numpy.load() reads it, the arrays in the order given. A file at the path is replaced only
/// once the new one is complete on the disk. Throws Error with the path and the reason when it cannot, for a name that
/// is empty, too long, not UTF-8 or there twice, and for an array without data.
inline void write_npz(const std::filesystem::path& path, std::span<const NpzEntry> arrays, bool compressed = true) {
  std::set<std::string_view> names;
  for (const NpzEntry& array : arrays) {
    require(!array.name.empty() && array.name.size() <= 1000, path.string(),
            ": an array's name must have 1 to 1000 bytes, not ", array.name.size());
    require(names.insert(array.name).second, path.string(), ": two arrays are called ", detail::printable(array.name));
    const std::string what = path.string() + ": " + detail::printable(array.name);
    require(detail::is_utf8(array.name), what, " is not UTF-8");
    const Index count = detail::count_elements(array.shape, array.dtype, what);
    require(count == 0 || array.elements, what, " has no data");
  }
  detail::ZipWriter file(path);
  for (const NpzEntry& array : arrays) {
    const std::string what = path.string() + ": " + array.name;
    const std::string header = detail::make_npy_header(what, array.dtype, array.shape);
    const Index bytes = detail::count_elements(array.shape, array.dtype, what) * size_of(array.dtype);
    file.add(array.name + ".npy", {header, {static_cast<const char*>(array.elements), static_cast<std::size_t>(bytes)}},
             compressed);
  }
  file.commit();
}

}  // namespace FIT_ABI
}  // namespace fit
