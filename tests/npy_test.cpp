#include <fit/numpy/npz.hpp>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::DType;
using fit::Index;

std::filesystem::path numpy_file(const std::string& name) { return std::filesystem::path(FIT_NPY_DIR) / name; }

/// What tests/npy/files.py has in its arrays, row-major.
template <class T>
std::vector<T> values(Index count) {
  std::vector<T> result;
  for (Index i = 0; i < count; ++i) {
    const Index number = 7 * i % 11;
    if constexpr (std::is_same_v<T, bool>) {
      result.push_back(i % 3 == 0);
    } else if constexpr (std::is_floating_point_v<T>) {
      result.push_back(static_cast<T>(number - 3) / 2);
    } else {
      result.push_back(static_cast<T>(std::is_unsigned_v<T> ? number : number - 3));
    }
  }
  return result;
}

template <class T>
void check(const fit::NpyArray& array, DType dtype, const std::vector<Index>& shape) {
  INFO(array.name);
  CHECK(array.dtype == dtype);
  CHECK(array.shape == shape);
  const auto expected = values<T>(array.size());
  const auto found = std::make_unique<T[]>(static_cast<std::size_t>(array.size()));
  array.read(found.get(), array.size());
  CHECK(std::equal(expected.begin(), expected.end(), found.get()));
}

template <class T>
void check_file(const std::string& name, const std::vector<Index>& shape) {
  check<T>(fit::read_npy(numpy_file(name)), fit::dtype_of<T>(), shape);
}

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// A .npy file of version 1.0 with this dictionary.
std::string npy(const std::string& dictionary, std::size_t data_bytes) {
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(dictionary.size());
  bytes += '\0';
  return bytes + dictionary + std::string(data_bytes, '\0');
}

}  // namespace

TEST_CASE("arrays that NumPy wrote", "[npy]") {
  check_file<float>("f4.npy", {3, 4});
  check_file<double>("f8.npy", {2, 3});
  check<float>(fit::read_npy(numpy_file("f2.npy")), DType::F16, {5});
  check_file<std::int64_t>("i8.npy", {2, 2});
  check_file<std::int32_t>("i4.npy", {7});
  check_file<std::int16_t>("i2.npy", {3});
  check_file<std::int8_t>("i1.npy", {3});
  check_file<std::uint64_t>("u8.npy", {3});
  check_file<std::uint32_t>("u4.npy", {3});
  check_file<std::uint16_t>("u2.npy", {3});
  check_file<std::uint8_t>("u1.npy", {4, 3});
  check_file<bool>("b1.npy", {9});
  check_file<float>("big_f4.npy", {3, 4});
  check_file<std::int64_t>("big_i8.npy", {2, 3});
  check_file<double>("number.npy", {});
  check_file<float>("empty.npy", {0, 3});
  check_file<float>("four.npy", {2, 3, 4, 5});
  check_file<float>("fortran.npy", {2, 3, 5});
  check_file<std::int32_t>("fortran_big.npy", {4, 3});
  check_file<float>("version_2.npy", {3, 4});
  check_file<float>("version_3.npy", {3, 4});
  const auto tensor = fit::read_npy(numpy_file("four.npy")).tensor<double, 4>();
  CHECK(tensor.dimension(3) == 5);
  CHECK(tensor(1, 2, 3, 4) == values<double>(120).back());
}

TEST_CASE("archives that NumPy wrote", "[npy]") {
  for (const char* name : {"plain.npz", "deflated.npz"}) {
    INFO(name);
    fit::NpzFile file(numpy_file(name));
    CHECK(file.names() == std::vector<std::string>{"a long name", "x", "y"});
    CHECK(file.contains("x"));
    CHECK_FALSE(file.contains("x.npy"));
    check<float>(file.read("x"), DType::F32, {3, 4});
    check<std::int32_t>(file.read("y"), DType::I32, {100, 50});
    check<bool>(file.read("a long name"), DType::BOOL, {2});
    check<float>(file.read("x"), DType::F32, {3, 4});
    CHECK(test::contains(test::error_of([&] { file.read("z"); }), "no array \"z\""));
  }
}

