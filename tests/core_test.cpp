#include <fit/core/arena.hpp>
#include <fit/core/executor.hpp>
#include <fit/core/parameter.hpp>
#include <fit/core/random.hpp>
#include <fit/core/tape.hpp>
#include <fit/core/tensor.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using fit::Index;

bool is_aligned(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory) % fit::alignment == 0; }

/// A number that compilers do not see through, or they warn of what is to be refused at run time.
Index opaque(Index number) {
  volatile Index hidden = number;
  return hidden;
}

/// Two parameters and, to be walked, every kind of member there is.
struct Affine {
  fit::Matrix<float, 2, 3> weight;
  fit::Vector<float, 2> bias;
  static void visit(auto&& f, auto&... p) {
    f("weight", p.weight...);
    f("bias", p.bias...);
  }
};

struct Network {
  Affine stem;
  std::vector<Affine> stages = std::vector<Affine>(2);
  std::optional<fit::Vector<float, 5>> positions, absent;
  std::vector<std::vector<Affine>> nested = std::vector<std::vector<Affine>>(1, std::vector<Affine>(1));
  static void visit(auto&& f, auto&... p) {
    f("stem", p.stem...);
    f("stages", p.stages...);
    f("positions", p.positions...);
    f("absent", p.absent...);
    f("nested", p.nested...);
  }
};

/// Waits for `done` at most ten seconds, so that a loop that hangs fails the test instead of stopping it.
template <class Done>
bool comes_true(Done done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

/// Every index of a loop exactly once, lanes in range, and no lane twice at the same time.
void check_loop(fit::Executor& executor, Index count) {
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
  std::vector<std::atomic<int>> inside(static_cast<std::size_t>(executor.lanes()));
  std::atomic<int> faults{0};
  executor.parallel_for(count, [&](Index index, int lane) {
    if (index < 0 || index >= count || lane < 0 || lane >= executor.lanes()) {
      ++faults;
      return;
    }
    if (inside[static_cast<std::size_t>(lane)].fetch_add(1) != 0) ++faults;
    ++calls[static_cast<std::size_t>(index)];
    inside[static_cast<std::size_t>(lane)].fetch_sub(1);
  });
  for (const std::atomic<int>& called : calls) faults += called != 1;
  CHECK(faults == 0);
}

}  // namespace

TEST_CASE("shares of items are as even in number or work as whole items can be", "[core]") {
  for (const fit::Index count : {1, 2, 5, 12, 1000}) {
    for (const fit::Index of : {1, 2, 3, 5, 12}) {
      for (const double growth : {0.0, 0.01, 1.0, 50.0}) {
        CAPTURE(count, of, growth);
        const auto work = [&](fit::Index items) {
          const auto n = static_cast<double>(items);
          return n + growth * n * (n - 1) / 2;
        };
        fit::Index next = 0;
        for (fit::Index part = 0; part < of; ++part) {
          const fit::IndexRange share = fit::share_of(count, part, of, growth);
          CHECK(share.first == next);
          next = share.end();
          if (growth == 0) CHECK(share == fit::share_of(count, part, of));
          if (count < of) continue;
          CHECK(share.count >= 1);
          if (growth == 0 || growth > 1 || count < 10 * of) continue;
          // Both ends are within half an item of where they should be.
          const auto item = [&](fit::Index i) { return 1 + growth * static_cast<double>(i); };
          const double own = work(share.end()) - work(share.first), even = work(count) / static_cast<double>(of);
          CHECK(std::abs(own - even) <= (item(share.first) + item(share.end())) / 2);
        }
        CHECK(next == count);
      }
    }
  }
  CHECK(fit::share_of(3, 0, 2, 0.5) == fit::IndexRange{0, 2});
  CHECK(fit::share_of(100, 1, 2, 1e9) == fit::IndexRange{71, 29});
}

TEST_CASE("buffers are aligned, zero and deep", "[core]") {
  for (Index count : {1, 3, 16, 17, 1000}) {
    fit::Buffer<char> bytes(count);
    fit::Buffer<double> numbers(count);
    CHECK(is_aligned(bytes.data()));
    CHECK(is_aligned(numbers.data()));
    CHECK(std::count(numbers.data(), numbers.data() + count, 0.0) == count);
    CHECK(is_aligned(fit::Buffer<float>::uninitialised(count).data()));
  }
  fit::Buffer<int> empty, none(0);
  CHECK(empty.size() == 0);
  CHECK(none.size() == 0);
  CHECK(fit::Buffer<int>(empty).size() == 0);

  fit::Buffer<int> a(3);
  a.data()[1] = 5;
  fit::Buffer<int> b = a;
  b.data()[1] = 6;
  CHECK(a.data()[1] == 5);
  const int* const memory = b.data();
  fit::Buffer<int> c = std::move(b);
  CHECK(c.data() == memory);
  CHECK(b.size() == 0);
  a = c;
  CHECK(a.data()[1] == 6);
  fit::Buffer<int>& self = a;
  a = self;
  CHECK(a.data()[1] == 6);
  CHECK(a.size() == 3);

  CHECK(test::error_of([] { fit::Buffer<int>(opaque(-1)); }) == "a buffer cannot hold -1 elements");
  CHECK_THROWS_AS(fit::Buffer<double>(opaque(std::numeric_limits<Index>::max())), fit::Error);
}

