#pragma once

#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fit/generation/sampling.hpp>
#include <fit/kernels/cached_attention.hpp>
#include <fit/kernels/few_rows.hpp>
#include <fit/models/autoregressive_decoder.hpp>

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

/// For files and measurements.
struct GeneratorAccess {
  static auto& sequences(auto& generator) { return generator.sequences_; }
};

}  // namespace detail

/// An id of a sequence of a batch.
struct GeneratedToken {
  std::int32_t id = 0;
  Index sequence = 0;

  operator std::int32_t() const { return id; }
};

/// Draws sequences from an AutoregressiveDecoder, id by id, with caches: a position of a group costs the local blocks
/// of one token, and the end of a group one pass of its latents over those of the earlier groups. Owns the caches,
/// planned when it is made: (tokens + groups * latents) rows a layer and sequence. A copy goes on by itself, at the
/// cost of copying the rows in use. Refers to the decoder, which must outlive it and stay as it is, and to the
/// executor.
///
/// The sequences of a batch do not influence each other: each gets the same bits as by itself, for any number of
/// threads. They may differ in length; those that are finished cost nothing.
template <class Decoder>
class Generator {
 public:
  using T = typename Decoder::T;
  static constexpr AutoregressiveConfig config = Decoder::configuration;
  /// Ids of a whole sequence.
  static constexpr Index length = Index{config.groups} * config.tokens;

  /// Throws Error when the batch is below one.
  explicit Generator(const Decoder& decoder, Index batch = 1, Executor& executor = default_executor())
      : decoder_(&decoder), scratch_(executor) {
    require(batch >= 1 && static_cast<std::size_t>(batch) <= sequences_.max_size(),
            "a generator needs a batch of at least 1, and one that can be counted, not ", batch);
    sequences_.resize(static_cast<std::size_t>(batch));
    tokens_.resize(static_cast<std::size_t>(batch));
    for (Sequence& sequence : sequences_) begin(sequence);
  }

  Generator(const Decoder&&, Index = 1, Executor& = default_executor()) = delete;  // it would be gone

