#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include <zlib.h>

#include <fit/core/error.hpp>
#include <fit/io/dtype.hpp>
#include <fit/io/input_file.hpp>
#include <fit/numpy/zip.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// The entries of a zip file, each name once, as they are or deflated, none encrypted. Messages do not name the file.
class ZipReader {
 public:
  using Entries = std::map<std::string, ZipEntry, std::less<>>;

  /// Throws Error when the file cannot be read or is anything else.
  explicit ZipReader(const std::filesystem::path& path) : file_(path) { read_directory(); }

  const Entries& entries() const { return entries_; }

  /// Throws Error for bytes that are not there.
  std::string bytes_at(Index offset, Index count) {
    require(offset >= 0 && count >= 0 && count <= file_.size() && offset <= file_.size() - count,
            "not a zip file, or a damaged one: it points beyond its end");
    std::string bytes(static_cast<std::size_t>(count), '\0');
    file_.seek(offset);
    file_.get(bytes.data(), bytes.size());
    return bytes;
  }

  /// Where the stored bytes of an entry begin. Throws Error when they are not all there.
  Index begin_of(const ZipEntry& entry) {
    constexpr Index fixed = 30;
    const std::string local = bytes_at(entry.offset, fixed);
    require(local.starts_with("PK\3\4"), "a damaged zip file: no entry where the directory says");
    const Index begin = entry.offset + fixed + zip_number<std::uint16_t>(local.data() + 26) +
                        zip_number<std::uint16_t>(local.data() + 28);
    require(entry.method != 0 || entry.stored == entry.size, "a damaged zip file: two sizes of one entry");
    require(begin <= file_.size() && entry.stored <= file_.size() - begin, "a damaged zip file: an entry ends early");
    return begin;
  }

 private:
  void read_directory() {
    constexpr Index end_size = 22, locator_size = 20, end64_size = 56, longest_comment = 0xffff;
    const Index tail_size = std::min(file_.size(), end_size + longest_comment);
    const std::string tail = bytes_at(file_.size() - tail_size, tail_size);
    const std::size_t end = tail.rfind(std::string_view("PK\5\6", 4));
    require(end != tail.npos && tail.size() - end >= end_size, "not a zip file: it has no end record");
    const char* const record = tail.data() + end;
    require(zip_number<std::uint16_t>(record + 4) == 0 && zip_number<std::uint16_t>(record + 6) == 0,
            "a zip file in several parts is not read");
    std::uint64_t count = zip_number<std::uint16_t>(record + 10),
                  directory_size = zip_number<std::uint32_t>(record + 12),
                  directory = zip_number<std::uint32_t>(record + 16);
    const Index end_at = file_.size() - tail_size + static_cast<Index>(end);
    if (count == zip_large16 || directory_size == zip_large32 || directory == zip_large32) {
      const std::string locator = end_at >= locator_size ? bytes_at(end_at - locator_size, locator_size) : "";
      const bool announced = locator.starts_with("PK\6\7");
      // There may be just as many entries as the largest number of 16 bits.
      require(announced || (directory_size != zip_large32 && directory != zip_large32),
              "a damaged zip file: its 64-bit end record is not announced");
      if (announced) {
        const std::string end64 = bytes_at(as_index(zip_number<std::uint64_t>(locator.data() + 8)), end64_size);
        require(end64.starts_with("PK\6\6"), "a damaged zip file: its 64-bit end record is not where it should be");
        count = zip_number<std::uint64_t>(end64.data() + 32);
        directory_size = zip_number<std::uint64_t>(end64.data() + 40);
        directory = zip_number<std::uint64_t>(end64.data() + 48);
      }
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
    const std::string what = printable(name);
    ZipEntry entry{zip_number<std::uint16_t>(record + 10), zip_number<std::uint32_t>(record + 16)};
    require((zip_number<std::uint16_t>(record + 8) & 1) == 0, what, " is encrypted");
    require(entry.method == 0 || entry.method == 8, what, " is compressed by method ", entry.method,
            ", and not deflated or as it is");
    std::uint64_t fields[] = {zip_number<std::uint32_t>(record + 24), zip_number<std::uint32_t>(record + 20),
                              zip_number<std::uint32_t>(record + 42)};
    read_large(std::string_view(record + fixed + name_size, extra_size), fields, what);
    entry.size = as_index(fields[0]);
    entry.stored = as_index(fields[1]);
    entry.offset = as_index(fields[2]);
    require(entries_.emplace(std::move(name), entry).second, what, " is there twice");
    return at + fixed + name_size + extra_size + comment_size;
  }

  /// Fields that did not fit into 32 bits, in the order size, stored size, offset: those of them that are marked so.
  static void read_large(std::string_view extra, std::uint64_t (&fields)[3], const std::string& what) {
    while (extra.size() >= 4) {
      const auto kind = zip_number<std::uint16_t>(extra.data());
      const std::size_t size = zip_number<std::uint16_t>(extra.data() + 2);
      require(extra.size() - 4 >= size, what, " has a damaged extra field");
      std::string_view body = extra.substr(4, size);
      extra.remove_prefix(4 + size);
      if (kind != 1) continue;
      for (std::uint64_t& field : fields) {
        if (field != zip_large32) continue;
        require(body.size() >= 8, what, " lacks its 64-bit sizes");
        field = zip_number<std::uint64_t>(body.data());
        body.remove_prefix(8);
      }
      return;
    }
  }

  InputFile file_;
  Entries entries_;
};

/// The bytes of an entry one after the other, a piece of the file at a time.
class ZipEntryBytes {
 public:
  ZipEntryBytes(ZipReader& file, const ZipEntry& entry)
      : file_(file),
        at_(file.begin_of(entry)),
        left_(entry.stored),
        deflated_(entry.method == 8),
        expected_crc_(entry.crc) {
    if (deflated_) require(::inflateInit2(&stream_, -MAX_WBITS) == Z_OK, "zlib does not start");
  }
  ZipEntryBytes(const ZipEntryBytes&) = delete;
  ZipEntryBytes& operator=(const ZipEntryBytes&) = delete;
  ~ZipEntryBytes() {
    if (deflated_) ::inflateEnd(&stream_);
  }

  /// How many were given so far.
  Index given() const { return given_; }

  /// Throws Error when there are fewer, or they are damaged.
  void get(void* to, Index count) {
    auto* next = static_cast<unsigned char*>(to);
    for (Index wanted = count; wanted > 0;) {
      if (used_ == piece_.size() && left_ > 0) refill();
      const Index taken = deflated_ ? inflate(next, wanted) : copy(next, wanted);
      next += taken;
      wanted -= taken;
    }
    given_ += count;
    crc_ = zip_crc(crc_, to, count);
  }

  /// Throws Error when what was given does not have the checksum.
  void finish() const {
    require(crc_ == expected_crc_, "a damaged zip file: the bytes of an entry do not have its checksum");
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

  ZipReader& file_;
  Index at_, left_, given_ = 0;
  bool deflated_;
  std::uint32_t expected_crc_;
  std::string piece_;
  std::size_t used_ = 0;
  std::uint32_t crc_ = 0;
  z_stream stream_{};
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
