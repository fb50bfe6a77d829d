#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <fit/generation/cached_decoder.hpp>
#include <fit/generation/sampling.hpp>

namespace fit {
inline namespace FIT_ABI {

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
  using T = typename Decoder::Scalar;
  using Sequence = CachedSequence<T>;
  static constexpr AutoregressiveConfig config = Decoder::config;

  /// A decoder of any number of groups generates sequences of `groups` of them: what it would say of such sequences.
  /// Throws Error when the batch is below one, or the decoder does not take so many groups.
  explicit Generator(const Decoder& decoder, Index batch = 1, Executor& executor = default_executor(),
                     Index groups = config.groups)
      : decoder_(decoder, executor), groups_(groups) {
    require(batch >= 1 && static_cast<std::size_t>(batch) <= sequences_.max_size(),
            "a generator needs a batch of at least 1, and one that can be counted, not ", batch);
    if (config.groups == any) {
      constexpr Index most = std::numeric_limits<int>::max();
      require(groups >= 1 && groups <= most, "a generator of a decoder of any number of groups must be told how many ",
              "its sequences have, 1 to ", most, ", not ", groups);
    } else {
      require(groups == config.groups, "this decoder generates ", config.groups, " groups, not ", groups);
    }
    const auto layout = std::make_shared<const CacheLayout>(planned());
    for (Index i = 0; i < batch; ++i) decoder_.begin(sequences_.emplace_back(layout));
    tokens_.resize(static_cast<std::size_t>(batch));
  }

  Generator(const Generator&) = default;
  Generator(Generator&&) = default;
  /// Where memory runs out, this one is as it was.
  Generator& operator=(const Generator& other) { return *this = Generator(other); }
  Generator& operator=(Generator&&) = default;
  ~Generator() = default;

  /// The decoder would be gone.
  Generator(const Decoder&&, Index = 1, Executor& = default_executor(), Index = config.groups) = delete;

  Index groups() const { return groups_; }
  /// Ids of a whole sequence.
  Index length() const { return groups_ * config.tokens; }
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
    std::size_t bytes = 0;
    for (const Sequence& s : sequences_) bytes += static_cast<std::size_t>(s.memory.size()) * sizeof(T);
    return bytes;
  }

  /// The sequences and their caches, for files and measurements.
  const std::vector<Sequence>& sequences() const { return sequences_; }
  /// Goes on from sequences such as sequences() has given. Throws Error when there are not as many as before, their
  /// caches are of another configuration, or their parts do not go with each other.
  void restore(std::vector<Sequence> sequences) {
    require(sequences.size() == sequences_.size(), "a generator of ", batch(), " sequences cannot go on from ",
            sequences.size());
    for (const Sequence& s : sequences) {
      require(s.layout && fields_of(s.layout->config) == fields_of(planned()),
              "these caches are of another configuration");
      const auto count = static_cast<Index>(s.ids.size());
      require(Sequence::may_have(count, s.processed, s.finished, length()) && s.logits.size() == config.vocabulary &&
                  s.memory.size() == s.layout->size,
              "a sequence of ", count, " ids, of which ", s.processed, " are processed, does not go with its caches");
      check_ids(s.ids);
    }
    sequences_ = std::move(sequences);
  }

  /// Puts ids after those of one sequence, or of all of them. They go through the model a group at a time. Throws Error
  /// when one is outside the vocabulary, or a sequence is finished or would be longer than the model.
  void prompt(Index sequence, std::span<const std::int32_t> ids) {
    check_prompt(at(sequence), ids);
    append(at(sequence), std::vector(ids.begin(), ids.end()));  // they may be the sequence's own
    decoder_.catch_up(std::span(&at(sequence), 1));
  }
  void prompt(std::span<const std::int32_t> ids) {
    for (const Sequence& sequence : sequences_) check_prompt(sequence, ids);
    const std::vector<std::int32_t> own(ids.begin(), ids.end());
    const bool alike =
        batch() > 0 && std::all_of(sequences_.begin(), sequences_.end(), [&](const Sequence& sequence) {
          const Sequence& first = sequences_[0];
          // Equal ids that came in other pieces have been rounded differently.
          return sequence.ids == first.ids && sequence.processed == 0 && sequence.finished == first.finished;
        });
    const auto through = std::span(sequences_).first(alike ? 1 : sequences_.size());
    make_room(own.size());
    for (Sequence& sequence : sequences_) append(sequence, own);
    decoder_.catch_up(through);
    if (alike) std::fill(sequences_.begin() + 1, sequences_.end(), sequences_[0]);
  }