TEST_CASE("errors put their parts together", "[core]") {
  CHECK(fit::concatenate("a", 1, std::string("b"), -2, std::string_view("c"), std::size_t{3}) == "a1b-2c3");
  CHECK(test::error_of([] { fit::require(false, "x is ", 3); }) == "x is 3");
  CHECK(test::error_of([] { fit::require(true, "x is ", 3); }) == "(no error)");
  CHECK(fit::concatenate(1 + 1e-9, " ", -1e-8f, " ", 0.1f, " ", 2.0) == "1.000000001 -1e-08 0.1 2");
}

TEST_CASE("tensors have shapes and elements", "[core]") {
  fit::Tensor<float, 3> tensor(2, 3, 4);
  CHECK(tensor.size() == 24);
  CHECK(tensor.dimension(0) == 2);
  CHECK(tensor.dimension(2) == 4);
  CHECK(is_aligned(tensor.data()));
  CHECK(std::count(tensor.data(), tensor.data() + 24, 0.0f) == 24);
  CHECK(fit::shape_text(tensor.dimensions()) == "[2, 3, 4]");
  tensor(1, 2, 3) = 5;
  tensor(0, 1, 2) = 7;
  CHECK(tensor.data()[23] == 5);  // row-major
  CHECK(tensor.data()[6] == 7);
  CHECK(tensor.eigen()(0, 1, 2) == 7);
  CHECK(std::as_const(tensor)(1, 2, 3) == 5);
  CHECK(std::as_const(tensor).eigen()(1, 2, 3) == 5);

  fit::TensorView<float, 3> view = tensor;
  view(0, 0, 0) = 9;
  const fit::TensorView<const float, 3> constant = std::as_const(tensor);
  CHECK(constant(0, 0, 0) == 9);
  CHECK(constant.data() == tensor.data());

  Eigen::Tensor<float, 3, Eigen::RowMajor> own(1, 2, 2);
  own.setConstant(3);
  const fit::TensorView<const float, 3> of_own = own;
  CHECK(of_own(0, 1, 1) == 3);
  CHECK(of_own.data() == own.data());
  fit::TensorView<float, 3> writes = own;
  writes(0, 0, 1) = 4;
  CHECK(own(0, 0, 1) == 4);
  const fit::TensorView<const float, 3> narrowed = view;
  CHECK(narrowed.dimension(1) == 3);
  CHECK(narrowed.eigen()(0, 0, 0) == 9);
  float memory[6] = {0, 1, 2, 3, 4, 5};
  CHECK(fit::TensorView<float, 2>(memory, 2, 3)(1, 1) == 4);
  CHECK(fit::TensorView<float, 2>().size() == 0);

  CHECK(fit::Tensor<int, 2>().size() == 0);
  CHECK(fit::Tensor<int, 2>().dimension(1) == 0);
  CHECK(fit::Tensor<int, 3>(2, 0, 3).size() == 0);
  CHECK(fit::shape_text(fit::Tensor<int, 3>(2, 0, 3).dimensions()) == "[2, 0, 3]");
  CHECK(fit::Tensor<int, 0>(Eigen::DSizes<Index, 0>()).size() == 1);
  tensor.setConstant(2);
  CHECK(std::count(tensor.data(), tensor.data() + 24, 2.0f) == 24);
  tensor.setZero();
  CHECK(std::count(tensor.data(), tensor.data() + 24, 0.0f) == 24);
}

TEST_CASE("tensors copy deeply and move cheaply", "[core]") {
  fit::Tensor<double, 2> a(2, 2);
  a(1, 1) = 3;
  fit::Tensor<double, 2> b = a;
  b(1, 1) = 4;
  CHECK(a(1, 1) == 3);
  CHECK(b.data() != a.data());
  const double* const memory = b.data();
  fit::Tensor<double, 2> c = std::move(b);
  CHECK(c.data() == memory);
  CHECK(c(1, 1) == 4);
  a = c;
  CHECK(a(1, 1) == 4);
  a = fit::Tensor<double, 2>(3, 1);
  CHECK(a.dimension(0) == 3);
  CHECK(a.size() == 3);
}

TEST_CASE("a tensor without elements is a tensor", "[core]") {
  fit::Tensor<float, 2> empty(3, 0);
  empty.setConstant(1);
  const fit::Tensor<float, 2> copy = empty, sum = 2.0f * empty.eigen() + copy.eigen();
  for (const auto& tensor : {copy, sum}) {
    CHECK(tensor.size() == 0);
    CHECK(tensor.dimension(0) == 3);
    CHECK(tensor.dimension(1) == 0);
  }
  const fit::TensorView<const float, 2> view = empty;
  CHECK(view.size() == 0);
  CHECK(view.dimension(0) == 3);
  const fit::Tensor<float, 2> taken = std::move(empty);
  CHECK(taken.dimension(0) == 3);
  CHECK(empty.dimension(0) == 0);
  empty = fit::Tensor<float, 2>(1, 2);
  CHECK(empty.size() == 2);
}

