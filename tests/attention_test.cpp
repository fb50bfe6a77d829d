#include <fit/kernels/attention_backward.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <cstring>
#include <limits>
#include <set>

namespace {

using fit::Index;
using fit::kernels::AttentionShape;
using fit::kernels::Dropout;
using fit::kernels::Mask;

template <class T>
constexpr Index width = fit::simd::width<T>;
template <class T>
constexpr Index tile = fit::kernels::tile_rows<T>;

const Index head_widths[] = {1, 3, 5, 8, 16, 17, 20, 32, 33, 64, 96};

/// What a kernel reads: starts at any element, and ends where the memory does, for an address sanitiser to see.
template <class T>
class Input {
 public:
  Input(Index count, Index offset, std::uint64_t seed, double deviation)
      : memory_(static_cast<std::size_t>(offset), std::numeric_limits<T>::quiet_NaN()), offset_(offset) {
    const std::vector<T> values = test::normal_values<T>(count, seed, deviation);
    memory_.insert(memory_.end(), values.begin(), values.end());
  }
  T* data() { return memory_.data() + offset_; }
  const T* data() const { return memory_.data() + offset_; }

 private:
  std::vector<T> memory_;
  Index offset_;
};

/// What a kernel writes: not-a-number until then, between guards.
template <class T>
class Output {
 public:
  Output(Index count, Index offset)
      : memory_(static_cast<std::size_t>(count + 2 * margin), guard), offset_(16 + offset), count_(count) {
    std::fill_n(data(), count, std::numeric_limits<T>::quiet_NaN());
  }
  T* data() { return memory_.data() + offset_; }
  const T* data() const { return memory_.data() + offset_; }
  Index size() const { return count_; }
  bool guarded() const {
    const auto is_guard = [](T value) { return value == guard; };
    return std::all_of(memory_.begin(), memory_.begin() + offset_, is_guard) &&
           std::all_of(memory_.begin() + offset_ + count_, memory_.end(), is_guard);
  }
  /// Equal bit for bit, so that NaN equals itself.
  bool same(const Output& other) const {
    return count_ == other.count_ &&
           (count_ == 0 || std::memcmp(data(), other.data(), static_cast<std::size_t>(count_) * sizeof(T)) == 0);
  }

