#pragma once

#include <algorithm>
#include <cstddef>

#include <fit/cost/parts.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {
namespace metered {

// The model, as its own file has it: forward leaves its record on the meter's tape, backward begins from gradients of
// the outputs. It describes its parts' shapes and parameters, too.

struct TimeEmbedding {
  Index width;

  constexpr Linear fc1() const { return {width, width / 4}; }
  constexpr Linear fc2() const { return {width, width}; }
  constexpr Index parameters() const { return fc1().parameters() + fc2().parameters(); }
};

template <class T>
constexpr void forward(const TimeEmbedding& p, Index count, Meter<T>& meter) {
  const Index start = meter.mark();
  meter.allocate(count * p.fc1().in);  // code
  meter.allocate(count * p.width);     // hidden
  meter.allocate(count * p.width);     // activated
  meter.multiply({output_product<T>(p.fc1(), count)});
  meter.multiply({output_product<T>(p.fc2(), count)});
  meter.finish(start, 3 * sizeof(void*));
}
template <class T>
constexpr void backward(const TimeEmbedding& p, Index count, Meter<T>& meter) {
  const auto frame = meter.pop();
  meter.scratch(count * p.width);  // hidden
  meter.multiply({input_product<T>(p.fc2(), count), weight_product<T>(p.fc2(), count)});
  meter.multiply({weight_product<T>(p.fc1(), count)});
  meter.add_column_sums({{count, p.width}, {count, p.width}});
}

struct DiffusionDecoder {
  DiffusionConfig c;
  Sizes sizes;
  Trunk trunk;
  bool by_groups = false;  // its loss() over a source, or its calls with tensors

  static constexpr std::size_t record_size = sizeof(Sizes) + 12 * sizeof(void*);

  constexpr DiffusionDecoder(const DiffusionConfig& config, Index batch)
      : c(config),
        sizes{batch, config.groups, config.tokens, config.latents},
        trunk{trunk_of(config), plan_of(config.layers)} {}

  constexpr DataStem stem() const { return {{c.data_dim, c.channels}, c.data_positions == Positions::learned}; }
  constexpr TimeEmbedding time() const { return {c.latent_dim}; }
  constexpr Linear projection() const { return {c.latent_dim, c.condition_channels}; }
  constexpr MLP previous() const { return {c.latent_dim, c.mlp_ratio}; }
  constexpr LayerNorm previous_norm() const { return {c.latent_dim}; }
  constexpr LayerNorm data_norm() const { return {c.data_dim}; }
  constexpr Linear output() const { return {c.output_channels, c.data_dim}; }
  constexpr bool has_previous() const { return c.self_conditioning == SelfConditioning::latent; }
  constexpr Index own_tokens() const { return c.condition_channels > 0 ? std::max(1, c.condition_tokens) : 0; }
  constexpr Index condition() const { return 1 + own_tokens(); }
  constexpr Index latent_size() const { return sizes.latent_rows() * c.latent_dim; }

