#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fit/training/pieces.hpp>

namespace fit {
inline namespace FIT_ABI {

/// How an optimiser treats one parameter.
struct ParameterTreatment {
  bool decay = true;    ///< weight decay shrinks it
  double rate = 1;      ///< times the learning rate
  bool frozen = false;  ///< it stays as it is, and so do its moments
};

/// Says how to treat a parameter of a visitor's name, such as "stages.0.local.1.mlp.fc1.weight", and of a rank. A plain
/// function, as g++ 12 warns of every aggregate with a std::function in it.
using ParameterRule = ParameterTreatment (*)(std::string_view name, std::size_t rank);

/// Weight decay for all matrices but positions and tables of embeddings, and not for norms and biases.
inline ParameterTreatment usual_treatment(std::string_view name, std::size_t rank) {
  return {.decay = rank >= 2 && !name.ends_with("positions") && !name.ends_with("embedding.weight")};
}

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  /// Shrinks the parameters whose treatment says so by learning rate * weight_decay a step.
  double weight_decay = 0.01;
  /// A rule of one's own begins best with what usual_treatment() says.
  ParameterRule rule = usual_treatment;
};

namespace detail {

/// Step number `count`, the first being 1, of elements of one parameter.
template <class T>
class AdamWStep {
 public:
  AdamWStep(const AdamWOptions& options, double learning_rate, Index count)
      : learning_rate_(learning_rate),
        weight_decay_(options.weight_decay),
        correction1_(1 - std::pow(options.beta1, static_cast<double>(count))),
        correction_(static_cast<T>(1 / std::sqrt(1 - std::pow(options.beta2, static_cast<double>(count))))),
        beta1_(static_cast<T>(options.beta1)),
        beta2_(static_cast<T>(options.beta2)),
        rest1_(static_cast<T>(1 - options.beta1)),
        rest2_(static_cast<T>(1 - options.beta2)),
        epsilon_(static_cast<T>(options.epsilon)) {}

  void operator()(const ParameterTreatment& treatment, T* x, const T* slope, T* m, T* v, Index size) const {
    if (treatment.frozen) return;
    const double own_rate = learning_rate_ * treatment.rate;
    const T rate = static_cast<T>(own_rate / correction1_);
    const T keep = treatment.decay ? static_cast<T>(1 - own_rate * weight_decay_) : T(1);
    const T beta1 = beta1_, beta2 = beta2_, rest1 = rest1_, rest2 = rest2_, correction = correction_;
    const T epsilon = epsilon_, most = std::numeric_limits<T>::max();  // an infinite one would stay so for ever
    for (Index i = 0; i < size; ++i) {
      m[i] = beta1 * m[i] + rest1 * slope[i];
      v[i] = std::min(beta2 * v[i] + rest2 * slope[i] * slope[i], most);
      x[i] = keep * x[i] - rate * m[i] / (std::sqrt(v[i]) * correction + epsilon);
    }
  }

 private:
  double learning_rate_, weight_decay_, correction1_;
  T correction_, beta1_, beta2_, rest1_, rest2_, epsilon_;
};

/// A step of all parameters.
template <class T>
void step_parameters(const AdamWStep<T>& step, const std::vector<ParameterTreatment>& treatments,
                     const Parameters<T>& model, const Parameters<const T>& gradient, const Parameters<T>& first_moment,
                     const Parameters<T>& second_moment, Workspace& workspace) {
  for_each_piece(
      workspace,
      [&](const Piece& piece, T* values, const T* slopes, T* m, T* v) {
        step(treatments[static_cast<std::size_t>(piece.parameter)], values, slopes, m, v, piece.size);
      },
      model, gradient, first_moment, second_moment);
}

template <class T>
void check(const AdamWOptions& options, double learning_rate) {
  require(std::isfinite(learning_rate), "the learning rate must be finite, not ", learning_rate);
  for (const double beta : {options.beta1, options.beta2}) {
    require(beta >= 0 && beta < 1, "the betas of AdamW must be in [0, 1), not ", beta);
  }
  const T epsilon = static_cast<T>(options.epsilon);
  require(epsilon > 0 && std::isfinite(epsilon), "the epsilon of AdamW must be positive and finite, not ",
          options.epsilon);
  require(options.weight_decay >= 0 && std::isfinite(options.weight_decay),
          "the weight decay must be finite and not negative, not ", options.weight_decay);
}

template <class T>
std::size_t count_of(const Parameters<T>& parameters) {
  std::size_t count = 0;
  parameters.for_each([&](const ParameterName&, auto) { ++count; });
  return count;
}

/// Asks a rule of all parameters, where that has not been done.
template <class T>
void ask_rule(ParameterRule rule, const Parameters<const T>& model, std::vector<ParameterTreatment>& treatments) {
  if (treatments.size() == count_of(model)) return;
  require(rule != nullptr, "AdamW needs a rule of how to treat parameters");
  std::vector<ParameterTreatment> answers;
  model.for_each([&](const ParameterName& at, auto parameter) {
    const std::string name = at.text();
    const ParameterTreatment treatment = rule(name, parameter.shape.size());
    require(treatment.rate >= 0 && std::isfinite(treatment.rate), "the rate of ", name,
            " must be finite and not negative, not ", treatment.rate);
    answers.push_back(treatment);
  });
  treatments = std::move(answers);
}

template <class T>
void zero_frozen(const Parameters<T>& gradient, const std::vector<ParameterTreatment>& treatments) {
  require(treatments.size() == count_of(gradient), "zero_frozen() comes after prepare()");
  std::size_t number = 0;
  gradient.for_each([&](const ParameterName&, auto parameter) {
    if (treatments[number++].frozen) std::fill_n(parameter.data, parameter.size, T(0));
  });
}

}  // namespace detail

/// Adam with decoupled weight decay. Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
/// Its state is its members, to be saved and restored as they are; treatments need not be. Moments are a Model or, of a
/// ShardedState, this member's part of one.
template <class Model, class Moments = Model>
struct AdamW {
  using T = typename Model::Scalar;

  AdamWOptions options = {};
  Moments first_moment = {}, second_moment = {};
  Index steps = 0;
  /// What the rule says of each parameter, in the visitor's order: asked at the first step, and again once cleared.
  std::vector<ParameterTreatment> treatments = {};

  /// One step of the given learning rate: changes the model and the moments. Throws Error as prepare().
  void step(Model& model, const Model& gradient, double learning_rate, Workspace& workspace) {
    prepare(model, learning_rate);
    using detail::Parameters;
    detail::step_parameters({options, learning_rate, steps + 1}, treatments, Parameters(model), Parameters(gradient),
                            Parameters(first_moment), Parameters(second_moment), workspace);
    ++steps;
  }

  /// Makes sure that a step can be taken, and asks the rule where that has not been done. Throws Error unless the betas
  /// are in [0, 1), epsilon is positive, weight decay and the rule's rates are not negative, and all are finite.
  void prepare(const Model& model, double learning_rate) {
    detail::check<T>(options, learning_rate);
    detail::ask_rule(options.rule, detail::Parameters(model), treatments);
  }

  /// Sets to zero what a gradient has of frozen parameters, so that they do not count in its norm. After prepare().
  void zero_frozen(Model& gradient) const { detail::zero_frozen(detail::Parameters(gradient), treatments); }
};

}  // namespace FIT_ABI
}  // namespace fit
