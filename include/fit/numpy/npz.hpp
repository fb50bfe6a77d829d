#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <zlib.h>

#include <fit/numpy/npy.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// Numbers of a zip file (APPNOTE 6.3), which are little-endian and not aligned.
template <class T>
T zip_number(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
void append_number(std::string& to, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  to.append(bytes, sizeof(T));
}

inline constexpr std::uint32_t zip_large32 = 0xffffffff;  ///< "see the 64-bit field"
inline constexpr std::uint16_t zip_large16 = 0xffff;

struct ZipEntry {
  std::uint16_t method = 0;  ///< 0 as it is, 8 deflated
  std::uint32_t crc = 0;
  Index stored = 0, size = 0, offset = 0;
};

}  // namespace detail

/// A .npz archive, as numpy.savez() and numpy.savez_compressed() write it: a zip file of .npy files. Needs zlib: link
/// -lz.
class NpzFile {
 public:
  /// Reads the list of arrays. Throws Error with the path and the reason when the file cannot be read or is no zip file
  /// of .npy files, each name once, as they are or deflated, none encrypted.
  explicit NpzFile(std::filesystem::path path) : path_(std::move(path)) {
    try {
      open();
      read_directory();
    } catch (const Error& error) {
      throw Error(concatenate(path_.string(), ": ", error.what()));
    }
  }

  const std::filesystem::path& path() const { return path_; }