 private:
  static constexpr Index margin = 80;
  static constexpr T guard = T(-12345);
  std::vector<T> memory_;
  Index offset_, count_;
};

template <class T>
struct Inputs {
  Input<T> q, k, v, o_gradient;
  Inputs(const AttentionShape& s, std::uint64_t seed, Index offset, double deviation)
      : q(s.sequences * s.queries * s.width(), offset, seed, deviation),
        k(s.sequences * s.keys * s.key_width(), offset + 1, seed + 1, deviation),
        v(s.sequences * s.keys * s.key_width(), offset, seed + 2, 1),
        o_gradient(s.sequences * s.queries * s.width(), 2 * offset, seed + 3, 1) {}
};

template <class T>
struct Results {
  Output<T> o, log_sum, q, k, v;
  Results(const AttentionShape& s, Index offset)
      : o(s.sequences * s.queries * s.width(), offset),
        log_sum(s.sequences * s.heads * s.queries, offset + 1),
        q(s.sequences * s.queries * s.width(), offset),
        k(s.sequences * s.keys * s.key_width(), offset + 2),
        v(s.sequences * s.keys * s.key_width(), offset) {}
  bool guarded() const { return o.guarded() && log_sum.guarded() && q.guarded() && k.guarded() && v.guarded(); }
  bool same(const Results& r) const {
    return o.same(r.o) && log_sum.same(r.log_sum) && q.same(r.q) && k.same(r.k) && v.same(r.v);
  }
};

/// [sequences, rows, heads, width] becomes not-a-number where it is of other heads than these, of [sequences, heads].
template <class T>
void hide_others(Input<T>& values, Index sequences, Index rows, Index heads, Index width, const fit::IndexRange& kept) {
  for (Index i = 0; i < sequences * rows * heads; ++i) {
    const Index head = i / (rows * heads) * heads + i % heads;
    if (head >= kept.first && head < kept.end()) continue;
    std::fill_n(values.data() + i * width, width, std::numeric_limits<T>::quiet_NaN());
  }
}

/// Both ways, with nothing but NaN in what the kernels take, for the heads of all keys or for parts of them, one after
/// the other.
template <class T>
Results<T> run(const AttentionShape& shape, const Inputs<T>& in, Index offset, fit::Executor& executor,
               Index parts = 0) {
  fit::Arena::Usage usage;
  fit::Workspace workspace(executor, &usage);
  constexpr Index room = 1 << 17;
  workspace.lanes().reserve(room * static_cast<Index>(sizeof(T)), executor.lanes());
  for (int lane = 0; lane < executor.lanes(); ++lane) {
    std::fill_n(reinterpret_cast<T*>(workspace.lanes().of(lane)), room, std::numeric_limits<T>::quiet_NaN());
  }
  Results<T> r(shape, offset);
  const fit::kernels::AttentionTensors<T> tensors{in.q.data(), in.k.data(), in.v.data(), r.o.data(), r.log_sum.data()};
  const fit::kernels::AttentionGradients<T> gradients{in.o_gradient.data(), r.q.data(), r.k.data(), r.v.data()};
  if (parts == 0) {
    fit::kernels::attention(shape, tensors, workspace);
    fit::kernels::attention_backward(shape, tensors, gradients, workspace);
  }
  for (Index part = 0; part < parts; ++part) {
    const fit::IndexRange keys = fit::share_of(shape.sequences * shape.key_heads(), part, parts);
    const fit::IndexRange heads{keys.first * shape.sharing, keys.count * shape.sharing};
    Inputs<T> own = in;
    hide_others(own.q, shape.sequences, shape.queries, shape.heads, shape.head_width, heads);
    hide_others(own.o_gradient, shape.sequences, shape.queries, shape.heads, shape.head_width, heads);
    hide_others(own.k, shape.sequences, shape.keys, shape.key_heads(), shape.head_width, keys);
    hide_others(own.v, shape.sequences, shape.keys, shape.key_heads(), shape.head_width, keys);
    const fit::kernels::AttentionTensors<T> of_part{own.q.data(), own.k.data(), own.v.data(), r.o.data(),
                                                    r.log_sum.data()};
    fit::kernels::attention(shape, of_part, workspace, heads);
    fit::kernels::attention_backward<T>(shape, of_part, {own.o_gradient.data(), r.q.data(), r.k.data(), r.v.data()},
                                        workspace, keys);
  }
  CHECK(usage.now == 0);
  return r;
}

/// What should come out, and the rounding error of one unit in each number on the way that reaches it.
struct Expected {
  std::vector<double> value, magnitude;
  explicit Expected(Index count) : value(static_cast<std::size_t>(count)), magnitude(static_cast<std::size_t>(count)) {}
  void add(Index at, double product, double error) {
    value[static_cast<std::size_t>(at)] += product;
    magnitude[static_cast<std::size_t>(at)] += error;
  }
};

struct Reference {
  Expected o, log_sum, q, k, v;
  double highest_score = 0;
  explicit Reference(const AttentionShape& s)
      : o(s.sequences * s.queries * s.width()),
        log_sum(s.sequences * s.heads * s.queries),
        q(s.sequences * s.queries * s.width()),
        k(s.sequences * s.keys * s.key_width()),
        v(s.sequences * s.keys * s.key_width()) {}
};

bool sees(const Mask& mask, Index query, Index key) { return key / mask.chunk <= (query + mask.offset) / mask.chunk; }

template <class T>
Reference reference(const AttentionShape& s, const Inputs<T>& in) {
  Reference r(s);
  const double scale = 1 / std::sqrt(static_cast<double>(s.head_width));
  std::vector<double> weights(static_cast<std::size_t>(s.keys)), factors(weights), gradients(weights), errors(weights);
  for (Index sequence = 0; sequence < s.sequences; ++sequence) {
    for (Index head = 0; head < s.heads; ++head) {
      for (Index i = 0; i < s.queries; ++i) {
        const Index row = (sequence * s.heads + head) * s.queries + i;
        const Index query = (sequence * s.queries + i) * s.width() + head * s.head_width;
        const auto key_at = [&](Index j) {
          return (sequence * s.keys + j) * s.key_width() + head / s.sharing * s.head_width;
        };
        const auto at = [](const Input<T>& x, Index index) { return static_cast<double>(x.data()[index]); };
        double highest = -std::numeric_limits<double>::infinity(), size = 1, total = 0;
        for (Index j = 0; j < s.keys; ++j) {
          double score = 0, absolute = 0;
          for (Index c = 0; c < s.head_width; ++c) {
            const double product = scale * at(in.q, query + c) * at(in.k, key_at(j) + c);
            score += product;
            absolute += std::abs(product);
          }
          const auto n = static_cast<std::size_t>(j);
          weights[n] = sees(s.mask, i, j) ? score : -std::numeric_limits<double>::infinity();
          if (!sees(s.mask, i, j)) continue;
          highest = std::max(highest, score);
          size = std::max(size, 1 + absolute);
          r.highest_score = std::max(r.highest_score, std::abs(score));
        }
        for (double& weight : weights) total += weight = std::exp(weight - highest);
        size += std::log(total);  // the weights come from scores and their log_sum
        if (s.keys > 0) r.log_sum.add(row, (highest + std::log(total)) / std::log(2.0), size / std::log(2.0));
        double dot = 0, dot_size = 0;
        for (Index j = 0; j < s.keys; ++j) {
          const auto n = static_cast<std::size_t>(j);
          weights[n] /= total;
          factors[n] = 1;
          s.dropout.apply(&factors[n], 1, static_cast<std::uint64_t>(row * s.keys + j));
          gradients[n] = errors[n] = 0;
          for (Index c = 0; c < s.head_width; ++c) {
            const double value = at(in.v, key_at(j) + c), gradient = at(in.o_gradient, query + c);
            const double weight = weights[n] * factors[n];
            r.o.add(query + c, weight * value, size * weight * std::abs(value));
            r.v.add(key_at(j) + c, weight * gradient, size * weight * std::abs(gradient));
            gradients[n] += factors[n] * value * gradient;
            errors[n] += factors[n] * std::abs(value * gradient);
          }
          dot += weights[n] * gradients[n];
          dot_size += weights[n] * errors[n];
        }
        for (Index j = 0; j < s.keys; ++j) {
          const auto n = static_cast<std::size_t>(j);
          const double gradient = scale * weights[n] * (gradients[n] - dot);
          const double error = size * scale * weights[n] * (errors[n] + dot_size);
          for (Index c = 0; c < s.head_width; ++c) {
            const double key = at(in.k, key_at(j) + c), of_query = at(in.q, query + c);
            r.q.add(query + c, gradient * key, error * std::abs(key));
            r.k.add(key_at(j) + c, gradient * of_query, error * std::abs(of_query));
          }
        }
      }
    }
  }
  return r;
}

/// The largest error in units of rounding; what would not be a normal number counts as zero. Infinite for NaN.
template <class T>
double worst_error(const Output<T>& ours, const Expected& expected, double largest) {
  double worst = 0;
  for (Index i = 0; i < ours.size(); ++i) {
    const auto n = static_cast<std::size_t>(i);
    const double error = std::abs(static_cast<double>(ours.data()[i]) - expected.value[n]);
    const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) * expected.magnitude[n] +
                        static_cast<double>(std::numeric_limits<T>::min()) * largest;
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, error / unit);
  }
  return worst;
}