  template <class T>
  constexpr void describe_all(Meter<T>& meter) const {
    const Index latents = latent_positions(c, sizes);
    const Index own = own_tokens() > 0 ? projection().parameters() : 0;
    const Index self = has_previous() ? previous().parameters() + previous_norm().parameters() : 0;
    describe_ends(sizes, c.data_dim, c.output_channels,
                  stem().parameters(c.tokens) + latents + time().parameters() + own + self,
                  data_norm().parameters() + output().parameters(), meter);
    describe(trunk, sizes, meter);
  }
  constexpr Index output_size() const { return by_groups ? 0 : sizes.data_rows() * c.output_channels + latent_size(); }
  template <class T>
  constexpr void outputs(Meter<T>& meter) const {
    meter.output(sizes.data_rows() * c.output_channels);
    meter.output(latent_size());
  }
  template <class T>
  constexpr void start(Index groups, Meter<T>& meter) const {
    const Index start = meter.mark();
    if (by_groups) meter.allocate(groups * c.tokens * c.channels);  // tokens
    metered::forward(stem(), groups * c.tokens, meter);
    meter.finish(start);
  }
  template <class T>
  constexpr void start_backward(Index groups, Meter<T>& meter) const {
    const auto frame = meter.pop();
    metered::backward(stem(), groups, c.tokens, meter);
  }
  template <class T>
  constexpr void end(Index groups, bool again, Meter<T>& meter) const {
    const Index size = groups * c.tokens * c.output_channels;
    if (by_groups) {
      if (!again) add_loss(groups, meter);
      return;
    }
    const Index start = meter.mark();
    if (again) meter.allocate(size);
    predict(groups, meter);
    meter.finish(start);
  }
  template <class T>
  constexpr void end_backward(Index groups, Meter<T>& meter) const {
    if (by_groups) return;
    const auto frame = meter.pop();
    predict_backward(groups, meter);
  }
  template <class T>
  constexpr void forward(Meter<T>& meter) const {
    const Index start = meter.mark();
    meter.enter(Part::stem);
    meter.allocate(sizes.data_rows() * c.data_dim);  // x
    if (by_groups) meter.allocate(latent_size());    // z
    if (has_previous()) {
      meter.allocate(latent_size());  // previous
      meter.allocate(latent_size());  // normed
      metered::forward(previous(), sizes.latent_rows(), meter);
      metered::forward(previous_norm(), sizes.latent_rows(), meter);
    }
    meter.allocate(sizes.batch * c.latent_dim);  // time
    metered::forward(time(), sizes.batch, meter);
    if (own_tokens() > 0) {
      meter.allocate(sizes.batch * own_tokens() * c.latent_dim);
      metered::forward(projection(), sizes.batch * own_tokens(), meter);
      meter.allocate(sizes.batch * condition() * c.latent_dim);  // all
    }
    metered::forward(trunk, *this, condition(), sizes, meter);
    if (by_groups) meter.gather();  // the loss
    meter.finish(start, record_size);
  }
  template <class T>
  constexpr void backward(Meter<T>& meter) const {
    const auto frame = meter.pop();
    meter.enter(Part::stem);
    if (!by_groups) meter.scratch(latent_size());             // z
    meter.scratch(sizes.batch * condition() * c.latent_dim);  // condition
    meter.add_above(Meter<T>::entry_bytes(record_size));
    metered::backward(trunk, *this, condition(), sizes, meter);
    meter.enter(Part::stem);
    meter.scratch(sizes.batch * c.latent_dim);                 // time
    meter.scratch(sizes.batch * own_tokens() * c.latent_dim);  // own
    if (own_tokens() > 0) metered::backward(projection(), false, sizes.batch * own_tokens(), meter);
    metered::backward(time(), sizes.batch, meter);
    if (has_previous()) {
      meter.scratch(latent_size());
      metered::backward(previous_norm(), sizes.latent_rows(), meter);
      metered::backward(previous(), sizes.latent_rows(), meter);
    }
    add_latent_positions(c, sizes, meter);
  }
  template <class T>
  constexpr void training_step(Meter<T>& meter) const {
    if (!by_groups) outputs(meter);
    forward(meter);
    meter.set_backward(true);
    backward(meter);
  }

 private:
  template <class T>
  constexpr void predict(Index groups, Meter<T>& meter) const {
    const Index start = meter.mark(), rows = groups * c.tokens;
    meter.allocate(rows * c.data_dim);  // normed
    metered::forward(data_norm(), rows, meter);
    metered::forward(output(), rows, meter);
    meter.finish(start);
  }
  template <class T>
  constexpr void predict_backward(Index groups, Meter<T>& meter) const {
    const auto frame = meter.pop();
    const Index rows = groups * c.tokens;
    meter.scratch(rows * c.data_dim);  // normed
    metered::backward(output(), true, rows, meter);
    metered::backward(data_norm(), rows, meter);
  }
  template <class T>
  constexpr void add_loss(Index groups, Meter<T>& meter) const {
    const Index size = groups * c.tokens * c.output_channels;
    const bool training = meter.recording() || again_groups(meter.options());
    meter.record_briefly(training, [&] {
      meter.in_scope([&] {
        meter.scratch(size);                // output
        if (training) meter.scratch(size);  // gradient
        predict(groups, meter);
        if (!training) return;
        meter.set_backward(true);
        predict_backward(groups, meter);
        meter.set_backward(false);
      });
    });
  }
};

constexpr DiffusionDecoder meter_model(const DiffusionConfig& c, Index batch, bool by_groups) {
  DiffusionDecoder decoder(c, batch);
  decoder.by_groups = by_groups;
  return decoder;
}

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