  Index batch() const { return static_cast<Index>(sequences_.size()); }
  /// The ids that a sequence has so far, valid until the next call that adds some.
  std::span<const std::int32_t> ids(Index sequence = 0) const { return at(sequence).ids; }
  /// Whether a sequence has its whole length, was ended by an id, or by finish().
  bool finished(Index sequence = 0) const { return at(sequence).finished; }
  bool finished_all() const {
    return std::all_of(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return s.finished; });
  }
  void finish(Index sequence) { at(sequence).finished = true; }
  /// Bytes of the caches.
  std::size_t cache_bytes() const {
    return sequences_.size() * static_cast<std::size_t>(detail::cache_layout<config>().size) * sizeof(T);
  }

  /// Puts ids after those of one sequence, or of all of them. They go through the model a group at a time. Throws Error
  /// when one is outside the vocabulary, or a sequence is finished or would be longer than the model.
  void prompt(Index sequence, std::span<const std::int32_t> ids) {
    check_prompt(at(sequence), ids);
    append(at(sequence), std::vector(ids.begin(), ids.end()));  // they may be the sequence's own
    catch_up(std::span(&at(sequence), 1));
  }
  void prompt(std::span<const std::int32_t> ids) {
    for (const Sequence& sequence : sequences_) check_prompt(sequence, ids);
    const std::vector<std::int32_t> own(ids.begin(), ids.end());
    const bool alike = batch() > 0 && std::all_of(sequences_.begin(), sequences_.end(), [&](const Sequence& sequence) {
                         const Sequence& first = sequences_[0];
                         return sequence.ids == first.ids && sequence.processed == first.processed &&
                                sequence.finished == first.finished;
                       });
    const auto through = std::span(sequences_).first(alike ? 1 : sequences_.size());
    for (Sequence& sequence : through) append(sequence, own);
    catch_up(through);
    if (alike) std::fill(sequences_.begin() + 1, sequences_.end(), sequences_[0]);
  }

  /// Makes one sequence of the batch a copy of another.
  void fork(Index from, Index to) { at(to) = at(from); }

  /// Logits [V] of the next id of a sequence, valid until the next call. Throws Error when it is finished.
  std::span<const T> logits(Index sequence = 0) {
    require(!at(sequence).finished, "sequence ", sequence, " is finished: no id follows");
    catch_up(sequences_);
    return {at(sequence).logits.data(), static_cast<std::size_t>(config.vocabulary)};
  }

  /// Draws the next id of every sequence that is not finished: [batch], -1 for those that are; valid until the next
  /// call. An id depends on `random`, the sequence's number and the position alone, so the same `random` serves a whole
  /// run, and one that is taken up again. Throws Error as token_choices(), the sequences left as they were.
  std::span<const std::int32_t> next(const TokenSampling& sampling, Random random) {
    detail::check(sampling);
    require(!sampling.end || (*sampling.end >= 0 && *sampling.end < config.vocabulary),
            "the end of a sequence must be ", "in 0 .. ", config.vocabulary - 1, ", not ", sampling.end.value_or(0));
    catch_up(sequences_);
    std::vector<float> logits(static_cast<std::size_t>(config.vocabulary));
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& sequence = sequences_[i];
      tokens_[i] = -1;
      if (sequence.finished) continue;
      std::transform(sequence.logits.data(), sequence.logits.data() + logits.size(), logits.begin(),
                     [](T value) { return static_cast<float>(value); });
      if (sampling.adjust) sampling.adjust(sequence.ids, logits);
      Random own(random_bits(random_bits(random.key(), random.counter() + i), sequence.ids.size()));
      tokens_[i] = draw_token(logits, sampling, own);
    }
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      if (sequences_[i].finished) continue;
      append(sequences_[i], std::span(&tokens_[i], 1));
      if (sampling.end == tokens_[i]) sequences_[i].finished = true;
    }
    return tokens_;
  }

  /// The ids of next() as a range, each a GeneratedToken: one of every sequence in turn, as long as any is not finished
  /// and for at most `steps` ids of each. Ends when the loop over it is left; the ids drawn so far stay.
  class Stream {
   public:
    class Iterator {
     public:
      using difference_type = std::ptrdiff_t;
      using value_type = GeneratedToken;

      explicit Iterator(Stream* stream = nullptr) : stream_(stream) {}
      GeneratedToken operator*() const { return {stream_->tokens_[stream_->at_], static_cast<Index>(stream_->at_)}; }
      Iterator& operator++() {
        stream_->advance();
        return *this;
      }
      void operator++(int) { ++*this; }
      bool operator==(std::default_sentinel_t) const { return stream_->done_; }

     private:
      Stream* stream_;
    };

    Iterator begin() {
      advance();
      return Iterator(this);
    }
    std::default_sentinel_t end() const { return {}; }

   private:
    friend Generator;
    Stream(Generator& generator, TokenSampling sampling, Random random, Index steps)
        : generator_(&generator), sampling_(std::move(sampling)), random_(random), left_(steps) {}

    void advance() {
      do {
        if (++at_ < tokens_.size()) continue;
        done_ = true;  // also when next() throws
        if (left_ <= 0 || generator_->finished_all()) return;
        const auto drawn = generator_->next(sampling_, random_);
        tokens_.assign(drawn.begin(), drawn.end());
        at_ = 0;
        --left_;
        done_ = false;
      } while (tokens_[at_] < 0);
    }

    Generator* generator_;
    TokenSampling sampling_;
    Random random_;
    Index left_;
    std::vector<std::int32_t> tokens_;
    std::size_t at_ = static_cast<std::size_t>(-1);
    bool done_ = false;
  };
  Stream stream(TokenSampling sampling, Random random, Index steps = length) {
    return Stream(*this, std::move(sampling), random, steps);
  }

 private:
  friend detail::GeneratorAccess;
  using Sequence = detail::CachedSequence<T, config>;
  using Product = kernels::Product<T>;
  static constexpr Index data_dim = config.data_dim, latent_dim = config.latent_dim, latents = config.latents;

  /// Consecutive positions of a sequence that go through the model together.
  struct Run {
    Sequence* sequence;
    Index rows;

    Index slot() const { return sequence->processed % config.tokens; }
  };
  /// Scratch memory, which copies of a generator do not share.
  struct Scratch {
    Tape tape;

    explicit Scratch(Executor& executor) : tape(executor) {}
    Scratch(const Scratch& other) : tape(other.tape.executor()) {}
    Scratch& operator=(const Scratch& other) {
      tape = Tape(other.tape.executor());
      return *this;
    }
  };

  Sequence& at(Index i) {
    require(i >= 0 && i < batch(), "there are sequences 0 .. ", batch() - 1, ", but not ", i);
    return sequences_[static_cast<std::size_t>(i)];
  }
  const Sequence& at(Index i) const { return const_cast<Generator*>(this)->at(i); }

  static void check_prompt(const Sequence& sequence, std::span<const std::int32_t> ids) {
    const auto given = static_cast<Index>(ids.size()), before = static_cast<Index>(sequence.ids.size());
    require(given <= length - before, "a prompt of ", given, " ids is too long: the model has room for ", length,
            ", and the sequence has ", before);
    require(given == 0 || !sequence.finished, "a sequence that is finished takes no prompt");
    for (const std::int32_t id : ids) {
      require(id >= 0 && id < config.vocabulary, "ids must be in 0 .. ", config.vocabulary - 1, ", not ", id);
    }
  }

  static void append(Sequence& sequence, std::span<const std::int32_t> ids) {
    sequence.ids.insert(sequence.ids.end(), ids.begin(), ids.end());
    if (static_cast<Index>(sequence.ids.size()) == length) sequence.finished = true;
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

  Tape& tape() { return scratch_.tape; }
  T* allocate(Index count) { return tape().template scratch<T>(count); }

  /// One position each of several sequences, or positions of a group of one sequence.
  void process(std::span<const Run> runs) {
    tape().clear();
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
    const auto& layout = detail::cache_layout<config>();
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
      kernels::multiply_few_rows(products, tape().executor());
    } else {
      kernels::multiply(products, tape().executor(), tape().arena());
    }
  }

  /// x [rows, Width] through a block whose keys and values `attend` keeps.
  template <int Width, int Heads, int Ratio, class Attend>
  void run_block(const Block<T, Width, Heads, Ratio>& p, T* x, Index rows, bool few, Attend&& attend) {
    const auto mark = tape().arena().mark();
    T *normed = allocate(rows * Width), *q = allocate(rows * Width), *k = allocate(rows * Width);
    T *v = allocate(rows * Width), *mixed = allocate(rows * Width), *hidden = allocate(rows * Width * Ratio);
    fit::forward(p.attention_norm, static_cast<const T*>(x), normed, rows, tape());
    const T* input = normed;
    multiply({output_product(p.attention.query, input, q, rows), output_product(p.attention.key, input, k, rows),
              output_product(p.attention.value, input, v, rows)},
             few);
    attend(q, k, v, mixed);
    multiply({added(output_product(p.attention.output, static_cast<const T*>(mixed), x, rows))}, few);
    fit::forward(p.residual_mlp.mlp_norm, static_cast<const T*>(x), normed, rows, tape());
    auto up = output_product(p.residual_mlp.mlp.fc1, input, hidden, rows);
    up.activation = kernels::Activation::gelu;
    up.activated = hidden;
    multiply({up}, few);
    multiply({added(output_product(p.residual_mlp.mlp.fc2, static_cast<const T*>(hidden), x, rows))}, few);
    tape().arena().rewind(mark);
  }

  static Product added(Product product) {
    product.finish.accumulate = true;
    return product;
  }

  /// Tokens of a group from the latents of the one before.
  template <class Write>
  void write(const Write& p, T* x, Index rows, std::span<const Run> runs, bool few, std::size_t cache) {
    const auto mark = tape().arena().mark();
    constexpr Index width = std::min(config.data_dim, config.latent_dim);
    T *normed = allocate(rows * data_dim), *q = allocate(rows * width), *mixed = allocate(rows * width);
    fit::forward(p.query_norm, static_cast<const T*>(x), normed, rows, tape());
    multiply({output_product(p.attention.query, static_cast<const T*>(normed), q, rows)}, few);
    attend(q, mixed, runs, few, cache, std::min(config.data_heads, config.latent_heads), width,
           [](const Run&, Index) { return latents; });
    multiply({added(output_product(p.attention.output, static_cast<const T*>(mixed), x, rows))}, few);
    tape().arena().rewind(mark);
  }

  /// Copies rows of each run into a cache of its sequence, at the positions that they have in their group.
  static void store(const T* from, std::span<const Run> runs, std::size_t cache) {
    const Index width = detail::cache_layout<config>().shapes[cache].width;
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
      return kernels::attention<T>({1, run.rows, keys, heads, width / heads, mask}, q, run.sequence->cache(cache),
                                   run.sequence->cache(cache + 1), mixed, nullptr, tape().executor(), tape().arena());
    }
    queries_.clear();
    for (const Run& run : runs) {
      queries_.push_back({q, run.sequence->cache(cache), run.sequence->cache(cache + 1), visible(run, 0), mixed});
      q += width;
      mixed += width;
    }
    kernels::cached_attention<T>(queries_, heads, width / heads, tape().executor(), tape().arena());
  }

  /// Logits of the last row of each run.
  void write_logits(const T* x, std::span<const Run> runs) {
    const auto count = static_cast<Index>(runs.size());
    T *last = allocate(count * data_dim), *logits = allocate(count * config.vocabulary);
    for (Index i = 0; i < count; ++i) {
      x += runs[static_cast<std::size_t>(i)].rows * data_dim;
      std::copy_n(x - data_dim, data_dim, last + i * data_dim);
    }
    fit::forward(decoder_->data_norm(), static_cast<const T*>(last), last, count, tape());
    kernels::multiply_few_rows<T>({{.rows = count,
                                    .columns = config.vocabulary,
                                    .factors = {{kernels::plain(static_cast<const T*>(last), data_dim),
                                                 kernels::transposed(decoder_->output_weight(), data_dim), data_dim}},
                                    .c = logits,
                                    .c_row = config.vocabulary,
                                    .finish = {.bias = decoder_->output_bias()}}},
                                  tape().executor());
    for (Index i = 0; i < count; ++i) {
      std::copy_n(logits + i * config.vocabulary, config.vocabulary,
                  runs[static_cast<std::size_t>(i)].sequence->logits.data());
    }
  }

  /// What the writes of the first group see: zeros, normalised and mapped as latents would be.
  void begin(Sequence& sequence) {
    tape().clear();
    const auto mark = tape().arena().mark();
    T* none = allocate(latents * latent_dim);
    std::fill_n(none, latents * latent_dim, T(0));
    for (std::size_t i = 0; i + 1 < decoder_->trunk().stages().size(); ++i) map_written(sequence, i, none);
    tape().arena().rewind(mark);
  }

  void map_written(Sequence& sequence, std::size_t stage, const T* z) {
    const auto& p = *decoder_->trunk().stages()[stage].write;
    const std::size_t cache = detail::cache_layout<config>().stages[stage].written;
    const auto mark = tape().arena().mark();
    T* normed = allocate(latents * latent_dim);
    fit::forward(p.context_norm, z, normed, latents, tape());
    const T* input = normed;
    multiply({output_product(p.attention.key, input, sequence.cache(cache), latents),
              output_product(p.attention.value, input, sequence.cache(cache + 1), latents)},
             few_latents);
    tape().arena().rewind(mark);
  }

  /// The latents of the group that has just ended, for the writes of the next one and the global blocks of all others.
  void close_group(Sequence& sequence, Index group) {
    const auto& stages = decoder_->trunk().stages();
    const auto mark = tape().arena().mark();
    T* z = allocate(latents * latent_dim);
    std::copy_n(decoder_->latent_positions() + group * latents * latent_dim, latents * latent_dim, z);
    for (std::size_t i = 0; i + 1 < stages.size(); ++i) {
      const auto& at = detail::cache_layout<config>().stages[i];
      fit::forward(*stages[i].read, z, static_cast<const T*>(sequence.cache(at.tokens)),
                   {1, latents, config.tokens, {}}, tape());
      for (std::size_t j = 0; j < stages[i].global.size(); ++j) {
        T *keys = sequence.cache(at.global + 2 * j), *values = sequence.cache(at.global + 2 * j + 1);
        run_block(stages[i].global[j], z, latents, few_latents, [&](const T* q, const T* k, const T* v, T* mixed) {
          std::copy_n(k, latents * latent_dim, keys + group * latents * latent_dim);
          std::copy_n(v, latents * latent_dim, values + group * latents * latent_dim);
          kernels::attention<T>(
              {1, latents, (group + 1) * latents, config.latent_heads, latent_dim / config.latent_heads}, q, keys,
              values, mixed, nullptr, tape().executor(), tape().arena());
        });
      }
      map_written(sequence, i, z);
    }
    tape().arena().rewind(mark);
  }

  static constexpr bool few_latents = latents <= 16;

  const Decoder* decoder_;
  std::vector<Sequence> sequences_;
  std::vector<std::int32_t> tokens_;
  std::vector<kernels::CachedQuery<T>> queries_;
  Scratch scratch_;
};

}  // namespace fit::inline FIT_ABI