TEST_CASE("tensors are made from expressions", "[core]") {
  fit::Tensor<float, 2> a(2, 3), b(2, 3);
  for (Index i = 0; i < 6; ++i) a.data()[i] = static_cast<float>(i), b.data()[i] = 10;
  const fit::Tensor<float, 2> c = 2.0f * a.eigen() + b.eigen();
  CHECK(c.dimension(1) == 3);
  CHECK(c(1, 2) == 20);
  CHECK(is_aligned(c.data()));
  const Eigen::array<int, 2> swap{1, 0};
  const fit::Tensor<float, 2> transposed = a.eigen().shuffle(swap);
  CHECK(transposed.dimension(0) == 3);
  CHECK(transposed(2, 1) == 5);
  const fit::Tensor<float, 0> sum = std::as_const(a).eigen().sum();
  CHECK(sum() == 15);
  const Eigen::Tensor<float, 2, Eigen::RowMajor> own = a.eigen();
  CHECK(fit::Tensor<float, 2>(own)(1, 0) == 3);
  Eigen::TensorFixedSize<float, Eigen::Sizes<2, 3>, Eigen::RowMajor> fixed;
  fixed.setConstant(4);
  const fit::Tensor<float, 2> from_fixed = fixed + fixed;
  CHECK(from_fixed.dimension(1) == 3);
  CHECK(from_fixed(1, 2) == 8);
  a = a.eigen() * a.eigen();
  CHECK(a(1, 2) == 25);
  a.eigen() = c.eigen() - b.eigen();
  CHECK(a(1, 2) == 10);
}

TEST_CASE("impossible shapes are refused", "[core]") {
  CHECK(test::error_of([] { fit::Tensor<float, 2>(2, opaque(-3)); }) == "a tensor cannot have the shape [2, -3]");
  constexpr Index huge = Index{1} << 40;
  CHECK_THROWS_AS((fit::Tensor<float, 2>(opaque(huge), huge)), fit::Error);
  CHECK_THROWS_AS((fit::Tensor<double, 1>(opaque(std::numeric_limits<Index>::max()))), fit::Error);
  fit::Tensor<float, 2> kept(1, 1);
  kept(0, 0) = 1;
  CHECK_THROWS_AS((kept = fit::Tensor<float, 2>(opaque(-1), 1)), fit::Error);
  CHECK(kept(0, 0) == 1);
}

TEST_CASE("an arena gives back in reverse order", "[core]") {
  fit::Arena arena;
  CHECK(arena.capacity() == 0);
  const auto start = arena.mark();
  char* const a = arena.allocate<char>(1);
  const auto after_a = arena.mark();
  double* const b = arena.allocate<double>(3);
  float* const none = arena.allocate<float>(0);
  CHECK(none != nullptr);
  CHECK(is_aligned(a));
  CHECK(is_aligned(b));
  CHECK(reinterpret_cast<char*>(b) == a + 64);
  CHECK(arena.peak() == 128);
  arena.rewind(after_a);
  CHECK(arena.allocate<double>(3) == b);
  arena.rewind(after_a);
  CHECK(arena.peak() == 128);
  *a = 7;
  arena.allocate<char>(1000);
  CHECK(*a == 7);
  CHECK(arena.peak() == 64 + 1024);
  arena.rewind(start);
  CHECK(arena.allocate<char>(1) == a);
}

TEST_CASE("an arena refuses what it cannot hold and stays as it was", "[core]") {
  fit::Arena arena;
  char* const first = arena.allocate<char>(1);
  CHECK(test::error_of([&] { arena.allocate<float>(opaque(-1)); }) == "an arena cannot hold -1 elements");
  constexpr Index most = std::numeric_limits<Index>::max();
  CHECK_THROWS_AS(arena.allocate<float>(opaque(most / 4 + 1)), fit::Error);
  CHECK_THROWS_AS(arena.allocate<char>(opaque(most)), fit::Error);
  CHECK_THROWS_AS(arena.allocate<double>(opaque(Index{1} << 61)), fit::Error);  // bytes that wrap around to none
  CHECK(arena.allocate<char>(1) == first + 64);
  CHECK(arena.peak() == 128);
}

