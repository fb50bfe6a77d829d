#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include <fit/generation/cache.hpp>
#include <fit/models/autoregressive_decoder.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {

/// An AutoregressiveDecoder run position by position over the caches of sequences: says which rows go through which
/// layer together, and which caches they see. Copies share the decoder and the executor, but no memory.
template <class Decoder>
class CachedDecoder {
 public:
  using T = typename Decoder::Scalar;
  using Sequence = CachedSequence<T>;

  CachedDecoder(const Decoder& decoder, Executor& executor) : decoder_(&decoder), tape_(executor) {}
  CachedDecoder(const CachedDecoder& other) : CachedDecoder(*other.decoder_, other.tape_.executor()) {}
  CachedDecoder& operator=(const CachedDecoder& other) {
    decoder_ = other.decoder_;
    tape_ = Tape(other.tape_.executor());
    return *this;
  }

  /// What the writes of the first group see: zeros, normalised and mapped as latents would be. Codes of data tokens'
  /// positions are made here where there are none yet, and not with the first ids.
  void begin(Sequence& sequence) {
    tape_.clear();
    const Arena::Scope scope(tape_.arena());
    const std::int32_t first = 0;
    decoder_->step_ids(&first, 0, tape_.scratch<T>(data_dim), 1, tape_);
    const T* none = zeros<T>(latents * config.latent_dim, tape_);
    for (std::size_t i = 0; plan[i].writes; ++i) {
      const std::size_t cache = sequence.layout->stages[i].written;
      write_context(i, none, sequence.cache(cache), sequence.cache(cache + 1));
    }
  }

  /// Lets all positions through whose ids are known, and the next one, whose logits are wanted: a group at a time, and
  /// together those of which one position is left.
  void catch_up(std::span<Sequence> sequences) {
    runs_.clear();
    for (Sequence& sequence : sequences) {
      Index left = 0;
      while (!sequence.finished && (left = static_cast<Index>(sequence.ids.size()) + 1 - sequence.processed) > 1) {
        const Run run{&sequence, std::min<Index>(left, config.tokens - sequence.processed % config.tokens)};
        process(std::span(&run, 1));
      }
      if (!sequence.finished && left > 0) runs_.push_back({&sequence, 1});
    }
    if (!runs_.empty()) process(runs_);
  }

 private:
  static constexpr AutoregressiveConfig config = Decoder::config;
  static constexpr Plan plan = plan_of(config.layers);
  static constexpr Index data_dim = config.data_dim, latents = config.latents;
  static constexpr nn::ProductKernel<T> few = kernels::multiply_few_rows<T>, many = kernels::multiply<T>;
  static constexpr nn::StepKernels<T> latent_kernels{.multiply = latents <= 16 ? few : many};

  /// Consecutive positions of a sequence that go through the model together.
  struct Run {
    Sequence* sequence;
    Index rows;

    Index slot() const { return sequence->processed % config.tokens; }
  };

  /// One position each of several sequences, or positions of a group of one sequence.
  void process(std::span<const Run> runs) {
    tape_.clear();
    Index rows = 0;
    for (const Run& run : runs) rows += run.rows;
    const bool single = rows == static_cast<Index>(runs.size());
    const nn::StepKernels<T> with{.multiply = single ? few : many, .single_queries = single};
    T* x = tape_.scratch<T>(rows * data_dim);  // [rows of each run in turn, data_dim]
    embed(runs, x);
    const auto& stages = decoder_->trunk().stages();
    for (std::size_t i = 0; i < plan.count; ++i) {
      const CacheLayout::Stage& at = runs[0].sequence->layout->stages[i];
      if (i > 0) {
        const std::size_t written = runs[0].sequence->layout->stages[i - 1].written;
        nn::step(*stages[i - 1].write, x, caches(runs, written, [](const Run&) { return latents; }), with, tape_);
      }
      for (std::size_t j = 0; j < stages[i].local.size(); ++j) {
        nn::step(stages[i].local[j], x,
                 caches(runs, at.local + 2 * j, [](const Run& run) { return run.slot() + run.rows; }),
                 kernels::Mask::causal(), with, tape_);
      }
      if (plan[i].writes) keep_tokens(runs, x, at.tokens);
    }
    write_logits(runs, x);
    for (const Run& run : runs) {
      Sequence& sequence = *run.sequence;
      const Index processed = sequence.processed + run.rows;
      const bool last = processed == sequence.layout->sizes.data_rows();
      if (processed % config.tokens == 0 && !last) close_group(sequence, processed / config.tokens - 1);
      sequence.processed = processed;
    }
  }

