#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <fit/cost/parts.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {
namespace metered {

// The model, as its own file has it: forward leaves its record on the meter's tape, backward begins from gradients of
// the outputs. It describes its parts' shapes and parameters, too.

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
  constexpr void start(Index groups, Meter<T>& meter) const {
    const Index start = meter.mark();
    if (with_loss) meter.template allocate<std::int32_t>((1 + groups) * sizes.tokens);  // ids
    meter.finish(meter.mark(), sizeof(void*));
    meter.finish(start);
  }
  template <class T>
  constexpr void start_backward(Index groups, Meter<T>& meter) const {
    const auto frame = meter.pop();
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
    losing.forward(meter);
    meter.gather();  // the loss
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
        meter.scratch(count * c.data_dim);            // normed
        meter.scratch(piece * c.data_dim);            // normed_gradient
        meter.scratch(piece * c.vocabulary);          // logits
        meter.scratch(piece);                         // losses
        meter.template scratch<std::int32_t>(count);  // targets
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
      meter.multiply({{count, c.data_dim, {{c.vocabulary, c.data_dim, 1}}},
                      {c.vocabulary, c.data_dim, {{count, c.data_dim, 1, true}}}});
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

constexpr AutoregressiveDecoder meter_model(const AutoregressiveConfig& c, Index batch, bool) { return {c, batch}; }

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
