#include <fit/io/safetensors.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <bit>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>

#if __has_include(<sys/resource.h>)
#include <sys/resource.h>
#endif

namespace {

using fit::DType;
using fit::Index;

constexpr DType dtypes[] = {DType::F64, DType::F32, DType::F16,  DType::BF16, DType::I64, DType::I32, DType::I16,
                            DType::I8,  DType::U8,  DType::BOOL, DType::U16,  DType::U32, DType::U64};

void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(stream.good());
}

std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

/// A file's bytes: the header's length, the header, zeros.
std::string file_of(const std::string& header, std::size_t data_bytes) {
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\0');
}

/// All data, tensor after tensor as they lie in the file.
std::string data_of(const fit::SafetensorsFile& file) {
  std::map<Index, std::string> pieces;
  for (const auto& [name, info] : file.tensors()) {
    const auto bytes = file.bytes(name);
    CHECK(static_cast<Index>(bytes.size()) == info.end - info.begin);
    if (bytes.size() > 0) pieces[info.begin] = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  std::string data;
  for (const auto& [begin, piece] : pieces) data += piece;
  return data;
}

double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

template <class Stored>
void check_conversion(DType dtype, const std::vector<Stored>& stored, const std::vector<double>& expected) {
  const test::TemporaryFolder folder;
  const auto count = static_cast<Index>(stored.size());
  // A byte tensor in front leaves the other one misaligned.
  const std::uint8_t byte = 7;
  fit::write_safetensors(folder / "x", std::vector<fit::SafetensorsEntry>{{"odd", DType::U8, {}, &byte},
                                                                          {"x", dtype, {count}, stored.data()}});
  const fit::SafetensorsFile file(folder / "x");
  std::vector<float> single(stored.size());
  std::vector<double> wide(stored.size());
  file.read("x", single.data(), count);
  file.read("x", wide.data(), count);
  Index wrong = 0;
  for (std::size_t i = 0; i < stored.size(); ++i) {
    const auto rounded = static_cast<float>(expected[i]);
    if (std::isnan(expected[i])) {
      wrong += !(std::isnan(single[i]) && std::isnan(wide[i]));
    } else {
      wrong += !(single[i] == rounded && std::signbit(single[i]) == std::signbit(rounded) && wide[i] == expected[i]);
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("every dtype survives a round trip", "[safetensors]") {
  const test::TemporaryFolder folder;
  std::vector<std::string> data;
  std::vector<fit::SafetensorsEntry> entries;
  for (const DType dtype : dtypes) {
    std::string bytes;
    for (Index i = 0; i < 6 * fit::size_of(dtype); ++i) bytes += static_cast<char>(37 * i + static_cast<int>(dtype));
    data.push_back(bytes);
  }
  for (std::size_t i = 0; i < data.size(); ++i) {
    entries.push_back({"tensor." + std::string(fit::name_of(dtypes[i])), dtypes[i], {2, 1, 3}, data[i].data()});
  }
  const double scalar = 0.5;
  entries.push_back({"scalar", DType::F64, {}, &scalar});
  entries.push_back({"none", DType::F32, {3, 0, 2}, nullptr});
  entries.push_back({"", DType::F64, {1}, &scalar});
  entries.push_back({"\"quotes\\ \n\t\x01 \xc3\xa4\xf0\x9f\x98\x80", DType::F64, {1, 1}, &scalar});
  const fit::Metadata metadata{{"format", "pt"}, {"", ""}, {"config", "{\"a\": [1, \"\\u00e4\"]}\n"}};
  fit::write_safetensors(folder / "all", entries, metadata);
  CHECK(folder.files() == 1);

  const fit::SafetensorsFile file(folder / "all");
  CHECK(file.metadata() == metadata);
  REQUIRE(file.tensors().size() == entries.size());
  Index offset = 0;
  for (const fit::SafetensorsEntry& entry : entries) {
    INFO(entry.name);
    const fit::TensorInfo& info = file.info(entry.name);
    CHECK(info.dtype == entry.dtype);
    CHECK(info.shape == entry.shape);
    CHECK(info.begin == offset);  // in the order given
    const auto bytes = file.bytes(entry.name);
    CHECK((bytes.empty() || std::memcmp(bytes.data(), entry.data, bytes.size()) == 0));
    offset = info.end;
  }
  CHECK(file.contains("scalar"));
  CHECK(!file.contains("Scalar"));
  const std::string bytes = read_bytes(folder / "all");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  CHECK(length % 8 == 0);

  fit::write_safetensors(folder / "empty", std::vector<fit::SafetensorsEntry>{});
  CHECK(fit::SafetensorsFile(folder / "empty").tensors().empty());
  fit::write_safetensors(folder / "all", std::vector<fit::SafetensorsEntry>{}, metadata);
  CHECK(fit::SafetensorsFile(folder / "all").metadata() == metadata);
}

TEST_CASE("stored numbers are converted exactly", "[safetensors]") {
  std::vector<std::uint16_t> bits(65536);
  std::vector<double> halves, bfloats;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    bits[i] = static_cast<std::uint16_t>(i);
    halves.push_back(half_value(bits[i]));
    bfloats.push_back(static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(i) << 16)));
  }
  check_conversion(DType::F16, bits, halves);
  check_conversion(DType::BF16, bits, bfloats);

  constexpr double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> wide{0, -0.0, 1, -1.5, 1e-300, 5e-324, 1e-40, 3e38, inf, -inf, std::nan(""), 0.1};
  check_conversion(DType::F64, wide, wide);
  const std::vector<float> single{0.0f, -0.0f, 1.1f, 1e-45f, -3e38f, std::nanf("")};
  check_conversion(DType::F32, single, {single.begin(), single.end()});
}

TEST_CASE("reading says what does not fit", "[safetensors]") {
  const test::TemporaryFolder folder;
  const std::int32_t ids[] = {1, -2, std::numeric_limits<std::int32_t>::min()};
  const std::int64_t longs[] = {1, 2, 3};
  const float values[] = {1, 2, 3};
  fit::write_safetensors(folder / "x", std::vector<fit::SafetensorsEntry>{{"ids", DType::I32, {3}, ids},
                                                                          {"longs", DType::I64, {3}, longs},
                                                                          {"values", DType::F32, {3}, values}});
  const fit::SafetensorsFile file(folder / "x");
  std::int32_t read_ids[3] = {};
  file.read("ids", read_ids, 3);
  CHECK(std::memcmp(ids, read_ids, sizeof(ids)) == 0);

  float to[3] = {9, 9, 9};
  double wide[3] = {9, 9, 9};
  const auto path = (folder / "x").string();
  const std::string missing = test::error_of([&] { file.read("nothing", to, 3); });
  CHECK(test::contains(missing, path + ": no tensor \"nothing\""));
  CHECK(test::contains(test::error_of([&] { file.read("values", to, 2); }), "\"values\" has 3 elements, not 2"));
  CHECK(test::contains(test::error_of([&] { file.read("values", wide, -3); }), "has 3 elements, not -3"));
  CHECK(test::contains(test::error_of([&] { file.read("ids", to, 3); }), "\"ids\" is I32, which does not convert"));
  CHECK(test::contains(test::error_of([&] { file.read("longs", wide, 3); }), "\"longs\" is I64"));
  CHECK(test::contains(test::error_of([&] { file.read("longs", read_ids, 3); }), "\"longs\" is I64"));
  CHECK(test::contains(test::error_of([&] { file.read("values", read_ids, 3); }), "\"values\" is F32"));
  CHECK((to[0] == 9 && to[1] == 9 && to[2] == 9 && wide[0] == 9));
  CHECK(std::memcmp(ids, read_ids, sizeof(ids)) == 0);
}

TEMPLATE_TEST_CASE("whole numbers are read as they are, and as nothing else", "[safetensors]", std::int8_t,
                   std::int16_t, std::int32_t, std::int64_t, std::uint8_t, std::uint16_t, std::uint32_t,
                   std::uint64_t) {
  using T = TestType;
  const test::TemporaryFolder folder;
  const T values[] = {std::numeric_limits<T>::min(), 0, 1, std::numeric_limits<T>::max()};
  // A byte in front leaves the others misaligned.
  const std::uint8_t bytes[] = {1, 0, 1};
  std::vector<fit::SafetensorsEntry> entries{{"odd", DType::U8, {}, bytes}, {"x", fit::dtype_of<T>(), {4}, values}};
  CHECK(fit::size_of(fit::dtype_of<T>()) == sizeof(T));
  CHECK((fit::name_of(fit::dtype_of<T>())[0] == 'I') == std::is_signed_v<T>);
  const std::vector<std::int64_t> zeros(4);
  for (const DType dtype : dtypes) entries.push_back({std::string(fit::name_of(dtype)), dtype, {4}, zeros.data()});
  fit::write_safetensors(folder / "x", entries);
  const fit::SafetensorsFile file(folder / "x");
  T read[4] = {};
  file.read("x", read, 4);
  CHECK(std::equal(values, values + 4, read));
  for (const DType dtype : dtypes) {
    const auto error = test::error_of([&] { file.read(fit::name_of(dtype), read, 4); });
    INFO(error);
    if (dtype == fit::dtype_of<T>()) {
      CHECK(error == "(no error)");
      CHECK(std::count(read, read + 4, T(0)) == 4);
      std::copy_n(values, 4, read);
    } else {
      const auto expected = std::string("is ") + std::string(fit::name_of(dtype)) + ", which does not convert to " +
                            std::string(fit::name_of(fit::dtype_of<T>()));
      CHECK(test::contains(error, expected));
      CHECK(std::equal(values, values + 4, read));
    }
  }
  CHECK(test::contains(test::error_of([&] { file.read("x", read, 3); }), "\"x\" has 4 elements, not 3"));
}

TEST_CASE("BOOL is read as bool when it is 0 or 1", "[safetensors]") {
  const test::TemporaryFolder folder;
  const std::uint8_t good[] = {1, 0, 1}, bad[] = {1, 2, 1};
  fit::write_safetensors(folder / "x", std::vector<fit::SafetensorsEntry>{{"good", DType::BOOL, {3}, good},
                                                                          {"bad", DType::BOOL, {3}, bad},
                                                                          {"byte", DType::U8, {3}, good}});
  const fit::SafetensorsFile file(folder / "x");
  bool read[3] = {false, true, false};
  CHECK(test::contains(test::error_of([&] { file.read("bad", read, 3); }), "\"bad\" holds a BOOL that is neither"));
  CHECK(test::contains(test::error_of([&] { file.read("byte", read, 3); }), "is U8, which does not convert to BOOL"));
  CHECK((!read[0] && read[1] && !read[2]));
  file.read("good", read, 3);
  CHECK((read[0] && !read[1] && read[2]));
}

TEST_CASE("a double that is too large for float is refused, and the largest is not", "[safetensors]") {
  const test::TemporaryFolder folder;
  const double halfway = 0x1.ffffffp127, largest = std::nextafter(halfway, 0.0);
  for (const double sign : {1.0, -1.0}) {
    const double large[] = {0, sign * halfway}, fits[] = {sign * largest, sign * INFINITY};
    fit::write_safetensors(folder / "x", std::vector<fit::SafetensorsEntry>{{"large", DType::F64, {2}, large},
                                                                            {"fits", DType::F64, {2}, fits}});
    const fit::SafetensorsFile file(folder / "x");
    float read[2] = {9, 9};
    const std::string error = test::error_of([&] { file.read("large", read, 2); });
    CHECK(
        test::contains(error, (folder / "x").string() + ": tensor \"large\" holds a number that is too large for F32"));
    CHECK((read[0] == 9 && read[1] == 9));
    file.read("fits", read, 2);
    CHECK(read[0] == static_cast<float>(sign) * std::numeric_limits<float>::max());
    CHECK(read[1] == static_cast<float>(sign) * INFINITY);
    double wide[2];
    file.read("large", wide, 2);
    CHECK(wide[1] == sign * halfway);
  }
}

TEST_CASE("a damaged file gives an error or the same data", "[safetensors]") {
  const test::TemporaryFolder folder;
  const float values[] = {1, 2, 3, 4, 5, 6};
  const std::int32_t ids[] = {1, 2};
  fit::write_safetensors(
      folder / "whole",
      std::vector<fit::SafetensorsEntry>{{"a", DType::F32, {2, 3}, values}, {"b", DType::I32, {2}, ids}},
      {{"kind", "test"}});
  const std::string whole = read_bytes(folder / "whole");
  const std::string data = data_of(fit::SafetensorsFile(folder / "whole"));
  REQUIRE(data.size() == 32);
  const std::size_t header_end = whole.size() - data.size();

  Index refused = 0, accepted = 0;
  for (std::size_t at = 0; at < header_end; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      write_bytes(folder / "damaged", damaged);
      try {
        const fit::SafetensorsFile file(folder / "damaged");
        CHECK(data_of(file) == data);
        ++accepted;
      } catch (const fit::Error& error) {
        CHECK(test::contains(error.what(), "damaged: "));
        ++refused;
      }
    }
  }
  // A flipped letter of a name or of the metadata is not to be seen; most of the rest is.
  CHECK(refused > 5 * accepted);

  Index cut = 0;
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_bytes(folder / "cut", std::string_view(whole).substr(0, length));
    cut += test::contains(test::error_of([&] { fit::SafetensorsFile{folder / "cut"}; }), "cut: ");
  }
  CHECK(cut == static_cast<Index>(whole.size()));
  write_bytes(folder / "long", whole + '\0');
  CHECK(test::contains(test::error_of([&] { fit::SafetensorsFile{folder / "long"}; }),
                       "cover 32 bytes, but the file has 33"));
}