TEST_CASE("arrays and archives are read again, by NumPy too", "[npy]") {
  const test::TemporaryFolder folder;
  std::vector<fit::NpzEntry> entries;
  std::vector<fit::NpyArray> kept;
  for (const char* name :
       {"f4", "f8", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "number", "empty", "four"}) {
    kept.push_back(fit::read_npy(numpy_file(name + std::string(".npy"))));
    entries.push_back({name, kept.back().dtype, kept.back().shape, nullptr});
  }
  const auto write = [&]<class T>(std::size_t i, T) {
    fit::write_npy(folder / (entries[i].name + ".npy"), reinterpret_cast<const T*>(kept[i].bytes.data()),
                   kept[i].shape);
    CHECK(bytes_of(folder / (entries[i].name + ".npy")) == bytes_of(numpy_file(entries[i].name + ".npy")));
  };
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].elements = kept[i].bytes.data();
    const DType dtype = kept[i].dtype;
    if (dtype == DType::F32) write(i, float());
    if (dtype == DType::F64) write(i, double());
    if (dtype == DType::I64) write(i, std::int64_t());
    if (dtype == DType::I32) write(i, std::int32_t());
    if (dtype == DType::I16) write(i, std::int16_t());
    if (dtype == DType::I8) write(i, std::int8_t());
    if (dtype == DType::U64) write(i, std::uint64_t());
    if (dtype == DType::U32) write(i, std::uint32_t());
    if (dtype == DType::U16) write(i, std::uint16_t());
    if (dtype == DType::U8) write(i, std::uint8_t());
    if (dtype == DType::BOOL) write(i, bool());
  }
  fit::write_npz(folder / "plain.npz", entries, false);
  fit::write_npz(folder / "deflated.npz", entries);
  for (const char* name : {"plain.npz", "deflated.npz"}) {
    fit::NpzFile file(folder / name);
    CHECK(file.names().size() == entries.size());
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const fit::NpyArray array = file.read(entries[i].name);
      CHECK(array.dtype == kept[i].dtype);
      CHECK(array.shape == kept[i].shape);
      REQUIRE(array.bytes.size() == kept[i].bytes.size());
      CHECK(std::equal(array.bytes.data(), array.bytes.data() + array.bytes.size(), kept[i].bytes.data()));
    }
  }
  fit::Tensor<float, 3> tensor(2, 3, 4);
  tensor.setConstant(2.5f);
  fit::write_npy(folder / "tensor.npy", tensor);
  CHECK(fit::read_npy(folder / "tensor.npy").shape == std::vector<Index>{2, 3, 4});
  if (const std::string python = FIT_NUMPY_PYTHON; python.empty()) {
    WARN("no Python with NumPy was found, which would have read these files");
  } else {
    CHECK(std::system((python + " " + FIT_NPY_DIR + "/files.py check " + (folder / "").string()).c_str()) == 0);
  }
}

TEST_CASE("what cannot be written as an array is an error, and what was there stays", "[npy]") {
  const test::TemporaryFolder folder;
  const float numbers[] = {1, 2, 3};
  const auto refused = [&](const fit::NpzEntry& entry) {
    write_bytes(folder / "a.npz", "before");
    const std::string text = test::error_of([&] { fit::write_npz(folder / "a.npz", {&entry, 1}); });
    CHECK(bytes_of(folder / "a.npz") == "before");
    return text;
  };
  CHECK(test::contains(refused({"x", DType::F32, {3}, nullptr}), "a.npz: \"x\" has no data"));
  for (const char* name : {"\xff", "a\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc3"}) {
    CHECK(test::contains(refused({name, DType::F32, {3}, numbers}), " is not UTF-8"));
  }
  const std::string names[] = {"x", "\xc3\xa4", "\xe2\x82\xac", "\xed\x9f\xbf", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"};
  std::vector<fit::NpzEntry> entries;
  for (const std::string& name : names) entries.push_back({name, DType::F32, {3}, numbers});
  entries.push_back({"none", DType::F32, {0}, nullptr});
  fit::write_npz(folder / "a.npz", entries);
  CHECK(fit::NpzFile(folder / "a.npz").names().size() == 7);
  const float* const null = nullptr;
  const std::vector<Index> three{3}, zero{0};
  CHECK(test::contains(test::error_of([&] { fit::write_npy(folder / "a.npy", null, three); }), "no data to write"));
  fit::write_npy(folder / "a.npy", null, zero);
  CHECK(fit::read_npy(folder / "a.npy").size() == 0);
}

TEST_CASE("an archive without 64-bit records may have as many arrays as 16 bits can count", "[npy]") {
  const test::TemporaryFolder folder;
  constexpr std::size_t count = 65'535;
  const auto put = [](std::string& to, std::string_view text, auto... numbers) {
    to += text;
    (to.append(reinterpret_cast<const char*>(&numbers), sizeof(numbers)), ...);
  };
  constexpr std::uint16_t version = 20;
  constexpr std::uint32_t none = 0;
  std::string bytes, directory;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string name = std::to_string(i) + ".npy";
    // Version, flags and method, time and date, checksum, two sizes, and the lengths of the name and of what is extra.
    std::string entry;
    put(entry, "", version, none, none, none, none, none, static_cast<std::uint16_t>(name.size()), std::uint16_t{0});
    put(directory, "PK\1\2", version);
    put(directory, entry, none, none, std::uint16_t{0}, static_cast<std::uint32_t>(bytes.size()));
    put(directory, name);
    put(bytes, "PK\3\4");
    put(bytes, entry);
    put(bytes, name);
  }
  const auto size = static_cast<std::uint32_t>(directory.size()), begin = static_cast<std::uint32_t>(bytes.size());
  put(bytes, directory);
  put(bytes, "PK\5\6", none, std::uint16_t{count}, std::uint16_t{count}, size, begin, std::uint16_t{0});
  write_bytes(folder / "many.npz", bytes);
  CHECK(fit::NpzFile(folder / "many.npz").names().size() == count);
}