fit::Executor& executor() {
  static fit::Executor two(2);
  return two;
}

/// Runs one shape on numbers of its own and holds all that comes out to the reference. Returns the highest score.
template <class T>
double check(const AttentionShape& shape, double deviation = 1) {
  static std::uint64_t seed = 0;
  seed += 10;
  const Index offset = static_cast<Index>(seed / 10 % 4);
  INFO((std::is_same_v<T, float> ? "float" : "double")
       << ", sequences " << shape.sequences << ", queries " << shape.queries << ", keys " << shape.keys << ", heads "
       << shape.heads << " of " << shape.head_width << ", " << shape.sharing << " sharing, chunk " << shape.mask.chunk
       << ", drop " << shape.dropout.rate << ", offset " << offset);
  const Inputs<T> in(shape, seed, offset, deviation);
  const Reference expected = reference(shape, in);
  Results<T> r = run(shape, in, offset, executor());
  CHECK(r.guarded());
  const double largest = 1e4 * (1 + deviation);
  CHECK(worst_error(r.o, expected.o, largest) < 4);
  if (shape.keys > 0) CHECK(worst_error(r.log_sum, expected.log_sum, largest) < 4);
  CHECK(worst_error(r.q, expected.q, largest) < 4);
  CHECK(worst_error(r.k, expected.k, largest) < 4);
  CHECK(worst_error(r.v, expected.v, largest) < 4);

  Output<T> without(r.o.size(), offset);
  fit::Workspace workspace(executor());
  fit::kernels::attention<T>(shape, {in.q.data(), in.k.data(), in.v.data(), without.data()}, workspace);
  CHECK(without.same(r.o));
  CHECK(without.guarded());
  return expected.highest_score;
}

