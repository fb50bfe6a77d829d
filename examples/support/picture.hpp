#pragma once

#include <fit/core/error.hpp>
#include <fit/core/index_range.hpp>
#include <fit/core/random.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include <jpeglib.h>
#include <png.h>

namespace examples {

using fit::Index;

struct PictureSize {
  Index width = 0, height = 0;

  bool operator==(const PictureSize&) const = default;
};

inline std::string text_of(const PictureSize& size) { return fit::concatenate(size.width, " x ", size.height); }

/// Red, green and blue of 8 bits, of all rows or some, and how they came about.
struct Picture {
  /// Throws fit::Error for rows that it does not have.
  Picture(const PictureSize& its_size, const fit::IndexRange& its_rows, std::string text)
      : size(its_size), rows(its_rows), about(std::move(text)) {
    fit::require(rows.first >= 0 && rows.count >= 0 && rows.end() <= size.height, "a picture of ", size.height,
                 " rows has no rows from ", rows.first, " to ", rows.end());
    pixels.resize(static_cast<std::size_t>(3 * size.width * rows.count));
  }

  const std::uint8_t* row(Index y) const { return pixels.data() + 3 * size.width * (y - rows.first); }
  std::uint8_t* row(Index y) { return pixels.data() + 3 * size.width * (y - rows.first); }

  PictureSize size;
  fit::IndexRange rows;
  std::vector<std::uint8_t> pixels;  // [rows.count, width, 3]
  std::string about;
};

namespace detail {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

/// Takes a file's rows, one after the other, into the middle of a picture of another size: what is not wanted of them
/// is dropped, and what they do not reach gets their reflections.
class Fitting {
 public:
  Fitting(Picture& picture, const PictureSize& from)
      : picture_(picture),
        kept_{std::min(picture.size.width, from.width), std::min(picture.size.height, from.height)},
        left_((from.width - kept_.width) / 2),
        top_((from.height - kept_.height) / 2) {
    if (kept_ != from) picture.about += ", cropped to " + text_of(kept_);
    if (kept_ != picture.size) picture.about += ", tiled by reflection to " + text_of(picture.size);
  }

  void row(Index y, const std::uint8_t* rgb) {
    const Index place = y - top_;
    if (place < 0 || place >= kept_.height) return;
    for (Index turn = 0; turn < picture_.size.height; turn += 2 * kept_.height) {
      fill(turn + place, rgb + 3 * left_);
      fill(turn + 2 * kept_.height - 1 - place, rgb + 3 * left_);
    }
  }

 private:
  void fill(Index y, const std::uint8_t* rgb) {
    if (y < picture_.rows.first || y >= picture_.rows.end()) return;
    std::uint8_t* const row = picture_.row(y);
    std::copy_n(rgb, 3 * kept_.width, row);
    for (Index x = kept_.width; x < picture_.size.width; ++x) {
      const Index place = x % (2 * kept_.width);
      std::copy_n(rgb + 3 * std::min(place, 2 * kept_.width - 1 - place), 3, row + 3 * x);
    }
  }

  Picture& picture_;
  PictureSize kept_;
  Index left_, top_;
};

/// Both libraries leave by longjmp where something is wrong, past destructors: between setjmp() and it, functions hold
/// nothing that has one.
struct Jump {
  std::jmp_buf place;
  char reason[JMSG_LENGTH_MAX] = "";  // longer than any of libpng's

  [[noreturn]] void leave(const char* why) {
    std::snprintf(reason, sizeof reason, "%s", why);
    std::longjmp(place, 1);
  }
};

class PngFile {
 public:
  explicit PngFile(std::FILE* file) : file_(file) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, &jump_, fail, [](png_structp, png_const_charp) {});
    if (png_) info_ = png_create_info_struct(png_);
  }
  PngFile(const PngFile&) = delete;
  PngFile& operator=(const PngFile&) = delete;
  ~PngFile() { png_destroy_read_struct(&png_, &info_, nullptr); }

  const char* reason() const { return jump_.reason; }
  PictureSize size() const {
    return {static_cast<Index>(png_get_image_width(png_, info_)),
            static_cast<Index>(png_get_image_height(png_, info_))};
  }

