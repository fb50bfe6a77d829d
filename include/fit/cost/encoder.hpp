#pragma once

#include <cstddef>

#include <fit/cost/parts.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {
namespace metered {

// The model, as its own file has it: forward leaves its record on the meter's tape, backward begins from gradients of
// the outputs. It describes its parts' shapes and parameters, too.

struct Encoder {
  EncoderConfig c;
  Sizes sizes;
  Trunk trunk;
  bool by_groups = false;  // its loss() over a source, or its calls with tensors

  static constexpr std::size_t record_size = sizeof(Sizes) + 13 * sizeof(void*);

  constexpr Encoder(const EncoderConfig& config, Index batch)
      : c(config),
        sizes{batch, config.groups, Index{config.extra_tokens} + config.tokens, config.latents},
        trunk{trunk_of(config), plan_of(config.layers)} {}

  constexpr DataStem stem() const { return {{c.data_dim, c.channels}, c.data_positions == Positions::learned}; }
  constexpr Linear extra_stem() const { return {c.data_dim, c.extra_channels}; }
  constexpr LayerNorm data_norm() const { return {c.data_dim}; }
  constexpr LayerNorm latent_norm() const { return {c.latent_dim}; }

  template <class T>
  constexpr void describe_all(Meter<T>& meter) const {
    const Index extra = c.extra_tokens > 0 ? extra_stem().parameters() + data_norm().parameters() : 0;
    const Index latents = latent_positions(c, sizes);
    describe_ends(sizes, c.data_dim, c.data_dim, stem().parameters(c.tokens) + extra + latents,
                  data_norm().parameters() + latent_norm().parameters(), meter);
    describe(trunk, sizes, meter);
  }
  constexpr Index output_size() const {
    return by_groups ? 0 : sizes.data_rows() * c.data_dim + sizes.latent_rows() * c.latent_dim;
  }
  template <class T>
  constexpr void outputs(Meter<T>& meter) const {
    meter.output(sizes.data_rows() * c.data_dim);
    meter.output(sizes.latent_rows() * c.latent_dim);
  }
  template <class T>
  constexpr void start(Index groups, Meter<T>& meter) const {
    const Index start = meter.mark(), rows = groups * c.extra_tokens, own_rows = groups * c.tokens;
    if (by_groups) meter.allocate(own_rows * c.channels);  // tokens
    if (c.extra_tokens > 0) {
      meter.allocate(own_rows * c.data_dim);  // own
      meter.allocate(rows * c.data_dim);      // more
    }
    metered::forward(stem(), own_rows, meter);
    if (c.extra_tokens > 0) {
      metered::forward(extra_stem(), rows, meter);
      metered::forward(data_norm(), rows, meter);
    }
    meter.finish(start);
  }
  template <class T>
  constexpr void start_backward(Index groups, Meter<T>& meter) const {
    const auto frame = meter.pop();
    const Index rows = groups * c.extra_tokens;
    if (c.extra_tokens > 0) {
      meter.scratch(rows * c.data_dim);               // more
      meter.scratch(rows * c.data_dim);               // between
      meter.scratch(groups * c.tokens * c.data_dim);  // rest
      metered::backward(data_norm(), rows, meter);
      metered::backward(extra_stem(), false, rows, meter);
    }
    metered::backward(stem(), groups, c.tokens, meter);
  }
  template <class T>
  constexpr void end(Index groups, bool again, Meter<T>& meter) const {
    const Index rows = groups * sizes.tokens;
    if (!by_groups) return metered::forward(data_norm(), rows, meter);
    if (again) return;
    const bool training = meter.recording() || again_groups(meter.options());
    meter.record_briefly(training, [&] {
      meter.in_scope([&] {
        meter.scratch(rows * c.data_dim);                // output
        if (training) meter.scratch(rows * c.data_dim);  // gradient
        metered::forward(data_norm(), rows, meter);
        if (training) metered::backward(data_norm(), rows, meter);
      });
    });
  }
  template <class T>
  constexpr void end_backward(Index groups, Meter<T>& meter) const {
    if (!by_groups) metered::backward(data_norm(), groups * sizes.tokens, meter);
  }
  template <class T>
  constexpr void forward(Meter<T>& meter) const {
    const Index start = meter.mark();
    meter.enter(Part::stem);
    if (meter.recording() || by_groups) meter.allocate(sizes.data_rows() * c.data_dim);  // x
    if (by_groups) meter.allocate(sizes.latent_rows() * c.latent_dim);                   // z
    metered::forward(trunk, *this, 0, sizes, meter);
    meter.enter(Part::head);
    if (!by_groups) metered::forward(latent_norm(), sizes.latent_rows(), meter);
    if (by_groups) meter.gather();  // the loss
    meter.finish(start, record_size);
  }
  template <class T>
  constexpr void backward(Meter<T>& meter) const {
    const auto frame = meter.pop();
    meter.enter(Part::head);
    if (by_groups) {
      meter.add_above(Meter<T>::entry_bytes(record_size));
    } else {
      meter.scratch(sizes.latent_rows() * c.latent_dim);  // z
      metered::backward(latent_norm(), sizes.latent_rows(), meter);
    }
    metered::backward(trunk, *this, 0, sizes, meter);
    meter.enter(Part::stem);
    add_latent_positions(c, sizes, meter);
  }
  template <class T>
  constexpr void training_step(Meter<T>& meter) const {
    if (!by_groups) outputs(meter);
    forward(meter);
    meter.set_backward(true);
    backward(meter);
  }
};

constexpr Encoder meter_model(const EncoderConfig& c, Index batch, bool by_groups) {
  Encoder encoder{c, batch};
  encoder.by_groups = by_groups;
  return encoder;
}

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