/// Around the tile, one and two registers, and what the kernels cut queries and keys into.
template <class T>
std::set<Index> sizes() {
  std::set<Index> result{1};
  for (const Index size : {tile<T>, width<T>, 2 * width<T>, 4 * tile<T>, 8 * width<T>, 16 * width<T>, 32 * tile<T>}) {
    for (const Index near : {size - 1, size, size + 1}) {
      if (near > 0) result.insert(near);
    }
  }
  return result;
}

template <class T>
void check_masks() {
  std::size_t turn = 0;
  for (const Index size : sizes<T>()) {
    for (const Mask mask : {Mask::none(), Mask::causal(), Mask::chunk_causal(3), Mask::chunk_causal(tile<T> + 2),
                            Mask::chunk_causal(4 * width<T>)}) {
      const bool large = size > 100;
      const Index head_width = head_widths[turn++ % (large ? 5 : std::size(head_widths))];
      const auto many = static_cast<Index>(large ? 1 : 1 + turn % 3);
      check<T>({many, size, size, large ? 1 : 1 + size % 3, head_width, mask});
    }
  }
}

template <class T>
void check_heads() {
  for (const Index head_width : head_widths) {
    for (const Index heads : {1, 2, 3}) {
      const Index size = tile<T> + width<T> + 3;
      check<T>({2, size, size, heads, head_width, heads == 2 ? Mask::causal() : Mask::none()});
    }
  }
}

/// Keys that several heads of queries share: short and long sequences, masks and drop-outs, to others and themselves.
template <class T>
void check_shared_keys() {
  const Index t = tile<T>, w = width<T>;
  for (const Index sharing : {2, 3, 6}) {
    for (const Index head_width : {Index{5}, w, 2 * w + 1}) {
      check<T>({2, t + 2, t + 2, 6, head_width, Mask::causal(), {}, sharing});
      check<T>({3, 1 + sharing, 2 * w + 3, 6, head_width, Mask::none(), Dropout{3, 0.3f}, sharing});
    }
    check<T>({1, 150, 600, 6, 9, Mask::chunk_causal(7), Dropout{5, 0.2f}, sharing});
    // Keys that nobody sees, of heads of whole registers.
    check<T>({2, 3, 2 * w + 3, 6, w, Mask::causal(), {}, sharing});
  }
  check<T>({2, 0, 3, 4, 5, Mask::none(), {}, 2});
  check<T>({2, 3, 0, 4, 5, Mask::none(), {}, 2});
}

template <class T>
void check_cross() {
  const Index t = tile<T>, w = width<T>;
  for (const Index queries : {Index{0}, Index{1}, t - 1, t, t + 1, 4 * t + 1}) {
    for (const Index keys : {Index{0}, Index{1}, w - 1, w + 1, 2 * w, 2 * w + 1, 8 * w + 1, 16 * w + 1}) {
      check<T>({1 + queries % 3, queries, keys, 2, 1 + (queries + keys) % 19});
    }
  }
  check<T>({1, 32 * t + 3, 2 * w + 1, 2, 9});
  // Two registers of queries over several blocks of keys, of values that are copied and that are read where they are.
  for (const Index head_width : {w + 1, 2 * w + 1, 4 * w}) {
    check<T>({1, 4 * w + 3, 600, 2, head_width, Mask::none(), Dropout{5, 0.2f}});
    check<T>({1, 4 * w, 600, 2, head_width, Mask::chunk_causal(7)});
    for (const Index queries : {w + 3, 2 * w}) check<T>({2, queries, 600, 4, head_width, Mask::none(), {}, 2});
  }
  check<T>({2, 3, 40 * w + 5, 1, 9});
  check<T>({0, 3, 4, 2, 5});
  for (const Mask mask :
       {Mask{.chunk = 1, .offset = 2}, Mask{.chunk = 1, .offset = t + w}, Mask{.chunk = 5, .offset = 7}}) {
    check<T>({2, t + 2, 2 * t + 3 * w, 2, 5, mask});
  }
}

