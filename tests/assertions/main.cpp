// Built with assertions, and linked with a unit that is built without.
#include "unchecked.hpp"

#include <fit/kernels/attention_backward.hpp>
#include <fit/kernels/cached_attention.hpp>
#include <fit/kernels/cross_entropy.hpp>
#include <fit/kernels/few_rows.hpp>
#include <fit/kernels/gemm.hpp>
#include <fit/kernels/layer_norm.hpp>
#include <fit/kernels/silu.hpp>

#include <csignal>
#include <functional>
#include <iostream>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

namespace {

namespace kernels = fit::kernels;
using fit::Index;

/// What a process of its own writes to stderr before a call aborts it; "" when it lives.
std::string last_words(const std::function<void()>& call) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    call();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[256];
  for (ssize_t count; (count = read(ends[0], part, sizeof part)) > 0;)
    text.append(part, static_cast<std::size_t>(count));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? text : "";
}

int faults = 0;

void must_fail(const std::string& condition, const std::function<void()>& call) {
  const std::string text = last_words(call);
  if (text.find("hpp:") == std::string::npos ||
      text.find(": fit: assertion failed: " + condition) == std::string::npos) {
    std::cout << "not said: " << condition << (text.empty() ? "" : ", but ") << text << '\n';
    ++faults;
  }
}

float a[1024], b[1024], c[1024], d[1024];

kernels::Product<float> product() {
  return {.rows = 4,
          .columns = 8,
          .factors = {{kernels::plain<float>(a, 16), kernels::transposed<float>(b, 16), 16}},
          .c = c,
          .c_row = 8};
}

void check_products() {
  fit::Executor executor(1);
  fit::Workspace workspace(executor);
  const auto must_refuse = [&](const char* condition, auto&& change) {
    must_fail(condition, [&] {
      auto wrong = product();
      change(wrong);
      kernels::multiply({wrong}, workspace);
    });
  };
  using Product = kernels::Product<float>;
  must_refuse("p.rows >= 0", [](Product& p) { p.rows = -1; });
  must_refuse("p.count >= 1", [](Product& p) { p.count = 0; });
  must_refuse("empty || p.c", [](Product& p) { p.c = nullptr; });
  must_refuse("p.rows <= 1 || p.c_row", [](Product& p) { p.c_row = 7; });
  must_refuse("!p.finish.row_scale", [](Product& p) {
    p.finish.row_scale = d;
    p.finish.rows_per_scale = 0;
  });
  must_refuse("empty || p.activation != Activation::gelu ||",
              [](Product& p) { p.activation = kernels::Activation::gelu; });
  must_refuse("empty || p.activation != Activation::times_slope",
              [](Product& p) { p.activation = kernels::Activation::times_slope; });
  must_refuse("depth >= 0", [](Product& p) { p.factors[0].depth = -1; });
  must_refuse("a.data && b.data", [](Product& p) { p.factors[0].b.data = nullptr; });
  must_refuse("a.data != p.c", [](Product& p) { p.factors[0].a.data = c; });
  must_refuse("p.activation != Activation::gelu ||", [](Product& p) {
    p.activation = kernels::Activation::gelu;
    p.activated = a;
  });
  must_refuse("a.row == 1", [](Product& p) { p.factors[0].a.column = 2; });
  must_refuse("(b.column == 1", [](Product& p) { p.factors[0].b.column = 15; });
  must_fail("p.rows >= 0", [&] {
    auto wrong = product();
    wrong.rows = -1;
    kernels::multiply_few_rows({wrong}, workspace);
  });
  constexpr Index many = 1000;
  must_fail("tile.rows >= 1", [] { kernels::multiply_tile<float>({many, 8, 16, {a, 16, 1}, b, 16, c, 8}, {}); });
  must_fail("tile.columns >= 1", [] { kernels::multiply_tile<float>({1, many, 16, {a, 16, 1}, b, 16, c, 8}, {}); });
  must_fail("columns >= 0", [] { kernels::pack_panel<float>({a, 8, 1}, many, 0, 1, c); });
  must_fail("from.row == 1", [] { kernels::pack_panel<float>({a, 8, 2}, 4, 0, 1, c); });
}

