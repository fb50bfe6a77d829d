#pragma once

#include <fit/cost/trunk.hpp>

namespace fit {
inline namespace FIT_ABI {
namespace detail {
namespace metered {

/// What a part is.
template <class T>
constexpr void describe(Part part, Index stage, Index blocks, Index rows, Index width, Index parameters,
                        Meter<T>& meter) {
  PartCost& to = meter.enter(part, stage);
  to.blocks = blocks;
  to.rows = rows;
  to.width = width;
  to.parameters = parameters;
}

/// Parameters, rows and widths of what is between stem and head.
template <class T>
constexpr void describe(const Trunk& p, const Sizes& sizes, Meter<T>& meter) {
  for (std::size_t i = 0; i < p.plan.count; ++i) {
    const auto tell = [&](Part part, Index blocks, Index rows, Index width, Index parameters) {
      if (blocks > 0) describe(part, static_cast<Index>(i), blocks, rows, width, blocks * parameters, meter);
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
  describe(Part::stem, 0, 1, sizes.data_rows(), data_dim, stem, meter);
  describe(Part::head, 0, 1, sizes.data_rows(), head_width, head, meter);
}

/// Parameters of trained positions of latents.
template <class Config>
constexpr Index latent_positions(const Config& c, const Sizes& sizes) {
  const Index group = sizes.latents * c.latent_dim, groups = sizes.groups_of_example();
  return c.latent_positions == Positions::learned ? groups * group : nn::is_shared(c.latent_positions) ? group : 0;
}

/// The way back to them.
template <class T, class Config>
constexpr void add_latent_positions(const Config& c, const Sizes& sizes, Meter<T>& meter) {
  const bool learned = c.latent_positions == Positions::learned;
  const Index size = learned ? sizes.groups * sizes.latents * c.latent_dim : latent_positions(c, sizes);
  if (size > 0) meter.add_column_sums({{sizes.latent_rows() * c.latent_dim / size, size}});
}

}  // namespace metered
}  // namespace detail
}  // namespace FIT_ABI
}  // namespace fit
