#pragma once

#include <fit/bench/complexity.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

/// Full attention as ONNX Runtime runs it, from its shared library alone.
namespace onnx {

/// The functions of version 1 of its C interface that are used here, at the places that onnxruntime_c_api.h has
/// promised to keep ("End of Version 1 - DO NOT MODIFY ABOVE"). Each returns null or what went wrong.
struct Api {
  struct Status;
  struct Env;
  struct Session;
  struct Options;
  struct Memory;
  struct Value;

  void* until_message[2];
  const char* (*get_error_message)(const Status*);
  Status* (*create_env)(int log_level, const char* name, Env**);
  void* until_session[4];
  Status* (*create_session_from_array)(const Env*, const void* model, std::size_t bytes, const Options*, Session**);
  Status* (*run)(Session*, const void* options, const char* const* inputs, const Value* const* input_values,
                 std::size_t input_count, const char* const* outputs, std::size_t output_count, Value** output_values);
  Status* (*create_options)(Options**);
  void* until_threads[13];
  Status* (*set_intra_op_threads)(Options*, int);
  void* until_tensor[24];
  Status* (*create_tensor_with_data)(const Memory*, void* data, std::size_t bytes, const std::int64_t* shape,
                                     std::size_t rank, int type, Value**);
  void* until_memory[19];
  Status* (*create_cpu_memory)(int allocator, int type, Memory**);
  void* until_release[22];
  void (*release_env)(Env*);
  void (*release_status)(Status*);
  void (*release_memory)(Memory*);
  void (*release_session)(Session*);
  void (*release_value)(Value*);
  void* until_release_options[3];
  void (*release_options)(Options*);
};
static_assert(offsetof(Api, release_options) == 100 * sizeof(void*));

struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);
  const char* (*get_version)();
};

/// A message of protocol buffers, written field by field.
class Message {
 public:
  Message& add(int field, std::int64_t value) {
    put(static_cast<std::uint64_t>(field) << 3);
    put(static_cast<std::uint64_t>(value));
    return *this;
  }
  Message& add(int field, std::string_view value) {
    put(static_cast<std::uint64_t>(field) << 3 | 2);
    put(value.size());
    text_ += value;
    return *this;
  }
  Message& add(int field, const Message& value) { return add(field, std::string_view(value.text_)); }
  const std::string& text() const { return text_; }

 private:
  void put(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>(value | 0x80);
    text_ += static_cast<char>(value);
  }

  std::string text_;
};

/// The model o = MultiHeadAttention(q, k, v), each [1, length, width]: onnx.proto's messages with their field numbers.
inline std::string attention_model(fit::Index length, fit::Index width, int heads) {
  Message shape;
  for (const fit::Index size : {fit::Index{1}, length, width}) shape.add(1, Message().add(1, std::int64_t{size}));
  const Message tensor = Message().add(1, std::int64_t{1}).add(2, shape);  // of floats
  const auto value = [&](const char* name) {
    return Message().add(1, std::string_view(name)).add(2, Message().add(1, tensor));
  };
  const auto attribute = [](const char* name, std::int64_t number) {
    return Message().add(1, std::string_view(name)).add(3, number).add(20, std::int64_t{2});
  };
  Message node, graph;
  for (const char* name : {"q", "k", "v"}) node.add(1, std::string_view(name));
  node.add(2, std::string_view("o")).add(4, std::string_view("MultiHeadAttention"));
  node.add(5, attribute("num_heads", heads));
  node.add(7, std::string_view("com.microsoft"));
  graph.add(1, node).add(2, std::string_view("attention"));
  for (const char* name : {"q", "k", "v"}) graph.add(11, value(name));
  graph.add(12, value("o"));
  const auto operators = [](const char* domain, std::int64_t version) {
    return Message().add(1, std::string_view(domain)).add(2, version);
  };
  return Message()
      .add(1, std::int64_t{8})
      .add(7, graph)
      .add(8, operators("", 17))
      .add(8, operators("com.microsoft", 1))
      .text();
}

