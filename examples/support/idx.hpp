#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <zlib.h>

namespace examples {

/// Gray images, one after the other, row by row: [count, rows, columns].
struct Images {
  std::ptrdiff_t count = 0, rows = 0, columns = 0;
  std::vector<std::uint8_t> pixels;

  const std::uint8_t* operator[](std::ptrdiff_t i) const { return pixels.data() + i * rows * columns; }
};

/// Images and a label below 10 for each of them.
struct LabelledImages {
  Images images;
  std::vector<std::uint8_t> labels;
};

/// A data set in the format and with the file names of MNIST.
struct Fashion {
  LabelledImages train, test;
};

inline constexpr std::array<const char*, 10> fashion_names = {"T-shirt", "Trouser", "Pullover", "Dress", "Coat",
                                                              "Sandal",  "Shirt",   "Sneaker",  "Bag",   "Boot"};

namespace detail {

[[noreturn]] inline void idx_error(const std::filesystem::path& path, const std::string& reason) {
  throw std::runtime_error(path.string() + ": " + reason);
}

/// An IDX file, compressed or not, from its first byte to its last.
class IdxReader {
 public:
  explicit IdxReader(std::filesystem::path path) : path_(std::move(path)), file_(gzopen(path_.string().c_str(), "rb")) {
    if (!std::filesystem::exists(path_)) idx_error(path_, "no such file");
    if (!file_) idx_error(path_, "cannot be opened");
    gzbuffer(file_.get(), 1 << 17);
  }

  /// The sizes of the axes after a magic number that stands for unsigned bytes in as many axes.
  template <std::size_t Axes>
  std::array<std::ptrdiff_t, Axes> header() {
    std::array<std::uint8_t, 4> bytes{};
    const std::size_t found = read(bytes.data(), 4);
    if (found == 0) idx_error(path_, "the file is empty");
    constexpr std::array<std::uint8_t, 4> magic{0, 0, 8, static_cast<std::uint8_t>(Axes)};
    if (found < 4 || bytes != magic) {
      idx_error(path_, "not an IDX file of bytes in " + std::to_string(Axes) + " axes: it begins with " +
                           number_text(bytes) + ", not " + number_text(magic));
    }
    std::array<std::ptrdiff_t, Axes> sizes{};
    for (std::ptrdiff_t& size : sizes) {
      if (read(bytes.data(), 4) < 4) idx_error(path_, "truncated: the file ends inside its header");
      for (const std::uint8_t byte : bytes) size = size * 256 + byte;
    }
    return sizes;
  }

  /// All the rest, which must be `count` bytes.
  std::vector<std::uint8_t> rest(std::ptrdiff_t count) {
    // Piece by piece, as the header of a broken file may promise anything.
    constexpr std::size_t piece = std::size_t{1} << 24;
    const auto expected = static_cast<std::size_t>(count);
    std::vector<std::uint8_t> bytes;
    while (bytes.size() < expected) {
      const std::size_t begin = bytes.size(), wanted = std::min(piece, expected - begin);
      bytes.resize(begin + wanted);
      const std::size_t found = read(bytes.data() + begin, wanted);
      if (found < wanted) {
        idx_error(path_, "truncated: the header promises " + std::to_string(expected) + " bytes, the file has " +
                             std::to_string(begin + found));
      }
    }
    std::uint8_t more = 0;
    if (read(&more, 1) > 0) idx_error(path_, "has more than the " + std::to_string(expected) + " bytes of its header");
    return bytes;
  }

 private:
  std::size_t read(std::uint8_t* to, std::size_t count) {
    const int found = gzread(file_.get(), to, static_cast<unsigned>(count));
    int code = Z_OK;
    const char* const text = gzerror(file_.get(), &code);
    if (code == Z_BUF_ERROR) idx_error(path_, "truncated: the compressed data end early");
    if (found < 0 || code < 0)
      throw std::runtime_error("cannot read " + std::string(text));  // text begins with the path
    return static_cast<std::size_t>(found);
  }

  static std::string number_text(const std::array<std::uint8_t, 4>& bytes) {
    std::string text;
    for (const std::uint8_t byte : bytes) text += (text.empty() ? "" : " ") + std::to_string(byte);
    return text;
  }

  struct Close {
    void operator()(gzFile file) const { gzclose(file); }
  };
  std::filesystem::path path_;
  std::unique_ptr<gzFile_s, Close> file_;
};

/// "train-images" and "idx3-ubyte" as they are found in a folder: with a dash or a dot between, compressed or not.
inline std::filesystem::path find_idx(const std::filesystem::path& folder, const std::string& what,
                                      const std::string& kind) {
  for (const char* between : {"-", "."}) {
    for (const char* end : {"", ".gz"}) {
      const std::filesystem::path path = folder / (what + between + kind + end);
      if (std::filesystem::exists(path)) return path;
    }
  }
  idx_error(folder, "has neither " + what + "-" + kind + " nor " + what + "-" + kind + ".gz");
}

}  // namespace detail

/// Reads images [count, rows, columns] from an IDX file, plain or gzip. Throws std::runtime_error with the path when
/// the file cannot be read, is not such a file, is truncated or too long, or its images have another size.
inline Images read_images(const std::filesystem::path& path, std::ptrdiff_t rows, std::ptrdiff_t columns) {
  detail::IdxReader reader(path);
  const auto size = reader.header<3>();
  if (size[1] != rows || size[2] != columns) {
    detail::idx_error(path, "the images are " + std::to_string(size[1]) + " x " + std::to_string(size[2]) + ", not " +
                                std::to_string(rows) + " x " + std::to_string(columns));
  }
  return {size[0], rows, columns, reader.rest(size[0] * rows * columns)};
}

/// Reads labels below `classes` from an IDX file, plain or gzip. Throws std::runtime_error as read_images().
inline std::vector<std::uint8_t> read_labels(const std::filesystem::path& path, int classes = 10) {
  detail::IdxReader reader(path);
  std::vector<std::uint8_t> labels = reader.rest(reader.header<1>()[0]);
  for (const std::uint8_t label : labels) {
    if (label >= classes) {
      detail::idx_error(
          path, "has the label " + std::to_string(label) + ", but there are " + std::to_string(classes) + " classes");
    }
  }
  return labels;
}

/// Reads Fashion-MNIST, or MNIST, from a folder with its four files. Throws std::runtime_error when one is missing or
/// wrong, or when there are not as many labels as images.
inline Fashion load_fashion(const std::filesystem::path& folder = "/usr/share/datasets/fashion-mnist") {
  if (!std::filesystem::is_directory(folder)) {
    detail::idx_error(folder,
                      "no such folder; Debian has the data in the package dataset-fashion-mnist, "
                      "everybody else at https://github.com/zalandoresearch/fashion-mnist");
  }
  const auto load = [&](const std::string& part) {
    LabelledImages result{read_images(detail::find_idx(folder, part + "-images", "idx3-ubyte"), 28, 28),
                          read_labels(detail::find_idx(folder, part + "-labels", "idx1-ubyte"))};
    if (static_cast<std::ptrdiff_t>(result.labels.size()) != result.images.count) {
      detail::idx_error(folder, part + " has " + std::to_string(result.images.count) + " images but " +
                                    std::to_string(result.labels.size()) + " labels");
    }
    return result;
  };
  return {load("train"), load("t10k")};
}

}  // namespace examples