  /// The number of the first sequence, for what is random: of generators that share a batch, as processes may. Throws
  /// Error for one below zero.
  void count_from(Index first) {
    require(first >= 0, "sequences are counted from 0 or more, not from ", first);
    first_ = first;
  }
  Index first() const { return first_; }  ///< that number

  /// Makes one sequence of the batch a copy of another.
  void fork(Index from, Index to) { at(to) = at(from); }

  /// Logits [V] of the next id of a sequence, valid until the next call. Throws Error when it is finished.
  std::span<const T> logits(Index sequence = 0) {
    require(!at(sequence).finished, "sequence ", sequence, " is finished: no id follows");
    decoder_.catch_up(sequences_);
    return {at(sequence).logits.data(), static_cast<std::size_t>(config.vocabulary)};
  }

  /// Draws the next id of every sequence that is not finished: [batch], -1 for those that are; valid until the next
  /// call. An id depends on `random`, the sequence's number and the position alone, so the same `random` serves a whole
  /// run, and one that is taken up again. Throws Error as token_choices(), the sequences left as they were.
  std::span<const std::int32_t> next(const TokenSampling& sampling, Random random) {
    detail::check(sampling);
    require(!sampling.end || (*sampling.end >= 0 && *sampling.end < config.vocabulary),
            "the end of a sequence must be in 0 .. ", config.vocabulary - 1, ", not ", sampling.end.value_or(0));
    decoder_.catch_up(sequences_);
    make_room(1);
    std::vector<float> logits(static_cast<std::size_t>(config.vocabulary));
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& sequence = sequences_[i];
      tokens_[i] = -1;
      if (sequence.finished) continue;
      std::transform(sequence.logits.data(), sequence.logits.data() + logits.size(), logits.begin(),
                     [](T value) { return static_cast<float>(value); });
      if (sampling.adjust) sampling.adjust(sequence.ids, logits);
      Random own = random.fork(first_ + static_cast<Index>(i), sequence.ids.size());
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
  Stream stream(TokenSampling sampling, Random random, Index steps = std::numeric_limits<Index>::max()) {
    return Stream(*this, std::move(sampling), random, steps);
  }

 private:
  /// The configuration with the number of groups that the caches are for.
  AutoregressiveConfig planned() const {
    AutoregressiveConfig c = config;
    c.groups = static_cast<int>(groups_);
    return c;
  }
  std::size_t checked(Index i) const {
    require(i >= 0 && i < batch(), "there are sequences 0 .. ", batch() - 1, ", but not ", i);
    return static_cast<std::size_t>(i);
  }
  Sequence& at(Index i) { return sequences_[checked(i)]; }
  const Sequence& at(Index i) const { return sequences_[checked(i)]; }

  void check_prompt(const Sequence& sequence, std::span<const std::int32_t> ids) const {
    const auto given = static_cast<Index>(ids.size()), before = static_cast<Index>(sequence.ids.size());
    require(given <= length() - before, "a prompt of ", given, " ids is too long: the model has room for ", length(),
            ", and the sequence has ", before);
    require(given == 0 || !sequence.finished, "a sequence that is finished takes no prompt");
    check_ids(ids);
  }

  static void check_ids(std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids) {
      require(id >= 0 && id < config.vocabulary, "ids must be in 0 .. ", config.vocabulary - 1, ", not ", id);
    }
  }

  /// So that no sequence gets ids while others find no memory.
  void make_room(std::size_t more) {
    for (Sequence& sequence : sequences_) {
      auto& ids = sequence.ids;
      if (ids.capacity() - ids.size() < more) ids.reserve(std::max(ids.size() + more, 2 * ids.size()));
    }
  }
  void append(Sequence& sequence, std::span<const std::int32_t> ids) const {
    sequence.ids.insert(sequence.ids.end(), ids.begin(), ids.end());
    if (static_cast<Index>(sequence.ids.size()) == length()) sequence.finished = true;
  }

  detail::CachedDecoder<Decoder> decoder_;
  Index groups_, first_ = 0;
  std::vector<Sequence> sequences_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace FIT_ABI
}  // namespace fit