  /// In alphabetical order, without ".npy".
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, entry] : entries_) result.push_back(name);
    return result;
  }
  bool contains(std::string_view name) const { return entries_.contains(name); }

  /// Throws Error when there is no such array, and for a .npy file or bytes that are not what they should be.
  NpyArray read(std::string_view name) {
    const std::string what = concatenate(path_.string(), ": array ", detail::printable(name));
    const auto found = entries_.find(name);
    require(found != entries_.end(), path_.string(), ": no array ", detail::printable(name));
    try {
      return read(found->second, what);
    } catch (const Error& error) {
      throw Error(concatenate(what, ": ", error.what()));
    }
  }

 private:
  void open() {
    std::error_code error;
    const auto status = std::filesystem::status(path_, error);
    require(std::filesystem::exists(status), "no such file");
    require(std::filesystem::is_regular_file(status), "not a regular file");
    stream_.open(path_, std::ios::binary | std::ios::ate);
    require(stream_.is_open(), "cannot open: ", std::generic_category().message(errno));
    size_ = static_cast<Index>(stream_.tellg());
  }

  std::string bytes_at(Index offset, Index count) {
    require(offset >= 0 && count >= 0 && count <= size_ && offset <= size_ - count,
            "not a zip file, or a damaged one: it points beyond its end");
    std::string bytes(static_cast<std::size_t>(count), '\0');
    stream_.clear();
    stream_.seekg(offset);
    stream_.read(bytes.data(), count);
    require(stream_.gcount() == count, "cannot read: the file ended early");
    return bytes;
  }

  void read_directory() {
    using detail::zip_number;
    constexpr Index end_size = 22, locator_size = 20, end64_size = 56, longest_comment = 0xffff;
    const Index tail_size = std::min(size_, end_size + longest_comment);
    const std::string tail = bytes_at(size_ - tail_size, tail_size);
    const std::size_t end = tail.rfind(std::string_view("PK\5\6", 4));
    require(end != tail.npos && tail.size() - end >= end_size, "not a zip file: it has no end record");
    const char* const record = tail.data() + end;
    require(zip_number<std::uint16_t>(record + 4) == 0 && zip_number<std::uint16_t>(record + 6) == 0,
            "a zip file in several parts is not read");
    std::uint64_t count = zip_number<std::uint16_t>(record + 10),
                  directory_size = zip_number<std::uint32_t>(record + 12),
                  directory = zip_number<std::uint32_t>(record + 16);
    const Index end_at = size_ - tail_size + static_cast<Index>(end);
    if (count == detail::zip_large16 || directory_size == detail::zip_large32 || directory == detail::zip_large32) {
      const std::string locator = bytes_at(end_at - locator_size, locator_size);
      require(locator.starts_with("PK\6\7"), "a damaged zip file: its 64-bit end record is not announced");
      const std::string end64 = bytes_at(as_index(zip_number<std::uint64_t>(locator.data() + 8)), end64_size);
      require(end64.starts_with("PK\6\6"), "a damaged zip file: its 64-bit end record is not where it should be");
      count = zip_number<std::uint64_t>(end64.data() + 32);
      directory_size = zip_number<std::uint64_t>(end64.data() + 40);
      directory = zip_number<std::uint64_t>(end64.data() + 48);
    }
    const std::string list = bytes_at(as_index(directory), as_index(directory_size));
    std::size_t at = 0;
    for (std::uint64_t i = 0; i < count; ++i) at = read_entry(list, at);
    require(at == list.size(), "a damaged zip file: its directory is longer than its entries");
  }

  static Index as_index(std::uint64_t value) {
    require(value <= static_cast<std::uint64_t>(std::numeric_limits<Index>::max()),
            "a damaged zip file: it points beyond its end");
    return static_cast<Index>(value);
  }

  std::size_t read_entry(const std::string& list, std::size_t at) {
    using detail::zip_number;
    constexpr std::size_t fixed = 46;
    require(list.size() - at >= fixed && list.compare(at, 4, "PK\1\2") == 0,
            "a damaged zip file: its directory ends early");
    const char* const record = list.data() + at;
    const std::size_t name_size = zip_number<std::uint16_t>(record + 28),
                      extra_size = zip_number<std::uint16_t>(record + 30),
                      comment_size = zip_number<std::uint16_t>(record + 32);
    require(list.size() - at - fixed >= name_size + extra_size + comment_size,
            "a damaged zip file: its directory ends early");
    std::string name(record + fixed, name_size);
    const std::string what = detail::printable(name);
    detail::ZipEntry entry{zip_number<std::uint16_t>(record + 10), zip_number<std::uint32_t>(record + 16)};
    require((zip_number<std::uint16_t>(record + 8) & 1) == 0, what, " is encrypted");
    require(entry.method == 0 || entry.method == 8, what, " is compressed by method ", entry.method,
            ", and not deflated or as it is");
    std::uint64_t fields[] = {zip_number<std::uint32_t>(record + 24), zip_number<std::uint32_t>(record + 20),
                              zip_number<std::uint32_t>(record + 42)};
    read_large(std::string_view(record + fixed + name_size, extra_size), fields, what);
    entry.size = as_index(fields[0]);
    entry.stored = as_index(fields[1]);
    entry.offset = as_index(fields[2]);
    constexpr std::string_view suffix = ".npy";
    require(name.ends_with(suffix), what, " is no .npy file");
    name.resize(name.size() - suffix.size());
    require(entries_.emplace(std::move(name), entry).second, what, " is there twice");
    return at + fixed + name_size + extra_size + comment_size;
  }

  /// Fields that did not fit into 32 bits, in the order size, stored size, offset: those of them that are marked so.
  static void read_large(std::string_view extra, std::uint64_t (&fields)[3], const std::string& what) {
    using detail::zip_number;
    while (extra.size() >= 4) {
      const auto kind = zip_number<std::uint16_t>(extra.data());
      const std::size_t size = zip_number<std::uint16_t>(extra.data() + 2);
      require(extra.size() - 4 >= size, what, " has a damaged extra field");
      std::string_view body = extra.substr(4, size);
      extra.remove_prefix(4 + size);
      if (kind != 1) continue;
      for (std::uint64_t& field : fields) {
        if (field != detail::zip_large32) continue;
        require(body.size() >= 8, what, " lacks its 64-bit sizes");
        field = zip_number<std::uint64_t>(body.data());
        body.remove_prefix(8);
      }
      return;
    }
  }

  NpyArray read(const detail::ZipEntry& entry, const std::string& what) {
    using detail::zip_number;
    constexpr Index fixed = 30;
    const std::string local = bytes_at(entry.offset, fixed);
    require(local.starts_with("PK\3\4"), "a damaged zip file: no entry where the directory says");
    const Index start = entry.offset + fixed + zip_number<std::uint16_t>(local.data() + 26) +
                        zip_number<std::uint16_t>(local.data() + 28);
    require(entry.method != 0 || entry.stored == entry.size, "a damaged zip file: two sizes of one entry");
    Inflater from(*this, start, entry);
    const detail::NpyHeader header =
        detail::read_npy_header([&](void* to, std::size_t bytes) { from.get(to, static_cast<Index>(bytes)); });
    const Index bytes = detail::bytes_of(header), left = entry.size - from.given();
    require(bytes == left, "its shape takes ", bytes, " bytes, but there are ", left, " after the header");
    // Deflate cannot make more than 1,032 bytes of one: nothing is reserved for sizes that are not true.
    require(bytes / 1032 <= entry.stored, "a damaged zip file: more bytes than can have been deflated");
    auto elements = Buffer<std::byte>::uninitialised(bytes);
    from.get(elements.data(), bytes);
    from.finish(entry.crc);
    return {what, header.dtype, header.shape, detail::in_order(header, std::move(elements))};
  }

  /// The bytes of an entry one after the other, a piece of the file at a time.
  class Inflater {
   public:
    Inflater(NpzFile& file, Index start, const detail::ZipEntry& entry)
        : file_(file), at_(start), left_(entry.stored), deflated_(entry.method == 8) {
      if (deflated_) require(::inflateInit2(&stream_, -MAX_WBITS) == Z_OK, "zlib does not start");
    }
    Inflater(const Inflater&) = delete;
    Inflater& operator=(const Inflater&) = delete;
    ~Inflater() {
      if (deflated_) ::inflateEnd(&stream_);
    }

    Index given() const { return given_; }

    void get(void* to, Index count) {
      auto* next = static_cast<unsigned char*>(to);
      for (Index wanted = count; wanted > 0;) {
        if (used_ == piece_.size() && left_ > 0) refill();
        const Index taken = deflated_ ? inflate(next, wanted) : copy(next, wanted);
        next += taken;
        wanted -= taken;
      }
      given_ += count;
      for (Index i = 0; i < count; i += 1 << 30) {
        crc_ = ::crc32(crc_, static_cast<const unsigned char*>(to) + i,
                       static_cast<uInt>(std::min<Index>(count - i, 1 << 30)));
      }
    }

    void finish(std::uint32_t expected) const {
      require(crc_ == expected, "a damaged zip file: the bytes of an entry do not have its checksum");
    }

   private:
    void refill() {
      const Index count = std::min<Index>(left_, 1 << 18);
      piece_ = file_.bytes_at(at_, count);
      at_ += count;
      left_ -= count;
      used_ = 0;
    }
    Index copy(unsigned char* to, Index wanted) {
      const Index count = std::min(wanted, static_cast<Index>(piece_.size() - used_));
      require(count > 0, "an entry ends early");
      std::memcpy(to, piece_.data() + used_, static_cast<std::size_t>(count));
      used_ += static_cast<std::size_t>(count);
      return count;
    }
    Index inflate(unsigned char* to, Index wanted) {
      const auto room = static_cast<uInt>(std::min<Index>(wanted, 1 << 30));
      stream_.next_in = reinterpret_cast<unsigned char*>(piece_.data()) + used_;
      stream_.avail_in = static_cast<uInt>(piece_.size() - used_);
      stream_.next_out = to;
      stream_.avail_out = room;
      const int status = ::inflate(&stream_, Z_NO_FLUSH);
      used_ = piece_.size() - stream_.avail_in;
      const Index made = static_cast<Index>(room - stream_.avail_out);
      require(status == Z_OK || (status == Z_STREAM_END && made > 0), status == Z_STREAM_END || status == Z_BUF_ERROR
                                                                          ? "an entry ends early"
                                                                          : "an entry's deflated bytes are damaged");
      return made;
    }

    NpzFile& file_;
    Index at_, left_, given_ = 0;
    bool deflated_;
    std::string piece_;
    std::size_t used_ = 0;
    uLong crc_ = ::crc32(0, nullptr, 0);
    z_stream stream_{};
  };

  std::filesystem::path path_;
  std::ifstream stream_;
  Index size_ = 0;
  std::map<std::string, detail::ZipEntry, std::less<>> entries_;
};