TEST_CASE("malformed files are refused with a reason", "[safetensors]") {
  const test::TemporaryFolder folder;
  const auto message = [&](const std::string& bytes) {
    write_bytes(folder / "bad", bytes);
    const std::string text = test::error_of([&] { fit::SafetensorsFile{folder / "bad"}; });
    CHECK(text.find((folder / "bad").string()) == 0);
    return text;
  };

  SECTION("headers") {
    struct Case {
      std::string header;
      std::size_t data;
      const char* expected;
    };
    const std::string good = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
    const Case cases[] = {
        {"", 0, "does not begin with an object"},
        {"[]", 0, "does not begin with an object"},
        {" {}", 0, "does not begin with an object"},
        {"\xef\xbb\xbf{}", 0, "does not begin with an object"},
        {"{", 0, "broken JSON at byte"},
        {"{}}", 0, "broken JSON at byte"},
        {"{} {}", 0, "broken JSON at byte"},
        {"{" + good + ",}", 8, "broken JSON at byte"},
        {"{/* a */}", 0, "broken JSON at byte"},
        {std::string("{}\0x", 4), 0, "zero byte"},
        {"{\"a\xff\":{}}", 0, "ill-formed UTF-8"},
        {"{\"\xed\xa0\x80\":{}}", 0, "ill-formed UTF-8"},
        {R"({"\ud800":{}})", 0, "broken JSON"},
        {R"({"a":[1]})", 0, "tensor \"a\": expected an object, found an array"},
        {R"({"a":null})", 0, "tensor \"a\": expected an object, found null"},
        {R"({"a":{}})", 0, "tensor \"a\": dtype is missing"},
        {R"({"a":{"dtype":"F32"}})", 0, "shape is missing"},
        {R"({"a":{"dtype":"F32","shape":[]}})", 4, "data_offsets are missing"},
        {R"({"a":{"dtype":7,"shape":[],"data_offsets":[0,4]}})", 4, "dtype: expected a string, found the number 7"},
        {R"({"a":{"dtype":["F32"],"shape":[],"data_offsets":[0,4]}})", 4, "dtype: expected a string, found an array"},
        {R"({"a":{"dtype":"F31","shape":[],"data_offsets":[0,4]}})", 4, "unknown dtype \"F31\""},
        {R"({"a":{"dtype":"f32","shape":[],"data_offsets":[0,4]}})", 4, "unknown dtype \"f32\""},
        {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8, "shape: expected an array"},
        {R"({"a":{"dtype":"F32","shape":"2","data_offsets":[0,8]}})", 8, "shape: expected an array"},
        {R"({"a":{"dtype":"F32","shape":{"2":2},"data_offsets":[0,8]}})", 8, "found an object"},
        {R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8, "shape: expected whole numbers"},
        {R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", 8, "found the string \"2\""},
        {R"({"a":{"dtype":"F32","shape":[true],"data_offsets":[0,8]}})", 8, "found a boolean"},
        {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "the negative number -2"},
        {R"({"a":{"dtype":"F32","shape":[-9223372036854775808],"data_offsets":[0,8]}})", 8, "the negative number"},
        {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "not whole or too large, \"2.0\""},
        {R"({"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}})", 8, "not whole or too large"},
        {R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}})", 8, "not whole or too large"},
        {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})", 8, "the number is too large"},
        {R"({"a":{"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,8]}})", 8, "can be counted"},
        {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}})", 8, "can be counted"},
        {R"({"a":{"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]}})", 8, "can be counted"},
        {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "takes 12 bytes of F32, the offsets span 8"},
        {R"({"a":{"dtype":"F64","shape":[2],"data_offsets":[0,8]}})", 8, "takes 16 bytes of F64, the offsets span 8"},
        {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,8]}})", 8, "takes 0 bytes"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8]}})", 8, "must be 2 numbers, not 1"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}})", 8, "must be 2 numbers, not 3"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "ends at 0, before its begin 8"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", 8, "the negative number -8"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8, "unknown field \"x\""},
        {R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "\"dtype\" is there twice"},
        {"{" + good + "," + good + "}", 8, "names the tensor \"a\" twice"},
        {"{" + good + R"(,"\u0061":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}})", 8, "the tensor \"a\" twice"},
        {"{" + good + "}", 7, "outside of the file's 7 bytes"},
        {"{" + good + "}", 9, "cover 8 bytes, but the file has 9"},
        {"{}", 1, "cover 0 bytes, but the file has 1"},
        {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "a hole in the data before it, from 0 to 4"},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16, "from 8 to 12"},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "\"b\": the data overlap"},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "overlap"},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})", 8, "overlap"},
        {R"({"a":{"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]}})", 8, "outside"},
        {R"({"__metadata__":1})", 0, "expected an object, found the number 1"},
        {R"({"__metadata__":{"a":1}})", 0, "the metadata's \"a\": expected a string, found the number 1"},
        {R"({"__metadata__":{"a":["b"]}})", 0, "the metadata's \"a\": expected a string, found an array"},
        {R"({"__metadata__":{"a":{}}})", 0, "found an object"},
        {R"({"__metadata__":{"a":null}})", 0, "found null"},
        {R"({"__metadata__":{"a":"b","a":"c"}})", 0, "the metadata has \"a\" twice"},
        {R"({"__metadata__":{},"__metadata__":{}})", 0, "\"__metadata__\" twice"},
        {R"({"a":)" + std::string(100000, '['), 0, "found an array"},
    };
    for (const Case& c : cases) {
      INFO(c.header.substr(0, 200));
      const std::string text = message(file_of(c.header, c.data));
      INFO(text);
      CHECK(test::contains(text, c.expected));
    }
  }

  SECTION("good ones") {
    for (const char* header : {"{}", "{}   ", R"({"__metadata__":{}})",
                               R"({"a":{"data_offsets":[0,0],"shape":[0,99999999999],"dtype":"F32"}})"}) {
      INFO(header);
      write_bytes(folder / "good", file_of(header, 0));
      CHECK(test::error_of([&] { fit::SafetensorsFile{folder / "good"}; }) == "(no error)");
    }
  }

  SECTION("lengths") {
    const auto claim = [](std::uint64_t length, const std::string& rest) {
      std::string bytes = file_of("", 0) + rest;
      std::memcpy(bytes.data(), &length, 8);
      return bytes;
    };
    CHECK(test::contains(message(""), "the file is empty"));
    CHECK(test::contains(message("1234567"), "7 bytes cannot hold the header's length"));
    CHECK(test::contains(message(claim(3, "{}")), "length, 3 bytes, is more than the file has after it, 2"));
    CHECK(test::contains(message(claim(100'000'000, "{}")), "is more than the file has after it, 2"));
    for (const std::uint64_t length : {std::uint64_t{100'000'001}, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
      CHECK(test::contains(message(claim(length, "{}")), "is over the limit of 100000000"));
    }
  }

  SECTION("no such file") {
    CHECK(test::contains(test::error_of([&] { fit::SafetensorsFile{folder / "none"}; }), "none: no such file"));
    CHECK(test::contains(test::error_of([&] { fit::SafetensorsFile{folder / "."}; }), "not a regular file"));
    CHECK(test::contains(test::error_of([&] { fit::SafetensorsFile{""}; }), "no such file"));
  }
}

