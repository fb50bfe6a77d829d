#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <string>
#include <utility>

#include <fit/core/memory.hpp>

#include <unsupported/Eigen/CXX11/Tensor>

namespace fit::inline FIT_ABI {

/// A row-major Eigen tensor over memory that somebody else owns. TensorView<const T, Rank> cannot write to it.
template <class T, int Rank>
using TensorView = Eigen::TensorMap<
    std::conditional_t<std::is_const_v<T>, const Eigen::Tensor<std::remove_const_t<T>, Rank, Eigen::RowMajor>,
                       Eigen::Tensor<T, Rank, Eigen::RowMajor>>>;

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

  Tensor() = default;

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
  requires(sizeof...(Positions) == Rank) T& operator()(Positions... positions) { return data()[offset(positions...)]; }
  template <std::convertible_to<Index>... Positions>
  requires(sizeof...(Positions) == Rank) const T& operator()(Positions... positions) const {
    return data()[offset(positions...)];
  }

  TensorView<T, Rank> eigen() { return TensorView<T, Rank>(data(), dimensions_); }
  TensorView<const T, Rank> eigen() const { return TensorView<const T, Rank>(data(), dimensions_); }
  operator TensorView<T, Rank>() { return eigen(); }
  operator TensorView<const T, Rank>() const { return eigen(); }

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
      require(size >= 0 && (size == 0 || product <= std::numeric_limits<Index>::max() / size),
              "a tensor cannot have the shape ", shape_text(dimensions));
      product *= size;
    }
    return product;
  }

  template <class Expression>
  static Dimensions dimensions_of(const Expression& expression) {
    const auto found = Eigen::TensorEvaluator<const Expression, Eigen::DefaultDevice>(expression, {}).dimensions();
    Dimensions dimensions;
    for (std::size_t i = 0; i < Rank; ++i) dimensions[i] = found[i];
    return dimensions;
  }

  template <class... Positions>
  Index offset(Positions... positions) const {
    Index result = 0;
    std::size_t axis = 0;
    ((result = result * dimensions_[axis++] + static_cast<Index>(positions)), ...);
    return result;
  }

  Buffer<T> memory_;
  Dimensions dimensions_{};
};

}  // namespace fit::inline FIT_ABI
