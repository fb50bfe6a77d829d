#pragma once

#include <fit/core/memory.hpp>
#include <fit/core/random.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

/// Models as ONNX Runtime runs them, from its shared library alone.
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

/// The library, loaded for as long as somebody holds it.
class Runtime {
 public:
  /// Throws fit::Error when the file is not a library of ONNX Runtime.
  explicit Runtime(const std::string& path) {
#if __has_include(<dlfcn.h>)
    void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const char* const reason = library ? "" : ::dlerror();
    fit::require(library != nullptr, "ONNX Runtime is not to be had: ", reason);
    const auto base = reinterpret_cast<const ApiBase* (*)()>(::dlsym(library, "OrtGetApiBase"));
    fit::require(base != nullptr, path, " is not ONNX Runtime's libonnxruntime.so but another library");
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

/// A tensor of floats that goes into a model or comes out of it.
struct Tensor {
  const char* name;
  std::vector<std::int64_t> shape;

  std::int64_t size() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape) product *= extent;
    return product;
  }
};

/// A model of onnx.proto's messages, by their field numbers: nodes of one output each, over tensors that come in and
/// constants.
class Model {
 public:
  explicit Model(std::initializer_list<Tensor> inputs) : inputs_(inputs) {}

  struct Attribute {
    const char* name;
    std::int64_t value;
  };
  Model& node(const char* type, std::initializer_list<const char*> from, std::initializer_list<const char*> to,
              std::initializer_list<Attribute> attributes = {}, const char* domain = "") {
    Message node;
    for (const char* name : from) node.add(1, std::string_view(name));
    for (const char* name : to) node.add(2, std::string_view(name));
    node.add(4, std::string_view(type));
    for (const Attribute& a : attributes) {
      node.add(5, Message().add(1, std::string_view(a.name)).add(3, a.value).add(20, std::int64_t{2}));
    }
    if (*domain) node.add(7, std::string_view(domain));
    graph_.add(1, node);
    return *this;
  }
  /// A constant of random numbers in [-scale, scale).
  Model& constant(const Tensor& tensor, double scale) {
    fit::Random random(7);
    std::vector<float> values(static_cast<std::size_t>(tensor.size()));
    for (float& value : values) value = static_cast<float>(scale * (2 * random.uniform() - 1));
    Message message;
    for (const std::int64_t extent : tensor.shape) message.add(1, extent);
    message.add(2, std::int64_t{1}).add(8, std::string_view(tensor.name));
    message.add(9, std::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
    graph_.add(5, message);
    return *this;
  }

  const std::vector<Tensor>& inputs() const { return inputs_; }
  /// The file of the model that has this output.
  std::string text(const Tensor& output) const {
    Message graph = graph_;
    graph.add(2, std::string_view("graph"));
    for (const Tensor& tensor : inputs_) graph.add(11, value_info(tensor));
    graph.add(12, value_info(output));
    const auto operators = [](const char* domain, std::int64_t version) {
      return Message().add(1, std::string_view(domain)).add(2, version);
    };
    return Message()
        .add(1, std::int64_t{9})
        .add(7, graph)
        .add(8, operators("", 20))
        .add(8, operators("com.microsoft", 1))
        .text();
  }

 private:
  static Message value_info(const Tensor& tensor) {
    Message shape;
    for (const std::int64_t extent : tensor.shape) shape.add(1, Message().add(1, extent));
    const Message type = Message().add(1, std::int64_t{1}).add(2, shape);  // of floats
    return Message().add(1, std::string_view(tensor.name)).add(2, Message().add(1, type));
  }

  std::vector<Tensor> inputs_;
  Message graph_;
};

/// A model that is loaded, with its tensors: random numbers where they come in.
class Session {
 public:
  Session(std::shared_ptr<const Runtime> runtime, const Model& model, const Tensor& output, int threads)
      : runtime_(std::move(runtime)) {
    const Api& api = runtime_->api();
    tensors_ = model.inputs();
    tensors_.push_back(output);
    fit::Random random(7);
    for (const Tensor& tensor : tensors_) {
      fit::Buffer<float>& data = data_.emplace_back(tensor.size());
      for (std::int64_t i = 0; i < tensor.size(); ++i) data.data()[i] = static_cast<float>(2 * random.uniform() - 1);
      runtime_->check(api.create_tensor_with_data(
          runtime_->memory(), data.data(), static_cast<std::size_t>(tensor.size()) * sizeof(float), tensor.shape.data(),
          tensor.shape.size(), 1, &values_.emplace_back(nullptr)));
      names_.push_back(tensor.name);
    }
    Api::Options* options = nullptr;
    runtime_->check(api.create_options(&options));
    const std::string text = model.text(output);
    Api::Status* status = api.set_intra_op_threads(options, threads);
    if (!status) {
      status = api.create_session_from_array(runtime_->env(), text.data(), text.size(), options, &session_);
    }
    api.release_options(options);
    runtime_->check(status);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    if (session_) runtime_->api().release_session(session_);
    for (Api::Value* value : values_) {
      if (value) runtime_->api().release_value(value);
    }
  }

  void run() {
    const std::size_t inputs = values_.size() - 1;
    runtime_->check(runtime_->api().run(session_, nullptr, names_.data(), values_.data(), inputs, &names_[inputs], 1,
                                        &values_[inputs]));
  }
  /// Of the tensors, without what it takes for itself.
  fit::Index bytes() const {
    fit::Index elements = 0;
    for (const Tensor& tensor : tensors_) elements += tensor.size();
    return elements * static_cast<fit::Index>(sizeof(float));
  }
  /// The inputs, in their order, and the output.
  float* data(std::size_t i) { return data_[i].data(); }

 private:
  std::shared_ptr<const Runtime> runtime_;
  std::vector<Tensor> tensors_;
  std::vector<fit::Buffer<float>> data_;
  std::vector<Api::Value*> values_;
  std::vector<const char*> names_;
  Api::Session* session_ = nullptr;
};

/// o = attention(q, k, v), [sequences, queries or keys, width].
inline std::unique_ptr<Session> attention(std::shared_ptr<const Runtime> runtime, std::int64_t sequences,
                                          std::int64_t queries, std::int64_t keys, std::int64_t width, int heads,
                                          bool causal, int threads) {
  Model model({{"q", {sequences, queries, width}}, {"k", {sequences, keys, width}}, {"v", {sequences, keys, width}}});
  model.node("MultiHeadAttention", {"q", "k", "v"}, {"o"}, {{"num_heads", heads}, {"unidirectional", causal}},
             "com.microsoft");
  return std::make_unique<Session>(std::move(runtime), model, Tensor{"o", {sequences, queries, width}}, threads);
}

}  // namespace onnx