TEST_CASE("a large array goes through in pieces", "[npy]") {
  const test::TemporaryFolder folder;
  const std::vector<float> noise = test::normal_values<float>(600'000, 3);  // hardly deflates
  const std::vector<Index> shape{600'000};
  const fit::NpzEntry entry{"noise", DType::F32, shape, noise.data()};
  for (const bool compressed : {false, true}) {
    fit::write_npz(folder / "a.npz", {&entry, 1}, compressed);
    std::vector<float> found(noise.size());
    fit::NpzFile(folder / "a.npz").read("noise").read(found.data(), 600'000);
    CHECK(found == noise);
  }
}

TEST_CASE("what is no array is an error that says why", "[npy]") {
  const test::TemporaryFolder folder;
  const auto error = [&](const std::string& bytes) {
    write_bytes(folder / "a.npy", bytes);
    return test::error_of([&] { fit::read_npy(folder / "a.npy"); });
  };
  std::filesystem::create_symlink("loop.npy", folder / "loop.npy");
  CHECK(test::contains(test::error_of([&] { fit::read_npy(folder / "loop.npy"); }), "loop.npy: cannot open: "));
  const std::string right = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
  for (const std::string& good : {right, std::string("{\"shape\":(2,),'fortran_order':True,'descr':'=f4'}  \n")}) {
    write_bytes(folder / "good.npy", npy(good, 8));
    CHECK(fit::read_npy(folder / "good.npy").size() == 2);
  }
  const auto refused = [&](const std::string& bytes, const char* why) {
    const std::string text = error(bytes);
    INFO(text);
    CHECK(test::contains(text, "a.npy: "));
    CHECK(test::contains(text, why));
  };
  refused("", "the file ends early");
  refused(std::string("PK\3\4 and more"), "not a .npy file");
  refused(npy(right, 7), "takes 8 bytes, but the file has 7");
  refused(npy(right, 9), "takes 8 bytes, but the file has 9");
  refused(npy(right + "x", 8), "goes on after its dictionary");
  refused(npy("{'descr': '<f4', 'fortran_order': False}", 8), "lacks \"shape\"");
  refused(npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", 8), "each once");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}", 8), "\"more\"");
  refused(npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}", 8), "True or False");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2)}", 8), "not a tuple");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2 2)}", 8), "lacks a comma");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", 8), "where a size was expected");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 8), "a size was expected");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999)}", 8), "can be counted");
  refused(npy("{'descr': '<f3', 'fortran_order': False, 'shape': (2,)}", 8), "type \"<f3\" are not read");
  refused(npy("{'descr': '|f4', 'fortran_order': False, 'shape': (2,)}", 8), "are not read");
  refused(npy("{'descr': '<f4, 'fortran_order': False, 'shape': (2,)}", 8), "type \"<f4, \" are not read");
  refused(npy("{'descr", 8), "ends inside a text");
  std::string version = npy(right, 8);
  version[6] = 4;
  refused(version, "version 4.0");
  std::string dimensions;
  for (int i = 0; i < 65; ++i) dimensions += "1,";
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + dimensions + ")}", 4), "more than 64 dimensions");
  refused(std::string("\x93NUMPY\x02\x00\x01\x00\x10\x00", 12), "1048577 bytes, is over the limit");
  for (const char* name : {"records.npy", "complex.npy", "text.npy"}) {
    INFO(name);
    CHECK(test::contains(test::error_of([&] { fit::read_npy(numpy_file(name)); }), "are"));
  }
  CHECK(test::contains(test::error_of([&] { fit::read_npy(folder / "none.npy"); }), "no such file"));
  CHECK(test::contains(test::error_of([&] { fit::read_npy(folder / ""); }), "not a regular file"));

  const fit::NpyArray array = fit::read_npy(numpy_file("f4.npy"));
  float few[3] = {1, 2, 3};
  std::int32_t whole[12];
  CHECK(test::contains(test::error_of([&] { array.read(few, 3); }), "has 12 elements, not 3"));
  CHECK(few[0] == 1);
  CHECK(test::contains(test::error_of([&] { array.read(whole, 12); }), "does not convert to I32"));
  CHECK(test::contains(test::error_of([&] { array.tensor<float, 3>(); }), "has 2 dimensions, not 3"));
}