TEST_CASE("a failed write changes nothing", "[safetensors]") {
  const test::TemporaryFolder folder;
  const std::vector<float> values(100000, 1.0f);
  const fit::SafetensorsEntry entry{"a", DType::F32, {2}, values.data()};
  const auto message = [&](const std::filesystem::path& path, std::vector<fit::SafetensorsEntry> entries,
                           const fit::Metadata& metadata = {}) {
    const std::string text = test::error_of([&] { fit::write_safetensors(path, entries, metadata); });
    CHECK(text.find(path.string()) == 0);
    return text;
  };
  fit::write_safetensors(folder / "old", std::vector<fit::SafetensorsEntry>{entry});
  const std::string old = read_bytes(folder / "old");
  const auto old_survives = [&] { return read_bytes(folder / "old") == old && folder.files() == 1; };

  SECTION("wrong tensors") {
    const auto huge = std::numeric_limits<Index>::max();
    CHECK(test::contains(message(folder / "old", {entry, entry}), "two tensors are named \"a\""));
    CHECK(
        test::contains(message(folder / "old", {{"a", DType::F32, {-1}, values.data()}}), "dimension is negative: -1"));
    CHECK(test::contains(message(folder / "old", {{"a", DType::F32, {huge}, values.data()}}), "can be counted"));
    CHECK(test::contains(message(folder / "old", {{"c", DType::U8, {huge}, values.data()}, entry}), "too large"));
    CHECK(test::contains(message(folder / "old", {{"a", DType::F32, {1}, nullptr}}), "has no data"));
    CHECK(test::contains(message(folder / "old", {{"\xff", DType::F32, {2}, values.data()}}), "is not UTF-8"));
    CHECK(
        test::contains(message(folder / "old", {{"__metadata__", DType::F32, {2}, values.data()}}), "cannot be named"));
    CHECK(test::contains(message(folder / "old", {entry}, {{"a", "\xc3"}}), "is not UTF-8"));
    CHECK(old_survives());
  }

  SECTION("places that cannot be written") {
    CHECK(test::contains(message(folder / "none/x", {entry}), "No such file or directory"));
    CHECK(test::contains(message(folder / "old/x", {entry}), "cannot"));
    CHECK(test::contains(message(folder / ".", {entry}), "not a regular file"));
    CHECK(test::contains(message("", {entry}), "no file name"));
    if (std::filesystem::exists("/dev/null")) {
      CHECK(test::contains(message("/dev/null", {entry}), "not a regular file"));
      CHECK(std::filesystem::is_character_file("/dev/null"));
    }
    CHECK(old_survives());
  }

#if __has_include(<sys/resource.h>)
  SECTION("a full disk") {
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{4096, before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
    const std::string text = message(folder / "old", {{"a", DType::F32, {100000}, values.data()}});
    const std::string text_small = message(folder / "old", {{"a", DType::F32, {1500}, values.data()}});
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    std::signal(SIGXFSZ, handler);
    CHECK(test::contains(text, "cannot write: File too large"));
    CHECK(test::contains(text_small, "cannot write: File too large"));
    CHECK(old_survives());
  }
#endif

  SECTION("a file given up") {
    {
      fit::AtomicFile file(folder / "old");
      file.write("new", 3);
      CHECK(folder.files() == 2);
      CHECK(read_bytes(folder / "old") == old);
    }
    CHECK(old_survives());
  }

  SECTION("and a good one replaces the old") {
    fit::write_safetensors(folder / "old",
                           std::vector<fit::SafetensorsEntry>{{"b", DType::F32, {100000}, values.data()}});
    const fit::SafetensorsFile file(folder / "old");
    CHECK(file.tensors().size() == 1);
    std::vector<float> read(100000);
    file.read("b", read.data(), 100000);
    CHECK(read == values);
    CHECK(folder.files() == 1);
  }
}
