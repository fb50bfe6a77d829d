#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <fit/core/parameter.hpp>
#include <fit/core/random.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace nn {

namespace detail {

template <class List>
void initialise(const List& parameters, Random random) {
  parameters.for_each([&](const ParameterName& name, auto parameter) {
    using T = std::remove_pointer_t<decltype(parameter.data)>;
    Random own = random.split();
    const bool table = name.parent && name.parent->part.ends_with("_embedding");
    if (name.part == "bias") {
      std::fill_n(parameter.data, parameter.size, T(0));
    } else if (name.part == "weight" && parameter.shape.size() == 1) {
      std::fill_n(parameter.data, parameter.size, T(1));
    } else if (name.part == "weight" && !table) {
      const double limit = std::sqrt(6.0 / static_cast<double>(parameter.shape[0] + parameter.shape[1]));
      for (Index i = 0; i < parameter.size; ++i) {
        parameter.data[i] = static_cast<T>(limit * (2 * own.uniform() - 1));
      }
    } else {
      for (Index i = 0; i < parameter.size; ++i) {
        double value;
        do value = own.normal();
        while (std::abs(value) > 2);
        parameter.data[i] = static_cast<T>(0.02 * value);
      }
    }
  });
}

}  // namespace detail

/// Fills a layer or model with its initial values, told apart by name and rank: matrices Glorot uniform (Glorot and
/// Bengio, AISTATS 2010), norm weights one, biases zero, and the rest, positions, tables of embeddings and the like,
/// normal with deviation 0.02, cut at two deviations.
template <class Layer>
void initialise(Layer& layer, Random random) {
  detail::initialise(fit::detail::parameters_of(layer), random);
}

}  // namespace nn
}  // namespace FIT_ABI
}  // namespace fit
