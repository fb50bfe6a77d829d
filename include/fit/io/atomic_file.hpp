#pragma once

#include <fit/core/error.hpp>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <system_error>
#include <utility>

#if __has_include(<unistd.h>)
#include <fcntl.h>
#include <unistd.h>
#define FIT_HAS_FSYNC 1
#else
#define FIT_HAS_FSYNC 0
#endif

namespace fit::inline FIT_ABI {

/// Writes a file that appears under its name whole or not at all: the bytes go to a temporary file in the same folder,
/// which commit() brings to the disk and renames. Without commit() the temporary file is removed, and whatever was at
/// the path stays. Every failure throws Error with the path and the reason.
class AtomicFile {
 public:
  /// Throws Error when the folder cannot be written to, or the path is something other than a regular file.
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path_, error);
    // Renaming would put a plain file in the place of a device.
    require(!std::filesystem::exists(status) || std::filesystem::is_regular_file(status), path_.string(),
            ": cannot write: not a regular file");
    require(path_.has_filename(), path_.string(), ": cannot write: no file name");
    std::random_device random;
    for (int attempt = 0; !file_; ++attempt) {
      const std::uint64_t number = std::uint64_t{random()} << 32 | random();
      temporary_ = path_;
      temporary_.replace_filename(".fit-" + std::to_string(number) + ".tmp");
      file_ = std::fopen(temporary_.string().c_str(), "wbx");  // x: only if there is no such file yet
      if (!file_ && (errno != EEXIST || attempt == 10)) fail("cannot create a file in its folder");
    }
    std::setvbuf(file_, nullptr, _IOFBF, std::size_t{1} << 16);
  }

  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  ~AtomicFile() {
    if (file_) discard();
  }

  /// Appends bytes. Throws Error when the disk is full and the like.
  void write(const void* data, std::size_t bytes) {
    if (bytes > 0 && std::fwrite(data, 1, bytes, file_) != bytes) fail("cannot write");
  }

  /// Puts the file in its place; the last call. Throws Error, and leaves an old file as it was.
  void commit() {
    if (std::fflush(file_) != 0) fail("cannot write");
#if FIT_HAS_FSYNC
    if (::fsync(::fileno(file_)) != 0) fail("cannot write to disk");
#endif
    std::FILE* const file = std::exchange(file_, nullptr);
    std::error_code error;
    if (std::fclose(file) != 0) {
      error.assign(errno, std::generic_category());
    } else {
      std::filesystem::rename(temporary_, path_, error);
    }
    if (error) {
      std::error_code ignored;
      std::filesystem::remove(temporary_, ignored);
      throw Error(concatenate(path_.string(), ": cannot replace: ", error.message()));
    }
    sync_folder();
  }

 private:
  [[noreturn]] void fail(const char* what) {
    const std::string reason = std::generic_category().message(errno);
    if (file_) discard();
    throw Error(concatenate(path_.string(), ": ", what, ": ", reason));
  }

  void discard() {
    std::fclose(std::exchange(file_, nullptr));
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
  }

  /// Makes the new name last, too, on file systems that can; the file itself is already safe.
  void sync_folder() const {
#if FIT_HAS_FSYNC
    const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
    const int descriptor = ::open(folder.c_str(), O_RDONLY);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
#endif
  }

  std::filesystem::path path_, temporary_;
  std::FILE* file_ = nullptr;
};

}  // namespace fit::inline FIT_ABI
