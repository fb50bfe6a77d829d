#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>

#include <fit/models/arguments.hpp>
#include <fit/models/by_groups.hpp>
#include <fit/models/trunk.hpp>
#include <fit/nn/initialise.hpp>
#include <fit/nn/stem.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The FIT encoder: data tokens in, data tokens and latents out. Chen and Li, arXiv 2305.12689, section 3.
///
/// An Encoder is its parameters and nothing else: copying it copies them, and its gradient, the moments of an
/// optimiser and a moving average of it are Encoders too. Calls on one constant Encoder from several threads are safe.
/// B is the batch, any number; with extra tokens a group has N = extra_tokens + tokens data tokens, else N = tokens.
template <EncoderConfig c, class T = float>
class Encoder {
  static_assert(detail::check_encoder<c>());
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "fit: an encoder computes in float or double");

 public:
  using Scalar = T;
  static constexpr EncoderConfig config = c;
  static constexpr bool has_extra = config.extra_tokens > 0;

  /// Views: of a temporary tensor only for a call, not for forward() and backward().
  struct Inputs {
    TensorView<const T, 4> input;                      ///< [B, groups, tokens, channels]
    std::optional<TensorView<const T, 4>> extra = {};  ///< [B, groups, extra_tokens, extra_channels], when configured
    Grid grid = {};  ///< how the groups lie, where latent_positions are sin_cos_grid, and only there
  };
  struct Output {
    Tensor<T, 4> data;     ///< [B, groups, N, data_dim]
    Tensor<T, 4> latents;  ///< [B, groups, latents, latent_dim]
  };
  /// The same in memory of a tape.
  struct OutputView {
    TensorView<const T, 4> data, latents;
  };
  /// Gradients of a loss by the outputs; one that is left out is zero.
  struct OutputGradients {
    std::optional<TensorView<const T, 4>> data = {}, latents = {};
  };
  /// Where to write gradients by the inputs, shaped like them; one that is left out is not computed.
  struct InputGradients {
    std::optional<TensorView<T, 4>> input = {}, extra = {};
  };

  /// All parameters zero: a gradient, or an encoder to load into.
  Encoder() = default;

  /// Initial values for training.
  explicit Encoder(Random random) { nn::initialise(*this, random); }

  static void visit(auto&& f, auto&... p) {
    Stem::visit(f, p.stem_...);
    f("extra_stem", p.extra_stem_...);
    f("extra_stem_norm", p.extra_stem_norm_...);
    f("latent_positions", p.latent_positions_.table...);
    detail::Trunk<T, trunk_config>::visit(f, p.trunk_...);
    f("data_norm", p.data_norm_...);
    f("latent_norm", p.latent_norm_...);
  }

  /// Inference, in memory of the thread. Throws Error for inputs of other shapes.
  Output operator()(const Inputs& inputs) const { return (*this)(inputs, detail::inference_tape()); }
  Output operator()(TensorView<const T, 4> input) const requires(!has_extra) { return (*this)(Inputs{input}); }
  /// The same with the threads and the scratch memory of a tape, which is left as it was; a trace sees what is inside.
  Output operator()(const Inputs& inputs, Tape& tape, const Trace<T>& trace = {}) const {
    const Sizes sizes = check(inputs, tape.team());
    Output output{Tensor<T, 4>(sizes.batch, sizes.groups, all_tokens, config.data_dim),
                  Tensor<T, 4>(sizes.batch, sizes.groups, config.latents, config.latent_dim)};
    const Tape::Inference inference(tape);
    run(inputs, sizes, output.data.data(), output.latents.data(), tape, trace);
    return output;
  }
  Output operator()(TensorView<const T, 4> input, Tape& tape, const Trace<T>& trace = {}) const requires(!has_extra) {
    return (*this)(Inputs{input}, tape, trace);
  }

  /// The same with outputs that live on the tape until it records or is cleared again, recorded for the way back on a
  /// tape that records; what the inputs view must then stay as it is until backward. Throws Error as above.
  OutputView forward(const Inputs& inputs, Tape& tape) const {
    const Sizes sizes = check(inputs, tape.team());
    const auto data = detail::output<T>(tape, sizes.batch, sizes.groups, all_tokens, config.data_dim);
    const auto latents = detail::output<T>(tape, sizes.batch, sizes.groups, config.latents, config.latent_dim);
    run(inputs, sizes, data.data(), latents.data(), tape, {});
    return {data, latents};
  }
  OutputView forward(LastingView<const T, 4> input, Tape& tape) const requires(!has_extra) {
    return forward(Inputs{input}, tape);
  }

  /// The way back through the last forward on the tape: adds to `gradient` and writes the inputs' gradients that are
  /// asked for. Throws Error when a shape is not that of the forward pass, or when none was recorded.
  void backward(const OutputGradients& outputs, Encoder& gradient, Tape& tape,
                const InputGradients& inputs = {}) const {
    const Sizes sizes = tape.peek<Record>().sizes;
    check_gradients(outputs, inputs, sizes);
    const auto saved = tape.pop<Record>();
    Ends ends = saved->ends;
    ends.p = this;
    ends.gradient = &gradient;
    ends.data_gradient = outputs.data ? outputs.data->data() : nullptr;
    ends.input_gradient = inputs.input ? inputs.input->data() : nullptr;
    ends.extra_gradient = inputs.extra ? inputs.extra->data() : nullptr;
    const Index latent_size = sizes.latent_rows() * config.latent_dim;
    T* z = detail::zeros<T>(latent_size, tape);
    nn::backward(latent_norm_, outputs.latents ? outputs.latents->data() : detail::zeros<T>(latent_size, tape), z,
                 gradient.latent_norm_, sizes.latent_rows(), tape);
    backward_trunk(ends, saved->x, z, sizes, tape);
  }

  /// The sum of the loss of all groups' data tokens, [count, tokens, data_dim], at inference. Neither the input nor the
  /// output ever stands in memory as a whole, and the loss may as well just look at what it is given, or keep it. The
  /// tape is left as it was. Throws Error for a source without a function, or with counts or a grid that cannot be.
  double loss(const GroupSource<T>& source, const GroupLoss<T>& loss, Tape& tape, const Watch& watch = {}) const
      requires(!has_extra) {
    const Sizes sizes = check(source, loss, tape.team());
    const Tape::Inference inference(tape);
    return run_loss(source, loss, sizes, nullptr, tape, watch);
  }
  /// The same, recorded with these options, and the way back: adds the gradient of the sum to `gradient`. The loss may
  /// run layers and their way back on the tape, which records while it is called. Where a function throws, part of the
  /// gradient has been added.
  double loss(const GroupSource<T>& source, const GroupLoss<T>& loss, Encoder& gradient, Tape& tape,
              const TrainingOptions& options = {}, Random random = Random(0), const Watch& watch = {}) const
      requires(!has_extra) {
    const Sizes sizes = check(source, loss, tape.team());
    tape.record(options, random);
    const double total = run_loss(source, loss, sizes, &gradient, tape, watch);
    const auto saved = tape.pop<Record>();
    std::fill_n(saved->z, sizes.latent_rows() * config.latent_dim, T(0));
    backward_trunk(saved->ends, saved->x, saved->z, sizes, tape, watch);
    return total;
  }

 private:
  static constexpr Index all_tokens = config.extra_tokens + config.tokens;
  static constexpr detail::TrunkConfig trunk_config = detail::trunk_of(config);
  using Stem = nn::DataStem<T, config.tokens, config.channels, config.data_dim, config.data_positions>;

  /// What is before the trunk and behind it, for some groups.
  struct Ends {
    const Encoder* p;
    const T *input, *extra;
    T* data;
    const T* data_gradient = nullptr;
    Encoder* gradient = nullptr;
    T *input_gradient = nullptr, *extra_gradient = nullptr;
    detail::ByGroups<T> by_groups = {};

    static constexpr Index input_size = Index{config.tokens} * config.channels;  // of a group
    static constexpr Index own_size = Index{config.tokens} * config.data_dim;
    static constexpr Index extra_size = Index{config.extra_tokens} * config.data_dim;
    static constexpr Index output_size = own_size + extra_size;
    static constexpr Index extra_input_size = Index{config.extra_tokens} * config.extra_channels;

    void start(const detail::Chunk& groups, T* x, Tape& tape) const {
      const auto start = tape.mark();
      const T* from = by_groups.read(groups, input, input_size, tape);
      if constexpr (!has_extra) {
        nn::forward(p->stem_, from, x, groups.count, tape);
      } else {
        const Index rows = groups.count * config.extra_tokens;
        T* own = tape.allocate<T>(groups.count * own_size);  // [groups, tokens, data_dim]
        T* more = tape.allocate<T>(rows * config.data_dim);  // [groups, extra_tokens, data_dim]
        nn::forward(p->stem_, from, own, groups.count, tape);
        nn::forward(p->extra_stem_, groups.of(extra, extra_input_size), more, rows, tape);
        nn::forward<T>(p->extra_stem_norm_, more, more, rows, tape);
        detail::join<T>(more, extra_size, own, own_size, x, groups.count);
      }
      tape.finish(start);
    }

    void start_backward(const detail::Chunk& groups, const T* x_gradient, Tape& tape) const {
      const auto frame = tape.pop();
      const T* own = x_gradient;
      if constexpr (has_extra) {
        const Index rows = groups.count * config.extra_tokens;
        T* more = tape.scratch<T>(rows * config.data_dim);
        T* between = detail::zeros<T>(rows * config.data_dim, tape);
        T* rest = tape.scratch<T>(groups.count * own_size);
        detail::split<T>(x_gradient, more, extra_size, rest, own_size, groups.count);
        own = rest;
        nn::backward<T>(p->extra_stem_norm_, more, between, gradient->extra_stem_norm_, rows, tape);
        nn::backward<T>(p->extra_stem_, between, groups.of(extra_gradient, extra_input_size), gradient->extra_stem_,
                        rows, tape);
      }
      by_groups.read_backward(groups, input_gradient, input_size, tape,
                              [&](T* to) { nn::backward<T>(p->stem_, own, to, gradient->stem_, groups.count, tape); });
    }

    void end(const detail::Chunk& groups, T* x, bool again, Tape& tape) const {
      const auto norm = [&](T* to) { nn::forward<T>(p->data_norm_, x, to, groups.count * all_tokens, tape); };
      if (!by_groups.loss) return norm(again ? x : groups.of(data, output_size));
      if (again) return;
      // x becomes its own gradient.
      by_groups.add_loss(groups, output_size, gradient != nullptr, tape, norm,
                         [&](const T* from) { backward_norm(groups, from, x, tape); });
    }

    void end_backward(const detail::Chunk& groups, T* x_gradient, Tape& tape) const {
      if (by_groups.loss) return;
      const Arena::Scope scope(tape.arena());
      const T* from = groups.of(data_gradient, output_size);
      backward_norm(groups, from ? from : detail::zeros<T>(groups.count * output_size, tape), x_gradient, tape);
    }

   private:
    void backward_norm(const detail::Chunk& groups, const T* from, T* x_gradient, Tape& tape) const {
      std::fill_n(x_gradient, groups.count * output_size, T(0));
      nn::backward<T>(p->data_norm_, from, x_gradient, gradient->data_norm_, groups.count * all_tokens, tape);
    }
  };

  struct Record {
    Sizes sizes;
    Ends ends;
    T *x, *z;  // for their gradients; z is null where it is the caller's
  };

  static Sizes check(const Inputs& inputs, Team* team) {
    detail::require_shape(inputs.input, {-1, detail::groups_wanted<config>(team), config.tokens, config.channels},
                          "the encoder's input");
    const Index batch = inputs.input.dimension(0), groups = inputs.input.dimension(1);
    detail::require_counts<config>(batch, groups, all_tokens);
    require(inputs.extra.has_value() == has_extra,
            has_extra ? "this encoder needs extra tokens" : "this encoder takes no extra tokens");
    if (inputs.extra) {
      detail::require_shape(*inputs.extra, {batch, groups, config.extra_tokens, config.extra_channels},
                            "the encoder's extra tokens");
    }
    const Sizes sizes = detail::sizes_of<config>(batch, groups, all_tokens, team);
    detail::require_grid<config>(inputs.grid, sizes.groups_of_example());
    return sizes;
  }

  static Sizes check(const GroupSource<T>& source, const GroupLoss<T>& loss, Team* team) {
    detail::require_source<config>(source, all_tokens);
    require(loss != nullptr, "a loss by groups needs a function");
    return detail::sizes_of<config>(source, all_tokens, team);
  }

  double run_loss(const GroupSource<T>& source, const GroupLoss<T>& loss, const Sizes& sizes, Encoder* gradient,
                  Tape& tape, const Watch& watch) const {
    double total = 0;
    const auto start = tape.mark();
    Ends ends{this, nullptr, nullptr, nullptr};
    ends.gradient = gradient;
    ends.by_groups = {&source, &loss, &total};
    T* x = tape.allocate<T>(sizes.data_rows() * config.data_dim);      // [B, groups, tokens, data_dim]
    T* z = tape.allocate<T>(sizes.latent_rows() * config.latent_dim);  // [B, groups, latents, latent_dim]
    write_positions(sizes, z, source.grid);
    trunk_.forward(ends, x, z, {}, sizes, tape, {}, watch);
    tape.finish(start, Record{sizes, ends, x, z});
    return detail::sum_over(sizes.team, total);
  }

  static void check_gradients(const OutputGradients& outputs, const InputGradients& inputs, const Sizes& sizes) {
    const auto check_one = [&](const char* name, const auto& gradient, Index tokens, Index width) {
      if (gradient) detail::require_shape(*gradient, {sizes.batch, sizes.groups, tokens, width}, name);
    };
    require(has_extra || !inputs.extra, "this encoder takes no extra tokens");
    check_one("the gradient of the data", outputs.data, all_tokens, config.data_dim);
    check_one("the gradient of the latents", outputs.latents, config.latents, config.latent_dim);
    check_one("the gradient of the input", inputs.input, config.tokens, config.channels);
    check_one("the gradient of the extra tokens", inputs.extra, config.extra_tokens, config.extra_channels);
  }

  void backward_trunk(const Ends& ends, T* x, T* z_gradient, const Sizes& sizes, Tape& tape,
                      const Watch& watch = {}) const {
    trunk_.backward(ends, x, z_gradient, {}, ends.gradient->trunk_, sizes, tape, watch);
    nn::backward(latent_positions_, z_gradient, ends.gradient->latent_positions_, sizes.batch, sizes.first_group,
                 sizes.groups, tape);
  }

  void write_positions(const Sizes& sizes, T* z, const Grid& grid) const {
    nn::copy_positions(latent_positions_, z, sizes.batch, sizes.first_group, sizes.groups, sizes.groups_of_example(),
                       grid);
  }

  void run(const Inputs& inputs, const Sizes& sizes, T* data, T* latents, Tape& tape, const Trace<T>& trace) const {
    const auto start = tape.mark();
    const Ends ends{this, inputs.input.data(), inputs.extra ? inputs.extra->data() : nullptr, data};
    // The way back needs the memory of the data tokens for their gradient, beside the output.
    T* x = tape.recording() ? tape.allocate<T>(sizes.data_rows() * config.data_dim) : data;
    write_positions(sizes, latents, inputs.grid);
    trunk_.forward(ends, x, latents, {}, sizes, tape, trace);
    nn::forward<T>(latent_norm_, latents, latents, sizes.latent_rows(), tape);
    tape.finish(start, Record{sizes, ends, x, nullptr});
  }

  Stem stem_;
  If<has_extra, nn::Linear<T, config.data_dim, std::max(1, config.extra_channels)>> extra_stem_;
  If<has_extra, nn::LayerNorm<T, config.data_dim>> extra_stem_norm_;
  nn::LatentPositions<T, config.groups, config.latents, config.latent_dim, config.latent_positions> latent_positions_;
  detail::Trunk<T, trunk_config> trunk_;
  nn::LayerNorm<T, config.data_dim> data_norm_;
  nn::LayerNorm<T, config.latent_dim> latent_norm_;
};

}  // namespace FIT_ABI
}  // namespace fit
