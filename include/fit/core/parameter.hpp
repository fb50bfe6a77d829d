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

/// The type of an object's elements, constant if the object is.
template <class Object>
using ElementOf = std::conditional_t<std::is_const_v<Object>, const typename Object::Scalar, typename Object::Scalar>;

/// The parameters of an object that names a Scalar, without its type: what is done with them is compiled once for all
/// models. The object must outlive it.
template <class T>
class Parameters {
 public:
  template <class Object>
  requires std::is_same_v<ElementOf<Object>, T>
  explicit Parameters(Object& object)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(object)))),
        walk_([](void* of, Visitor& f) { walk(nullptr, f, *static_cast<std::remove_const_t<Object>*>(of)); }) {}

  /// Calls f(name, view) for all, in order.
  template <class F>
  void for_each(F&& f) const {
    const auto each = [&f](const ParameterName& name, const View& p) {
      const ParameterView<T> view{p.data, p.size, p.shape};
      f(name, view);
    };
    Visitor visitor(each);
    walk_(object_, visitor);
  }

 private:
  using View = ParameterView<std::remove_const_t<T>>;
  using Visitor = VisitorRef<View>;

  void* object_;
  void (*walk_)(void*, Visitor&);
};

template <class Object>
Parameters(Object&) -> Parameters<ElementOf<Object>>;

/// The same of an object that names no Scalar.
template <class Object>
class MixedParameters {
 public:
  explicit MixedParameters(Object& object) : object_(object) {}

  template <class F>
  void for_each(F&& f) const {
    walk(nullptr, f, object_);
  }

 private:
  Object& object_;
};

template <class Object>
auto parameters_of(Object& object) {
  if constexpr (requires { typename Object::Scalar; }) {
    return Parameters(object);
  } else {
    return MixedParameters(object);
  }
}

}  // namespace detail

/// The one walk over parameters, by a function object: f(name, view of the parameter in `first`, views of the same one
/// in the others), in a fixed order. `first` and the others are objects of one layer or model type, constant or not; a
/// layer takes part by
///
///     static void visit(auto&& f, auto&... p) { f("weight", p.weight...); f("bias", p.bias...); }
template <class F, class First, class... Others>
void for_each_parameter(F&& f, First& first, Others&... others) {
  if constexpr (sizeof...(Others) == 0) {
    detail::parameters_of(first).for_each(f);
  } else if constexpr (!requires { typename First::Scalar; }) {
    detail::walk(nullptr, f, first, others...);
  } else {
    using detail::ElementOf;
    detail::VisitorRef<ParameterView<ElementOf<First>>, ParameterView<ElementOf<Others>>...> visitor(f);
    detail::walk(nullptr, visitor, first, others...);
  }
}

namespace detail {

template <class List>
Index count_elements(const List& parameters) {
  Index total = 0;
  parameters.for_each([&](const ParameterName&, auto p) { total += p.size; });
  return total;
}
template <class List>
void fill_zero(const List& parameters) {
  parameters.for_each([](const ParameterName&, auto p) { std::fill_n(p.data, p.size, 0); });
}

}  // namespace detail

/// Number of trained scalars in a layer or model.
template <class Layer>
Index count_parameters(const Layer& layer) {
  return detail::count_elements(detail::parameters_of(layer));
}

/// Sets every parameter of a layer or model to zero.
template <class Layer>
void set_zero(Layer& layer) {
  detail::fill_zero(detail::parameters_of(layer));
}

}  // namespace FIT_ABI
}  // namespace fit