template <class T>
void check_dropout() {
  for (const float rate : {0.1f, 0.6f}) {
    for (const Index size : {Index{1}, tile<T> + 1, 2 * width<T> + 1, 16 * width<T> + 3}) {
      for (const Mask mask : {Mask::none(), Mask::causal(), Mask::chunk_causal(5)}) {
        check<T>({2, size, size, 2, 7, mask, Dropout{static_cast<std::uint64_t>(size), rate}});
      }
    }
    check<T>({2, tile<T> + 3, 3 * width<T> + 1, 3, 4, Mask::none(), Dropout{5, rate}});
  }
}

template <class T>
void check_huge_scores() {
  for (const Mask mask : {Mask::none(), Mask::causal()}) {
    CHECK(check<T>({1, 16 * width<T> + 5, 16 * width<T> + 5, 2, 16, mask}, 70) > 1e4);
    CHECK(check<T>({2, tile<T> + 1, tile<T> + 1, 2, 3, mask}, 100) > 1e4);
  }
}

template <class T>
void check_nan_in_a_key() {
  const Index size = 16 * width<T> + tile<T> + 3;
  for (const Mask mask : {Mask::none(), Mask::causal(), Mask::chunk_causal(tile<T> + 3)}) {
    const AttentionShape shape{2, size, size, 2, 5, mask};
    const Inputs<T> clean(shape, 1, 1, 1);
    const Results<T> before = run(shape, clean, 0, executor());
    for (const Index key : {Index{0}, tile<T> + 1, 8 * width<T>, 16 * width<T> + 1, size - 1}) {
      for (const bool in_value : {false, true}) {
        INFO("chunk " << mask.chunk << ", key " << key << ", in value " << in_value);
        Inputs<T> in = clean;
        (in_value ? in.v : in.k).data()[(size + key) * shape.width() + 5 + 2] = std::numeric_limits<T>::quiet_NaN();
        const Results<T> after = run(shape, in, 0, executor());
        CHECK(after.guarded());
        Index missed = 0, spoiled = 0;
        for (Index i = 0; i < 2 * size * shape.width(); ++i) {
          const Index token = i / shape.width(), channel = i % shape.width();
          const bool here = token >= size && channel >= 5 && (!in_value || channel == 5 + 2);
          const T *ours = after.o.data() + i, *was = before.o.data() + i;
          if (here && sees(mask, token - size, key)) {
            missed += !std::isnan(*ours);
          } else if (!here || !in_value) {  // no weight times a value that is NaN is NaN, so tiles pass it on
            spoiled += *ours != *was;
          }
        }
        for (Index i = 0; i < before.log_sum.size(); ++i) {
          const T ours = after.log_sum.data()[i], was = before.log_sum.data()[i];
          const bool reached = !in_value && i >= 3 * size && sees(mask, i - 3 * size, key);
          missed += reached && !std::isnan(ours);
          spoiled += !reached && ours != was;
        }
        // On the way back it spreads, but stays in its head and its sequence.
        for (Index i = 0; i < 2 * size * shape.width(); ++i) {
          if (i / shape.width() >= size && i % shape.width() >= 5) continue;
          spoiled += after.q.data()[i] != before.q.data()[i] || after.k.data()[i] != before.k.data()[i] ||
                     after.v.data()[i] != before.v.data()[i];
        }
        CHECK(missed == 0);
        CHECK(spoiled == 0);
      }
    }
  }
}