TEST_CASE("an arena grows without moving, then is one block", "[core]") {
  fit::Arena arena;
  const auto run = [&](std::vector<std::byte*>& places) {
    fit::Random sizes(5);
    places.clear();
    for (int i = 0; i < 200; ++i) {
      const Index size = 1 + sizes.below(20000);
      std::byte* const memory = arena.allocate<std::byte>(size);
      std::fill_n(memory, size, static_cast<std::byte>(i));
      places.push_back(memory);
      if (i % 10 == 9) {  // comes and goes
        const auto mark = arena.mark();
        arena.allocate<double>(3000);
        arena.rewind(mark);
      }
    }
    fit::Random again(5);
    bool kept = true;
    for (int i = 0; i < 200; ++i) {
      const Index size = 1 + again.below(20000);
      kept = kept && is_aligned(places[static_cast<std::size_t>(i)]) &&
             std::count(places[static_cast<std::size_t>(i)], places[static_cast<std::size_t>(i)] + size,
                        static_cast<std::byte>(i)) == size;
    }
    CHECK(kept);
  };
  std::vector<std::byte*> first, second, third;
  const auto start = arena.mark();
  run(first);
  const std::size_t peak = arena.peak();
  const std::size_t grown = arena.capacity();
  CHECK(grown >= peak);
  arena.consolidate();  // nothing to be done while memory is in use
  CHECK(arena.capacity() == grown);
  CHECK(*first.front() == std::byte{0});
  arena.rewind(start);
  CHECK(arena.capacity() == grown);
  arena.consolidate();
  CHECK(arena.capacity() == peak);
  run(second);
  CHECK(arena.capacity() == peak);
  CHECK(arena.peak() == peak);
  CHECK(std::is_sorted(second.begin(), second.end()));
  CHECK(static_cast<std::size_t>(second.back() - second.front()) < peak);
  arena.rewind(start);
  arena.consolidate();
  run(third);
  CHECK(third == second);
  CHECK(arena.capacity() == peak);
}