void check_attention() {
  fit::Executor executor(1);
  fit::Workspace workspace(executor);
  const kernels::AttentionShape right{.sequences = 1, .queries = 2, .keys = 3, .heads = 2, .head_width = 4};
  const kernels::AttentionTensors<float> tensors{a, b, b, c, d};
  const auto must_refuse = [&](const char* condition, auto&& change) {
    must_fail(condition, [&] {
      auto shape = right;
      auto wrong = tensors;
      change(shape, wrong);
      kernels::attention(shape, wrong, workspace);
    });
  };
  using Shape = kernels::AttentionShape;
  using Tensors = kernels::AttentionTensors<float>;
  must_refuse("s.sequences >= 0", [](Shape& s, Tensors&) { s.keys = -1; });
  must_refuse("s.head_width >= 1", [](Shape& s, Tensors&) { s.head_width = 0; });
  must_refuse("s.head_width >= 1 && s.sharing >= 1", [](Shape& s, Tensors&) { s.sharing = 3; });
  must_refuse("s.mask.chunk >= 1", [](Shape& s, Tensors&) { s.mask.chunk = 0; });
  must_refuse("s.dropout.rate >= 0", [](Shape& s, Tensors&) { s.dropout.rate = 1; });
  must_refuse("heads * s.queries == 0", [](Shape&, Tensors& t) { t.q = nullptr; });
  must_refuse("heads * s.keys == 0", [](Shape&, Tensors& t) { t.v = nullptr; });
  must_refuse("heads * s.queries * s.keys == 0", [](Shape&, Tensors& t) { t.o = b; });

  const auto backward = [&](const Tensors& t, const kernels::AttentionGradients<float>& gradients) {
    kernels::attention_backward(right, t, gradients, workspace);
  };
  float q[16], k[32], v[32];
  must_fail("s.head_width >= 1", [&] {
    kernels::attention_backward<float>({1, 2, 3, 2}, tensors, {a, q, k, v}, workspace);
  });
  must_fail("heads * shape.queries == 0", [&] { backward({a, b, b, c}, {a, q, k, v}); });
  must_fail("heads * shape.keys == 0", [&] { backward(tensors, {a, q, k, k}); });
  must_fail("heads * shape.queries * shape.keys == 0", [&] { backward(tensors, {v, q, k, v}); });
  must_fail("heads * shape.queries == 0 || gradients.o != gradients.q", [&] { backward(tensors, {q, q, k, v}); });

  const auto cached = [&](const kernels::CachedQuery<float>& query, Index heads, Index sharing = 1) {
    kernels::cached_attention<float>(std::span(&query, 1), {heads, 4, sharing}, workspace);
  };
  must_fail("heads >= 0", [&] { cached({a, b, b, 3, c}, -1); });
  must_fail("heads >= 0 && head_width >= 1 && of.sharing >= 1", [&] { cached({a, b, b, 3, c}, 2, 3); });
  must_fail("query.count >= 0", [&] { cached({a, b, b, -1, c}, 2); });
  must_fail("heads == 0 || query.o", [&] { cached({a, b, b, 3}, 2); });
  must_fail("heads * query.count == 0", [&] { cached({a, b, nullptr, 3, c}, 2); });
}

void check_reductions() {
  fit::Executor executor(1);
  fit::Workspace workspace(executor);
  must_fail("rows == 0 || (rows > 0", [&] { kernels::cross_entropy<float>({a, nullptr, c}, 1, 1, 4, executor); });
  const std::int32_t targets[] = {3, 4};
  must_fail("rows == 0 || classes", [&] { kernels::cross_entropy<float>({a, targets, c}, 1, 2, 0, executor); });
  must_fail("target >= 0", [&] { kernels::cross_entropy<float>({a, targets, c}, 1, 2, 4, executor); });

  must_fail("rows >= 0 && width", [&] { kernels::layer_norm<float>({a, b, b, c}, 2, 0, executor); });
  must_fail("rows == 0 || (t.x", [&] { kernels::layer_norm<float>({a, nullptr, b, c}, 2, 8, executor); });
  const auto backward = [&](const kernels::LayerNormGradients<float>& t, Index width) {
    kernels::layer_norm_backward(t, 2, width, workspace);
  };
  must_fail("rows >= 0 && width", [&] { backward({a, b, b, a, c, d, d + 8}, 0); });
  must_fail("t.weight && t.weight_gradient", [&] { backward({a, b, b, a, c, d, d}, 8); });
  must_fail("rows == 0 || (t.normalised", [&] { backward({a, b, b, c, c, d, d + 8}, 8); });

  must_fail("job.rows >= 0", [&] { kernels::add_column_sums<float>({{a, -1, 4, c}}, workspace); });
  must_fail("job.rows == 0", [&] { kernels::add_column_sums<float>({{a, 1, 4, a}}, workspace); });

  must_fail("rate >= 0", [] { kernels::Dropout{1, 1.0f}.apply(a, 4, 0); });
  must_fail("count == 0", [] { kernels::Dropout{1, 0.5f}.apply<float>(nullptr, 4, 0); });
  must_fail("count == 0", [] { kernels::gelu<float>(nullptr, c, 4); });
  must_fail("count == 0", [] { kernels::gelu_and_slope<float>(a, nullptr, 4); });
  must_fail("count == 0", [] { kernels::gelu_and_slope<float>(a, a, 4); });
  must_fail("count == 0", [] { kernels::times_slope<float>(a, nullptr, 4); });
  must_fail("count == 0", [] { kernels::silu<float>(a, c, -1); });
  must_fail("count == 0", [] { kernels::silu_backward<float>(nullptr, c, 4); });
}

}  // namespace

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

int main() {
  if (unchecked() == TEXT(FIT_ABI)) {
    std::cout << "units with and without assertions share a namespace\n";
    ++faults;
  }
  must_fail("count == 0", [] { kernels::gelu<float>(nullptr, nullptr, -1); });
  check_products();
  check_attention();
  check_reductions();
  return faults;
}
