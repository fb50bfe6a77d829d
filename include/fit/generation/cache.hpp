#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fit/core/memory.hpp>
#include <fit/models/config.hpp>

namespace fit {
inline namespace FIT_ABI {

/// One array of a sequence's cache, [rows, width].
struct CacheShape {
  /// How many rows are in use: one for each token of the group, all, or `latents` for each group before this one.
  enum Kind { group, whole, earlier };

  std::string name;
  Kind kind;
  Index width, rows, offset;
};

/// The arrays of a sequence's cache and where they are: by stage, the first of each sort.
///
/// Keys and values of local blocks for the tokens of one group, the tokens that read will see, keys and values of
/// write for the latents of the group before, and keys and values of global blocks for the latents of all groups.
class CacheLayout {
 public:
  struct Stage {
    std::size_t local = 0, tokens = 0, written = 0, global = 0;
  };

  explicit CacheLayout(const AutoregressiveConfig& c) : config(c), sizes{1, c.groups, c.tokens, c.latents} {
    const Plan plan = plan_of(c.layers);
    const detail::TrunkConfig trunk = detail::trunk_of(c);
    for (std::size_t i = 0; i < plan.count; ++i) {
      const std::string name = "stages." + std::to_string(i) + ".";
      Stage at{.local = shapes.size()};
      for (int j = 0; j < plan[i].local_blocks; ++j) {
        add_pair(name + "local." + std::to_string(j), CacheShape::group, trunk.data_key_dim(), c.tokens);
      }
      if (plan[i].writes) {
        at.tokens = shapes.size();
        add(name + "tokens", CacheShape::group, c.data_dim, c.tokens);
        at.written = shapes.size();
        add_pair(name + "write", CacheShape::whole, trunk.cross_dim(), c.latents);
        at.global = shapes.size();
        for (int j = 0; j < plan[i].global_blocks; ++j) {
          add_pair(name + "global." + std::to_string(j), CacheShape::earlier, trunk.latent_key_dim(),
                   sizes.latent_rows());
        }
      }
      stages.push_back(at);
    }
  }

  AutoregressiveConfig config;
  Sizes sizes;
  std::vector<CacheShape> shapes;
  std::vector<Stage> stages;
  Index size = 0;  ///< elements

 private:
  void add(std::string name, CacheShape::Kind kind, Index width, Index rows) {
    constexpr Index unit = Index{alignment} / Index{sizeof(float)}, most = std::numeric_limits<Index>::max() / 16;
    require(rows <= most / std::max<Index>(1, width) && size <= most - width * rows, "caches of ", rows,
            " rows cannot be counted");
    shapes.push_back({std::move(name), kind, width, rows, size});
    size += (width * rows + unit - 1) / unit * unit;
  }
  void add_pair(const std::string& name, CacheShape::Kind kind, Index width, Index rows) {
    add(name + ".keys", kind, width, rows);
    add(name + ".values", kind, width, rows);
  }
};

/// One sequence: its ids, how many positions have gone through the model, and what they left. A copy copies the rows in
/// use. As the id at a position is predicted from those before it, position 0 needs none.
template <class T>
struct CachedSequence {
  std::shared_ptr<const CacheLayout> layout;
  std::vector<std::int32_t> ids;
  Index processed = 0;
  bool finished = false;
  Buffer<T> logits;  ///< [V], of the last position that was processed
  Buffer<T> memory;

  explicit CachedSequence(std::shared_ptr<const CacheLayout> of)
      : layout(std::move(of)), logits(layout->config.vocabulary), memory(Buffer<T>::uninitialised(layout->size)) {}
  CachedSequence(CachedSequence&&) noexcept = default;
  CachedSequence& operator=(CachedSequence&&) noexcept = default;
  CachedSequence(const CachedSequence& other) : CachedSequence(other.layout) {
    ids = other.ids;
    processed = other.processed;
    finished = other.finished;
    logits = other.logits;
    for (std::size_t i = 0; i < layout->shapes.size(); ++i) {
      std::copy_n(other.cache(i), other.rows_in_use(i) * layout->shapes[i].width, cache(i));
    }
  }
  CachedSequence& operator=(const CachedSequence& other) { return *this = CachedSequence(other); }

  /// Whether a sequence may have so many ids, and positions that were processed, of a model's `length`.
  static bool may_have(Index ids, Index processed, bool finished, Index length) {
    return ids <= length && processed >= 0 && processed <= std::min(ids + 1, length) && (ids < length || finished);
  }

  T* cache(std::size_t i) { return memory.data() + layout->shapes[i].offset; }
  const T* cache(std::size_t i) const { return memory.data() + layout->shapes[i].offset; }
  Index rows_in_use(std::size_t i) const {
    const CacheShape& shape = layout->shapes[i];
    const Sizes& sizes = layout->sizes;
    if (shape.kind == CacheShape::whole) return shape.rows;
    if (shape.kind == CacheShape::group) return processed % sizes.tokens;
    return std::min(processed / sizes.tokens, sizes.groups - 1) * sizes.latents;
  }
};

}  // namespace FIT_ABI
}  // namespace fit