TEST_CASE("an arena that is reserved grows no more", "[core]") {
  fit::Arena arena;
  arena.allocate<float>(100'000);
  arena.allocate<float>(100'000);
  const std::size_t grown = arena.capacity();
  CHECK(grown > 800'000);
  arena.reserve(4'000'000);  // nothing to be done while memory is in use
  CHECK(arena.capacity() == grown);
  arena.rewind({});
  arena.reserve(800'000);  // one block in place of several
  CHECK(arena.capacity() == 800'000);
  arena.reserve(64);  // there is enough
  CHECK(arena.capacity() == 800'000);
  arena.allocate<std::byte>(800'000);
  CHECK(arena.capacity() == 800'000);
  arena.rewind({});

  fit::Tape tape;
  tape.reserve({.records = 6400, .scratch = 640, .outputs = 64});
  CHECK(tape.capacity() == 7104);
  tape.record();
  tape.allocate<std::byte>(6400);
  tape.scratch<std::byte>(640);
  tape.output<std::byte>(64);
  CHECK(tape.capacity() == 7104);
}

TEST_CASE("an arena moves without moving what it has handed out", "[core]") {
  static_assert(!std::is_copy_constructible_v<fit::Arena> && !std::is_copy_assignable_v<fit::Arena>);
  static_assert(std::is_nothrow_move_constructible_v<fit::Arena> && std::is_nothrow_move_assignable_v<fit::Arena>);
  fit::Arena arena;
  int* const number = arena.allocate<int>(1);
  *number = 7;
  const auto after = arena.mark();
  const std::size_t capacity = arena.capacity();

  fit::Arena moved = std::move(arena);
  CHECK(*number == 7);
  CHECK(moved.capacity() == capacity);
  CHECK(moved.peak() == 64);
  CHECK(moved.allocate<int>(1) == number + 16);
  moved.rewind(after);
  CHECK(moved.allocate<int>(1) == number + 16);
  CHECK(arena.capacity() == 0);
  CHECK(arena.peak() == 0);
  *arena.allocate<int>(1) = 8;
  CHECK(*number == 7);
  CHECK(arena.peak() == 64);

  arena = std::move(moved);
  CHECK(*number == 7);
  CHECK(arena.allocate<int>(1) == number + 32);
  CHECK(moved.capacity() == 0);
  CHECK(moved.peak() == 0);
  CHECK(moved.allocate<int>(1) != nullptr);
  fit::Arena& self = arena;
  arena = std::move(self);
  CHECK(*number == 7);
  CHECK(arena.allocate<int>(1) == number + 48);
}

TEST_CASE("a workspace moves with its memory and keeps its executor", "[core]") {
  static_assert(!std::is_copy_constructible_v<fit::Workspace> && !std::is_copy_assignable_v<fit::Workspace>);
  fit::Executor one(1), two(2);
  fit::Workspace workspace(one), other(two);
  int* const number = workspace.arena().allocate<int>(1);
  *number = 7;
  other = std::move(workspace);
  CHECK(&other.executor() == &one);
  CHECK(*number == 7);
  CHECK(other.arena().allocate<int>(1) == number + 16);
  CHECK(&workspace.executor() == &one);
  CHECK(workspace.arena().capacity() == 0);
  CHECK(workspace.arena().allocate<int>(1) != nullptr);
}

TEST_CASE("every lane has scratch of its own, which stays where it is", "[core]") {
  fit::Executor three(3), two(2);
  fit::Arena::Usage usage;
  fit::Workspace workspace(three, &usage);
  float* first = nullptr;
  {
    const fit::LaneScratch<float> scratch(workspace, 2000);
    first = scratch[0];
    CHECK(usage.now == 3 * 8000);
    for (int lane = 0; lane < 3; ++lane) std::fill_n(scratch[lane], 2000, static_cast<float>(lane));
    for (int lane = 0; lane < 3; ++lane) {
      CHECK(scratch[lane][0] == static_cast<float>(lane));
      CHECK(scratch[lane][1999] == static_cast<float>(lane));
      CHECK(reinterpret_cast<std::uintptr_t>(scratch[lane]) % fit::alignment == 0);
    }
    CHECK(scratch[1] - scratch[0] >= 2000 + 1024);  // what is asked for ahead is no other lane's
  }
  CHECK(usage.now == 0);
  CHECK(usage.peak == 3 * 8000);
  {
    const fit::LaneScratch<float> less(workspace, 1);
    CHECK(less[0] == first);
    CHECK(usage.now == 3 * fit::alignment);
  }
  const auto held = workspace.lanes().capacity();
  CHECK(held == 3 * fit::LaneMemory::room_of(8000));
  fit::Workspace other(two);
  other = std::move(workspace);
  CHECK(workspace.lanes().capacity() == 0);
  CHECK(fit::LaneScratch<float>(other, 2000)[0] == first);
  CHECK(other.lanes().capacity() == held);

  fit::Tape tape(three);  // reserved for another number of threads
  tape.reserve({.lanes = 5 * 4096});
  fit::Workspace& of_tape = tape;
  const fit::LaneScratch<double> scratch(of_tape, 3);
  for (int lane = 0; lane < 3; ++lane) {
    CHECK(reinterpret_cast<std::uintptr_t>(scratch[lane]) % fit::alignment == 0);
  }
}

TEST_CASE("a tape moves with its records", "[core]") {
  static_assert(!std::is_copy_constructible_v<fit::Tape> && !std::is_copy_assignable_v<fit::Tape>);
  static_assert(std::is_nothrow_move_constructible_v<fit::Tape> && std::is_nothrow_move_assignable_v<fit::Tape>);
  struct Note {
    int number;
  };
  fit::Executor one(1), two(2);
  struct : fit::Team {
    int rank() const override { return 0; }
    int size() const override { return 2; }
    void exchange(std::span<const Message>, std::span<const Message>) override {}
  } of_two;
  fit::Tape tape(one, of_two);
  tape.record({.drop_path = 0.25f}, fit::Random(3));
  int* const output = tape.output<int>(1);
  *output = 5;
  const auto start = tape.mark();
  int* const kept = tape.allocate<int>(1);
  *kept = 6;
  tape.finish(start, Note{7});
  const std::uint64_t key = tape.random().key();

  fit::Tape moved = std::move(tape);
  CHECK(moved.recording());
  CHECK(moved.team() == &of_two);
  CHECK(tape.team() == nullptr);
  CHECK(moved.options().drop_path == 0.25f);
  CHECK(moved.random().key() == key);
  CHECK(*output == 5);
  CHECK(!tape.recording());
  CHECK(tape.options().drop_path == 0);
  CHECK(tape.capacity() == 0);
  CHECK_THROWS_AS(tape.pop<Note>(), fit::Error);
  tape.record();  // usable, on the same threads
  CHECK(&tape.executor() == &one);
  tape.finish(tape.mark(), Note{8});
  CHECK(tape.pop<Note>()->number == 8);

  fit::Tape assigned(two);
  assigned = std::move(moved);
  CHECK(&assigned.executor() == &one);
  CHECK(assigned.pop<Note>()->number == 7);
  CHECK(*kept == 6);
  CHECK_THROWS_AS(assigned.pop<Note>(), fit::Error);
  CHECK(!moved.recording());
  CHECK_THROWS_AS(moved.pop<Note>(), fit::Error);
}

TEST_CASE("a loop calls every index once", "[core]") {
  for (const int threads : {1, 2, 3, 7}) {
    INFO(threads);
    fit::Executor executor(threads);
    CHECK(executor.lanes() == threads);
    for (const Index count : {0, 1, 2, 3, 7, 8, 1000}) check_loop(executor, count);
  }
  Eigen::ThreadPool pool(3);
  fit::Executor guest(pool);
  CHECK(guest.lanes() == 4);
  for (const Index count : {0, 1, 5, 1000}) check_loop(guest, count);
  check_loop(fit::default_executor(), 100);
  CHECK(test::error_of([] { fit::Executor executor(0); }) == "an executor needs at least 1 thread, not 0");
  CHECK_THROWS_AS(fit::Executor(-1), fit::Error);
}

TEST_CASE("who runs a loop looks after something else between its pieces", "[core]") {
  for (const int threads : {1, 3}) {
    fit::Executor executor(threads);
    std::atomic<Index> own{0};
    Index looked = 0;
    const auto caller = std::this_thread::get_id();
    const auto loop = [&] {
      own = looked = 0;
      executor.parallel_for(1000, [&](Index, int) { own += std::this_thread::get_id() == caller; });
    };
    {
      const fit::BetweenPieces outer([&] {
        REQUIRE(std::this_thread::get_id() == caller);
        ++looked;
      });
      loop();
      CHECK(looked == own);
      {
        const fit::BetweenPieces inner([] { fit::require(false, "the network is down"); });
        CHECK(test::error_of(loop) == "the network is down");
        CHECK(looked == 0);
      }
      loop();
      CHECK(looked == own);
    }
    loop();
    CHECK(looked == 0);
  }
}

TEST_CASE("two executors share a pool", "[core]") {
  Eigen::ThreadPool pool(2);
  fit::Executor a(pool), b(pool);
  std::thread other([&] {
    for (int i = 0; i < 200; ++i) check_loop(b, 20);
  });
  std::atomic<Index> sum{0};
  for (int i = 0; i < 200; ++i) a.parallel_for(20, [&](Index index, int) { sum += index; });
  other.join();
  CHECK(sum == 200 * 190);
}

TEST_CASE("exceptions leave a loop", "[core]") {
  for (const int threads : {1, 2, 3, 7}) {
    fit::Executor executor(threads);
    for (int round = 0; round < 20; ++round) {
      std::atomic<int> calls{0};
      std::string text;
      try {
        executor.parallel_for(1000, [&](Index index, int) {
          ++calls;
          if (index == 13) throw std::runtime_error("thirteen");
        });
      } catch (const std::runtime_error& error) {
        text = error.what();
      }
      CHECK(text == "thirteen");
      if (executor.lanes() == 1) CHECK(calls == 14);
    }
    CHECK_THROWS_AS(executor.parallel_for(100, [](Index, int) { throw fit::Error("each"); }), fit::Error);
    check_loop(executor, 100);  // and the next loop is as ever
  }
}

TEST_CASE("of two exceptions the first leaves a loop", "[core]") {
  fit::Executor executor(2);
  std::atomic<bool> both{false}, thrown{false};
  std::string text;
  try {
    executor.parallel_for(2, [&](Index index, int) {
      if (index == 0) {
        comes_true([&] { return both.load(); });
        thrown = true;
        throw fit::Error("first");
      }
      both = true;
      comes_true([&] { return thrown.load(); });
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      throw fit::Error("second");
    });
  } catch (const fit::Error& error) {
    text = error.what();
  }
  CHECK(both);
  CHECK(text == "first");
}

TEST_CASE("a pool that takes no tasks leaves its loops to the caller", "[core]") {
  struct Full : Eigen::ThreadPool {
    using Eigen::ThreadPool::ThreadPoolTempl;
    void Schedule(std::function<void()> task) override {
      if (full) throw std::bad_alloc();
      Eigen::ThreadPool::Schedule(std::move(task));
    }
    std::atomic<bool> full{true};
  } pool(3);
  fit::Executor executor(pool);
  for (int round = 0; round < 5; ++round) check_loop(executor, 100);
  Index lanes = 0;
  executor.parallel_for(100, [&](Index, int lane) { lanes = std::max<Index>(lanes, lane); });
  CHECK(lanes == 0);
  pool.full = false;
  std::atomic<bool> helped{false};
  executor.parallel_for(2, [&](Index, int lane) {
    if (lane > 0) helped = true;
    comes_true([&] { return helped.load(); });
  });
  CHECK(helped);
  check_loop(executor, 100);
}

TEST_CASE("loops inside loops and beside each other", "[core]") {
  fit::Executor executor(3);
  std::atomic<Index> sum{0};
  executor.parallel_for(
      20, [&](Index outer, int) { executor.parallel_for(30, [&](Index inner, int) { sum += outer * inner; }); });
  CHECK(sum == 190 * 435);

  int caught = 0;
  try {
    executor.parallel_for(4,
                          [&](Index, int) { executor.parallel_for(4, [](Index, int) { throw fit::Error("inner"); }); });
  } catch (const fit::Error&) {
    ++caught;
  }
  CHECK(caught == 1);

  sum = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) executor.parallel_for(10, [&](Index index, int) { sum += index; });
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(sum == 4 * 200 * 45);
}

TEST_CASE("a pool whose threads are all busy holds no loop up", "[core]") {
  Eigen::ThreadPool pool(2);
  std::atomic<bool> release{false};
  std::atomic<int> blocked{0};
  for (int i = 0; i < 2; ++i) {
    pool.Schedule([&] {
      ++blocked;
      while (!release) std::this_thread::yield();
    });
  }
  const bool all_busy = comes_true([&] { return blocked == 2; });
  std::atomic<bool> finished{false};
  {
    fit::Executor executor(pool);
    std::thread caller([&] {
      for (int i = 0; i < 10; ++i) check_loop(executor, 50);
      finished = true;
    });
    const bool in_time = comes_true([&] { return finished.load(); });
    release = true;
    caller.join();
    CHECK(all_busy);
    CHECK(in_time);
    check_loop(executor, 50);  // stale helpers of the loops above do no harm
  }
}

TEST_CASE("a loop started by one of the pool's own threads", "[core]") {
  Eigen::ThreadPool pool(2);
  fit::Executor executor(pool);
  std::atomic<Index> sum{0};
  std::atomic<bool> finished{false};
  pool.Schedule([&] {
    executor.parallel_for(100, [&](Index index, int) { sum += index; });
    finished = true;
  });
  CHECK(comes_true([&] { return finished.load(); }));
  CHECK(sum == 4950);
}

TEST_CASE("many small loops", "[core]") {
  for (const int threads : {2, 3, 7}) {
    fit::Executor executor(threads);
    std::vector<Index> values(16);
    Index wrong = 0;
    for (Index loop = 0; loop < 5000; ++loop) {
      const Index count = 1 + loop % 16;
      executor.parallel_for(count, [&](Index index, int) { values[static_cast<std::size_t>(index)] = loop + index; });
      for (Index i = 0; i < count; ++i) wrong += values[static_cast<std::size_t>(i)] != loop + i;
    }
    CHECK(wrong == 0);
  }
  for (int i = 0; i < 200; ++i) {  // destroyed right after use
    fit::Executor executor(3);
    executor.parallel_for(3, [](Index, int) {});
  }
}

TEST_CASE("random numbers are the same ones for ever", "[core]") {
  CHECK(fit::random_bits(0, 0) == 0xe220a8397b1dcdafu);  // SplitMix64 seeded with 0
  CHECK(fit::random_bits(0, 1) == 0x6e789e6aa1b965f4u);
  fit::Random random(42);
  CHECK(random.key() == 0xbdd732262feb6e95u);
  for (const std::uint64_t expected : {0x57e1faba65107204u, 0xf4abd143feb24055u, 0x7c816738c12903b2u}) {
    CHECK(random.bits() == expected);
  }
  CHECK(random.counter() == 3);
  fit::Random resumed(random.key(), random.counter());
  CHECK(resumed.bits() == 0x113e5dec6f8fd8a8u);
  CHECK(fit::Random(42).uniform() == 0.34329192209867343);
  fit::Random normal(42);
  for (const double expected : {0.8818545873573221, 1.052462856238756, 1.3700036369000232}) {
    CHECK(std::abs(normal.normal() - expected) < 1e-14);
  }
  static_assert(fit::Random(42).bits() == 0x57e1faba65107204u);
}

TEST_CASE("random numbers have their distributions", "[core]") {
  constexpr int count = 200000;
  fit::Random random(7);
  double mean = 0, square = 0, lowest = 1, highest = 0;
  for (int i = 0; i < count; ++i) {
    const double u = random.uniform();
    mean += u / count;
    square += u * u / count;
    lowest = std::min(lowest, u);
    highest = std::max(highest, u);
  }
  CHECK(std::abs(mean - 0.5) < 0.003);
  CHECK(std::abs(square - 1.0 / 3) < 0.003);
  CHECK(lowest >= 0);
  CHECK(highest < 1);

  double first = 0, second = 0, third = 0, fourth = 0;
  for (int i = 0; i < count; ++i) {
    const double n = random.normal();
    first += n / count;
    second += n * n / count;
    third += n * n * n / count;
    fourth += n * n * n * n / count;
  }
  CHECK(std::abs(first) < 0.01);
  CHECK(std::abs(second - 1) < 0.015);
  CHECK(std::abs(third) < 0.04);
  CHECK(std::abs(fourth - 3) < 0.12);

  std::vector<int> hits(7);
  for (int i = 0; i < 70000; ++i) {
    const Index value = random.below(7);
    if (value < 0 || value >= 7) FAIL(value);
    ++hits[static_cast<std::size_t>(value)];
  }
  for (const int hit : hits) CHECK(std::abs(hit - 10000) < 500);
  CHECK(random.below(1) == 0);
}

TEST_CASE("split generators do not know of each other", "[core]") {
  fit::Random parent(3);
  fit::Random child = parent.split(), other = parent.split();
  CHECK(parent.counter() == 2);
  CHECK(child.key() != other.key());
  double with_parent = 0, with_other = 0;
  constexpr int count = 100000;
  for (int i = 0; i < count; ++i) {
    const double a = parent.normal(), b = child.normal(), c = other.normal();
    with_parent += a * b / count;
    with_other += b * c / count;
  }
  CHECK(std::abs(with_parent) < 0.015);
  CHECK(std::abs(with_other) < 0.015);
  double neighbours = 0;  // seeds next to each other
  fit::Random a(100), b(101);
  for (int i = 0; i < count; ++i) neighbours += a.normal() * b.normal() / count;
  CHECK(std::abs(neighbours) < 0.015);
}

TEST_CASE("parameters are walked by name", "[core]") {
  const auto owned = std::make_unique<Network>();  // on the stack g++ 12 takes the absent one for uninitialised
  Network& network = *owned;
  network.positions.emplace();
  std::vector<std::string> names;
  std::vector<std::string> shapes;
  fit::for_each_parameter(
      [&](const fit::ParameterName& name, auto parameter) {
        names.push_back(name.text());
        shapes.push_back(fit::shape_text(parameter.shape));
        for (Index i = 0; i < parameter.size; ++i) parameter.data[i] = static_cast<float>(names.size());
      },
      network);
  const std::vector<std::string> expected{"stem.weight",   "stem.bias",         "stages.0.weight",
                                          "stages.0.bias", "stages.1.weight",   "stages.1.bias",
                                          "positions",     "nested.0.0.weight", "nested.0.0.bias"};
  CHECK(names == expected);
  CHECK(shapes[0] == "[2, 3]");
  CHECK(shapes[6] == "[5]");
  CHECK(network.stages[1].bias.data()[1] == 6);
  CHECK(fit::count_parameters(network) == 4 * 8 + 5);

  Network copy = network, sum = network;
  fit::set_zero(copy);
  CHECK(network.stem.weight.data()[0] == 1);
  CHECK(copy.stem.weight.data()[0] == 0);
  Index visited = 0;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto to, auto a, auto b) {
        static_assert(std::is_same_v<decltype(a.data), const float*>);
        visited += to.size;
        for (Index i = 0; i < to.size; ++i) to.data[i] = a.data[i] + 2 * b.data[i];
      },
      sum, std::as_const(network), std::as_const(sum));
  CHECK(visited == 37);
  CHECK(sum.nested[0][0].bias.data()[1] == 27);

  const auto* const values = network.stem.weight.data();
  const Affine taken = std::move(network.stem);
  CHECK(taken.weight.data() == values);
  constexpr auto gone = "a parameter is used whose values were moved away";
  CHECK(test::error_of([&] { network.stem.weight.data(); }) == gone);
  CHECK(test::error_of([&] { std::as_const(network).stem.bias.data(); }) == gone);
  CHECK(test::error_of([&] { fit::set_zero(network); }) == gone);
  network.stem = taken;
  CHECK(network.stem.weight.data()[0] == 1);

  static_assert(decltype(Affine::weight)::size() == 6);
  static_assert(fit::Matrix<float, 2, 3>::shape == std::array<Index, 2>{2, 3});
  CHECK(is_aligned(network.stem.weight.data()));
}

TEST_CASE("a generator of a number depends on nothing but the number", "[core]") {
  const fit::Random random(7);
  fit::Random same = random.fork(3), again = random.fork(3), other = random.fork(4);
  CHECK(same.bits() == again.bits());
  CHECK(same.bits() != other.bits());
  CHECK(random.counter() == 0);
  CHECK(fit::Random(5, 0).fork(3).key() == fit::Random(fit::random_bits(5, 3)).key());
  CHECK(fit::Random(5, 10).fork(3, 2).key() == fit::Random(fit::random_bits(fit::random_bits(5, 13), 2)).key());
  CHECK(random.fork(1, 2).key() != random.fork(2, 1).key());
}

TEST_CASE("a tape's peak is that of all its memory at one moment", "[core]") {
  fit::Executor executor(1);
  fit::Tape tape(executor);
  tape.record();
  const auto start = tape.mark();
  tape.allocate<std::byte>(1000);  // 1024
  {
    const fit::Arena::Scope scope(tape.arena());
    tape.scratch<std::byte>(5000);  // 5056
  }
  CHECK(tape.peak() == 1024 + 5056);
  tape.output<std::byte>(64);
  tape.finish(start);  // a record of 64
  CHECK(tape.peak() == 1024 + 5056);
  tape.scratch<std::byte>(5000);
  CHECK(tape.peak() == 1024 + 5056 + 64 + 64);

  fit::Tape moved = std::move(tape);
  CHECK(moved.peak() == 1024 + 5056 + 64 + 64);
  CHECK(tape.peak() == 0);
  moved.scratch<std::byte>(64);
  CHECK(moved.peak() == 1024 + 5056 + 64 + 64 + 64);
  moved.clear();
  moved.output<std::byte>(128);
  CHECK(moved.peak() == 1024 + 5056 + 64 + 64 + 64);
  tape.output<std::byte>(128);
  CHECK(tape.peak() == 128);
}

TEST_CASE("memory that moves counts where it goes", "[core]") {
  fit::Executor executor(1);
  fit::Arena::Usage usage;
  fit::Workspace workspace(executor, &usage);
  workspace.arena().allocate<std::byte>(1024);
  CHECK(usage.now == 1024);
  fit::Workspace taken = std::move(workspace);
  CHECK(usage.now == 0);
  CHECK(usage.peak == 1024);
  taken.arena().allocate<std::byte>(4096);
  workspace = std::move(taken);
  CHECK(usage.now == 5120);
  workspace.arena().rewind({});
  CHECK(usage.now == 0);
  CHECK(usage.peak == 5120);

  fit::Tape first(executor), second(executor);
  first.record();
  first.allocate<std::byte>(1000);  // 1024
  second.scratch<std::byte>(6400);
  second = std::move(first);
  CHECK(second.peak() == 1024);
  CHECK(first.peak() == 0);
  CHECK(second.recording());
  CHECK_FALSE(first.recording());
  fit::Tape& same = second;
  second = std::move(same);
  CHECK(second.peak() == 1024);
  CHECK(second.recording());
  CHECK(second.mark().total == 1024);
  second.scratch<std::byte>(64);
  CHECK(second.peak() == 1088);
  first.output<std::byte>(64);
  CHECK(first.peak() == 64);
}
