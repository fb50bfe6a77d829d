#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <fit/core/memory.hpp>
#include <fit/models/config.hpp>

namespace fit::inline FIT_ABI {

namespace detail {

/// One array of a sequence's cache, [rows, width].
struct CacheShape {
  /// How many rows are in use: one for each token of the group, all, or `latents` for each group before this one.
  enum Kind { group, whole, earlier };

  std::string name;
  Kind kind;
  Index width, rows, offset;
};

/// The arrays of a sequence's cache and where they are: by stage, the first of each sort.
struct CacheLayout {
  struct Stage {
    std::size_t local = 0, tokens = 0, written = 0, global = 0;
  };
  std::vector<CacheShape> shapes;
  std::vector<Stage> stages;
  Index size = 0;

  std::size_t add(std::string name, CacheShape::Kind kind, Index width, Index rows) {
    constexpr Index unit = Index{alignment} / Index{sizeof(float)};
    shapes.push_back({std::move(name), kind, width, rows, size});
    size += (width * rows + unit - 1) / unit * unit;
    return shapes.size() - 1;
  }
};

/// Keys and values of local blocks for the tokens of one group, the tokens that read will see, keys and values of
/// write for the latents of the group before, and keys and values of global blocks for the latents of all groups.
template <AutoregressiveConfig c>
CacheLayout make_cache_layout() {
  constexpr Schedule schedule = parse_layers(c.layers.view());
  CacheLayout layout;
  const auto pair = [&](const std::string& name, CacheShape::Kind kind, Index width, Index rows) {
    const std::size_t first = layout.add(name + ".keys", kind, width, rows);
    layout.add(name + ".values", kind, width, rows);
    return first;
  };
  for (std::size_t i = 0; i < schedule.count; ++i) {
    const auto [local, global] = schedule.stages[i];
    const std::string stage = "stages." + std::to_string(i) + ".";
    CacheLayout::Stage at;
    for (int j = 0; j < local; ++j) {
      const std::size_t first = pair(stage + "local." + std::to_string(j), CacheShape::group, c.data_dim, c.tokens);
      if (j == 0) at.local = first;
    }
    if (i + 1 < schedule.count) {
      at.tokens = layout.add(stage + "tokens", CacheShape::group, c.data_dim, c.tokens);
      at.written = pair(stage + "write", CacheShape::whole, std::min(c.data_dim, c.latent_dim), c.latents);
      for (int j = 0; j < global; ++j) {
        const std::size_t first =
            pair(stage + "global." + std::to_string(j), CacheShape::earlier, c.latent_dim, c.groups * c.latents);
        if (j == 0) at.global = first;
      }
    }
    layout.stages.push_back(at);
  }
  return layout;
}

template <AutoregressiveConfig c>
const CacheLayout& cache_layout() {
  static const CacheLayout layout = make_cache_layout<c>();
  return layout;
}

/// One sequence: its ids, how many positions have gone through the model, and what they left. A copy copies the rows in
/// use. As the id at a position is predicted from those before it, position 0 needs none.
template <class T, AutoregressiveConfig c>
struct CachedSequence {
  std::vector<std::int32_t> ids;
  Index processed = 0;
  bool finished = false;
  Buffer<T> logits{c.vocabulary};  ///< of the last position that was processed
  Buffer<T> memory = Buffer<T>::uninitialised(cache_layout<c>().size);

  CachedSequence() = default;
  CachedSequence(CachedSequence&&) noexcept = default;
  CachedSequence& operator=(CachedSequence&&) noexcept = default;
  CachedSequence(const CachedSequence& other)
      : ids(other.ids), processed(other.processed), finished(other.finished), logits(other.logits) {
    for (std::size_t i = 0; i < cache_layout<c>().shapes.size(); ++i) {
      std::copy_n(other.cache(i), other.rows_in_use(i) * cache_layout<c>().shapes[i].width, cache(i));
    }
  }
  CachedSequence& operator=(const CachedSequence& other) { return *this = CachedSequence(other); }

  T* cache(std::size_t i) { return memory.data() + cache_layout<c>().shapes[i].offset; }
  const T* cache(std::size_t i) const { return memory.data() + cache_layout<c>().shapes[i].offset; }
  Index rows_in_use(std::size_t i) const {
    const CacheShape& shape = cache_layout<c>().shapes[i];
    if (shape.kind == CacheShape::whole) return shape.rows;
    if (shape.kind == CacheShape::group) return processed % c.tokens;
    return std::min<Index>(processed / c.tokens, c.groups - 1) * c.latents;
  }
};

}  // namespace detail

}  // namespace fit::inline FIT_ABI
