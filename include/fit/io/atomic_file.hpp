#pragma once

#include <fit/core/error.hpp>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#if __has_include(<sys/file.h>) && __has_include(<unistd.h>)
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#define FIT_POSIX_FILES 1
#else
#define FIT_POSIX_FILES 0
#endif

namespace fit {
inline namespace FIT_ABI {

/// Writes a file that appears under its name whole or not at all: the bytes go to a temporary file in the same folder,
/// which commit() brings to the disk and renames. Without commit() the temporary file is removed, and whatever was at
/// the path stays. Symbolic links stay, too: what they lead to is written, and need not exist yet. A file that is
/// replaced hands its mode and, where permitted, its owner and group to the new one.
///
/// A process that is killed leaves its temporary file, ".NAME.fit-....tmp". The next AtomicFile of the same name
/// removes those that no living process has locked; on a file system without locks they stay. Machines that share a
/// folder need locks that reach from one to the other. Every failure throws Error with the path and the reason.
class AtomicFile {
 public:
  /// Throws Error when the folder cannot be written to, or the path is something other than a regular file.
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path_, error);
    // Renaming would put a plain file in the place of a device.
    require(!std::filesystem::exists(status) || std::filesystem::is_regular_file(status), path_.string(),
            ": cannot write: not a regular file");
    follow_links();
    require(target_.has_filename(), name(), ": cannot write: no file name");
    folder_ = target_.has_parent_path() ? target_.parent_path() : std::filesystem::path(".");
    buffer_.reserve(buffer_size);
    remove_left_overs();
    create(std::filesystem::exists(status));
  }

  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  ~AtomicFile() {
    if (file_) discard();
  }

  /// Appends bytes. Throws Error when the disk is full and the like, and ever after.
  void write(const void* data, std::size_t bytes) {
    require_open();
    if (bytes > buffer_size - buffer_.size()) flush();
    if (bytes > buffer_size) {
      put(data, bytes);
    } else if (bytes > 0) {
      buffer_.append(static_cast<const char*>(data), bytes);
    }
  }

  /// Puts the file in its place; the last call. Throws Error, and leaves an old file as it was.
  void commit() {
    require_open();
    flush();
    std::error_code error;
#if FIT_POSIX_FILES
    if (::fsync(::fileno(file_)) != 0) fail("cannot write to disk");
    take_over_attributes();
    std::filesystem::rename(temporary_, target_, error);  // closed first, it would be taken for a left-over
    if (!error) std::fclose(std::exchange(file_, nullptr));
#else
    if (std::fclose(std::exchange(file_, nullptr)) != 0) {
      error.assign(errno, std::generic_category());
    } else {
      std::filesystem::rename(temporary_, target_, error);
    }
#endif
    if (error) {
      discard();
      throw Error(concatenate(name(), ": cannot replace: ", error.message()));
    }
    sync_folder();
  }

 private:
  static constexpr std::size_t buffer_size = std::size_t{1} << 16, number_size = 16;

  void follow_links() {
    target_ = path_;
    std::error_code error;
    for (int links = 0; std::filesystem::is_symlink(std::filesystem::symlink_status(target_, error)); ++links) {
      require(links < 40, path_.string(), ": cannot write: too many symbolic links, or a circle of them");
      const std::filesystem::path next = std::filesystem::read_symlink(target_, error);
      require(!error, path_.string(), ": cannot write: ", error.message());
      target_ = target_.parent_path() / next;
    }
  }

  /// How the names of its temporary files begin; a long name is cut, so that what is put around it fits.
  std::filesystem::path prefix() const {
    auto name = target_.filename().native();
    if (std::size_t length = 100; name.size() > length) {
      while (length > 0 && (name[length] & 0xc0) == 0x80) --length;  // not inside a character of UTF-8
      name.resize(length);
    }
    std::filesystem::path result(".");
    return (result += name) += ".fit-";
  }

