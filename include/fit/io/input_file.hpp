#pragma once

#include <fit/core/error.hpp>
#include <fit/core/memory.hpp>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// What f returns. An Error that it throws says first what it is about.
template <class F>
auto naming(const std::string& what, F&& f) {
  try {
    return f();
  } catch (const Error& error) {
    throw Error(concatenate(what, ": ", error.what()));
  }
}

/// A regular file that is read. Once it is open, a save that replaces it changes nothing: all that is read is of one
/// file. Messages do not name the file.
class InputFile {
 public:
  /// Throws Error when it cannot be opened.
  explicit InputFile(const std::filesystem::path& path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    require(status.type() != std::filesystem::file_type::none, "cannot open: ", error.message());
    require(std::filesystem::exists(status), "no such file");
    require(std::filesystem::is_regular_file(status), "not a regular file");
    stream_.open(path, std::ios::binary | std::ios::ate);
    require(stream_.is_open(), "cannot open: ", std::generic_category().message(errno));
    size_ = static_cast<Index>(stream_.tellg());
    require(stream_.good() && size_ >= 0, "cannot read: its size cannot be had");
    stream_.seekg(0);
  }

  Index size() const { return size_; }
  Index left() { return size_ - static_cast<Index>(stream_.tellg()); }
  void seek(Index offset) { stream_.seekg(offset); }

  /// The next bytes. Throws Error when there are fewer, before it takes any.
  void get(void* to, std::size_t bytes) {
    require(static_cast<Index>(bytes) <= left(), "the file ends early");
    stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    require(static_cast<std::size_t>(stream_.gcount()) == bytes, "cannot read: the file ended early");
  }

 private:
  std::ifstream stream_;
  Index size_ = 0;
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
