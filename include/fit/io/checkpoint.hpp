#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <fit/core/parameter.hpp>
#include <fit/core/tensor.hpp>
#include <fit/io/safetensors.hpp>
#include <fit/models/config.hpp>
#include <fit/training/state.hpp>

namespace fit {
inline namespace FIT_ABI {

/// What a file gets beside a model.
struct SaveOptions {
  /// Their names must begin with "extra."; SafetensorsFile reads them.
  std::vector<SafetensorsEntry> tensors = {};
  /// The keys must not begin with "config." or "state.".
  Metadata metadata = {};
};

struct LoadOptions {
  /// Take parameters that are infinite or not a number, as of a run that has gone astray.
  bool allow_non_finite = false;
};

namespace detail {

inline constexpr std::string_view extra_prefix = "extra.";

/// One entry a field, "config.layers" and so on.
template <class Config>
Metadata metadata_of_config(const Config& config) {
  Metadata metadata;
  for (const auto& [field, value] : fields_of(config)) metadata["config." + field] = value;
  return metadata;
}
/// The metadata that go with a model: its configuration, or that of defaults.
template <class Model>
Metadata metadata_of(bool defaults = false) {
  if constexpr (requires { Model::config; }) {
    using Config = std::remove_const_t<decltype(Model::config)>;
    return metadata_of_config(defaults ? Config{} : Model::config);
  }
  return {};
}

/// Adds the parameters of a model to those of a file, their names behind a prefix.
template <class List>
void add_entries(const std::string& prefix, const List& parameters, std::vector<SafetensorsEntry>& entries) {
  parameters.for_each([&](const ParameterName& name, auto parameter) {
    entries.push_back({prefix + name.text(), dtype_of<std::remove_cvref_t<decltype(*parameter.data)>>(),
                       std::vector<Index>(parameter.shape.begin(), parameter.shape.end()), parameter.data});
  });
}

/// Adds what the options have.
inline void add_options(const std::filesystem::path& path, const SaveOptions& options,
                        std::vector<SafetensorsEntry>& entries, Metadata& metadata) {
  for (const auto& [key, value] : options.metadata) {
    require(!key.starts_with("config.") && !key.starts_with("state."), path.string(), ": the metadata's ",
            printable(key), " may not begin with \"config.\" or \"state.\", which are the library's");
    metadata[key] = value;
  }
  for (const SafetensorsEntry& tensor : options.tensors) {
    require(tensor.name.starts_with(extra_prefix), path.string(), ": the name of a tensor beside a model's must begin ",
            "with \"", extra_prefix, "\", not be ", printable(tensor.name));
    entries.push_back(tensor);
  }
}

template <class List>
void write_parameters(const std::filesystem::path& path, const List& parameters, Metadata metadata,
                      const SaveOptions& options) {
  std::vector<SafetensorsEntry> entries;
  add_entries("", parameters, entries);
  add_options(path, options, entries, metadata);
  write_safetensors(path, entries, metadata);
}

/// The metadata of a training state, of whatever kind.
inline void add_state(Index step, Index optimizer_steps, const Random& random, Metadata& metadata) {
  metadata["state.step"] = std::to_string(step);
  metadata["state.optimizer_steps"] = std::to_string(optimizer_steps);
  metadata["state.random_key"] = std::to_string(random.key());
  metadata["state.random_counter"] = std::to_string(random.counter());
}
template <class Model, class State>
Metadata metadata_of_state(const State& state) {
  Metadata metadata = metadata_of<Model>();
  add_state(state.step, state.optimizer.steps, state.random, metadata);
  return metadata;
}

/// What a file has for the parameters of a model, in the visitor's order, null where nothing is wanted or there.
using Sources = std::vector<const TensorInfo*>;

/// Finds the wanted(name) parameters in a file; tells missing(name, shape), and appends to `wrong` a line for each one
/// that cannot be read.
template <class List>
Sources find_sources(const SafetensorsFile& file, const List& parameters, const LoadOptions& options,
                     std::string& wrong, const std::function<bool(std::string_view)>& wanted,
                     const std::function<void(const std::string&, std::span<const Index>)>& missing) {
  Sources sources;
  parameters.for_each([&](const ParameterName& at, auto parameter) {
    using T = std::remove_cvref_t<decltype(*parameter.data)>;
    sources.push_back(nullptr);
    const std::string name = at.text();
    if (!wanted(name)) return;
    const auto found = file.tensors().find(name);
    if (found == file.tensors().end()) return missing(name, parameter.shape);
    const TensorInfo& info = found->second;
    sources.back() = &info;
    const auto add = [&](const auto&... parts) { wrong += concatenate("\n  ", name, ": ", parts...); };
    if (!std::equal(info.shape.begin(), info.shape.end(), parameter.shape.begin(), parameter.shape.end())) {
      add("expected the shape ", shape_text(parameter.shape), ", the file has ", shape_text(info.shape));
    }
    if (!is_floating_point(info.dtype)) {
      add("expected floating point, the file has ", name_of(info.dtype));
    } else if (!options.allow_non_finite && !all_finite(info.dtype, file.bytes(info))) {
      add("holds numbers that are not finite");
    } else if (any_overflows<T>(info.dtype, file.bytes(info))) {
      add("holds numbers that are too large for ", name_of(dtype_of<T>()));
    }
  });
  return sources;
}

/// Cannot fail: all that could be wrong has been looked at before.
template <class List>
void read_sources(const SafetensorsFile& file, const Sources& sources, const List& parameters) {
  auto source = sources.begin();
  parameters.for_each([&](const ParameterName&, auto parameter) {
    if (const TensorInfo* const info = *source++) convert(info->dtype, file.bytes(*info), parameter.data);
  });
}

/// A line for each difference of configurations.
inline std::string differences(const Metadata& given, const Metadata& expected, const Metadata& defaults) {
  std::string wrong;
  for (const auto& [key, value] : expected) {
    const auto found = given.find(key);
    // A file of ours from before there was such a field.
    const bool older = found == given.end() && given.contains("config.kind");
    if (found == given.end() && !older) continue;
    const std::string& says = older ? defaults.at(key) : found->second;
    if (says == value) continue;
    // No parameter depends on a number of groups that may be any.
    if (key == "config.groups" && (says == "any" || value == "any")) continue;
    wrong += concatenate("\n  ", key, ": expected ", printable(value), ", the file says ", printable(says),
                         older ? " by saying nothing" : "");
  }
  return wrong;
}

/// Reads all parameters, those of a model or of its training state; `wrong` is what is known to be so.
template <class List>
void read_parameters(const SafetensorsFile& file, const List& parameters, const LoadOptions& options,
                     std::string wrong) {
  const Sources sources = find_sources(
      file, parameters, options, wrong, [](std::string_view) { return true; },
      [&](const std::string& name, std::span<const Index> shape) {
        wrong += concatenate("\n  missing: ", name, " ", shape_text(shape));
      });
  const std::set<const TensorInfo*> known(sources.begin(), sources.end());
  for (const auto& [name, info] : file.tensors()) {
    if (known.contains(&info) || name.starts_with(extra_prefix)) continue;
    wrong += concatenate("\n  unexpected: ", printable(name), " ", shape_text(info.shape));
  }
  require(wrong.empty(), file.path().string(), " does not hold this model:", wrong);
  read_sources(file, sources, parameters);
}

/// What load_part() does.
template <class List>
std::vector<std::string> read_part(const std::filesystem::path& path, const List& parameters,
                                   const LoadOptions& options, const std::function<bool(std::string_view)>& wanted) {
  const SafetensorsFile file(path);
  std::string wrong;
  std::vector<std::string> missing;
  bool any_wanted = false;
  const Sources sources = find_sources(
      file, parameters, options, wrong,
      [&](std::string_view name) {
        const bool is_wanted = wanted(name);
        any_wanted = any_wanted || is_wanted;
        return is_wanted;
      },
      [&](const std::string& name, std::span<const Index>) { missing.push_back(name); });
  require(any_wanted, path.string(), ": no parameter of the model is wanted");
  require(wrong.empty(), path.string(), " does not fit the parameters that are wanted:", wrong);
  read_sources(file, sources, parameters);
  return missing;
}

/// Reads the parameters of `model`, a Configured or its training state.
template <class Configured, class Model>
void read_model(const SafetensorsFile& file, Model& model, const LoadOptions& options) {
  read_parameters(file, parameters_of(model), options,
                  differences(file.metadata(), metadata_of<Configured>(), metadata_of<Configured>(true)));
}

/// A number of the metadata.
template <class Number>
Number number_in(const SafetensorsFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  require(found != file.metadata().end(), file.path().string(), ": the metadata lack ", key);
  Number value{};
  const std::string& text = found->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size(), file.path().string(), ": ", key, " must be a ",
          std::is_integral_v<Number> ? "whole " : "", "number, not ", printable(text));
  return value;
}

/// What a file has of a training state besides parameters.
struct SavedState {
  Index step, optimizer_steps;
  Random random;
  bool averaged;

  /// Throws Error for a file of anything else.
  explicit SavedState(const SafetensorsFile& file)
      : step(number_in<Index>(file, "state.step")),
        optimizer_steps(number_in<Index>(file, "state.optimizer_steps")),
        random(number_in<std::uint64_t>(file, "state.random_key"),
               number_in<std::uint64_t>(file, "state.random_counter")),
        averaged(std::any_of(file.tensors().begin(), file.tensors().end(),
                             [](const auto& tensor) { return tensor.first.starts_with("average."); })) {
    require(step >= 0 && optimizer_steps >= 0, file.path().string(),
            ": the steps of a training state must not be negative");
  }
};

}  // namespace detail

/// Writes a model, or any object that for_each_parameter walks, as a safetensors file: names of the visitor, row-major,
/// the configuration in the metadata, and what the options add:
///
///     fit::save(path, model, {.tensors = {{"extra.mean", fit::DType::F32, {3}, mean}}, .metadata = {{"run", "7"}}});
///
/// A file at the path is replaced only once the new one is complete. Throws Error when it cannot be written.
template <class Model>
void save(const std::filesystem::path& path, const Model& model, const SaveOptions& options = {}) {
  detail::write_parameters(path, detail::parameters_of(model), detail::metadata_of<Model>(), options);
}

/// Reads a model from a safetensors file of F64, F32, F16 or BF16, which must hold exactly its parameters, finite ones,
/// and, where its metadata tell of one, its configuration, but that a number of groups goes with any; tensors whose
/// names begin with "extra." are passed over. Throws Error that lists every difference, the model left as it was.
template <class Model>
void load(const std::filesystem::path& path, Model& model, const LoadOptions& options = {}) {
  detail::read_model<Model>(SafetensorsFile(path), model, options);
}

/// Reads those parameters of a model for whose names `wanted` is true, and returns the names of those that the file
/// does not have. They and all others stay as they are; what else the file has, its configuration too, does not matter:
///
///     const auto fresh = fit::load_part(path, classifier, [](std::string_view n) { return !n.starts_with("head."); });
///
/// Throws Error, the model left as it was, when a shape or a type is another, for numbers that load() refuses, and when
/// no name is wanted.
template <class Model, std::predicate<std::string_view> Wanted>
[[nodiscard]] std::vector<std::string> load_part(const std::filesystem::path& path, Model& model, Wanted&& wanted,
                                                 const LoadOptions& options = {}) {
  return detail::read_part(path, detail::parameters_of(model), options,
                           [&](std::string_view name) -> bool { return wanted(name); });
}

/// save() and load() for the state of a training run, steps and random numbers included. A loaded state has an average
/// where the file has one.
template <class Model>
void save(const std::filesystem::path& path, const TrainingState<Model>& state, const SaveOptions& options = {}) {
  detail::write_parameters(path, detail::parameters_of(state), detail::metadata_of_state<Model>(state), options);
}
template <class Model>
void load(const std::filesystem::path& path, TrainingState<Model>& state, const LoadOptions& options = {}) {
  const SafetensorsFile file(path);
  const detail::SavedState saved(file);
  std::optional<Model> other;
  if (saved.averaged && !state.average) other.emplace();
  const bool changed = saved.averaged != state.average.has_value();
  if (changed) state.average.swap(other);
  try {
    detail::read_model<Model>(file, state, options);
  } catch (...) {
    if (changed) state.average.swap(other);
    throw;
  }
  state.step = saved.step;
  state.optimizer.steps = saved.optimizer_steps;
  state.random = saved.random;
}

}  // namespace FIT_ABI
}  // namespace fit
