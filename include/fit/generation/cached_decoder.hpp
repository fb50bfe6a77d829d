#pragma once

#include <span>
#include <vector>

#include <fit/generation/cache.hpp>
#include <fit/kernels/cached_attention.hpp>
#include <fit/kernels/few_rows.hpp>
#include <fit/models/autoregressive_decoder.hpp>

namespace fit::inline FIT_ABI::detail {

/// An AutoregressiveDecoder run position by position over the caches of sequences. Copies share the decoder and the
/// executor, but no memory.
template <class Decoder>
class CachedDecoder {
 public:
  using T = typename Decoder::T;
  static constexpr AutoregressiveConfig config = Decoder::configuration;
  using Sequence = CachedSequence<T, config>;

  CachedDecoder(const Decoder& decoder, Executor& executor) : decoder_(&decoder), tape_(executor) {}
  CachedDecoder(const CachedDecoder& other) : CachedDecoder(*other.decoder_, other.tape_.executor()) {}
  CachedDecoder& operator=(const CachedDecoder& other) {
    decoder_ = other.decoder_;
    tape_ = Tape(other.tape_.executor());
    return *this;
  }

  /// What the writes of the first group see: zeros, normalised and mapped as latents would be.
  void begin(Sequence& sequence) {
    tape_.clear();
    const auto mark = tape_.arena().mark();
    T* none = allocate(latents * latent_dim);
    std::fill_n(none, latents * latent_dim, T(0));
    for (std::size_t i = 0; i + 1 < decoder_->trunk().stages().size(); ++i) map_written(sequence, i, none);
    tape_.arena().rewind(mark);
  }

  /// Lets all positions through whose ids are known, and the next one, whose logits are wanted: a group at a time, and
  /// the last position of all sequences together.
  void catch_up(std::span<Sequence> sequences) {
    std::vector<Run> runs;
    for (Sequence& sequence : sequences) {
      Index left = 0;
      while (!sequence.finished && (left = static_cast<Index>(sequence.ids.size()) + 1 - sequence.processed) > 1) {
        const Run run{&sequence, std::min<Index>(left, config.tokens - sequence.processed % config.tokens)};
        process(std::span(&run, 1));
      }
      if (!sequence.finished && left > 0) runs.push_back({&sequence, 1});
    }
    if (!runs.empty()) process(runs);
  }

 private:
  using Product = kernels::Product<T>;
  static constexpr Index data_dim = config.data_dim, latent_dim = config.latent_dim, latents = config.latents;
  static constexpr Index length = Index{config.groups} * config.tokens;
  static constexpr bool few_latents = latents <= 16;

  /// Consecutive positions of a sequence that go through the model together.
  struct Run {
    Sequence* sequence;
    Index rows;

    Index slot() const { return sequence->processed % config.tokens; }
  };

  T* allocate(Index count) { return tape_.template scratch<T>(count); }

  /// One position each of several sequences, or positions of a group of one sequence.
  void process(std::span<const Run> runs) {
    tape_.clear();
    Index rows = 0;
    for (const Run& run : runs) rows += run.rows;
    const bool few = rows == static_cast<Index>(runs.size());
    T* x = allocate(rows * data_dim);
    T* row = x;
    for (const Run& run : runs) {
      for (Index position = run.sequence->processed; position < run.sequence->processed + run.rows; ++position) {
        const std::int32_t id = position > 0 ? run.sequence->ids[static_cast<std::size_t>(position - 1)] : 0;
        const T* embedding = decoder_->token_embedding().weight.data() + id * data_dim;
        const T* code = decoder_->data_positions() + position % config.tokens * data_dim;
        for (Index j = 0; j < data_dim; ++j) *row++ = embedding[j] + code[j];
      }
    }
    const auto& stages = decoder_->trunk().stages();
    const auto& layout = cache_layout<config>();
    for (std::size_t i = 0; i < stages.size(); ++i) {
      if (i > 0) write(*stages[i - 1].write, x, rows, runs, few, layout.stages[i - 1].written);
      for (std::size_t j = 0; j < stages[i].local.size(); ++j) {
        const std::size_t cache = layout.stages[i].local + 2 * j;
        run_block(stages[i].local[j], x, rows, few, [&](const T* q, const T* k, const T* v, T* mixed) {
          store(k, runs, cache);
          store(v, runs, cache + 1);
          attend(q, mixed, runs, few, cache, config.data_heads, data_dim,
                 [](const Run& run, Index r) { return run.slot() + r + 1; });
        });
      }
      if (i + 1 < stages.size()) store(x, runs, layout.stages[i].tokens);
    }
    write_logits(x, runs);
    for (const Run& run : runs) {
      const Index processed = run.sequence->processed + run.rows;
      if (processed % config.tokens == 0 && processed < length) {
        close_group(*run.sequence, processed / config.tokens - 1);
      }
      run.sequence->processed = processed;
    }
  }

