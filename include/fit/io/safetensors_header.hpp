#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <fit/io/dtype.hpp>
#include <nlohmann/json.hpp>

namespace fit {
inline namespace FIT_ABI {

/// One tensor of a safetensors file: bytes begin .. end-1 of the file's data, row-major.
struct TensorInfo {
  DType dtype = DType::F32;
  std::vector<Index> shape;
  Index begin = 0, end = 0;

  /// Number of elements.
  Index size() const { return (end - begin) / size_of(dtype); }
};

using TensorInfos = std::map<std::string, TensorInfo, std::less<>>;
using Metadata = std::map<std::string, std::string, std::less<>>;

/// What the JSON at the start of a safetensors file says.
struct SafetensorsHeader {
  TensorInfos tensors;
  Metadata metadata;
};

namespace detail {

inline constexpr std::string_view metadata_name = "__metadata__";
inline constexpr std::size_t header_limit = 100'000'000;  // the format's own

/// Takes a header in as nlohmann's parser reads it. Its depth is fixed, so hostile nesting is refused where it begins.
class HeaderReader {
 public:
  using Json = nlohmann::json;

  SafetensorsHeader header;

  bool null() { return refuse("null"); }
  bool boolean(bool) { return refuse("a boolean"); }
  bool binary(Json::binary_t&) { return refuse("binary data"); }
  bool number_integer(Json::number_integer_t value) { return refuse("the negative number ", value); }
  bool number_float(Json::number_float_t, const std::string& text) {
    return refuse("a number that is not whole or too large, ", printable(text));
  }

  bool number_unsigned(Json::number_unsigned_t value) {
    if (at_ != Place::shape && at_ != Place::offsets) return refuse("the number ", value);
    require(value <= static_cast<Json::number_unsigned_t>(std::numeric_limits<Index>::max()), where(),
            ": the number is too large: ", value);
    (at_ == Place::shape ? info_.shape : offsets_).push_back(static_cast<Index>(value));
    return true;
  }

  bool string(std::string& text) {
    if (at_ == Place::metadata_value) {
      header.metadata.insert_or_assign(field_, text);
      at_ = Place::metadata;
    } else if (at_ == Place::field && field_ == "dtype") {
      set_dtype(text);
      at_ = Place::fields;
    } else {
      refuse("the string ", printable(text));
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (at_ != Place::start && at_ != Place::name) return refuse("an object");
    at_ = at_ == Place::start ? Place::names : name_ == metadata_name ? Place::metadata : Place::fields;
    info_ = {};
    offsets_.clear();
    has_dtype_ = has_shape_ = has_offsets_ = false;
    return true;
  }

  bool key(std::string& text) {
    if (at_ == Place::names) {
      if (text == metadata_name) {
        require(!has_metadata_, "the header has ", printable(text), " twice");
        has_metadata_ = true;
      } else {
        require(!header.tensors.contains(text), "the header names the tensor ", printable(text), " twice");
      }
      name_ = text;
      at_ = Place::name;
    } else if (at_ == Place::metadata) {
      require(!header.metadata.contains(text), "the metadata has ", printable(text), " twice");
      field_ = text;
      at_ = Place::metadata_value;
    } else {
      bool* const has = text == "dtype"          ? &has_dtype_
                        : text == "shape"        ? &has_shape_
                        : text == "data_offsets" ? &has_offsets_
                                                 : nullptr;
      require(has != nullptr, where(), ": unknown field ", printable(text));
      require(!*has, where(), ": the field ", printable(text), " is there twice");
      *has = true;
      field_ = text;
      at_ = Place::field;
    }
    return true;
  }

  bool end_object() {
    if (at_ == Place::fields) {
      finish_tensor();
      at_ = Place::names;
    } else {
      at_ = at_ == Place::metadata ? Place::names : Place::end;
    }
    return true;
  }

  bool start_array(std::size_t) {
    if (at_ != Place::field || field_ == "dtype") return refuse("an array");
    at_ = field_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() {
    at_ = Place::fields;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) {
    throw Error(concatenate("the header is broken JSON at byte ", position, ": ", printable(error.what(), 300)));
  }

 private:
  enum class Place { start, names, name, fields, field, shape, offsets, metadata, metadata_value, end };

  std::string where() const {
    switch (at_) {
      case Place::metadata_value:
        return "the metadata's " + printable(field_);
      case Place::name:
      case Place::fields:
        return (name_ == metadata_name ? "the header's " : "tensor ") + printable(name_);
      default:
        return "tensor " + printable(name_) + ", " + field_;
    }
  }

  std::string expected() const {
    switch (at_) {
      case Place::metadata_value:
        return "a string";
      case Place::shape:
      case Place::offsets:
        return "whole numbers";
      case Place::field:
        return field_ == "dtype" ? "a string" : "an array of whole numbers";
      default:
        return "an object";
    }
  }

  template <class... Parts>
  bool refuse(const Parts&... parts) const {
    throw Error(concatenate(where(), ": expected ", expected(), ", found ", parts...));
  }

  void set_dtype(std::string_view text) {
    for (int i = 0; i <= static_cast<int>(DType::U64); ++i) {
      if (name_of(static_cast<DType>(i)) != text) continue;
      info_.dtype = static_cast<DType>(i);
      return;
    }
    throw Error(concatenate(where(), ": unknown dtype ", printable(text)));
  }

  void finish_tensor() {
    require(has_dtype_, where(), ": dtype is missing");
    require(has_shape_, where(), ": shape is missing");
    require(has_offsets_, where(), ": data_offsets are missing");
    require(offsets_.size() == 2, where(), ": data_offsets must be 2 numbers, not ", offsets_.size());
    info_.begin = offsets_[0];
    info_.end = offsets_[1];
    require(info_.begin <= info_.end, where(), ": the data ends at ", info_.end, ", before its begin ", info_.begin);
    const Index bytes = count_elements(info_.shape, info_.dtype, name_) * size_of(info_.dtype);
    require(bytes == info_.end - info_.begin, where(), ": the shape takes ", bytes, " bytes of ", name_of(info_.dtype),
            ", the offsets span ", info_.end - info_.begin);
    header.tensors.emplace(name_, std::move(info_));
  }

  Place at_ = Place::start;
  std::string name_, field_;
  TensorInfo info_;
  std::vector<Index> offsets_;
  bool has_metadata_ = false, has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
};

}  // namespace detail

/// Reads the JSON header of a safetensors file that has `data_bytes` bytes of data after it. Strict: unknown fields and
/// types, double names, numbers that are not whole, and data that are not covered exactly once are refused. Throws
/// Error.
inline SafetensorsHeader parse_safetensors_header(std::string_view json, Index data_bytes) {
  require(!json.empty() && json.front() == '{', "the header does not begin with an object");
  // nlohmann's parser takes a zero for the end.
  require(json.find('\0') == json.npos, "the header is broken JSON: it holds a zero byte");
  detail::HeaderReader reader;
  // What json::sax_parse() does for JSON; that one would compile the readers of the binary formats along, for as long.
  auto input = nlohmann::detail::input_adapter(json.data(), json.data() + json.size());
  nlohmann::detail::parser<nlohmann::json, decltype(input)>(std::move(input)).sax_parse(&reader);

  std::vector<TensorInfos::const_pointer> order;
  for (const auto& tensor : reader.header.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  Index covered = 0;
  for (const auto* tensor : order) {
    const auto& [name, info] = *tensor;
    require(info.begin >= covered, "tensor ", detail::printable(name), ": the data overlap another tensor's: begin at ",
            info.begin, ", before ", covered);
    require(info.begin == covered, "tensor ", detail::printable(name), ": a hole in the data before it, from ", covered,
            " to ", info.begin);
    require(info.end <= data_bytes, "tensor ", detail::printable(name), ": the data end at ", info.end,
            ", outside of the file's ", data_bytes, " bytes");
    covered = info.end;
  }
  require(covered == data_bytes, "the tensors cover ", covered, " bytes, but the file has ", data_bytes,
          " bytes of data");
  return std::move(reader.header);
}

/// A tensor to be written: row-major elements of `dtype` at `data`, which may be null when the shape holds none.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::F32;
  std::vector<Index> shape;
  const void* data = nullptr;
};

/// The JSON header for the tensors, their data following in the order given, padded with spaces to a multiple of 8
/// bytes. Throws Error when a name comes twice, is not UTF-8 or is "__metadata__", a shape is negative or too large,
/// data are missing, or the header is larger than the format allows.
inline std::string make_safetensors_header(std::span<const SafetensorsEntry> tensors, const Metadata& metadata) {
  const auto json_string = [](const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      throw Error(concatenate("the text ", detail::printable(text), " is not UTF-8"));
    }
  };
  std::string json = "{";  // every part ends with a comma, the last one until it is closed
  const auto close = [&](char last) {
    if (json.back() == ',') json.pop_back();
    json += last;
  };
  if (!metadata.empty()) {
    json += concatenate("\"", detail::metadata_name, "\":{");
    for (const auto& [key, value] : metadata) json += json_string(key) + ':' + json_string(value) + ',';
    close('}');
    json += ',';
  }
  std::set<std::string_view> names;
  Index offset = 0;
  for (const SafetensorsEntry& tensor : tensors) {
    const Index count = detail::count_elements(tensor.shape, tensor.dtype, tensor.name);
    const Index bytes = count * size_of(tensor.dtype);
    require(count == 0 || tensor.data, "tensor ", detail::printable(tensor.name), " has no data");
    require(tensor.name != detail::metadata_name, "a tensor cannot be named ", detail::printable(tensor.name));
    require(names.insert(tensor.name).second, "two tensors are named ", detail::printable(tensor.name));
    require(bytes <= std::numeric_limits<Index>::max() - offset, "the tensors are too large to be counted in bytes");
    json += concatenate(json_string(tensor.name), ":{\"dtype\":\"", name_of(tensor.dtype), "\",\"shape\":[");
    for (const Index size : tensor.shape) json += std::to_string(size) + ',';
    close(']');
    json += concatenate(",\"data_offsets\":[", offset, ",", offset + bytes, "]},");
    offset += bytes;
  }
  close('}');
  json.resize((json.size() + 7) / 8 * 8, ' ');
  require(json.size() <= detail::header_limit, "the header's ", json.size(), " bytes are over the limit of ",
          detail::header_limit);
  return json;
}

}  // namespace FIT_ABI
}  // namespace fit