  void remove_left_overs() const {
    const auto begin = prefix().native(), end = std::filesystem::path(".tmp").native();
    const auto is_one = [&](auto name) {
      return name.size() == begin.size() + number_size + end.size() && name.starts_with(begin) && name.ends_with(end);
    };
#if FIT_POSIX_FILES  // with libstdc++ 12, a directory_iterator that runs out of memory ends the program
    DIR* const folder = ::opendir(folder_.c_str());
    if (!folder) return;
    while (const dirent* const entry = ::readdir(folder)) {
      if (!is_one(std::string_view(entry->d_name))) continue;
      const int directory = ::dirfd(folder);
      const int descriptor = ::openat(directory, entry->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
      if (descriptor < 0) continue;
      if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlinkat(directory, entry->d_name, 0);
      ::close(descriptor);
    }
    ::closedir(folder);
#else
    std::error_code error;
    for (std::filesystem::directory_iterator at(folder_, error), last; !error && at != last; at.increment(error)) {
      std::error_code is_open;
      if (is_one(at->path().filename().native())) std::filesystem::remove(at->path(), is_open);
    }
#endif
  }

  void create(bool replaces) {
    std::random_device random;
    for (int attempt = 0; !file_; ++attempt) {
      char number[number_size + 1];
      std::snprintf(number, sizeof(number), "%08x%08x", random(), random());
      // Not by replace_filename(), which crashes in libstdc++ 12 when it runs out of memory.
      temporary_ = folder_ / ((prefix() += number) += ".tmp");
#if FIT_POSIX_FILES
      // Until it has the mode of the file that it replaces, nobody else may read it.
      const int descriptor =
          ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, replaces ? 0600 : 0666);
      if (descriptor >= 0 && hold(descriptor)) file_ = ::fdopen(descriptor, "wb");
      if (descriptor >= 0 && !file_) {
        const int why = errno;
        ::close(descriptor);
        ::unlink(temporary_.c_str());
        errno = why;
      }
#else
      static_cast<void>(replaces);
      file_ = std::fopen(temporary_.string().c_str(), "wbx");  // x: only if there is no such file yet
#endif
      const int reason = errno;
      if (!file_ && (reason != EEXIST || attempt == 10)) {
        throw Error(
            concatenate(name(), ": cannot create a file in its folder: ", std::generic_category().message(reason)));
      }
    }
    std::setvbuf(file_, nullptr, _IONBF, 0);  // a buffer of stdio would be written by a forked process, too
  }

#if FIT_POSIX_FILES
  /// Locks a new file, for as long as a process has it open. False when it was taken for a left-over before that.
  static bool hold(int descriptor) {
    struct stat status;
    const bool taken = ::flock(descriptor, LOCK_EX | LOCK_NB) != 0
                           ? errno == EWOULDBLOCK  // else there are no locks here
                           : ::fstat(descriptor, &status) == 0 && status.st_nlink == 0;
    if (taken) errno = EEXIST;
    return !taken;
  }

  /// What cannot be handed over, by a user who may not or on a file system that has no such thing, is left.
  void take_over_attributes() const {
    struct stat old;
    if (::stat(target_.c_str(), &old) != 0) return;
    const int descriptor = ::fileno(file_);
    [[maybe_unused]] const bool handed_over = ::fchown(descriptor, old.st_uid, old.st_gid) == 0 ||
                                              ::fchown(descriptor, static_cast<::uid_t>(-1), old.st_gid) == 0;
    ::fchmod(descriptor, old.st_mode & 0777);
  }
#endif

  void require_open() const { require(file_ != nullptr, name(), ": cannot write: committed or given up before"); }

  /// The path, and where it leads to.
  std::string name() const {
    return target_ == path_ ? path_.string() : concatenate(path_.string(), ", a link to ", target_.string());
  }

  void put(const void* data, std::size_t bytes) {
    if (std::fwrite(data, 1, bytes, file_) != bytes) fail("cannot write");
  }

  void flush() {
    put(buffer_.data(), buffer_.size());
    buffer_.clear();
  }

  [[noreturn]] void fail(const char* what) {
    const int reason = errno;
    discard();
    throw Error(concatenate(name(), ": ", what, ": ", std::generic_category().message(reason)));
  }

  void discard() {
    if (file_) std::fclose(std::exchange(file_, nullptr));
#if FIT_POSIX_FILES
    if (::getpid() != process_) return;  // a fork: the file is its parent's
#endif
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
  }

  /// Makes the new name last, too, on file systems that can; the file itself is already safe.
  void sync_folder() const {
#if FIT_POSIX_FILES
    const int descriptor = ::open(folder_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
#endif
  }

  std::filesystem::path path_, target_, folder_, temporary_;
  std::string buffer_;
  std::FILE* file_ = nullptr;
#if FIT_POSIX_FILES
  const ::pid_t process_ = ::getpid();
#endif
};

/// A whole file of these bytes. Throws Error as above.
inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace FIT_ABI
}  // namespace fit
