#pragma once

#include <fit/io/atomic_file.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <png.h>

#include "font.hpp"

namespace examples {

/// Throws fit::Error where a file cannot be written: better now than after hours.
inline void check_writable(const std::filesystem::path& path) { const fit::AtomicFile writable(path); }

/// Writes a PNG file of `height` rows of `width` pixels with `channels` values, 1 for gray or 3 for red, green and
/// blue. The file appears whole or not at all. Throws std::runtime_error when it cannot be written, as when its folder
/// is not there, or when the channels are neither 1 nor 3 or a size is not positive.
inline void write_png(const std::filesystem::path& path, int width, int height, int channels,
                      const std::uint8_t* pixels) {
  const auto fail = [&](const std::string& reason) { throw std::runtime_error(path.string() + ": " + reason); };
  if (channels != 1 && channels != 3) fail("a picture has 1 or 3 channels, not " + std::to_string(channels));
  if (width < 1 || height < 1) fail("a picture cannot be " + std::to_string(width) + " x " + std::to_string(height));
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width);
  image.height = static_cast<png_uint_32>(height);
  image.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::vector<std::uint8_t> bytes(size);
  if (!png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels, 0, nullptr)) fail(image.message);
  fit::AtomicFile file(path);
  file.write(bytes.data(), size);
  file.commit();
}

struct Colour {
  std::uint8_t red = 0, green = 0, blue = 0;
};

inline constexpr Colour black{32, 32, 32}, white{255, 255, 255}, green{0, 128, 60}, red{200, 30, 30};

/// A sheet of equal images in rows, each with a caption below it, and a title above them all.
class Sheet {
 public:
  struct Style {
    int scale = 4;       // points for a pixel of the images
    int text_scale = 2;  // points for a point of the letters
    int gap = 16;        // points between the images
  };

  /// Throws std::runtime_error unless the sizes are positive and the channels 1 or 3.
  Sheet(int columns, int image_height, int image_width, int channels, std::string title, Style style)
      : columns_(columns),
        height_(image_height),
        width_(image_width),
        channels_(channels),
        title_(std::move(title)),
        style_(style) {
    if (std::min({columns, image_height, image_width, style.scale, style.text_scale}) < 1 || style.gap < 0 ||
        (channels != 1 && channels != 3)) {
      throw std::runtime_error("a sheet needs positive sizes, and 1 or 3 channels");
    }
  }
  Sheet(int columns, int image_height, int image_width, int channels = 1, std::string title = {})
      : Sheet(columns, image_height, image_width, channels, std::move(title), Style{}) {}

  /// Adds an image [height, width, channels] and its caption, whose lines are parted by '\n'.
  void add(const std::uint8_t* pixels, std::string caption = {}, Colour ink = black) {
    images_.push_back({{pixels, pixels + height_ * width_ * channels_}, lines_of(caption), ink});
  }

  /// The same from values between 0 and 1; those outside are cut, and NaN becomes 0.
  void add(const float* pixels, std::string caption = {}, Colour ink = black) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(height_ * width_ * channels_));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = pixels[i] > 0 ? static_cast<std::uint8_t>(std::lround(255 * std::min(pixels[i], 1.0f))) : 0;
    }
    add(bytes.data(), std::move(caption), ink);
  }

  /// Throws std::runtime_error as write_png().
  void write(const std::filesystem::path& path) const {
    int cell = width_ * style_.scale, lines = 0;
    for (const Image& image : images_) {
      lines = std::max(lines, static_cast<int>(image.caption.size()));
      for (const std::string& line : image.caption) cell = std::max(cell, text_width(line, style_.text_scale));
    }
    const int count = static_cast<int>(images_.size()), gap = style_.gap, title_scale = style_.text_scale + 1;
    const int rows = (count + columns_ - 1) / columns_, columns = std::min(columns_, std::max(count, 1));
    const int line_height = (font::height + 1) * style_.text_scale;
    const int image_height = height_ * style_.scale;
    const int row_height = image_height + gap + (lines > 0 ? style_.text_scale * 2 + lines * line_height : 0);
    const int title_height = title_.empty() ? 0 : font::height * title_scale + gap;
    Canvas canvas(std::max(gap + columns * (cell + gap), 2 * gap + text_width(title_, title_scale)),
                  gap + title_height + rows * row_height);
    canvas.text(title_, (canvas.width - text_width(title_, title_scale)) / 2, gap, title_scale, black);
    const int left = (canvas.width - columns * (cell + gap) + gap) / 2;
    for (int i = 0; i < count; ++i) {
      const Image& image = images_[static_cast<std::size_t>(i)];
      const int x = left + i % columns_ * (cell + gap), y = gap + title_height + i / columns_ * row_height;
      draw(canvas, image, x + (cell - width_ * style_.scale) / 2, y);
      int line_y = y + image_height + 2 * style_.text_scale;
      for (const std::string& line : image.caption) {
        canvas.text(line, x + (cell - text_width(line, style_.text_scale)) / 2, line_y, style_.text_scale, image.ink);
        line_y += line_height;
      }
    }
    write_png(path, canvas.width, canvas.height, 3, canvas.pixels.data());
  }

 private:
  struct Image {
    std::vector<std::uint8_t> pixels;
    std::vector<std::string> caption;
    Colour ink;
  };

  struct Canvas {
    int width, height;
    std::vector<std::uint8_t> pixels;

    Canvas(int w, int h)
        : width(w), height(h), pixels(static_cast<std::size_t>(w) * static_cast<std::size_t>(h) * 3, 255) {}

    void square(int x, int y, int size, Colour colour) {
      for (int row = y; row < y + size; ++row) {
        std::uint8_t* to = pixels.data() + (static_cast<std::ptrdiff_t>(row) * width + x) * 3;
        for (int i = 0; i < size; ++i, to += 3) {
          to[0] = colour.red;
          to[1] = colour.green;
          to[2] = colour.blue;
        }
      }
    }

    void text(std::string_view line, int x, int y, int scale, Colour ink) {
      for (const char letter : line) {
        for (int row = 0; row < font::height; ++row) {
          for (int column = 0; column < font::width; ++column) {
            if (font::ink(letter, column, row)) square(x + column * scale, y + row * scale, scale, ink);
          }
        }
        x += font::advance * scale;
      }
    }
  };

  static int text_width(std::string_view line, int scale) {
    return line.empty() ? 0 : (static_cast<int>(line.size()) * font::advance - 1) * scale;
  }

  static std::vector<std::string> lines_of(std::string_view text) {
    std::vector<std::string> lines;
    while (!text.empty()) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      lines.emplace_back(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    return lines;
  }

  void draw(Canvas& canvas, const Image& image, int x, int y) const {
    const std::uint8_t* pixel = image.pixels.data();
    for (int row = 0; row < height_; ++row) {
      for (int column = 0; column < width_; ++column, pixel += channels_) {
        const Colour colour{pixel[0], pixel[channels_ == 3 ? 1 : 0], pixel[channels_ == 3 ? 2 : 0]};
        canvas.square(x + column * style_.scale, y + row * style_.scale, style_.scale, colour);
      }
    }
  }

  int columns_, height_, width_, channels_;
  std::string title_;
  Style style_;
  std::vector<Image> images_;
};

}  // namespace examples
