#include <cstdio>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "support/picture.hpp"
#include "support/png.hpp"

#include "catch.hpp"
#include "support.hpp"

namespace {

using examples::PictureSize;
using fit::Index;
using Bytes = std::vector<std::uint8_t>;

/// Pixels that differ everywhere.
Bytes pattern(int width, int height, int channels) {
  Bytes pixels;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < channels; ++c) pixels.push_back(static_cast<std::uint8_t>(7 * x + 31 * y + 90 * c));
    }
  }
  return pixels;
}

struct Png {
  int width, height, type, depth = 8, interlace = PNG_INTERLACE_NONE;
};

/// `rows` is in the file's own format, 16 bits with the higher byte first.
void write_png(const std::filesystem::path& path, const Png& of, const Bytes& rows) {
  const examples::detail::File file(std::fopen(path.string().c_str(), "wb"));
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_init_io(png, file.get());
  png_set_IHDR(png, info, static_cast<png_uint_32>(of.width), static_cast<png_uint_32>(of.height), of.depth, of.type,
               of.interlace, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (of.type == PNG_COLOR_TYPE_PALETTE) {
    const png_color colours[] = {{10, 20, 30}, {40, 50, 60}};
    png_set_PLTE(png, info, colours, 2);
  }
  png_write_info(png, info);
  std::vector<png_bytep> places;
  const std::size_t row = rows.size() / static_cast<std::size_t>(of.height);
  for (std::size_t y = 0; y < static_cast<std::size_t>(of.height); ++y) {
    places.push_back(const_cast<png_bytep>(rows.data() + y * row));
  }
  png_write_image(png, places.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
}

void write_jpeg(const std::filesystem::path& path, int width, int height, int channels, J_COLOR_SPACE space,
                const Bytes& pixels) {
  const examples::detail::File file(std::fopen(path.string().c_str(), "wb"));
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  jpeg_stdio_dest(&jpeg, file.get());
  jpeg.image_width = static_cast<JDIMENSION>(width);
  jpeg.image_height = static_cast<JDIMENSION>(height);
  jpeg.input_components = channels;
  jpeg.in_color_space = space;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, 100, TRUE);
  jpeg_start_compress(&jpeg, TRUE);
  while (jpeg.next_scanline < jpeg.image_height) {
    auto* row =
        const_cast<std::uint8_t*>(pixels.data() + jpeg.next_scanline * static_cast<std::size_t>(width * channels));
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
}

Bytes read(const std::filesystem::path& path, const PictureSize& size) {
  return examples::read_picture(path, size).pixels;
}

}  // namespace

TEST_CASE("every kind of PNG becomes red, green and blue of 8 bits", "[picture]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "a.png";
  constexpr int width = 13, height = 9;
  const PictureSize size{width, height};
  const Bytes colours = pattern(width, height, 3), greys = pattern(width, height, 1);
  const auto each = [](const Bytes& values, const std::function<void(std::uint8_t, Bytes&)>& put) {
    Bytes all;
    for (const std::uint8_t value : values) put(value, all);
    return all;
  };
  const Bytes grey_colours = each(greys, [](auto value, Bytes& to) { to.insert(to.end(), 3, value); });
  const auto twice = [](auto value, Bytes& to) { to.insert(to.end(), 2, value); };
  for (const int interlace : {PNG_INTERLACE_NONE, PNG_INTERLACE_ADAM7}) {
    write_png(path, {width, height, PNG_COLOR_TYPE_RGB, 8, interlace}, colours);
    CHECK(examples::picture_size(path) == size);
    CHECK(read(path, size) == colours);
    write_png(path, {width, height, PNG_COLOR_TYPE_RGB, 16, interlace}, each(colours, twice));
    CHECK(read(path, size) == colours);
    write_png(path, {width, height, PNG_COLOR_TYPE_GRAY, 8, interlace}, greys);
    CHECK(read(path, size) == grey_colours);
    write_png(path, {width, height, PNG_COLOR_TYPE_GRAY, 16, interlace}, each(greys, twice));
    CHECK(read(path, size) == grey_colours);
  }
  Bytes transparent;
  for (std::size_t i = 0; i < colours.size(); ++i) {
    transparent.push_back(colours[i]);
    if (i % 3 == 2) transparent.push_back(i % 2 == 0 ? 255 : 0);
  }
  write_png(path, {width, height, PNG_COLOR_TYPE_RGBA}, transparent);
  Bytes on_white = colours;
  for (std::size_t i = 0; i < on_white.size(); ++i) {
    if (i / 3 * 3 % 2 == 1) on_white[i] = 255;
  }
  CHECK(read(path, size) == on_white);
  write_png(path, {8, 1, PNG_COLOR_TYPE_PALETTE, 1}, {0b01000000});
  CHECK(read(path, {2, 1}) == Bytes{10, 20, 30, 10, 20, 30});
  CHECK(read(path, {8, 1})[3] == 40);
}

TEST_CASE("a JPEG is read in colour, and refused where its colours are those of print", "[picture]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "a.jpg";
  Bytes flat;
  for (int i = 0; i < 32 * 24; ++i) flat.insert(flat.end(), {200, 100, 50});
  write_jpeg(path, 32, 24, 3, JCS_RGB, flat);
  CHECK(examples::picture_size(path) == PictureSize{32, 24});
  const Bytes read_back = read(path, {32, 24});
  for (std::size_t i = 0; i < flat.size(); ++i) REQUIRE(std::abs(read_back[i] - flat[i]) <= 2);
  write_jpeg(path, 32, 24, 1, JCS_GRAYSCALE, Bytes(32 * 24, 77));
  CHECK(read(path, {32, 24}) == Bytes(3 * 32 * 24, 77));
  write_jpeg(path, 32, 24, 4, JCS_CMYK, Bytes(4 * 32 * 24, 77));
  CHECK(test::contains(test::error_of([&] { read(path, {32, 24}); }), "a.jpg: its colours are those of print, CMYK"));
}

TEST_CASE("a picture of another size is cropped to its middle, or reflected", "[picture]") {
  const test::TemporaryFolder folder;
  const auto path = folder / "a.png";
  const Bytes pixels = pattern(5, 4, 3);
  write_png(path, {5, 4, PNG_COLOR_TYPE_RGB}, pixels);
  const auto at = [&](int x, int y) {
    const auto from = pixels.begin() + 3 * (5 * y + x);
    return Bytes(from, from + 3);
  };
  const auto check = [&](const PictureSize& size, auto&& column, auto&& row, const char* about) {
    const examples::Picture picture = examples::read_picture(path, size);
    CHECK(picture.size == size);
    CHECK(picture.about == fit::concatenate("a.png, 5 x 4", about));
    const fit::IndexRange rows{size.height / 3, size.height - size.height / 2};
    const auto begin = picture.pixels.begin() + 3 * size.width * rows.first;
    CHECK(examples::read_picture(path, size, rows).pixels == Bytes(begin, begin + 3 * size.width * rows.count));
    for (Index y = 0; y < size.height; ++y) {
      for (Index x = 0; x < size.width; ++x) {
        const auto from = picture.pixels.begin() + 3 * (size.width * y + x);
        REQUIRE(Bytes(from, from + 3) == at(column(static_cast<int>(x)), row(static_cast<int>(y))));
      }
    }
  };
  const auto same = [](int i) { return i; };
  const auto mirrored = [](int size) {
    return [size](int i) { return i % (2 * size) < size ? i % (2 * size) : 2 * size - 1 - i % (2 * size); };
  };
  check({5, 4}, same, same, "");
  check(
      {3, 2}, [](int x) { return x + 1; }, [](int y) { return y + 1; }, ", cropped to 3 x 2");
  check({14, 4}, mirrored(5), same, ", tiled by reflection to 14 x 4");
  check(
      {2, 11}, [](int x) { return x + 1; }, mirrored(4), ", cropped to 2 x 4, tiled by reflection to 2 x 11");
  check({23, 17}, mirrored(5), mirrored(4), ", tiled by reflection to 23 x 17");

  write_png(path, {1, 1, PNG_COLOR_TYPE_RGB}, {9, 8, 7});
  CHECK(read(path, {2, 2}) == Bytes{9, 8, 7, 9, 8, 7, 9, 8, 7, 9, 8, 7});
  CHECK(test::error_of([&] {
          examples::read_picture(path, {2, 2}, {1, 2});
        }) == "a picture of 2 rows has no rows from 1 to 3");
}

TEST_CASE("what is no picture, or only part of one, is an error with its name", "[picture]") {
  const test::TemporaryFolder folder;
  const std::string none = "(no error)";
  const auto error = [&](const std::filesystem::path& path) {
    const std::string header = test::error_of([&] { examples::picture_size(path); });
    const std::string whole = test::error_of([&] { read(path, {64, 64}); });
    CHECK((header == none || header == whole));
    CHECK(test::contains(whole, path.string() + ": "));
    return whole;
  };
  CHECK(test::contains(error(folder / "none"), "cannot be opened"));
  for (const char* text : {"", "P6", "no picture at all", "\xff\xd8"}) {
    std::ofstream(folder / "text") << text;
    error(folder / "text");
  }
  error(folder / "");

  const auto cut = folder / "cut";
  const Bytes pixels = pattern(40, 40, 3);
  for (const bool png : {true, false}) {
    if (png) {
      write_png(cut, {40, 40, PNG_COLOR_TYPE_RGB}, pixels);
    } else {
      write_jpeg(cut, 40, 40, 3, JCS_RGB, pixels);
    }
    std::ifstream file(cut, std::ios::binary);
    const std::string whole{std::istreambuf_iterator<char>(file), {}};
    CHECK(test::error_of([&] { read(cut, {64, 64}); }) == none);
    for (std::size_t size = 0; size < whole.size(); size += 1 + size / 7) {
      std::ofstream(cut, std::ios::binary) << whole.substr(0, size);
      error(cut);
    }
    // Anything may come of a file whose bytes changed, but a sentence or a picture.
    for (std::size_t place = 2; place < whole.size(); place += 5) {
      std::string changed = whole;
      changed[place] = static_cast<char>(changed[place] ^ 0x55);
      std::ofstream(cut, std::ios::binary) << changed;
      const std::string text = test::error_of([&] { read(cut, {64, 64}); });
      INFO(text);
      CHECK((text == none || test::contains(text, "cut: ")));
    }
  }
}

TEST_CASE("the picture made by a formula has all sizes, colours and no flat parts", "[picture]") {
  const examples::Picture picture = examples::formula_picture({70, 50}, {0, 50});
  const auto begin = picture.pixels.begin() + 3 * 70 * 20;
  CHECK(examples::formula_picture({70, 50}, {20, 7}).pixels == Bytes(begin, begin + 3 * 70 * 7));
  CHECK(picture.about == "a picture made by a formula, 70 x 50");
  REQUIRE(picture.pixels.size() == 3 * 70 * 50);
  std::array<int, 3> darkest{255, 255, 255}, lightest{};
  for (std::size_t i = 0; i < picture.pixels.size(); ++i) {
    darkest[i % 3] = std::min<int>(darkest[i % 3], picture.pixels[i]);
    lightest[i % 3] = std::max<int>(lightest[i % 3], picture.pixels[i]);
  }
  for (std::size_t c = 0; c < 3; ++c) CHECK(lightest[c] - darkest[c] > 60);
}
