#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include <fit/core/memory.hpp>

namespace fit {
inline namespace FIT_ABI {

/// A trained array whose shape is part of its type. Copies deeply; starts at zero. One that was moved from can be
/// assigned to and destroyed.
template <class T, int... Sizes>
class Parameter {
  static_assert(((Sizes > 0) && ...), "fit: every dimension of a parameter must be positive");

 public:
  using Scalar = T;
  static constexpr std::array<Index, sizeof...(Sizes)> shape{Sizes...};
  static constexpr Index size() { return (Index{1} * ... * Sizes); }

  /// The elements, row-major. Throws Error when they were moved away.
  T* data() {
    check();
    return values_.data();
  }
  const T* data() const {
    check();
    return values_.data();
  }

 private:
  void check() const { require(values_.size() == size(), "a parameter is used whose values were moved away"); }

  Buffer<T> values_{size()};
};

template <class T, int Width>
using Vector = Parameter<T, Width>;

template <class T, int Rows, int Columns>
using Matrix = Parameter<T, Rows, Columns>;

/// Stands for a part that a configuration does not have.
struct Absent {
  static void visit(auto&&, auto&...) {}
};

/// A part that is there on a condition.
template <bool present, class Part>
using If = std::conditional_t<present, Part, Absent>;

/// What a visitor sees of a Parameter: its elements and its shape, without its type.
template <class T>
struct ParameterView {
  T* data;
  Index size;
  std::span<const Index> shape;
};

/// Where a visitor stands, as a chain of parts on the stack: naming a parameter costs nothing until text() is asked.
struct ParameterName {
  const ParameterName* parent = nullptr;
  std::string_view part;
  Index index = -1;

  /// "stages.0.local.1.mlp.fc1.weight"
  std::string text() const {
    std::string result = parent ? parent->text() : std::string();
    if (!result.empty()) result += '.';
    return result + (index < 0 ? std::string(part) : std::to_string(index));
  }
};

namespace detail {

template <class P>
auto view(P& parameter) {
  return ParameterView<std::remove_pointer_t<decltype(parameter.data())>>{parameter.data(), P::size(), P::shape};
}

template <class F, class First, class... Others>
void walk(const ParameterName* name, F& f, First& first, Others&... others) {
  using Type = std::remove_const_t<First>;
  if constexpr (requires { Type::shape; }) {
    f(*name, view(first), view(others)...);
  } else if constexpr (requires { first.begin(); }) {
    for (std::size_t i = 0; i < first.size(); ++i) {
      const ParameterName element{name, {}, static_cast<Index>(i)};
      walk(&element, f, first[i], others[i]...);
    }
  } else if constexpr (requires { first.has_value(); }) {
    if (first) walk(name, f, *first, *others...);
  } else {
    Type::visit(
        [&](std::string_view part, auto&... members) {
          const ParameterName member{name, part};
          walk(&member, f, members...);
        },
        first, others...);
  }
}

/// A visitor behind a pointer, so that the walk over some type is compiled once for all visitors.
template <class... Views>
class VisitorRef {
 public:
  template <class F>
  explicit VisitorRef(F& f)
      : f_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* to, const ParameterName& name, const Views&... views) {
          (*static_cast<F*>(to))(name, views...);
        }) {}

  template <class... Given>
  void operator()(const ParameterName& name, const Given&... views) {
    static_assert((std::is_same_v<Given, Views> && ...),
                  "fit: an object that names a Scalar must have parameters of that type alone");
    call_(f_, name, views...);
  }

 private:
  void* f_;
  void (*call_)(void*, const ParameterName&, const Views&...);
};

template <class Object>
using ViewIn =
    ParameterView<std::conditional_t<std::is_const_v<Object>, const typename Object::Scalar, typename Object::Scalar>>;

}  // namespace detail

/// The one walk over parameters, by a function object: f(name, view of the parameter in `first`, views of the same one
/// in the others), in a fixed order. `first` and the others are objects of one layer or model type, constant or not; a
/// layer takes part by
///
///     static void visit(auto&& f, auto&... p) { f("weight", p.weight...); f("bias", p.bias...); }
template <class F, class First, class... Others>
void for_each_parameter(F&& f, First& first, Others&... others) {
  if constexpr (requires { typename First::Scalar; }) {
    detail::VisitorRef<detail::ViewIn<First>, detail::ViewIn<Others>...> visitor(f);
    detail::walk(nullptr, visitor, first, others...);
  } else {
    detail::walk(nullptr, f, first, others...);
  }
}

/// Number of trained scalars in a layer or model.
template <class Layer>
Index count_parameters(const Layer& layer) {
  Index total = 0;
  for_each_parameter([&](const ParameterName&, auto parameter) { total += parameter.size; }, layer);
  return total;
}

/// Sets every parameter of a layer or model to zero.
template <class Layer>
void set_zero(Layer& layer) {
  for_each_parameter([](const ParameterName&, auto parameter) { std::fill_n(parameter.data, parameter.size, 0); },
                     layer);
}

}  // namespace FIT_ABI
}  // namespace fit