TEST_CASE("damaged archives are errors, wherever they are cut or changed", "[npy]") {
  const test::TemporaryFolder folder;
  const float numbers[] = {1, 2, 3};
  const fit::NpzEntry entry{"x", DType::F32, {3}, numbers};
  for (const bool compressed : {false, true}) {
    fit::write_npz(folder / "a.npz", {&entry, 1}, compressed);
    const std::string whole = bytes_of(folder / "a.npz");
    const auto read = [&](const std::string& bytes) {
      write_bytes(folder / "b.npz", bytes);
      float found[3] = {};
      try {
        fit::NpzFile(folder / "b.npz").read("x").read(found, 3);
      } catch (const fit::Error& error) {
        CHECK(test::contains(error.what(), "b.npz"));
        return false;
      }
      CHECK(std::equal(found, found + 3, numbers));
      return true;
    };
    CHECK(read(whole));
    for (std::size_t size = 0; size < whole.size(); ++size) CHECK_FALSE(read(whole.substr(0, size)));
    // Some bytes say nothing that matters here (dates, versions); no change may give other numbers.
    std::size_t noticed = 0;
    for (std::size_t i = 0; i < whole.size(); ++i) {
      for (const int flip : {0x01, 0x80, 0xff}) {
        std::string changed = whole;
        changed[i] = static_cast<char>(changed[i] ^ flip);
        noticed += !read(changed);
      }
    }
    CHECK(noticed > whole.size());
  }
  // What else a zip file may say.
  const fit::NpzEntry both[] = {entry, {"y", DType::F32, {3}, numbers}};
  fit::write_npz(folder / "a.npz", both, false);
  const std::string two = bytes_of(folder / "a.npz");
  const std::size_t directory = two.find("PK\1\2"), next = two.find("PK\1\2", directory + 1), end = two.find("PK\5\6");
  const auto patched = [&](std::size_t at, const std::string& bytes) {
    std::string changed = two;
    write_bytes(folder / "b.npz", changed.replace(at, bytes.size(), bytes));
    return test::error_of([&] { fit::NpzFile(folder / "b.npz").read("x"); });
  };
  const std::pair<std::string, const char*> refusals[] = {
      {patched(directory + 8, "\1"), "is encrypted"},
      {patched(directory + 10, "\14"), "compressed by method 12"},
      {patched(two.find("y.npy", next), "x.npy"), "x.npy\" is there twice"},
      {patched(two.find("x.npy", directory) + 5 + 4, "\1"), "two sizes of one entry"},
      {patched(next, "PK\1\3"), "zip file"},
      {patched(end + 4, "\1"), "several parts"},
      {patched(end, "PK\5\7"), "no end record"},
  };
  for (const auto& [text, why] : refusals) {
    INFO(text << " (" << why << ")");
    CHECK(test::contains(text, "b.npz: "));
    CHECK(test::contains(text, why));
  }
  // Sizes that nothing can hold are no reason to ask for the memory.
  fit::write_npz(folder / "a.npz", {&entry, 1}, false);
  std::string huge = bytes_of(folder / "a.npz");
  const std::string shape = "(3,), }", larger = "(99999999999999,), }";
  huge.replace(huge.find(shape), larger.size(), larger);
  const std::uint64_t bytes = 128 + 4 * std::uint64_t{99999999999999};
  const std::size_t sizes = huge.find("x.npy", huge.find("PK\1\2")) + 5 + 4;
  for (const std::size_t at : {sizes, sizes + 8}) std::memcpy(huge.data() + at, &bytes, 8);
  write_bytes(folder / "b.npz", huge);
  CHECK(test::contains(test::error_of([&] { fit::NpzFile(folder / "b.npz").read("x"); }), "an entry ends early"));
  const fit::NpzEntry twice[] = {entry, entry};
  CHECK(
      test::contains(test::error_of([&] { fit::write_npz(folder / "c.npz", twice); }), "two arrays are called \"x\""));
  const fit::NpzEntry nameless{"", DType::F32, {3}, numbers}, brain{"x", DType::BF16, {3}, numbers};
  CHECK(test::contains(test::error_of([&] { fit::write_npz(folder / "c.npz", {&nameless, 1}); }), "1 to 1000 bytes"));
  CHECK(test::contains(test::error_of([&] {
                         fit::write_npz(folder / "c.npz", {&brain, 1});
                       }),
                       "c.npz: x: a .npy file holds no BF16"));
  CHECK_FALSE(std::filesystem::exists(folder / "c.npz"));
}
