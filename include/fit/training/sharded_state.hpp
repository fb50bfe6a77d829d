#pragma once

#include <optional>
#include <utility>

#include <fit/training/shards.hpp>
#include <fit/training/state.hpp>

namespace fit {
inline namespace FIT_ABI {

/// The training state of a team: all members have the model, and each has the moments and the moving average of its own
/// part of the parameters (ZeRO stage 1; Rajbhandari et al., arXiv 1910.02054). Its steps have the bits of a
/// TrainingState's. It refers to the team, which must outlive it. What is said to be for all members must be called by
/// all.
template <class Model>
class ShardedState {
 public:
  using Scalar = typename Model::Scalar;

  Model model;
  AdamW<Model, Buffer<Scalar>> optimizer;
  std::optional<Buffer<Scalar>> average;  ///< of this member's part
  Index step = 0;
  Random random;

  /// From initial values, the same ones of all members. With an average it begins as the model.
  ShardedState(Team& team, Model initial, const AdamWOptions& options = {}, Random from = Random(0),
               bool averaged = false)
      : model(std::move(initial)),
        optimizer{.options = options},
        random(from),
        team_(&team),
        shards_(model, team.size()) {
    const IndexRange own = shards_.elements_of(team.rank());
    optimizer.first_moment = Buffer<Scalar>(own.count);
    optimizer.second_moment = Buffer<Scalar>(own.count);
    if (!averaged) return;
    average = Buffer<Scalar>::uninitialised(own.count);
    detail::copy_from(model, own, average->data());
  }

  Team& team() const { return *team_; }
  const detail::Shards& shards() const { return shards_; }

  /// The moving average, where there is one, and else the model. For all members; until the next update.
  const Model& weights() {
    if (!average) return model;
    if (!gathered_) {
      gathered_.emplace();
      Workspace workspace;
      detail::copy_into(*gathered_, own(), average->data());
      detail::gather_elements(*team_, shards_, *gathered_, workspace);
    }
    return *gathered_;
  }

  /// After the average was changed by others: weights() gathers it again.
  void changed() { gathered_.reset(); }

  /// The sum of a tree's gradients over all members, of which this one has its own part: for update(). For all members.
  /// Throws Error for a tree that is not complete, or not of this member's share of the leaves.
  Model& sum(GradientTree<Model>& tree, Workspace& workspace) const {
    const IndexRange wanted = share_of(tree.leaves(), team_->rank(), team_->size());
    require(tree.own() == wanted, "a member's leaves are ", wanted.count, " from ", wanted.first, " on, not ",
            tree.own().count, " from ", tree.own().first, " on");
    require(wanted.count > 0 && tree.complete(), "a sum over ", wanted.count, " leaves is not complete");
    return detail::add_over(*team_, shards_, tree, workspace);
  }

  /// Throws Error for options that update() refuses.
  void prepare(const UpdateOptions& options) {
    detail::check_largest_norm(options.clip);
    detail::check_average_decay(options.average_decay);
    optimizer.prepare(model, options.learning_rate);
  }

  /// As TrainingState::update(), of a gradient that sum() gave. For all members, which get the same norm.
  double update(Model& gradient, const UpdateOptions& options, Workspace& workspace) {
    prepare(options);
    optimizer.zero_frozen(gradient);
    const IndexRange pieces = shards_.pieces_of(team_->rank());
    const double norm = detail::clip_pieces(
        detail::Parameters(gradient), options.clip, pieces,
        [&](double* squares) { team_->gather(squares, [&](int member) { return shards_.pieces_of(member); }); },
        workspace);
    if (std::isfinite(norm)) {
      step_own(gradient, options, pieces, workspace);
      detail::gather_elements(*team_, shards_, model, workspace);
      gathered_.reset();
    }
    set_zero(gradient);
    require(std::isfinite(norm) || options.not_finite == NotFinite::skip, "the norm of the gradient in step ", step,
            " is not finite");
    ++step;
    return norm;
  }

 private:
  IndexRange own() const { return shards_.elements_of(team_->rank()); }

  void step_own(const Model& gradient, const UpdateOptions& options, const IndexRange& pieces, Workspace& workspace) {
    const detail::AdamWStep<Scalar> step_of(optimizer.options, options.learning_rate, optimizer.steps + 1);
    const auto share = static_cast<Scalar>(1 - options.decay_in(step));
    detail::for_each_piece(
        pieces, workspace,
        [&](const detail::Piece& piece, Scalar* values, const Scalar* slopes) {
          const Index at = shards_.begin_of(piece.number) - own().first;
          step_of(optimizer.treatments[static_cast<std::size_t>(piece.parameter)], values, slopes,
                  optimizer.first_moment.data() + at, optimizer.second_moment.data() + at, piece.size);
          if (average) detail::average_elements(average->data() + at, values, share, piece.size);
        },
        detail::Parameters(model), detail::Parameters(gradient));
    ++optimizer.steps;
  }

  Team* team_;
  detail::Shards shards_;
  std::optional<Model> gathered_;
};

}  // namespace FIT_ABI
}  // namespace fit