  void multiply(std::initializer_list<Product> products, bool few) {
    if (few) {
      kernels::multiply_few_rows(products, tape_.executor());
    } else {
      kernels::multiply(products, tape_);
    }
  }

  /// x [rows, Width] through a block whose keys and values `attend` keeps.
  template <int Width, int Heads, int Ratio, class Attend>
  void run_block(const nn::Block<T, Width, Heads, Ratio>& p, T* x, Index rows, bool few, Attend&& attend) {
    const auto mark = tape_.arena().mark();
    T *normed = allocate(rows * Width), *q = allocate(rows * Width), *k = allocate(rows * Width);
    T *v = allocate(rows * Width), *mixed = allocate(rows * Width), *hidden = allocate(rows * Width * Ratio);
    nn::forward(p.attention_norm, static_cast<const T*>(x), normed, rows, tape_);
    const T* input = normed;
    multiply(
        {nn::output_product(p.attention.query, input, q, rows), nn::output_product(p.attention.key, input, k, rows),
         nn::output_product(p.attention.value, input, v, rows)},
        few);
    attend(q, k, v, mixed);
    multiply({added(nn::output_product(p.attention.output, static_cast<const T*>(mixed), x, rows))}, few);
    nn::forward(p.residual_mlp.mlp_norm, static_cast<const T*>(x), normed, rows, tape_);
    auto up = nn::output_product(p.residual_mlp.mlp.fc1, input, hidden, rows);
    up.activation = kernels::Activation::gelu;
    up.activated = hidden;
    multiply({up}, few);
    multiply({added(nn::output_product(p.residual_mlp.mlp.fc2, static_cast<const T*>(hidden), x, rows))}, few);
    tape_.arena().rewind(mark);
  }

  static Product added(Product product) {
    product.finish.accumulate = true;
    return product;
  }

  /// Tokens of a group from the latents of the one before.
  template <class Write>
  void write(const Write& p, T* x, Index rows, std::span<const Run> runs, bool few, std::size_t cache) {
    const auto mark = tape_.arena().mark();
    constexpr Index width = std::min(config.data_dim, config.latent_dim);
    T *normed = allocate(rows * data_dim), *q = allocate(rows * width), *mixed = allocate(rows * width);
    nn::forward(p.query_norm, static_cast<const T*>(x), normed, rows, tape_);
    multiply({nn::output_product(p.attention.query, static_cast<const T*>(normed), q, rows)}, few);
    attend(q, mixed, runs, few, cache, std::min(config.data_heads, config.latent_heads), width,
           [](const Run&, Index) { return latents; });
    multiply({added(nn::output_product(p.attention.output, static_cast<const T*>(mixed), x, rows))}, few);
    tape_.arena().rewind(mark);
  }

  /// Copies rows of each run into a cache of its sequence, at the positions that they have in their group.
  static void store(const T* from, std::span<const Run> runs, std::size_t cache) {
    const Index width = cache_layout<config>().shapes[cache].width;
    for (const Run& run : runs) {
      std::copy_n(from, run.rows * width, run.sequence->cache(cache) + run.slot() * width);
      from += run.rows * width;
    }
  }

