#pragma once

#include <algorithm>
#include <array>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <fit/io/checkpoint.hpp>
#include <fit/training/sharded_state.hpp>

namespace fit {
inline namespace FIT_ABI {

namespace detail {

/// A part of a file that lies there as the elements of all members, one after the other.
template <class T>
struct ShardedPart {
  const char* name;
  T* data;  // this member's elements
};

template <class State>
auto parts_of(State& state) {
  using T = std::remove_pointer_t<decltype(state.optimizer.first_moment.data())>;
  std::vector<ShardedPart<T>> parts;
  if (state.average) parts.push_back({"average.", state.average->data()});
  parts.push_back({"first_moment.", state.optimizer.first_moment.data()});
  parts.push_back({"second_moment.", state.optimizer.second_moment.data()});
  return parts;
}

/// Calls f(member, part of its elements, how many of them come before) for all members but the first, some elements at
/// a time.
template <class F>
void for_parts_of_others(const Team& team, const Shards& shards, F&& f) {
  const Index together = elements_together(1, shards.largest());
  for (int member = 1; member < team.size(); ++member) {
    const IndexRange elements = shards.elements_of(member);
    for (Index at = 0; at < elements.count; at += together) {
      f(member, IndexRange{elements.first + at, std::min(together, elements.count - at)}, at);
    }
  }
}

/// Calls look(data, count) on the first member with all elements of a part, in order and some at a time, which the
/// other members send it.
template <class T, class Look>
void send_to_first(Team& team, const Shards& shards, const T* own, Look&& look) {
  auto received = Buffer<T>::uninitialised(team.leads() ? elements_together(1, shards.largest()) : 0);
  if (team.leads()) look(own, shards.elements_of(0).count);
  for_parts_of_others(team, shards, [&](int member, const IndexRange& part, Index at) {
    const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(part.count);
    const Team::Message to{0, const_cast<T*>(own + at), bytes}, from{member, received.data(), bytes};
    team.exchange({&to, member == team.rank() ? 1u : 0u}, {&from, team.leads() ? 1u : 0u});
    if (team.leads()) look(received.data(), part.count);
  });
}

/// The way back: every member gets its elements of a model that the first one has.
template <class Model, class T>
void send_from_first(Team& team, const Shards& shards, const Model* whole, T* own) {
  auto sent = Buffer<T>::uninitialised(team.leads() ? elements_together(1, shards.largest()) : 0);
  if (team.leads()) copy_from(*whole, shards.elements_of(0), own);
  for_parts_of_others(team, shards, [&](int member, const IndexRange& part, Index at) {
    const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(part.count);
    if (team.leads()) copy_from(*whole, part, sent.data());
    const Team::Message to{member, sent.data(), bytes}, from{0, own + at, bytes};
    team.exchange({&to, team.leads() ? 1u : 0u}, {&from, member == team.rank() ? 1u : 0u});
  });
}

}  // namespace detail

/// save() and load() for the state of a team: one file, which the first member writes and reads, and no other one needs
/// to see. It is that of a TrainingState, so a team of any size goes on with it, or a program without one. All members
/// must call them, and all throw when the first one fails.
template <class Model>
void save(const std::filesystem::path& path, const ShardedState<Model>& state, const SaveOptions& options = {}) {
  Team& team = state.team();
  const auto parts = detail::parts_of(state);
  std::optional<AtomicFile> file;
  team.lead([&] {
    std::vector<SafetensorsEntry> entries;
    const detail::Parameters parameters(state.model);
    detail::add_entries("model.", parameters, entries);
    const std::size_t own = entries.size();
    for (const auto& part : parts) detail::add_entries(part.name, parameters, entries);
    Metadata metadata = detail::metadata_of_state<Model>(state);
    detail::add_options(path, options, entries, metadata);
    const std::string start = detail::safetensors_start(path, entries, metadata);
    file.emplace(path);
    file->write(start.data(), start.size());
    for (std::size_t i = 0; i < own; ++i) detail::write_elements(*file, entries[i]);
  });
  std::exception_ptr failure;  // which must not keep the others waiting
  for (const auto& part : parts) {
    detail::send_to_first(team, state.shards(), part.data, [&](const auto* data, Index count) {
      try {
        if (!failure) file->write(data, sizeof(*data) * static_cast<std::size_t>(count));
      } catch (...) {
        failure = std::current_exception();
      }
    });
  }
  team.lead([&] {
    if (failure) std::rethrow_exception(failure);
    for (const SafetensorsEntry& tensor : options.tensors) detail::write_elements(*file, tensor);
    file->commit();
  });
}

template <class Model>
void load(const std::filesystem::path& path, ShardedState<Model>& state, const LoadOptions& options = {}) {
  using T = typename Model::Scalar;
  Team& team = state.team();
  std::optional<TrainingState<Model>> whole;
  team.lead([&] {
    whole.emplace();
    load(path, *whole, options);
  });
  state.step = team.of_first(whole ? whole->step : 0);
  state.optimizer.steps = team.of_first(whole ? whole->optimizer.steps : 0);
  state.random = team.of_first(whole ? whole->random : Random(0));
  const bool averaged = team.of_first(whole && whole->average);
  state.average.reset();
  if (averaged) state.average = Buffer<T>::uninitialised(state.shards().elements_of(team.rank()).count);
  if (whole) state.model = std::move(whole->model);
  for_each_parameter(
      [&](const ParameterName&, auto p) { team.broadcast(p.data, sizeof(T) * static_cast<std::size_t>(p.size)); },
      state.model);
  for (const auto& part : detail::parts_of(state)) {
    const Model* of_first = nullptr;
    if (whole) {
      const std::string name = part.name;
      of_first = name == "average."        ? &*whole->average
                 : name == "first_moment." ? &whole->optimizer.first_moment
                                           : &whole->optimizer.second_moment;
    }
    detail::send_from_first(team, state.shards(), of_first, part.data);
  }
  state.changed();
}

}  // namespace FIT_ABI
}  // namespace fit
