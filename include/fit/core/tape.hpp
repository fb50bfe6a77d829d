#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <type_traits>
#include <utility>

#include <fit/core/random.hpp>
#include <fit/core/tape_bytes.hpp>
#include <fit/core/team.hpp>
#include <fit/core/training_options.hpp>
#include <fit/core/workspace.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The memory of one pass through a model: scratch, and in training also what each layer leaves for the way back, as
/// records that are popped in reverse order. One pass at a time; reuse it for the next one, which then allocates
/// nothing. It refers to an executor, which must outlive it.
class Tape {
 public:
  explicit Tape(Executor& executor = default_executor())
      : workspace_(executor, &usage_), records_(&usage_), outputs_(&usage_) {}
  /// For passes that the members of a team make together, as join().
  Tape(Executor& executor, Team& team) : Tape(executor) { team_ = &team; }
  /// Moves what was recorded and handed out; the other tape is left as one that was just made.
  Tape(Tape&& other) noexcept : Tape(other.executor()) { *this = std::move(other); }
  Tape& operator=(Tape&& other) noexcept {
    workspace_ = std::move(other.workspace_);
    records_ = std::move(other.records_);
    outputs_ = std::move(other.outputs_);
    usage_.peak = std::exchange(other.usage_.peak, 0);
    team_ = std::exchange(other.team_, nullptr);
    finished_ = std::move(other.finished_);
    state_ = std::exchange(other.state_, {});
    return *this;
  }

  /// From here on, until another team or none is joined, the members of this one make passes together: inputs and
  /// outputs are this member's share of every example's groups, share_of_groups(), and sources and losses by groups are
  /// asked for these, an autoregressive decoder's source also for the group before. Losses of tensors, which have no
  /// output, take whole examples. Parameters get the part of their gradient that comes from the share. All make the
  /// same passes, in the same order. Gradients by other inputs, as a condition, are parts as well.
  void join(Team* team) { team_ = team; }

  /// Told, until another or none is, of gradients to which the way back adds no more: f(elements, count) for each
  /// parameter of a stage of the trunk when the way back has passed it, then f(null, 0).
  using Finished = std::function<void(const void* elements, Index count)>;
  void when_finished(Finished f) { finished_ = std::move(f); }
  const Finished& finished() const { return finished_; }

  /// Takes the memory of a pass at once, where nothing is in use yet. A first pass without it grows step by step and
  /// holds more than it needs. Cost::arenas says how much a pass takes. Throws std::bad_alloc when memory runs out.
  void reserve(const TapeBytes& bytes) {
    records_.reserve(static_cast<std::size_t>(bytes.records));
    arena().reserve(static_cast<std::size_t>(bytes.scratch));
    outputs_.reserve(static_cast<std::size_t>(bytes.outputs));
    workspace_.lanes().reserve(bytes.lanes / executor().lanes(), executor().lanes());
  }

  /// Starts a training pass: forgets what an earlier one left. Random numbers of the drop-outs come from `random`.
  /// Throws Error for a rate outside [0, 1), or a negative keep_data_every.
  void record(const TrainingOptions& options = {}, Random random = Random(0)) {
    detail::check(options);
    clear();
    state_ = {.options = options, .random = random, .recording = true};
  }

  /// Ends recording and forgets all records: layers that run now are at inference.
  void clear() {
    records_.rewind({});
    arena().rewind({});
    outputs_.rewind({});  // stays as it grew: it is in use until a pass begins, which is to allocate nothing
    consolidate();
    state_ = {};
  }

  /// While it lives, layers run as they do in training, drop-outs included, and leave records or none.
  class Recording {
   public:
    Recording(Tape& tape, bool recording) : tape_(tape), recording_(std::exchange(tape.state_.recording, recording)) {}
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() { tape_.state_.recording = recording_; }

   private:
    Tape& tape_;
    bool recording_;
  };

  /// While it lives, layers run at inference, whatever the tape does; afterwards the tape is as it was before.
  class Inference {
   public:
    explicit Inference(Tape& tape)
        : tape_(tape),
          scratch_(tape.arena()),
          outputs_(tape.outputs_),
          recording_(tape, false),
          options_(std::exchange(tape.state_.options, {})) {}
    Inference(const Inference&) = delete;
    Inference& operator=(const Inference&) = delete;
    ~Inference() { tape_.state_.options = options_; }