  bool read_header() {
    if (!info_ || setjmp(jump_.place)) return false;
    png_init_io(png_, file_);
    png_read_info(png_, info_);
    png_set_expand(png_);
    png_set_scale_16(png_);
    png_set_gray_to_rgb(png_);
    png_color_16 white{0, 255, 255, 255, 255};
    png_set_background(png_, &white, PNG_BACKGROUND_GAMMA_SCREEN, 0, 1);
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    if (png_get_rowbytes(png_, info_) != 3 * png_get_image_width(png_, info_)) jump_.leave("not red, green and blue");
    return true;
  }

  /// `rows` has room for one row, or for all where the file is interlaced.
  bool read_rows(std::uint8_t* rows, Fitting& to) {
    if (setjmp(jump_.place)) return false;
    const Index height = size().height, row = 3 * size().width;
    for (int pass = 1; pass < passes_; ++pass) {
      for (Index y = 0; y < height; ++y) png_read_row(png_, rows + y * row, nullptr);
    }
    for (Index y = 0; y < height; ++y) {
      std::uint8_t* place = rows + (interlaced() ? y * row : 0);
      png_read_row(png_, place, nullptr);
      to.row(y, place);
    }
    png_read_end(png_, nullptr);
    return true;
  }
  bool interlaced() const { return passes_ > 1; }

 private:
  [[noreturn]] static void fail(png_structp png, png_const_charp why) {
    static_cast<Jump*>(png_get_error_ptr(png))->leave(why);
  }

  std::FILE* file_;
  Jump jump_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  int passes_ = 1;
};

class JpegFile {
 public:
  explicit JpegFile(std::FILE* file) : file_(file) {
    jpeg_.err = jpeg_std_error(&errors_);
    jpeg_.client_data = &jump_;
    errors_.error_exit = fail;
    // A warning is of data that are damaged or cut off, which the library makes up for with grey.
    errors_.emit_message = [](j_common_ptr jpeg, int level) {
      if (level < 0) fail(jpeg);
    };
  }
  JpegFile(const JpegFile&) = delete;
  JpegFile& operator=(const JpegFile&) = delete;
  ~JpegFile() { jpeg_destroy_decompress(&jpeg_); }

  const char* reason() const { return jump_.reason; }
  PictureSize size() const { return {static_cast<Index>(jpeg_.image_width), static_cast<Index>(jpeg_.image_height)}; }
  static bool interlaced() { return false; }

  bool read_header() {
    if (setjmp(jump_.place)) return false;
    jpeg_create_decompress(&jpeg_);
    jpeg_stdio_src(&jpeg_, file_);
    jpeg_read_header(&jpeg_, TRUE);
    const auto space = jpeg_.jpeg_color_space;
    if (space == JCS_CMYK || space == JCS_YCCK) jump_.leave("its colours are those of print, CMYK; save it as RGB");
    jpeg_.out_color_space = JCS_RGB;
    return true;
  }

  bool read_rows(std::uint8_t* row, Fitting& to) {
    if (setjmp(jump_.place)) return false;
    jpeg_start_decompress(&jpeg_);
    while (jpeg_.output_scanline < jpeg_.output_height) {
      const auto y = static_cast<Index>(jpeg_.output_scanline);
      jpeg_read_scanlines(&jpeg_, &row, 1);
      to.row(y, row);
    }
    jpeg_finish_decompress(&jpeg_);
    return true;
  }

 private:
  [[noreturn]] static void fail(j_common_ptr jpeg) {
    char text[JMSG_LENGTH_MAX];
    jpeg->err->format_message(jpeg, text);
    static_cast<Jump*>(jpeg->client_data)->leave(text);
  }

  std::FILE* file_;
  Jump jump_;
  jpeg_error_mgr errors_;
  jpeg_decompress_struct jpeg_{};
};