/// An array of a .npz archive: `elements` row-major.
struct NpzEntry {
  std::string name;  ///< without ".npy"
  DType dtype;
  std::vector<Index> shape;
  const void* elements;
};

namespace detail {

/// Runs bytes through zlib into `to`.
class Deflater {
 public:
  explicit Deflater(std::string& to) : to_(to) {
    require(::deflateInit2(&stream_, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK,
            "zlib does not start");
  }
  Deflater(const Deflater&) = delete;
  Deflater& operator=(const Deflater&) = delete;
  ~Deflater() { ::deflateEnd(&stream_); }

  void put(const char* from, Index count) { run(from, count, Z_NO_FLUSH); }
  void finish() { run(nullptr, 0, Z_FINISH); }

 private:
  void run(const char* from, Index count, int flush) {
    constexpr Index most = 1 << 30;
    unsigned char piece[1 << 14];
    do {
      const Index taken = std::min(count, most);
      stream_.next_in = reinterpret_cast<unsigned char*>(const_cast<char*>(from));
      stream_.avail_in = static_cast<uInt>(taken);
      do {
        stream_.next_out = piece;
        stream_.avail_out = sizeof(piece);
        ::deflate(&stream_, flush);
        to_.append(reinterpret_cast<const char*>(piece), sizeof(piece) - stream_.avail_out);
      } while (stream_.avail_out == 0);
      from += taken;
      count -= taken;
    } while (count > 0);
  }

  std::string& to_;
  z_stream stream_{};
};

/// What stands before an entry and in the directory alike: from the flags to the length of the name.
inline void append_entry(std::string& to, const ZipEntry& entry, std::size_t name_size, std::uint16_t extra_size) {
  append_number<std::uint16_t>(to, 45);       // needs a reader of 64-bit sizes
  append_number<std::uint16_t>(to, 1 << 11);  // the name is UTF-8
  append_number(to, entry.method);
  append_number<std::uint32_t>(to, 0x00210000);  // 1980-01-01, so that equal arrays make equal files
  append_number(to, entry.crc);
  append_number(to, zip_large32);
  append_number(to, zip_large32);
  append_number(to, static_cast<std::uint16_t>(name_size));
  append_number(to, extra_size);
}

}  // namespace detail

/// Writes a .npz archive, as numpy.load() reads it, the arrays in the order given. A file at the path is replaced only
/// once the new one is complete on the disk. Throws Error with the path and the reason when it cannot, and for a name
/// that is empty, too long or there twice.
inline void write_npz(const std::filesystem::path& path, std::span<const NpzEntry> arrays, bool compressed = true) {
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const std::string& name = arrays[i].name;
    require(!name.empty() && name.size() <= 1000, path.string(), ": an array's name must have 1 to 1000 bytes, not ",
            name.size());
    for (std::size_t j = 0; j < i; ++j) {
      require(arrays[j].name != name, path.string(), ": two arrays are called ", detail::printable(name));
    }
  }
  AtomicFile file(path);
  Index written = 0;
  const auto put = [&](const void* bytes, Index count) {
    file.write(bytes, static_cast<std::size_t>(count));
    written += count;
  };
  const auto put_text = [&](const std::string& text) { put(text.data(), static_cast<Index>(text.size())); };
  std::string directory;
  for (const NpzEntry& array : arrays) {
    const std::string name = array.name + ".npy", header = detail::make_npy_header(array.dtype, array.shape);
    const auto* const elements = static_cast<const char*>(array.elements);
    const Index bytes = detail::count_elements(array.shape, array.dtype, array.name) * size_of(array.dtype);
    uLong crc = ::crc32(0, reinterpret_cast<const unsigned char*>(header.data()), static_cast<uInt>(header.size()));
    for (Index i = 0; i < bytes; i += 1 << 30) {
      crc = ::crc32(crc, reinterpret_cast<const unsigned char*>(elements) + i,
                    static_cast<uInt>(std::min<Index>(bytes - i, 1 << 30)));
    }
    std::string deflated;
    if (compressed) {
      detail::Deflater deflater(deflated);
      deflater.put(header.data(), static_cast<Index>(header.size()));
      deflater.put(elements, bytes);
      deflater.finish();
    }
    const Index size = static_cast<Index>(header.size()) + bytes;
    const detail::ZipEntry entry{.method = static_cast<std::uint16_t>(compressed ? 8 : 0),
                                 .crc = static_cast<std::uint32_t>(crc),
                                 .stored = compressed ? static_cast<Index>(deflated.size()) : size,
                                 .size = size,
                                 .offset = written};
    const auto append_sizes = [&](std::string& to, std::uint16_t fields) {
      detail::append_number<std::uint16_t>(to, 1);  // an extra field of 64-bit sizes
      detail::append_number<std::uint16_t>(to, static_cast<std::uint16_t>(8 * fields));
      detail::append_number(to, static_cast<std::uint64_t>(entry.size));
      detail::append_number(to, static_cast<std::uint64_t>(entry.stored));
      if (fields == 3) detail::append_number(to, static_cast<std::uint64_t>(entry.offset));
    };
    std::string local = "PK\3\4";
    detail::append_entry(local, entry, name.size(), 20);
    local += name;
    append_sizes(local, 2);
    put_text(local);
    if (compressed) {
      put_text(deflated);
    } else {
      put_text(header);
      put(elements, bytes);
    }
    directory += "PK\1\2";
    detail::append_number<std::uint16_t>(directory, 45);
    detail::append_entry(directory, entry, name.size(), 28);
    directory.append(2 + 2 + 2 + 4, '\0');  // no comment, the first part, no attributes
    detail::append_number(directory, detail::zip_large32);
    directory += name;
    append_sizes(directory, 3);
  }
  const Index directory_at = written;
  put_text(directory);
  const Index end64_at = written;
  std::string end("PK\6\6", 4);
  detail::append_number<std::uint64_t>(end, 44);  // bytes of this record that follow
  detail::append_number<std::uint16_t>(end, 45);
  detail::append_number<std::uint16_t>(end, 45);
  end.append(8, '\0');
  for (int i = 0; i < 2; ++i) detail::append_number(end, static_cast<std::uint64_t>(arrays.size()));
  detail::append_number(end, static_cast<std::uint64_t>(directory.size()));
  detail::append_number(end, static_cast<std::uint64_t>(directory_at));
  end += "PK\6\7";
  end.append(4, '\0');
  detail::append_number(end, static_cast<std::uint64_t>(end64_at));
  detail::append_number<std::uint32_t>(end, 1);  // parts
  end += "PK\5\6";
  end.append(4, '\0');
  for (int i = 0; i < 2; ++i) detail::append_number(end, detail::zip_large16);
  for (int i = 0; i < 2; ++i) detail::append_number(end, detail::zip_large32);
  detail::append_number<std::uint16_t>(end, 0);
  put_text(end);
  file.commit();
}

}  // namespace FIT_ABI
}  // namespace fit