/// The library, loaded for as long as somebody holds it.
class Runtime {
 public:
  /// Throws fit::Error when the file is not a library of ONNX Runtime.
  explicit Runtime(const std::string& path) {
#if __has_include(<dlfcn.h>)
    void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const char* const reason = library ? "" : ::dlerror();
    fit::require(library != nullptr, "--onnxruntime needs the path of ONNX Runtime's libonnxruntime.so: ", reason);
    const auto base = reinterpret_cast<const ApiBase* (*)()>(::dlsym(library, "OrtGetApiBase"));
    fit::require(base != nullptr, "--onnxruntime needs the path of ONNX Runtime's libonnxruntime.so, and ", path,
                 " is another library");
    api_ = base()->get_api(1);
#endif
    fit::require(api_ != nullptr, path, ": this ONNX Runtime cannot be used here");
    check(api_->create_env(3, "attention", &env_));
    check(api_->create_cpu_memory(0, 0, &memory_));
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  ~Runtime() {  // the library stays: it has threads of its own
    api_->release_memory(memory_);
    api_->release_env(env_);
  }

  const Api& api() const { return *api_; }
  const Api::Env* env() const { return env_; }
  const Api::Memory* memory() const { return memory_; }

  /// Throws fit::Error with what a call says went wrong.
  void check(Api::Status* status) const {
    if (!status) return;
    const std::string message = api_->get_error_message(status);
    api_->release_status(status);
    throw fit::Error("ONNX Runtime: " + message);
  }

 private:
  const Api* api_ = nullptr;
  Api::Env* env_ = nullptr;
  Api::Memory* memory_ = nullptr;
};

class AttentionJob final : public fit::bench::Job {
 public:
  AttentionJob(std::shared_ptr<const Runtime> runtime, fit::Index length, fit::Index width, int heads, int threads)
      : runtime_(std::move(runtime)) {
    const Api& api = runtime_->api();
    const std::int64_t shape[] = {1, length, width};
    for (int i = 0; i < 4; ++i) {
      data_[i] = fit::bench::detail::random_values<float>(length * width);
      runtime_->check(api.create_tensor_with_data(runtime_->memory(), data_[i].data(),
                                                  static_cast<std::size_t>(length * width) * sizeof(float), shape, 3, 1,
                                                  &values_[i]));
    }
    Api::Options* options = nullptr;
    runtime_->check(api.create_options(&options));
    const std::string model = attention_model(length, width, heads);
    Api::Status* status = api.set_intra_op_threads(options, threads);
    if (!status) {
      status = api.create_session_from_array(runtime_->env(), model.data(), model.size(), options, &session_);
    }
    api.release_options(options);
    runtime_->check(status);
  }
  AttentionJob(const AttentionJob&) = delete;
  AttentionJob& operator=(const AttentionJob&) = delete;
  ~AttentionJob() override {
    if (session_) runtime_->api().release_session(session_);
    for (Api::Value* value : values_) {
      if (value) runtime_->api().release_value(value);
    }
  }

  void run() override {
    static constexpr const char* inputs[] = {"q", "k", "v"};
    static constexpr const char* outputs[] = {"o"};
    runtime_->check(runtime_->api().run(session_, nullptr, inputs, values_, 3, outputs, 1, values_ + 3));
  }
  /// Without what it takes for itself.
  fit::Index bytes() const override { return 4 * data_[0].size() * static_cast<fit::Index>(sizeof(float)); }
  const float* output() const { return data_[3].data(); }

 private:
  std::shared_ptr<const Runtime> runtime_;
  fit::Buffer<float> data_[4];
  Api::Value* values_[4] = {};  // q, k, v, o
  Api::Session* session_ = nullptr;
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
    return std::make_unique<AttentionJob>(runtime, sizes.tokens, width, heads, executor.lanes());
  };
  return {"onnxruntime", [](fit::Index length) { return Sizes{1, 1, length, 1}; }, {std::move(task)}};
}

}  // namespace onnx