  /// Queries of each run over keys and values of its sequence's cache, of which row r sees the first visible(run, r).
  template <class Visible>
  void attend(const T* q, T* mixed, std::span<const Run> runs, bool few, std::size_t cache, Index heads, Index width,
              Visible&& visible) {
    if (!few) {
      const Run& run = runs[0];
      const Index keys = visible(run, run.rows - 1);
      auto mask = kernels::Mask::none();
      if (visible(run, 0) < keys) mask = {.chunk = 1, .offset = run.slot()};
      return kernels::attention<T>({1, run.rows, keys, heads, width / heads, mask},
                                   {q, run.sequence->cache(cache), run.sequence->cache(cache + 1), mixed}, tape_);
    }
    queries_.clear();
    for (const Run& run : runs) {
      queries_.push_back({q, run.sequence->cache(cache), run.sequence->cache(cache + 1), visible(run, 0), mixed});
      q += width;
      mixed += width;
    }
    kernels::cached_attention<T>(queries_, heads, width / heads, tape_);
  }

  /// Logits of the last row of each run.
  void write_logits(const T* x, std::span<const Run> runs) {
    const auto count = static_cast<Index>(runs.size());
    T *last = allocate(count * data_dim), *logits = allocate(count * config.vocabulary);
    for (Index i = 0; i < count; ++i) {
      x += runs[static_cast<std::size_t>(i)].rows * data_dim;
      std::copy_n(x - data_dim, data_dim, last + i * data_dim);
    }
    nn::forward(decoder_->data_norm(), static_cast<const T*>(last), last, count, tape_);
    kernels::multiply_few_rows({decoder_->logits_product(last, logits, count)}, tape_.executor());
    for (Index i = 0; i < count; ++i) {
      std::copy_n(logits + i * config.vocabulary, config.vocabulary,
                  runs[static_cast<std::size_t>(i)].sequence->logits.data());
    }
  }

  void map_written(Sequence& sequence, std::size_t stage, const T* z) {
    const auto& p = *decoder_->trunk().stages()[stage].write;
    const std::size_t cache = cache_layout<config>().stages[stage].written;
    const auto mark = tape_.arena().mark();
    T* normed = allocate(latents * latent_dim);
    nn::forward(p.context_norm, z, normed, latents, tape_);
    const T* input = normed;
    multiply({nn::output_product(p.attention.key, input, sequence.cache(cache), latents),
              nn::output_product(p.attention.value, input, sequence.cache(cache + 1), latents)},
             few_latents);
    tape_.arena().rewind(mark);
  }

  /// The latents of the group that has just ended, for the writes of the next one and the global blocks of all others.
  void close_group(Sequence& sequence, Index group) {
    const auto& stages = decoder_->trunk().stages();
    const auto mark = tape_.arena().mark();
    T* z = allocate(latents * latent_dim);
    std::copy_n(decoder_->latent_positions() + group * latents * latent_dim, latents * latent_dim, z);
    for (std::size_t i = 0; i + 1 < stages.size(); ++i) {
      const auto& at = cache_layout<config>().stages[i];
      nn::forward(*stages[i].read, z, static_cast<const T*>(sequence.cache(at.tokens)), {1, latents, config.tokens, {}},
                  tape_);
      for (std::size_t j = 0; j < stages[i].global.size(); ++j) {
        T *keys = sequence.cache(at.global + 2 * j), *values = sequence.cache(at.global + 2 * j + 1);
        run_block(stages[i].global[j], z, latents, few_latents, [&](const T* q, const T* k, const T* v, T* mixed) {
          std::copy_n(k, latents * latent_dim, keys + group * latents * latent_dim);
          std::copy_n(v, latents * latent_dim, values + group * latents * latent_dim);
          kernels::attention<T>(
              {1, latents, (group + 1) * latents, config.latent_heads, latent_dim / config.latent_heads},
              {q, keys, values, mixed}, tape_);
        });
      }
      map_written(sequence, i, z);
    }
    tape_.arena().rewind(mark);
  }

  const Decoder* decoder_;
  Tape tape_;
  std::vector<kernels::CachedQuery<T>> queries_;
};

}  // namespace fit::inline FIT_ABI::detail
