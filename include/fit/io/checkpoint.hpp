#pragma once

#include <charconv>
#include <string>
#include <vector>

#include <fit/core/parameter.hpp>
#include <fit/core/tensor.hpp>
#include <fit/io/safetensors.hpp>
#include <fit/models/config.hpp>
#include <fit/training/state.hpp>

namespace fit::inline FIT_ABI {

namespace detail {

/// The metadata that go with a model: its configuration, one entry a field, "config.layers" and so on.
template <class Model>
Metadata metadata_of() {
  Metadata metadata;
  if constexpr (requires { Model::configuration; }) {
    for (const auto& [field, value] : fields_of(Model::configuration)) metadata["config." + field] = value;
  }
  return metadata;
}

template <class T>
constexpr DType dtype_of() {
  return std::is_same_v<std::remove_const_t<T>, float> ? DType::F32 : DType::F64;
}

template <class Model>
void write_model(const std::filesystem::path& path, const Model& model, const Metadata& metadata) {
  std::vector<SafetensorsEntry> entries;
  for_each_parameter(
      [&](const ParameterName& name, auto parameter) {
        entries.push_back({name.text(), dtype_of<std::remove_pointer_t<decltype(parameter.data)>>(),
                           std::vector<Index>(parameter.shape.begin(), parameter.shape.end()),
                           reinterpret_cast<const std::byte*>(parameter.data)});
      },
      model);
  write_safetensors(path, entries, metadata);
}

/// Every way in which a file is not what a model needs, a line each.
template <class Model>
std::string differences(const SafetensorsFile& file, const Model& model, const Metadata& expected) {
  std::string text;
  for (const auto& [key, value] : expected) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end() || found->second == value) continue;
    text += concatenate("\n  ", key, ": expected ", printable(value), ", the file says ", printable(found->second));
  }
  std::map<std::string, bool, std::less<>> known;
  for_each_parameter(
      [&](const ParameterName& at, auto parameter) {
        const std::string name = at.text();
        known[name] = true;
        if (!file.contains(name)) {
          text += concatenate("\n  missing: ", name, " ", shape_text(parameter.shape));
          return;
        }
        const TensorInfo& info = file.info(name);
        if (!std::equal(info.shape.begin(), info.shape.end(), parameter.shape.begin(), parameter.shape.end())) {
          text += concatenate("\n  ", name, ": expected the shape ", shape_text(parameter.shape), ", the file has ",
                              shape_text(info.shape));
        }
        const bool real = info.dtype == DType::F64 || info.dtype == DType::F32 || info.dtype == DType::F16 ||
                          info.dtype == DType::BF16;
        if (!real) text += concatenate("\n  ", name, ": expected floating point, the file has ", name_of(info.dtype));
      },
      model);
  for (const auto& [name, info] : file.tensors()) {
    if (!known.contains(name)) text += concatenate("\n  unexpected: ", printable(name), " ", shape_text(info.shape));
  }
  return text;
}

template <class Model>
void read_model(const SafetensorsFile& file, Model& model, const Metadata& expected) {
  const std::string wrong = differences(file, model, expected);
  require(wrong.empty(), file.path().string(), " does not hold this model:", wrong);
  for_each_parameter(
      [&](const ParameterName& name, auto parameter) { file.read(name.text(), parameter.data, parameter.size); },
      model);
}

/// A whole number of the metadata.
template <class Number>
Number number_in(const SafetensorsFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  require(found != file.metadata().end(), file.path().string(), ": the metadata lack ", key);
  Number value{};
  const std::string& text = found->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size(), file.path().string(), ": ", key,
          " must be a whole number, not ", printable(text));
  return value;
}

}  // namespace detail

/// Writes a model, or any object that for_each_parameter walks, as a safetensors file: names of the visitor, row-major,
/// the configuration in the metadata. A file at the path is replaced only once the new one is complete.
/// Throws Error when it cannot be written.
template <class Model>
void save(const std::filesystem::path& path, const Model& model) {
  detail::write_model(path, model, detail::metadata_of<Model>());
}

/// Reads a model from a safetensors file of F64, F32, F16 or BF16, which must hold exactly its parameters and, where
/// its metadata tell of one, its configuration. Throws Error that lists every difference, the model left as it was.
template <class Model>
void load(const std::filesystem::path& path, Model& model) {
  detail::read_model(SafetensorsFile(path), model, detail::metadata_of<Model>());
}

/// The same for the state of a training run, steps and random numbers included.
template <class Model>
void save(const std::filesystem::path& path, const TrainingState<Model>& state) {
  Metadata metadata = detail::metadata_of<Model>();
  metadata["state.step"] = std::to_string(state.step);
  metadata["state.optimizer_steps"] = std::to_string(state.optimizer.steps);
  metadata["state.random_key"] = std::to_string(state.random.key());
  metadata["state.random_counter"] = std::to_string(state.random.counter());
  detail::write_model(path, state, metadata);
}
template <class Model>
void load(const std::filesystem::path& path, TrainingState<Model>& state) {
  const SafetensorsFile file(path);
  const auto step = detail::number_in<Index>(file, "state.step");
  const auto optimizer_steps = detail::number_in<Index>(file, "state.optimizer_steps");
  const auto key = detail::number_in<std::uint64_t>(file, "state.random_key");
  const auto counter = detail::number_in<std::uint64_t>(file, "state.random_counter");
  require(step >= 0 && optimizer_steps >= 0, path.string(), ": the steps of a training state must not be negative");
  detail::read_model(file, state, detail::metadata_of<Model>());
  state.step = step;
  state.optimizer.steps = optimizer_steps;
  state.random = Random(key, counter);
}

}  // namespace fit::inline FIT_ABI
