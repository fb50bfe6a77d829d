#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include <fit/cost/trunk.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {
namespace metered {

// The models, as their own files have them: forward leaves its record on the meter's tape, backward begins from
// gradients of the outputs. Each describes its parts' shapes and parameters, too.

/// Parameters, rows and widths of what is between stem and head.
template <class T>
constexpr void describe(const Trunk& p, const Sizes& sizes, Meter<T>& meter) {
  for (std::size_t i = 0; i < p.plan.count; ++i) {
    const auto tell = [&](Part part, Index blocks, Index rows, Index width, Index parameters) {
      if (blocks == 0) return;
      PartCost& to = meter.enter(part, static_cast<Index>(i));
      to.blocks = blocks;
      to.rows = rows;
      to.width = width;
      to.parameters = blocks * parameters;
    };
    const Index reads = p.plan[i].reads;
    tell(Part::local, p.plan[i].local_blocks, sizes.data_rows(), p.c.data_dim, p.local().parameters());
    tell(Part::read, reads, sizes.latent_rows(), p.c.latent_dim, p.read().parameters());
    tell(Part::condition, p.c.conditioned ? reads : 0, sizes.latent_rows(), p.c.latent_dim, p.condition().parameters());
    tell(Part::global, p.plan[i].global_blocks, sizes.latent_rows(), p.c.latent_dim, p.global().parameters());
    tell(Part::write, p.plan[i].writes, sizes.data_rows(), p.c.data_dim, p.write().parameters());
  }
}

template <class T>
constexpr void describe_ends(const Sizes& sizes, Index data_dim, Index head_width, Index stem, Index head,
                             Meter<T>& meter) {
  PartCost& first = meter.enter(Part::stem);
  first.blocks = 1;
  first.rows = sizes.data_rows();
  first.width = data_dim;
  first.parameters = stem;
  PartCost& last = meter.enter(Part::head);
  last.blocks = 1;
  last.rows = sizes.data_rows();
  last.width = head_width;
  last.parameters = head;
}

/// Parameters of trained positions of latents.
template <class Config>
constexpr Index latent_positions(const Config& c, const Sizes& sizes) {
  const Index group = sizes.latents * c.latent_dim;
  return c.latent_positions == Positions::learned ? sizes.groups * group
         : nn::is_shared(c.latent_positions)      ? group
                                                  : 0;
}

/// The way back to them.
template <class T, class Config>
constexpr void add_latent_positions(const Config& c, const Sizes& sizes, Meter<T>& meter) {
  const Index size = latent_positions(c, sizes);
  if (size > 0) meter.add_column_sums({{sizes.latent_rows() * c.latent_dim / size, size}});
}

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
      meter.scratch(groups * c.tokens * c.data_dim);  // own
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
        if (training) meter.scratch(rows * c.data_dim);  // output_gradient
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

  static constexpr std::size_t record_size = sizeof(Sizes) + 8 * sizeof(void*);

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
  constexpr Index output_size() const { return sizes.data_rows() * c.output_channels + latent_size(); }
  template <class T>
  constexpr void outputs(Meter<T>& meter) const {
    meter.output(sizes.data_rows() * c.output_channels);
    meter.output(latent_size());
  }
  template <class T>
  constexpr void start(Index groups, Meter<T>& meter) const {
    metered::forward(stem(), groups * c.tokens, meter);
  }
  template <class T>
  constexpr void start_backward(Index groups, Meter<T>& meter) const {
    metered::backward(stem(), groups, c.tokens, meter);
  }
  template <class T>
  constexpr void end(Index groups, bool again, Meter<T>& meter) const {
    const Index start = meter.mark(), rows = groups * c.tokens;
    meter.allocate(rows * c.data_dim);  // normed
    if (again) meter.allocate(rows * c.output_channels);
    metered::forward(data_norm(), rows, meter);
    metered::forward(output(), rows, meter);
    meter.finish(start);
  }
  template <class T>
  constexpr void end_backward(Index groups, Meter<T>& meter) const {
    const auto frame = meter.pop();
    const Index rows = groups * c.tokens;
    meter.scratch(rows * c.data_dim);  // normed
    metered::backward(output(), true, rows, meter);
    metered::backward(data_norm(), rows, meter);
  }
  template <class T>
  constexpr void forward(Meter<T>& meter) const {
    const Index start = meter.mark();
    meter.enter(Part::stem);
    meter.allocate(sizes.data_rows() * c.data_dim);  // x
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
    meter.finish(start, record_size);
  }
  template <class T>
  constexpr void backward(Meter<T>& meter) const {
    const auto frame = meter.pop();
    meter.enter(Part::stem);
    meter.scratch(latent_size());                             // z
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
    outputs(meter);
    forward(meter);
    meter.set_backward(true);
    backward(meter);
  }
};

struct AutoregressiveDecoder {
  AutoregressiveConfig c;
  Sizes sizes;
  Trunk trunk;

  static constexpr std::size_t record_size = sizeof(Sizes) + 10 * sizeof(void*);

