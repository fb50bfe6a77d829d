#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <fit/generation/generator.hpp>
#include <fit/io/checkpoint.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

/// The decoder's configuration, with the number of groups that the caches are for.
template <class Decoder>
Metadata generator_metadata(const Generator<Decoder>& generator) {
  Metadata metadata = metadata_of<Decoder>();
  metadata["config.groups"] = std::to_string(generator.groups());
  return metadata;
}

}  // namespace detail

/// Writes a generator's sequences and the rows of their caches that are in use, as a safetensors file with the
/// decoder's configuration, but not the decoder. A file at the path is replaced only once the new one is complete.
/// Throws Error when it cannot be written.
template <class Decoder>
void save(const std::filesystem::path& path, const Generator<Decoder>& generator) {
  using T = typename Decoder::Scalar;
  Metadata metadata = detail::generator_metadata(generator);
  metadata["generator.batch"] = std::to_string(generator.batch());
  metadata["generator.first"] = std::to_string(generator.first());
  std::vector<SafetensorsEntry> entries;
  for (Index s = 0; s < generator.batch(); ++s) {
    const auto& sequence = generator.sequences()[static_cast<std::size_t>(s)];
    const std::string prefix = "sequence." + std::to_string(s) + ".";
    metadata[prefix + "processed"] = std::to_string(sequence.processed);
    metadata[prefix + "finished"] = std::to_string(static_cast<int>(sequence.finished));
    const auto add = [&](const std::string& name, DType dtype, std::vector<Index> shape, const void* data) {
      entries.push_back({prefix + name, dtype, std::move(shape), static_cast<const std::byte*>(data)});
    };
    add("ids", DType::I32, {static_cast<Index>(sequence.ids.size())}, sequence.ids.data());
    add("logits", dtype_of<T>(), {sequence.logits.size()}, sequence.logits.data());
    const auto& shapes = sequence.layout->shapes;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      add(shapes[i].name, dtype_of<T>(), {sequence.rows_in_use(i), shapes[i].width}, sequence.cache(i));
    }
  }
  write_safetensors(path, entries, metadata);
}

/// Reads what save() wrote into a generator of the same configuration and batch, which then goes on to the bit where
/// the saved one was, given the same decoder. Throws Error for another file, the generator left as it was.
template <class Decoder>
void load(const std::filesystem::path& path, Generator<Decoder>& generator) {
  using T = typename Decoder::Scalar;
  const SafetensorsFile file(path);
  for (const auto& [key, value] : detail::generator_metadata(generator)) {
    const auto found = file.metadata().find(key);
    require(found != file.metadata().end() && found->second == value, path.string(), ": ", key, " must be ",
            detail::printable(value), found == file.metadata().end() ? ", and is missing" : ", not ",
            found == file.metadata().end() ? "" : detail::printable(found->second));
  }
  const auto batch = detail::number_in<Index>(file, "generator.batch");
  const Index first =
      file.metadata().contains("generator.first") ? detail::number_in<Index>(file, "generator.first") : 0;
  require(first >= 0, path.string(), ": generator.first must not be negative, but is ", first);
  require(batch == generator.batch(), path.string(), " holds ", batch, " sequences, the generator ", generator.batch());
  std::vector<CachedSequence<T>> sequences;
  for (Index s = 0; s < batch; ++s) {
    auto& sequence = sequences.emplace_back(generator.sequences()[0].layout);
    const std::string prefix = "sequence." + std::to_string(s) + ".";
    sequence.processed = detail::number_in<Index>(file, prefix + "processed");
    sequence.finished = detail::number_in<int>(file, prefix + "finished") != 0;
    const Index count = file.info(prefix + "ids").size();
    require(CachedSequence<T>::may_have(count, sequence.processed, sequence.finished, generator.length()),
            path.string(), ": ", prefix, "processed, ", sequence.processed, ", does not go with ", count, " ids");
    sequence.ids.resize(static_cast<std::size_t>(count));
    file.read(prefix + "ids", sequence.ids.data(), count);
    for (const std::int32_t id : sequence.ids) {
      require(id >= 0 && id < Decoder::config.vocabulary, path.string(), ": ", prefix, "ids must be in 0 .. ",
              Decoder::config.vocabulary - 1, ", not ", id);
    }
    const auto read = [&](const std::string& name, const std::vector<Index>& shape, T* to) {
      const TensorInfo& info = file.info(prefix + name);
      require(info.dtype == dtype_of<T>() && info.shape == shape, path.string(), ": ", prefix, name, " must be ",
              name_of(dtype_of<T>()), " ", shape_text(shape), ", not ", name_of(info.dtype), " ",
              shape_text(info.shape));
      file.read(prefix + name, to, info.size());
    };
    read("logits", {sequence.logits.size()}, sequence.logits.data());
    const auto& shapes = sequence.layout->shapes;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      read(shapes[i].name, {sequence.rows_in_use(i), shapes[i].width}, sequence.cache(i));
    }
  }
  generator.restore(std::move(sequences));
  generator.count_from(first);
}

}  // namespace FIT_ABI
}  // namespace fit
