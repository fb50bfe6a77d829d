#pragma once

#include <fit/bench/complexity.hpp>

#include <memory>
#include <utility>

#include "onnx_runtime.hpp"

/// Full attention as ONNX Runtime runs it.
namespace onnx {

class AttentionJob final : public fit::bench::Job {
 public:
  explicit AttentionJob(std::unique_ptr<Session> session) : session_(std::move(session)) {}
  void run() override { session_->run(); }
  fit::Index bytes() const override { return session_->bytes(); }

 private:
  std::unique_ptr<Session> session_;
};

/// Attention of all tokens to all, forward, without a mask: with a causal one it takes another, slower way.
inline fit::bench::Curve attention_curve(std::shared_ptr<const Runtime> runtime, fit::Index width, int heads) {
  using fit::Sizes;
  fit::bench::Task task{.work = fit::bench::Work::attention,
                        .width = width,
                        .passes = {fit::bench::Pass::forward},
                        .expect = {},
                        .prepare = {}};
  task.expect = [=](const Sizes& sizes, fit::bench::Pass, int) {
    return fit::bench::Expected{fit::attention_flops({1, sizes.tokens, sizes.tokens, heads, width / heads}),
                                4 * sizes.tokens * width * static_cast<fit::Index>(sizeof(float))};
  };
  task.prepare = [=](const Sizes& sizes, fit::bench::Pass,
                     fit::Executor& executor) -> std::unique_ptr<fit::bench::Job> {
    return std::make_unique<AttentionJob>(
        attention(runtime, 1, sizes.tokens, sizes.tokens, width, heads, false, executor.lanes()));
  };
  return {"onnxruntime", [](fit::Index length) { return Sizes{1, 1, length, 1}; }, {std::move(task)}};
}

}  // namespace onnx
