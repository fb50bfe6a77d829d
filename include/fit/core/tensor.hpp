#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <iterator>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include <fit/core/memory.hpp>

#include <unsupported/Eigen/CXX11/Tensor>

namespace fit {
inline namespace FIT_ABI {

/// "[2, 3, 4]"
template <class Dimensions>
std::string shape_text(const Dimensions& dimensions) {
  std::string text = "[";
  for (std::size_t i = 0; i < std::size(dimensions); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(dimensions[i]);
  }
  return text + "]";
}

template <class T, int Rank>
class Tensor;

namespace detail {

/// Of the elements of a tensor or view.
template <class X>
using ScalarOf = std::remove_const_t<typename X::Scalar>;

template <std::size_t Rank, class Dimensions, class... Positions>
Index offset_of(const Dimensions& dimensions, Positions... positions) {
  Index result = 0;
  std::size_t axis = 0;
  ((result = result * dimensions[axis++] + static_cast<Index>(positions)), ...);
  return result;
}

}  // namespace detail

/// A row-major tensor over memory that somebody else owns: what functions of the library take. Tensors, Eigen's own
/// row-major tensors and their maps convert to it. TensorView<const T, Rank> cannot write.
template <class T, int Rank>
class TensorView {
  using Value = std::remove_const_t<T>;
  using Plain = Eigen::Tensor<Value, Rank, Eigen::RowMajor>;
  using PlainMap = std::conditional_t<std::is_const_v<T>, const Plain, Plain>;

 public:
  using Scalar = T;
  using Dimensions = Eigen::DSizes<Index, Rank>;

  TensorView() = default;
  TensorView(T* data, const Dimensions& dimensions) : data_(data), dimensions_(dimensions) {}
  template <std::convertible_to<Index>... Sizes>
  requires(sizeof...(Sizes) == Rank && Rank > 0) TensorView(T* data, Sizes... sizes)
      : TensorView(data, Dimensions(static_cast<Index>(sizes)...)) {}

  template <class U>
  requires(std::is_const_v<T>&& std::is_same_v<U, Value>) TensorView(const TensorView<U, Rank>& view)
      : TensorView(view.data(), view.dimensions()) {}
  TensorView(std::conditional_t<std::is_const_v<T>, const Tensor<Value, Rank>, Tensor<Value, Rank>>& tensor)
      : TensorView(tensor.data(), tensor.dimensions()) {}
  TensorView(PlainMap& tensor) : TensorView(tensor.data(), tensor.dimensions()) {}
  TensorView(const Eigen::TensorMap<Plain>& map) : TensorView(map.data(), map.dimensions()) {}
  TensorView(const Eigen::TensorMap<const Plain>& map) requires std::is_const_v<T>
      : TensorView(map.data(), map.dimensions()) {}

  T* data() const { return data_; }
  Index size() const { return data_ ? dimensions_.TotalSize() : 0; }
  Index dimension(std::size_t axis) const { return dimensions_[axis]; }
  const Dimensions& dimensions() const { return dimensions_; }

  /// The element at a position, one index for each axis; not checked.
  template <std::convertible_to<Index>... Positions>
  requires(sizeof...(Positions) == Rank) T& operator()(Positions... positions) const {
    return data_[detail::offset_of<Rank>(dimensions_, positions...)];
  }

  /// The tensor in Eigen's expressions.
  Eigen::TensorMap<PlainMap> eigen() const { return Eigen::TensorMap<PlainMap>(data_, dimensions_); }

 private:
  T* data_ = nullptr;
  Dimensions dimensions_{};
};

/// A row-major Eigen tensor that owns its memory, aligned alike under all compiler flags (Eigen's own depends on
/// them). `eigen()` is the tensor in Eigen's expressions, and a Tensor can be made from an expression:
///
///     fit::Tensor<float, 2> c = 2.0f * a.eigen() + b.eigen();
///
/// Elements start at zero. It converts to TensorView<const T, Rank>, which is what the models take.
template <class T, int Rank>
class Tensor {
 public:
  using Scalar = T;
  using Dimensions = Eigen::DSizes<Index, Rank>;

  /// Without elements; of rank 0, with its one.
  Tensor() : Tensor(Dimensions{}) {}
  Tensor(const Tensor&) = default;
  Tensor(Tensor&& other) noexcept
      : memory_(std::move(other.memory_)), dimensions_(std::exchange(other.dimensions_, Dimensions{})) {}
  Tensor& operator=(Tensor other) noexcept {
    memory_ = std::move(other.memory_);
    dimensions_ = other.dimensions_;
    return *this;
  }

  /// Throws Error when a dimension is negative or the number of elements overflows.
  explicit Tensor(const Dimensions& dimensions) : memory_(count(dimensions)), dimensions_(dimensions) {}

  /// Throws Error as above.
  template <std::convertible_to<Index>... Sizes>
  requires(sizeof...(Sizes) == Rank && Rank > 0) explicit Tensor(Sizes... sizes)
      : Tensor(Dimensions(static_cast<Index>(sizes)...)) {}

  /// Evaluates an Eigen tensor expression of this rank.
  template <class Expression>
  Tensor(const Eigen::TensorBase<Expression, Eigen::ReadOnlyAccessors>& expression)
      : Tensor(dimensions_of(static_cast<const Expression&>(expression))) {
    eigen() = static_cast<const Expression&>(expression);
  }

  T* data() { return memory_.data(); }
  const T* data() const { return memory_.data(); }
  Index size() const { return memory_.size(); }
  Index dimension(std::size_t axis) const { return dimensions_[axis]; }
  const Dimensions& dimensions() const { return dimensions_; }

  /// The element at a position, one index for each axis; not checked.
  template <std::convertible_to<Index>... Positions>
  requires(sizeof...(Positions) == Rank) T& operator()(Positions... positions) {
    return data()[detail::offset_of<Rank>(dimensions_, positions...)];
  }
  template <std::convertible_to<Index>... Positions>
  requires(sizeof...(Positions) == Rank) const T& operator()(Positions... positions) const {
    return data()[detail::offset_of<Rank>(dimensions_, positions...)];
  }

  auto eigen() { return TensorView<T, Rank>(*this).eigen(); }
  auto eigen() const { return TensorView<const T, Rank>(*this).eigen(); }

  Tensor& setConstant(T value) {
    std::fill_n(data(), size(), value);
    return *this;
  }
  Tensor& setZero() { return setConstant(T(0)); }

 private:
  static Index count(const Dimensions& dimensions) {
    Index product = 1;
    for (std::size_t i = 0; i < Rank; ++i) {
      const Index size = dimensions[i];
      if (size < 0 || (size > 0 && product > std::numeric_limits<Index>::max() / size)) {
        throw Error(concatenate("a tensor cannot have the shape ", shape_text(dimensions)));
      }
      product *= size;
    }
    return product;
  }

  template <class Expression>
  static Dimensions dimensions_of(const Expression& expression) {
    return Dimensions(Eigen::TensorEvaluator<const Expression, Eigen::DefaultDevice>(expression, {}).dimensions());
  }

  Buffer<T> memory_;
  Dimensions dimensions_{};
};

namespace detail {

template <class T, int Rank>
void owner(const Tensor<T, Rank>&);
template <class T, int Rank, int Options>
void owner(const Eigen::Tensor<T, Rank, Options>&);

/// Throws Error unless a tensor, called `name`, has the expected shape, and elements where it should; a negative size
/// accepts any that is not. The first axis is called the batch then.
template <class X, class... Name>
void require_shape(const X& tensor, const std::array<Index, X::Dimensions::count>& expected, const Name&... name) {
  bool equal = true, empty = false;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const Index size = tensor.dimensions()[i];
    equal = equal && (expected[i] < 0 ? size >= 0 : size == expected[i]);
    empty = empty || size == 0;
  }
  if (equal && (empty || tensor.data())) return;  // no text, no allocation
  std::string wanted = "[";
  for (std::size_t i = 0; i < expected.size(); ++i) {
    wanted += (i > 0 ? ", " : "") + (expected[i] >= 0 ? std::to_string(expected[i]) : i == 0 ? "batch" : "any");
  }
  throw Error(concatenate(name..., " must have the shape ", wanted, "], not ", shape_text(tensor.dimensions()),
                          equal ? " of no elements at all: it is a view of null" : ""));
}

/// Whether X is a tensor, or derived from one, and no view.
template <class X>
concept owns_elements = requires(const X& x) {
  owner(x);
};

}  // namespace detail

/// The argument of a call that keeps it: a TensorView, but not of a temporary tensor, whose elements would be gone.
template <class T, int Rank>
class LastingView : public TensorView<T, Rank> {
 public:
  template <class X>
  requires(std::is_convertible_v<X, TensorView<T, Rank>> &&
           (std::is_lvalue_reference_v<X> || !detail::owns_elements<std::remove_const_t<X>>)) LastingView(X&& x)
      : TensorView<T, Rank>(std::forward<X>(x)) {}
};

}  // namespace FIT_ABI
}  // namespace fit