template <class T>
void check_threads() {
  for (const AttentionShape& shape :
       {AttentionShape{3, 32 * tile<T> + 5, 32 * tile<T> + 5, 2, 6, Mask::chunk_causal(50), Dropout{3, 0.2f}},
        AttentionShape{5, 3 * tile<T> + 1, 20 * width<T> + 3, 3, 17},
        // So few heads that there is a pass for keys and one for queries.
        AttentionShape{1, 300, 600, 2, 9, Mask::none(), Dropout{3, 0.2f}},
        AttentionShape{1, 530, 530, 1, 6, Mask::chunk_causal(50)},
        AttentionShape{1, 300, 600, 6, 9, Mask::chunk_causal(50), Dropout{3, 0.2f}, 3},
        AttentionShape{1, 20, 20, 6, width<T>, Mask::causal(), Dropout{3, 0.2f}, 6}}) {
    const Inputs<T> in(shape, 4, 1, 1);
    fit::Executor one(1);
    const Results<T> alone = run(shape, in, 0, one);
    for (const int threads : {2, 3, 7}) {
      fit::Executor several(threads);
      INFO(threads);
      CHECK(run(shape, in, 1, several).same(alone));
      CHECK(run(shape, in, 0, several, 2).same(alone));
    }
    CHECK(run(shape, in, 0, one, shape.sequences * shape.key_heads()).same(alone));
  }
}

template <class T>
void check_pieces() {
  using namespace fit::kernels;
  const AttentionShape latents{1, 6400, 6400, 8, 64};
  CHECK(attention_pieces<T>(latents) >= 256);
  CHECK(AttentionBackwardPieces<T>(latents, 64).count() >= 256);
  // Few threads do not compute scores twice, nor many with heads for all of them.
  CHECK(AttentionBackwardPieces<T>(latents, 2).count() == 8);
  CHECK(AttentionBackwardPieces<T>({32, 6400, 6400, 8, 64}, 64).count() == 256);
  // Nor do heads that share so few keys that there is nothing to cut.
  CHECK(AttentionBackwardPieces<T>({1, 16, 16, 8, 64, Mask::none(), {}, 8}, 2).count() == 1);
  // What a thread holds does not depend on the lengths.
  const AttentionShape longer{1, 30'000, 30'000, 8, 64};
  CHECK(detail::AttentionScratch<T>::size(longer) == detail::AttentionScratch<T>::size(latents));
  CHECK(detail::AttentionBackwardScratch<T>::size(longer) == detail::AttentionBackwardScratch<T>::size(latents));
}

}  // namespace

TEMPLATE_TEST_CASE("one long sequence is work for many threads, in memory that does not grow", "[attention]", float,
                   double) {
  check_pieces<TestType>();
}

TEST_CASE("the first query that sees a key is the first that sees it", "[attention]") {
  for (const Index chunk : {1, 2, 3, 7}) {
    for (const Index offset : {0, 1, 2, 3, 8}) {
      const Mask mask{chunk, offset};
      for (Index key = 0; key < 20; ++key) {
        Index first = 0;
        while (mask.visible_keys(first, 20) <= key) ++first;
        INFO("chunk " << chunk << ", offset " << offset << ", key " << key);
        CHECK(mask.first_query(key) == first);
        CHECK(sees(mask, first, key));
      }
    }
  }
}

TEMPLATE_TEST_CASE("attention under every mask, around the sizes of its blocks", "[attention]", float, double) {
  check_masks<TestType>();
}

TEMPLATE_TEST_CASE("attention with heads of many widths", "[attention]", float, double) { check_heads<TestType>(); }

TEMPLATE_TEST_CASE("attention whose keys are shared by heads", "[attention]", float, double) {
  check_shared_keys<TestType>();
}

TEMPLATE_TEST_CASE("attention to other tokens", "[attention]", float, double) { check_cross<TestType>(); }

TEMPLATE_TEST_CASE("attention drops weights out", "[attention]", float, double) { check_dropout<TestType>(); }

TEMPLATE_TEST_CASE("attention keeps huge scores finite", "[attention]", float, double) {
  check_huge_scores<TestType>();
}

TEMPLATE_TEST_CASE("NaN in a key reaches those who see it", "[attention]", float, double) {
  check_nan_in_a_key<TestType>();
}

TEMPLATE_TEST_CASE("attention does not depend on the threads, nor on what is computed at a time", "[attention]", float,
                   double) {
  check_threads<TestType>();
}