/// Calls use(reader, size) for a PNG or JPEG file.
template <class Use>
void with_picture_file(const std::filesystem::path& path, Use&& use) {
  const auto read = [&](auto&& reader) {
    fit::require(reader.read_header(), path.string(), ": ", reader.reason());
    use(reader);
  };
  const File file(std::fopen(path.string().c_str(), "rb"));
  fit::require(file != nullptr, path.string(), ": cannot be opened");
  std::array<png_byte, 8> begin{};
  const bool any = std::fread(begin.data(), 1, begin.size(), file.get()) > 2;
  std::rewind(file.get());
  if (any && png_sig_cmp(begin.data(), 0, begin.size()) == 0) return read(PngFile(file.get()));
  fit::require(any && begin[0] == 0xff && begin[1] == 0xd8, path.string(), ": neither a PNG nor a JPEG file");
  read(JpegFile(file.get()));
}

}  // namespace detail

/// Of a PNG or JPEG file, from its header. Throws fit::Error for other files.
inline PictureSize picture_size(const std::filesystem::path& path) {
  PictureSize size;
  detail::with_picture_file(path, [&](const auto& reader) { size = reader.size(); });
  return size;
}

/// Reads a PNG or JPEG file row by row: its middle where it is larger than the size wanted, repeated by reflection
/// where it is smaller; of that the rows wanted. Greys become colours, 16 bits 8, and what is transparent lies on
/// white. Throws fit::Error for files that are damaged or cut off, for a JPEG of CMYK, and for rows that are not there.
inline Picture read_picture(const std::filesystem::path& path, const PictureSize& wanted,
                            const fit::IndexRange& wanted_rows) {
  Picture picture(wanted, wanted_rows, path.filename().string());
  detail::with_picture_file(path, [&](auto& reader) {
    const PictureSize size = reader.size();
    picture.about += ", " + text_of(size);
    std::vector<std::uint8_t> rows(static_cast<std::size_t>(3 * size.width * (reader.interlaced() ? size.height : 1)));
    detail::Fitting to(picture, size);
    fit::require(reader.read_rows(rows.data(), to), path.string(), ": ", reader.reason());
  });
  return picture;
}
inline Picture read_picture(const std::filesystem::path& path, const PictureSize& wanted) {
  return read_picture(path, wanted, {0, wanted.height});
}

/// Some rows of waves of many lengths and directions over each other, a few of each colour.
inline Picture formula_picture(const PictureSize& size, const fit::IndexRange& rows) {
  constexpr int waves = 12;
  Picture picture(size, rows, "a picture made by a formula, " + text_of(size));
  // sin(a + b) = sin(a) cos(b) + cos(a) sin(b), so that a pixel takes no sine.
  struct Wave {
    std::array<float, waves> sine, cosine;
  };
  std::array<double, waves> across{}, down{};
  fit::Random random(3);
  for (std::size_t k = 0; k < waves; ++k) {
    const double length = 20 * std::pow(1.7, static_cast<double>(k)), angle = 2 * std::numbers::pi * random.uniform();
    across[k] = 2 * std::numbers::pi * std::cos(angle) / length;
    down[k] = 2 * std::numbers::pi * std::sin(angle) / length;
  }
  const auto along = [](const std::array<double, waves>& steps, Index place) {
    Wave wave;
    for (std::size_t k = 0; k < waves; ++k) {
      wave.sine[k] = static_cast<float>(std::sin(steps[k] * static_cast<double>(place)));
      wave.cosine[k] = static_cast<float>(std::cos(steps[k] * static_cast<double>(place)));
    }
    return wave;
  };
  std::vector<Wave> columns;
  for (Index x = 0; x < size.width; ++x) columns.push_back(along(across, x));
  std::uint8_t* to = picture.pixels.data();
  for (Index y = rows.first; y < rows.end(); ++y) {
    const Wave row = along(down, y);
    for (const Wave& column : columns) {
      std::array<float, 3> sums{};
      for (std::size_t k = 0; k < waves; ++k) {
        sums[k % 3] += column.sine[k] * row.cosine[k] + column.cosine[k] * row.sine[k];
      }
      for (const float sum : sums) *to++ = static_cast<std::uint8_t>(std::clamp(128 + 60 * sum, 0.0f, 255.0f));
    }
  }
  return picture;
}

}  // namespace examples
