#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>

#include <zlib.h>

#include <fit/core/error.hpp>
#include <fit/io/atomic_file.hpp>
#include <fit/numpy/zip.hpp>

namespace fit {
inline namespace FIT_ABI {
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

/// Whether a text is UTF-8 (RFC 3629): no form longer than it needs to be, no surrogate, nothing beyond the last code.
inline bool is_utf8(std::string_view text) {
  constexpr std::uint32_t least[] = {0, 0x80, 0x800, 0x10000}, last = 0x10ffff;  // of codes of 1 to 4 bytes
  while (!text.empty()) {
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t more = lead < 0xc0 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    if ((more == 0 && lead >= 0x80) || lead >= 0xf8 || text.size() <= more) return false;
    std::uint32_t code = more == 0 ? lead : lead & (0x3fu >> more);
    for (std::size_t i = 1; i <= more; ++i) {
      const auto next = static_cast<unsigned char>(text[i]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fu);
    }
    if (code < least[more] || code > last || (code >= 0xd800 && code < 0xe000)) return false;
    text.remove_prefix(1 + more);
  }
  return true;
}

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

/// Writes a zip file, in the 64-bit form whatever its size, of which there is nothing before commit().
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path) : file_(path) {}

  /// An entry of some pieces one after the other.
  void add(const std::string& name, std::initializer_list<std::string_view> pieces, bool compressed) {
    ZipEntry entry{.method = static_cast<std::uint16_t>(compressed ? 8 : 0), .offset = written_};
    std::string deflated;
    for (const std::string_view piece : pieces) {
      entry.crc = zip_crc(entry.crc, piece.data(), static_cast<Index>(piece.size()));
      entry.size += static_cast<Index>(piece.size());
    }
    if (compressed) {
      Deflater deflater(deflated);
      for (const std::string_view piece : pieces) deflater.put(piece.data(), static_cast<Index>(piece.size()));
      deflater.finish();
    }
    entry.stored = compressed ? static_cast<Index>(deflated.size()) : entry.size;
    const auto append_sizes = [&](std::string& to, std::uint16_t fields) {
      append_number<std::uint16_t>(to, 1);  // an extra field of 64-bit sizes
      append_number<std::uint16_t>(to, static_cast<std::uint16_t>(8 * fields));
      append_number(to, static_cast<std::uint64_t>(entry.size));
      append_number(to, static_cast<std::uint64_t>(entry.stored));
      if (fields == 3) append_number(to, static_cast<std::uint64_t>(entry.offset));
    };
    std::string local = "PK\3\4";
    append_entry(local, entry, name.size(), 20);
    local += name;
    append_sizes(local, 2);
    put(local);
    if (compressed) {
      put(deflated);
    } else {
      for (const std::string_view piece : pieces) put(piece);
    }
    directory_ += "PK\1\2";
    append_number<std::uint16_t>(directory_, 45);
    append_entry(directory_, entry, name.size(), 28);
    directory_.append(2 + 2 + 2 + 4, '\0');  // no comment, the first part, no attributes
    append_number(directory_, zip_large32);
    directory_ += name;
    append_sizes(directory_, 3);
    ++count_;
  }

  /// Throws Error with the path and the reason when it cannot be written, as all calls do.
  void commit() {
    const Index directory_at = written_;
    put(directory_);
    const Index end64_at = written_;
    std::string end("PK\6\6", 4);
    append_number<std::uint64_t>(end, 44);  // bytes of this record that follow
    append_number<std::uint16_t>(end, 45);
    append_number<std::uint16_t>(end, 45);
    end.append(8, '\0');
    for (int i = 0; i < 2; ++i) append_number(end, count_);
    append_number(end, static_cast<std::uint64_t>(directory_.size()));
    append_number(end, static_cast<std::uint64_t>(directory_at));
    end += "PK\6\7";
    end.append(4, '\0');
    append_number(end, static_cast<std::uint64_t>(end64_at));
    append_number<std::uint32_t>(end, 1);  // parts
    end += "PK\5\6";
    end.append(4, '\0');
    for (int i = 0; i < 2; ++i) append_number(end, zip_large16);
    for (int i = 0; i < 2; ++i) append_number(end, zip_large32);
    append_number<std::uint16_t>(end, 0);
    put(end);
    file_.commit();
  }

 private:
  void put(std::string_view bytes) {
    file_.write(bytes.data(), bytes.size());
    written_ += static_cast<Index>(bytes.size());
  }

  AtomicFile file_;
  std::string directory_;
  Index written_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