  constexpr AutoregressiveDecoder(const AutoregressiveConfig& config, Index batch)
      : c(config),
        sizes{batch, config.groups, config.tokens, config.latents},
        trunk{trunk_of(config), plan_of(config.layers)} {}

  constexpr LayerNorm data_norm() const { return {c.data_dim}; }
  constexpr Index embedding() const { return Index{c.vocabulary} * c.data_dim; }
  constexpr Index rows() const { return sizes.data_rows(); }

  template <class T>
  constexpr void describe_all(Meter<T>& meter) const {
    const Index stem = embedding() + (c.data_positions == Positions::learned ? sizes.tokens * c.data_dim : 0) +
                       latent_positions(c, sizes);
    const Index head =
        data_norm().parameters() + (c.shared_embedding ? 0 : embedding()) + (c.output_bias ? c.vocabulary : 0);
    describe_ends(sizes, c.data_dim, c.vocabulary, stem, head, meter);
    describe(trunk, sizes, meter);
  }
  constexpr Index output_size() const { return rows() * c.vocabulary; }
  template <class T>
  constexpr typename Meter<T>::Product logits(Index count) const {
    return {count, c.vocabulary, {{c.data_dim, 1, c.data_dim}}};
  }
  template <class T>
  constexpr void start(Index, Meter<T>& meter) const {
    meter.finish(meter.mark(), sizeof(void*));
  }
  template <class T>
  constexpr void start_backward(Index groups, Meter<T>& meter) const {
    if (c.data_positions == Positions::learned) meter.add_column_sums({{groups, sizes.tokens * c.data_dim}});
    const auto embedding = meter.pop();
  }
  template <class T>
  constexpr void end(Index groups, bool again, Meter<T>& meter) const {
    if (with_loss) {
      if (!again) end_loss(groups * c.tokens, meter);
      return;
    }
    const Index start = meter.mark(), count = groups * c.tokens;
    meter.allocate(count * c.data_dim);  // normed
    metered::forward(data_norm(), count, meter);
    meter.multiply({logits<T>(count)});
    meter.finish(start, sizeof(void*));
  }
  template <class T>
  constexpr void end_backward(Index, Meter<T>&) const {}
  template <class T>
  constexpr void forward(Meter<T>& meter) const {
    const Index start = meter.mark();
    meter.enter(Part::stem);
    meter.allocate(rows() * c.data_dim);                 // x
    meter.allocate(sizes.latent_rows() * c.latent_dim);  // z
    metered::forward(trunk, *this, 0, sizes, meter);
    meter.finish(start, record_size);
  }
  /// AutoregressiveDecoder::loss().
  template <class T>
  constexpr void training_step(Meter<T>& meter) const {
    AutoregressiveDecoder losing = *this;
    losing.with_loss = true;
    meter.template output<std::int32_t>(rows());  // inputs
    losing.forward(meter);
    meter.set_backward(true);
    const auto saved = meter.pop();
    meter.enter(Part::stem);
    meter.add_above(Meter<T>::entry_bytes(record_size));
    metered::backward(trunk, losing, 0, sizes, meter);
    meter.enter(Part::stem);
    add_latent_positions(c, sizes, meter);
  }

 private:
  template <class T>
  constexpr void end_loss(Index count, Meter<T>& meter) const {
    const Index piece = std::min(count, logit_rows(c.vocabulary));
    meter.record_briefly(true, [&] {
      meter.in_scope([&] {
        meter.scratch(count * c.data_dim);    // normed
        meter.scratch(piece * c.data_dim);    // normed_gradient
        meter.scratch(piece * c.vocabulary);  // logits
        meter.scratch(piece);                 // losses
        metered::forward(data_norm(), count, meter);
        meter.times(count / piece, [&] { logits_forward_and_back(piece, meter); });
        if (count % piece > 0) logits_forward_and_back(count % piece, meter);
        as_backward(meter, [&] { metered::backward(data_norm(), count, meter); });
      });
    });
  }
  template <class T>
  constexpr void logits_forward_and_back(Index count, Meter<T>& meter) const {
    meter.multiply({logits<T>(count)});
    as_backward(meter, [&] {
      meter.multiply(
          {{count, c.data_dim, {{c.vocabulary, c.data_dim, 1}}}, {c.vocabulary, c.data_dim, {{count, c.data_dim, 1}}}});
      if (c.output_bias) meter.add_column_sums({{count, c.vocabulary}});
    });
  }
  template <class T, class Body>
  static constexpr void as_backward(Meter<T>& meter, Body&& body) {
    meter.set_backward(true);
    body();
    meter.set_backward(false);
  }

  bool with_loss = false;
};

constexpr Encoder meter_model(const EncoderConfig& c, Index batch, bool by_groups) {
  Encoder encoder{c, batch};
  encoder.by_groups = by_groups;
  return encoder;
}
constexpr DiffusionDecoder meter_model(const DiffusionConfig& c, Index batch, bool) { return {c, batch}; }
constexpr AutoregressiveDecoder meter_model(const AutoregressiveConfig& c, Index batch, bool) { return {c, batch}; }

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