   private:
    Tape& tape_;
    Arena::Scope scratch_, outputs_;
    Recording recording_;
    TrainingOptions options_;
  };

  /// The threads and the scratch memory; kernels give back what they take of it.
  operator Workspace&() { return workspace_; }
  Executor& executor() const { return workspace_.executor(); }
  /// Null where whole examples are on this tape.
  Team* team() const { return team_ && team_->size() > 1 ? team_ : nullptr; }
  Arena& arena() { return workspace_.arena(); }
  bool recording() const { return state_.recording; }
  const TrainingOptions& options() const { return state_.options; }
  const Random& random() const { return state_.random; }

  /// Memory that lasts until the layer's forward ends or, when recording, until its backward ends.
  template <class T>
  T* allocate(Index count) {
    return active().allocate<T>(count);
  }
  /// Memory for the length of a layer's backward.
  template <class T>
  T* scratch(Index count) {
    return arena().allocate<T>(count);
  }
  /// Memory that lasts until the next record() or clear(), for what a model hands out.
  template <class T>
  T* output(Index count) {
    return outputs_.allocate<T>(count);
  }

  /// The record of a layer that has nothing to remember but where it began.
  struct Frame {};

  /// A layer's forward begins with mark() and ends with finish(), which leaves a record for the way back when
  /// recording and else gives back what was allocated.
  Arena::Mark mark() { return active().mark(); }
  template <class Record = Frame>
  void finish(const Arena::Mark& start, const Record& record = {}) {
    static_assert(std::is_trivially_copyable_v<Record>);
    if (!state_.recording) {
      arena().rewind(start);
      return consolidate();
    }
    auto* entry = records_.allocate<Entry<Record>>(1);
    *entry = {{state_.last, &tag<Record>, start}, record};
    state_.last = entry;
  }

  /// The last record. Its memory, and the scratch taken since, are given back when the result is destroyed.
  template <class Record>
  class Popped {
   public:
    Popped(Tape& tape, const Arena::Mark& start, const Record& record)
        : tape_(tape),
          start_(start),
          scratch_(tape.arena().mark()),
          record_(record),
          thrown_(std::uncaught_exceptions()) {}
    Popped(const Popped&) = delete;
    Popped& operator=(const Popped&) = delete;
    ~Popped() {
      // After an exception on the way back there may be records behind this one, whose memory goes with its own.
      if (std::uncaught_exceptions() > thrown_) tape_.state_.last = nullptr;
      tape_.records_.rewind(start_);
      tape_.arena().rewind(scratch_);
      tape_.consolidate();
    }
    const Record* operator->() const { return &record_; }
    const Record& operator*() const { return record_; }

   private:
    Tape& tape_;
    Arena::Mark start_, scratch_;
    Record record_;
    int thrown_;
  };

  /// The last record. Throws Error when it is of another kind: backward without the forward that it belongs to.
  template <class Record>
  const Record& peek() const {
    require(state_.last != nullptr && state_.last->tag == &tag<Record>,
            "backward does not find its forward on the tape: record, forward and backward must come in this order");
    return static_cast<const Entry<Record>*>(state_.last)->record;
  }
  template <class Record = Frame>
  Popped<Record> pop() {
    const Record record = peek<Record>();
    const Arena::Mark start = state_.last->start;
    state_.last = state_.last->previous;
    return Popped<Record>(*this, start, record);
  }

  struct Header {
    const Header* previous;
    const char* tag;
    Arena::Mark start;
  };
  /// Bytes held, and the most that were ever in use at once.
  std::size_t capacity() const {
    return records_.capacity() + workspace_.arena().capacity() + outputs_.capacity() +
           static_cast<std::size_t>(workspace_.lanes().capacity());
  }
  std::size_t peak() const { return usage_.peak; }

 private:
  template <class Record>
  struct Entry : Header {
    Record record;
  };
  template <class Record>
  static constexpr char tag = 0;

  void consolidate() {
    records_.consolidate();
    arena().consolidate();
  }
  Arena& active() { return state_.recording ? records_ : arena(); }

  Arena::Usage usage_;
  Workspace workspace_;
  Arena records_, outputs_;
  Team* team_ = nullptr;
  Finished finished_;
  struct State {
    const Header* last = nullptr;
    TrainingOptions options = {};
    Random random{0};
    bool recording = false;
  } state_;
};

}  // namespace FIT_ABI
}  // namespace fit