  /// The runs' caches of a layer, in which they see keys(run) rows.
  template <class Keys>
  std::span<const nn::CachedRows<T>> caches(std::span<const Run> runs, std::size_t cache, Keys&& keys) {
    auto* rows = tape_.scratch<nn::CachedRows<T>>(static_cast<Index>(runs.size()));
    for (std::size_t r = 0; r < runs.size(); ++r) {
      Sequence& sequence = *runs[r].sequence;
      rows[r] = {sequence.cache(cache), sequence.cache(cache + 1), keys(runs[r]), runs[r].rows};
    }
    return {rows, runs.size()};
  }

  /// The id that a position is given is the one before it, and 0 in front.
  void embed(std::span<const Run> runs, T* x) {
    for (const Run& run : runs) {
      const Sequence& sequence = *run.sequence;
      const Index first = sequence.processed;
      auto* given = tape_.scratch<std::int32_t>(run.rows);
      for (Index i = 0; i < run.rows; ++i) {
        given[i] = first + i > 0 ? sequence.ids[static_cast<std::size_t>(first + i - 1)] : 0;
      }
      decoder_->step_ids(given, run.slot(), x, run.rows, tape_);
      x += run.rows * data_dim;
    }
  }

  /// Tokens for the read at the end of their group.
  void keep_tokens(std::span<const Run> runs, const T* x, std::size_t cache) {
    for (const Run& run : runs) {
      std::copy_n(x, run.rows * data_dim, run.sequence->cache(cache) + run.slot() * data_dim);
      x += run.rows * data_dim;
    }
  }

  /// Logits of the last row of each run.
  void write_logits(std::span<const Run> runs, const T* x) {
    const auto count = static_cast<Index>(runs.size());
    T* last = tape_.scratch<T>(count * data_dim);
    T* logits = tape_.scratch<T>(count * config.vocabulary);
    for (Index i = 0; i < count; ++i) {
      x += runs[static_cast<std::size_t>(i)].rows * data_dim;
      std::copy_n(x - data_dim, data_dim, last + i * data_dim);
    }
    decoder_->step_logits(last, logits, count, {.multiply = few}, tape_);
    for (Index i = 0; i < count; ++i) {
      std::copy_n(logits + i * config.vocabulary, config.vocabulary,
                  runs[static_cast<std::size_t>(i)].sequence->logits.data());
    }
  }

  /// The latents of the group that has just ended, for the writes of the next one and the global blocks of all others.
  /// What the writes see changes at the end, when nothing can fail any more: a call that ran out of memory may be made
  /// again, and finds what it found.
  void close_group(Sequence& sequence, Index group) {
    const auto& stages = decoder_->trunk().stages();
    const Arena::Scope scope(tape_.arena());
    T* z = tape_.scratch<T>(latents * config.latent_dim);  // [latents, latent_dim]
    decoder_->step_latents(group, sequence.layout->sizes.groups, z);
    struct Written {
      std::size_t cache;
      Index size;
      const T *keys, *values;
    };
    std::array<Written, plan.count> written;
    std::size_t count = 0;
    for (std::size_t i = 0; plan[i].writes; ++i) {
      const CacheLayout::Stage& at = sequence.layout->stages[i];
      nn::forward<T>(*stages[i].read, z, sequence.cache(at.tokens), {1, latents, config.tokens}, tape_);
      for (std::size_t j = 0; j < stages[i].global.size(); ++j) {
        const std::size_t cache = at.global + 2 * j;
        const nn::CachedRows<T> rows{sequence.cache(cache), sequence.cache(cache + 1), (group + 1) * latents, latents};
        nn::step(stages[i].global[j], z, std::span(&rows, 1), kernels::Mask::none(), latent_kernels, tape_);
      }
      const Index size = latents * sequence.layout->shapes[at.written].width;
      T *keys = tape_.scratch<T>(size), *values = tape_.scratch<T>(size);
      write_context(i, z, keys, values);
      written[count++] = {at.written, size, keys, values};
    }
    for (const Written& w : std::span(written).first(count)) {
      std::copy_n(w.keys, w.size, sequence.cache(w.cache));
      std::copy_n(w.values, w.size, sequence.cache(w.cache + 1));
    }
  }

  /// What the write of a stage sees of latents.
  void write_context(std::size_t stage, const T* z, T* keys, T* values) {
    nn::step_context(*decoder_->trunk().stages()[stage].write, z, keys, values, latents, latent_kernels, tape_);
  }

  const Decoder* decoder_;
  Tape tape_;
  std::vector<Run> runs_;
};

}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
