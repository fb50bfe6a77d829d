#pragma once

#include <fit/core/memory.hpp>
#include <fit/core/tensor.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fit/io/atomic_file.hpp>
#include <fit/io/dtype.hpp>
#include <fit/io/input_file.hpp>

namespace fit {
inline namespace FIT_ABI {

/// An array as NumPy stores it: row-major here, whatever the file had, and in the bytes of this machine.
struct NpyArray {
  std::string name;  ///< for messages: the path, and the name in an archive
  DType dtype = DType::F32;
  std::vector<Index> shape;  ///< none for a single number
  Buffer<std::byte> bytes;

  Index size() const { return bytes.size() / size_of(dtype); }

  /// Copies the elements to `destination`, row-major: F64, F32 and F16 rounded to float or double; whole numbers and
  /// bool are not converted, their dtype must be that of T. Throws Error, without writing anything, when they are not
  /// `count` or of another dtype, when a finite number would become infinite, and for a bool that is neither 0 nor 1.
  template <class T>
  void read(T* destination, Index count) const {
    detail::read_elements(name, dtype, {bytes.data(), static_cast<std::size_t>(bytes.size())}, destination, count);
  }

  /// The same as a tensor. Throws Error for another number of dimensions, too.
  template <class T, int Rank>
  Tensor<T, Rank> tensor() const {
    require(shape.size() == static_cast<std::size_t>(Rank), name, " has ", shape.size(), " dimensions, not ", Rank);
    typename Tensor<T, Rank>::Dimensions dimensions;
    for (std::size_t i = 0; i < shape.size(); ++i) dimensions[i] = shape[i];
    Tensor<T, Rank> result(dimensions);
    read(result.data(), result.size());
    return result;
  }
};

namespace detail {

/// What the beginning of a .npy file says.
struct NpyHeader {
  DType dtype = DType::F32;
  bool swapped = false;  ///< big-endian
  bool fortran = false;  ///< column-major
  std::vector<Index> shape;
};

/// The dictionary in Python's notation that a .npy file begins with. Strict: NumPy's three keys, each once, and nothing
/// that would have to be evaluated.
class NpyHeaderReader {
 public:
  explicit NpyHeaderReader(std::string_view text) : text_(text) {}

  NpyHeader read() {
    NpyHeader header;
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !has_descr) {
        has_descr = true;
        set_type(header);
      } else if (key == "fortran_order" && !has_order) {
        has_order = true;
        header.fortran = boolean();
      } else if (key == "shape" && !has_shape) {
        has_shape = true;
        header.shape = tuple();
      } else {
        throw Error(concatenate("the header has ", printable(key), " where one of \"descr\", \"fortran_order\" and ",
                                "\"shape\" was expected, each once"));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    require(at_ == text_.size(), "the header goes on after its dictionary: ", printable(text_.substr(at_), 20));
    require(has_descr && has_order && has_shape, "the header lacks \"",
            !has_descr   ? "descr"
            : !has_order ? "fortran_order"
                         : "shape",
            "\"");
    return header;
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool accept(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    require(accept(c), "the header has ", printable(text_.substr(at_), 20), " where ", printable({&c, 1}),
            " was expected");
  }

  std::string_view string() {
    skip_space();
    const char quote = at_ < text_.size() ? text_[at_] : ' ';
    require(quote == '\'' || quote == '"', "the header has ", printable(text_.substr(at_), 20),
            " where a text in quotes was expected (arrays of records are not read)");
    const std::size_t end = text_.find(quote, at_ + 1);
    require(end != text_.npos, "the header ends inside a text");
    const std::string_view result = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return result;
  }

  bool boolean() {
    skip_space();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return value;
    }
    throw Error(concatenate("the header has ", printable(text_.substr(at_), 20), " where True or False was expected"));
  }

  std::vector<Index> tuple() {
    std::vector<Index> shape;
    bool more = true;
    expect('(');
    while (!accept(')')) {
      require(more, "the header's shape lacks a comma before ", printable(text_.substr(at_), 20));
      skip_space();
      Index size = 0;
      const char* const begin = text_.data() + at_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), size);
      require(error == std::errc() && size >= 0, "the header's shape has ", printable(text_.substr(at_), 20),
              " where a size was expected");
      at_ += static_cast<std::size_t>(end - begin);
      shape.push_back(size);
      require(shape.size() <= 64, "the header's shape has more than 64 dimensions");
      more = accept(',');
    }
    require(more || shape.size() != 1, "the header's shape is a number, not a tuple");
    return shape;
  }

  void set_type(NpyHeader& header) {
    constexpr std::pair<std::string_view, DType> types[] = {
        {"f8", DType::F64}, {"f4", DType::F32}, {"f2", DType::F16}, {"i8", DType::I64},
        {"i4", DType::I32}, {"i2", DType::I16}, {"i1", DType::I8},  {"u8", DType::U64},
        {"u4", DType::U32}, {"u2", DType::U16}, {"u1", DType::U8},  {"b1", DType::BOOL}};
    const std::string_view descr = string();
    for (const auto& [name, dtype] : types) {
      if (descr.size() != 3 || descr.substr(1) != name) continue;
      const char order = descr[0];
      if (order != '<' && order != '>' && order != '=' && !(order == '|' && size_of(dtype) == 1)) continue;
      header.dtype = dtype;
      header.swapped = order == '>' && size_of(dtype) > 1;
      return;
    }
    throw Error(concatenate("elements of type ", printable(descr),
                            " are not read; f8, f4, f2, whole numbers of 8 to 64 bits and b1 are"));
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// Bytes that come one after the other: get(to, count) throws Error when they end early.
template <class Get>
NpyHeader read_npy_header(Get&& get) {
  unsigned char start[8];
  get(start, sizeof(start));
  require(std::memcmp(start, "\x93NUMPY", 6) == 0, "not a .npy file: it does not begin with \\x93NUMPY");
  const int version = start[6];
  require(version >= 1 && version <= 3 && start[7] == 0, "version ", version, ".", static_cast<int>(start[7]),
          " of the format is not read; 1.0, 2.0 and 3.0 are");
  unsigned char length_bytes[4] = {};
  get(length_bytes, version == 1 ? 2 : 4);
  std::size_t length = 0;
  for (int i = 3; i >= 0; --i) length = length << 8 | length_bytes[i];
  constexpr std::size_t limit = 1 << 20;
  require(length <= limit, "the header's length, ", length, " bytes, is over the limit of ", limit);
  std::string text(length, '\0');
  get(text.data(), length);
  return NpyHeaderReader(text).read();
}

/// Bytes of the elements that a header announces. Throws Error when they cannot be counted.
inline Index bytes_of(const NpyHeader& header) {
  return count_elements(header.shape, header.dtype, "of the header") * size_of(header.dtype);
}

/// Elements as a file has them, in the order and the bytes of NpyArray.
inline Buffer<std::byte> in_order(const NpyHeader& header, Buffer<std::byte> from) {
  const Index size = size_of(header.dtype), count = from.size() / size;
  if (header.swapped) {
    for (Index i = 0; i < count; ++i) std::reverse(from.data() + i * size, from.data() + (i + 1) * size);
  }
  const std::size_t rank = header.shape.size();
  if (!header.fortran || rank < 2 || count == 0) return from;
  auto to = Buffer<std::byte>::uninitialised(from.size());
  std::vector<Index> place(rank, 0), stride(rank, size);
  for (std::size_t i = 1; i < rank; ++i) stride[i] = stride[i - 1] * header.shape[i - 1];
  const std::byte* source = from.data();
  for (Index i = 0; i < count; ++i) {
    std::memcpy(to.data() + i * size, source, static_cast<std::size_t>(size));
    for (std::size_t d = rank; d-- > 0;) {
      source += stride[d];
      if (++place[d] < header.shape[d]) break;
      source -= stride[d] * header.shape[d];
      place[d] = 0;
    }
  }
  return to;
}

/// What comes before the elements of an array in a .npy file, row-major. Throws Error with `what` at its beginning.
inline std::string make_npy_header(const std::string& what, DType dtype, std::span<const Index> shape) {
  constexpr std::string_view names[] = {"<f8", "<f4", "<f2", "",    "<i8", "<i4", "<i2",
                                        "|i1", "|u1", "|b1", "<u2", "<u4", "<u8"};
  const std::string_view descr = names[static_cast<std::size_t>(dtype)];
  require(!descr.empty(), what, ": a .npy file holds no ", name_of(dtype));
  std::string text = concatenate("{'descr': '", descr, "', 'fortran_order': False, 'shape': (");
  for (const Index size : shape) text += concatenate(size, shape.size() == 1 ? "," : ", ");
  if (shape.size() > 1) text.resize(text.size() - 2);
  text += "), }";
  // Elements begin at a multiple of 64 bytes, as the format asks for.
  text.resize((text.size() + 10 + 64) / 64 * 64 - 11, ' ');
  text += '\n';
  require(text.size() <= 0xffff, what, ": an array of ", shape.size(), " dimensions is too much for a .npy file");
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(text.size() & 0xff);
  header += static_cast<char>(text.size() >> 8);
  return header + text;
}

}  // namespace detail

/// Reads a .npy file (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): versions 1 to 3,
/// elements of floating point, whole numbers and bool, row-major or column-major, of either order of bytes. Throws
/// Error with the path and the reason when it cannot be read, is anything else, or is not exactly as long as its shape
/// says.
inline NpyArray read_npy(const std::filesystem::path& path) {
  return detail::naming(path.string(), [&]() -> NpyArray {
    detail::InputFile file(path);
    const auto header = detail::read_npy_header([&](void* to, std::size_t bytes) { file.get(to, bytes); });
    const Index bytes = detail::bytes_of(header), left = file.left();
    require(bytes == left, "its shape takes ", bytes, " bytes, but the file has ", left, " after the header");
    auto elements = Buffer<std::byte>::uninitialised(bytes);
    file.get(elements.data(), static_cast<std::size_t>(bytes));
    return {path.string(), header.dtype, header.shape, detail::in_order(header, std::move(elements))};
  });
}

/// Writes elements, row-major, as a .npy file of version 1.0. A file at the path is replaced only once the new one is
/// complete on the disk. Throws Error with the path and the reason when it cannot, and for elements that are null.
template <class T>
void write_npy(const std::filesystem::path& path, const T* elements, std::span<const Index> shape) {
  constexpr DType dtype = dtype_of<T>();
  const std::string header = detail::make_npy_header(path.string(), dtype, shape);
  const Index count = detail::count_elements(shape, dtype, path.string());
  require(count == 0 || elements, path.string(), ": there are no data to write");
  AtomicFile file(path);
  file.write(header.data(), header.size());
  file.write(elements, static_cast<std::size_t>(count * size_of(dtype)));
  file.commit();
}

template <class T, int Rank>
void write_npy(const std::filesystem::path& path, const Tensor<T, Rank>& tensor) {
  const auto dimensions = tensor.dimensions();
  write_npy(path, tensor.data(), std::span<const Index>(dimensions.begin(), dimensions.end()));
}

}  // namespace FIT_ABI
}  // namespace fit
