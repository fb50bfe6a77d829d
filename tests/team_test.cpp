#include <fit/core/turns.hpp>
#include <fit/fit.hpp>
#include <fit/io/sharded_checkpoint.hpp>
#include <fit/run/prefetch.hpp>
#include <fit/run/run.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>
#include <sstream>

#include "catch.hpp"
#include "support.hpp"

namespace {

using fit::Index, fit::IndexRange, fit::Team;

/// Members 0 .. count-1 of a team within this program.
template <class F>
void with_team(int count, F&& f) {
  fit::Solo solo;
  fit::take_turns(solo, count, [&](Team& team, Index) { f(team); });
}

constexpr fit::EncoderConfig config{.layers = "(1)1(1)",
                                    .groups = 3,
                                    .tokens = 5,
                                    .channels = 2,
                                    .latents = 2,
                                    .data_dim = 24,
                                    .latent_dim = 40,
                                    .data_heads = 2,
                                    .latent_heads = 2};
using Model = fit::Classifier<config, 3>;

/// Larger than what is sent at a time.
struct Wide {
  using Scalar = float;
  fit::Matrix<float, 1200, 1000> first;
  fit::Vector<float, 7> between;
  fit::Matrix<float, 1300, 1000> last;
  static void visit(auto&& f, auto&... p) {
    f("first", p.first...);
    f("between", p.between...);
    f("last", p.last...);
  }
};

/// Gradients with all kinds of bits.
Model noise(Index seed) {
  Model model;
  fit::Random random(static_cast<std::uint64_t>(seed));
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p) {
        for (Index i = 0; i < p.size; ++i) p.data[i] = static_cast<float>(random.normal());
      },
      model);
  return model;
}

bool same_bits(const Model& a, const Model& b) {
  bool same = true;
  fit::for_each_parameter(
      [&](const fit::ParameterName&, auto p, auto q) {
        same = same && std::memcmp(p.data, q.data, sizeof(float) * static_cast<std::size_t>(p.size)) == 0;
      },
      a, b);
  return same;
}

}  // namespace

TEST_CASE("members of a team exchange what they have, and lead by the first", "[team]") {
  for (const int count : {1, 2, 3, 5}) {
    int told = 0;
    with_team(count, [&](Team& team) {
      const auto ranks = team.gather(team.rank() * 10);
      for (int i = 0; i < count; ++i) CHECK(ranks[static_cast<std::size_t>(i)] == 10 * i);
      CHECK(team.of_first(team.rank() + 7) == 7);
      CHECK(team.of_first("text of " + std::to_string(team.rank())) == "text of 0");
      team.lead([&] { ++told; });
      CHECK(told == 1);
      CHECK(test::error_of([&] { team.lead([] { fit::require(false, "the disk is full"); }); }) == "the disk is full");
      const auto fails = [&] { team.lead([] { throw 7; }); };
      if (team.leads()) {
        CHECK_THROWS_AS(fails(), int);
      } else {
        CHECK(test::error_of(fails) == "the first member of the team failed");
      }
    });
  }
}

TEST_CASE("some columns of some rows change hands, and what is begun is ended", "[team]") {
  for (const int count : {2, 3}) {
    with_team(count, [&](Team& team) {
      fit::take_turns(team, 4, [&](Team& task, Index number) {
        // Columns 1 and 2 of every other row go to the task before this one, into rows that lie closer together.
        std::vector<Index> all(40), got(15, -1);
        for (Index i = 0; i < 40; ++i) all[static_cast<std::size_t>(i)] = 100 * number + i;
        constexpr std::size_t size = sizeof(Index);
        const int before = (task.rank() + 3) % 4, after = (task.rank() + 1) % 4;
        const Team::Message to{before, all.data() + 1, 2 * size, 5, 8 * size},
            from{after, got.data(), 2 * size, 5, 3 * size};
        const Index started = task.start({&to, 1}, {&from, 1});
        task.poll();
        task.finish(started);
        for (Index i = 0; i < 15; ++i) {
          const Index expected = i % 3 == 2 ? -1 : 100 * after + i / 3 * 8 + 1 + i % 3;
          CHECK(got[static_cast<std::size_t>(i)] == expected);
        }
      });
    });
  }
}

TEST_CASE("tasks compute the same wherever they are", "[team]") {
  // Seven tasks on one to four members, of which each sends every other one numbers.
  const auto numbers = [](int members) {
    std::vector<int> all(7);
    with_team(members, [&](Team& outer) {
      fit::take_turns(outer, 7, [&](Team& team, Index number) {
        CHECK(team.rank() == number);
        CHECK(team.size() == 7);
        int sum = 0;
        for (const int value : team.gather(static_cast<int>(number * number))) sum = 3 * sum + value;
        fit::Subteam half(team, static_cast<int>(number % 2), number % 2 ? 3 : 4, 2);
        for (const int value : half.gather(sum + static_cast<int>(number))) sum = 5 * sum + value;
        all[static_cast<std::size_t>(number)] = sum;
      });
    });
    return all;
  };
  const auto alone = numbers(1);
  for (const int members : {2, 3, 4}) CHECK(numbers(members) == alone);
}

TEST_CASE("a task that fails ends the others", "[team]") {
  fit::Solo solo;
  int told = 0;
  const auto fails = [&](auto&& f) { return test::error_of([&] { fit::take_turns(solo, 3, f); }); };
  CHECK(fails([&](Team& team, Index number) {
          try {
            team.gather(1);
            if (number != 1) team.gather(2);
          } catch (const fit::Error& error) {
            ++told;
            CHECK(test::contains(error.what(), "another member of the team has failed"));
            throw;
          }
          fit::require(number != 1, "task ", number, " fails");
        }) == "task 1 fails");
  CHECK(told == 2);
  CHECK(test::contains(fails([](Team& team, Index number) {
                         int value = 0;
                         const Team::Message message{1, &value, sizeof(value)};
                         if (number == 0) team.exchange({&message, 1}, {});
                         if (number != 0) team.exchange({}, {});
                       }),
                       "does not expect the 4 bytes"));
  CHECK(test::contains(fails([](Team& team, Index number) {
                         int value = 0;
                         const Team::Message message{1, &value, sizeof(value)};
                         if (number == 0) team.exchange({}, {&message, 1});
                         if (number != 0) team.exchange({}, {});
                       }),
                       "does not send the 4 bytes"));
  CHECK(test::contains(fails([](Team& team, Index number) {
                         if (number != 2) team.gather(1);
                       }),
                       "has ended, and others wait"));
  CHECK(test::contains(
      test::error_of([&] { with_team(3, [](Team& team) { fit::take_turns(team, 2, [](Team&, Index) {}); }); }),
      "a team of 3 needs as many tasks, not 2"));
  CHECK(test::contains(test::error_of([&] { fit::Subteam(solo, 1, 1); }), "member 0 of 1 is none of 1 from 1 on"));
}

TEST_CASE("a sum over leaves has the same bits on any number of members", "[team]") {
  fit::Workspace workspace;
  for (const Index leaves : {1, 2, 3, 4, 7, 8}) {
    // The tree by hand: halves, the first of them the smaller one.
    const auto sum_of = [&](auto& self, Index first, Index count) -> Model {
      if (count == 1) return noise(first);
      Model sum = self(self, first, count / 2);
      const Model other = self(self, first + count / 2, count - count / 2);
      fit::detail::add_gradient(sum, other, workspace);
      return sum;
    };
    const Model expected = sum_of(sum_of, 0, leaves);
    for (int members = 1; members <= std::min<Index>(leaves, 5); ++members) {
      std::vector<bool> covered(static_cast<std::size_t>(fit::count_parameters(expected)));
      with_team(members, [&](Team& team) {
        const IndexRange own = fit::share_of(leaves, team.rank(), members);
        const fit::detail::Shards shards(expected, members);
        fit::GradientTree<Model> tree(leaves, own);
        for (int round = 0; round < 2; ++round) {
          for (Index i = 0; i < own.count; ++i) {
            CHECK_FALSE(tree.complete());
            Model gradient = noise(own.first + i);
            tree.add(gradient, workspace);
            CHECK(same_bits(gradient, Model()));
          }
          CHECK(tree.complete());
          Model late = noise(0);
          CHECK_THROWS_AS(tree.add(late, workspace), fit::Error);
          CHECK(same_bits(late, noise(0)));
          const Model& sum = fit::detail::add_over(team, shards, tree, workspace);
          const IndexRange elements = shards.elements_of(team.rank());
          std::vector<float> found(static_cast<std::size_t>(elements.count)), wanted(found);
          fit::detail::copy_from(sum, elements, found.data());
          fit::detail::copy_from(expected, elements, wanted.data());
          CHECK(found == wanted);
          std::fill_n(covered.begin() + elements.first, elements.count, true);
          tree.clear();
        }
      });
      CHECK(std::count(covered.begin(), covered.end(), false) == 0);
    }
  }
}

TEST_CASE("a sum over members is the same when its parts go on their way one by one", "[team]") {
  fit::Workspace workspace;
  for (const int members : {2, 3, 5}) {
    std::vector<Model> sums(static_cast<std::size_t>(members));
    for (const bool early : {false, true}) {
      with_team(members, [&](Team& team) {
        Model gradient = noise(team.rank());
        const fit::detail::Shards shards(gradient, members);
        const IndexRange own = shards.elements_of(team.rank());
        Model& sum = sums[static_cast<std::size_t>(team.rank())];
        if (!early) {
          fit::GradientTree<Model> tree(members, {team.rank(), 1});
          tree.add(gradient, workspace);
          sum = fit::detail::add_over(team, shards, tree, workspace);
          return;
        }
        fit::Workspace memory;
        fit::detail::GradientExchange<Model> exchange(team, shards, gradient, memory);
        Index number = 0;
        fit::for_each_parameter(
            [&](const fit::ParameterName&, auto p) {
              if (number++ % 3 != 0) exchange.add(p.data, p.size);  // the others come last
              if (number % 2 == 0) exchange.add(nullptr, 0);
            },
            gradient);
        exchange.finish();
        const auto found = test::values_of(gradient), expected = test::values_of(sum);
        CHECK(std::equal(found.begin() + own.first, found.begin() + own.end(), expected.begin() + own.first));
        const Index most = members * own.count * static_cast<Index>(sizeof(float));
        CHECK(static_cast<Index>(memory.arena().peak()) <= most + 4096);
        CHECK(memory.arena().mark().total == 0);
      });
    }
  }
}

TEST_CASE("a sharded state takes the steps of one that is not, and its files are the same", "[team]") {
  fit::Workspace workspace;
  const test::TemporaryFolder folder;
  const fit::AdamWOptions options{.weight_decay = 0.1, .rule = [](std::string_view name, std::size_t rank) {
                                    auto treatment = fit::usual_treatment(name, rank);
                                    treatment.frozen = name.starts_with("head.bias");
                                    return treatment;
                                  }};
  for (const bool averaged : {false, true}) {
    fit::TrainingState<Model> alone{
        .model = Model(fit::Random(1)), .optimizer = {.options = options}, .random = fit::Random(5)};
    if (averaged) alone.average = alone.model;
    std::vector<double> norms;
    const auto gradient_of = [](Index step) {
      Model gradient = noise(step);
      if (step == 3) gradient.head.weight.data()[0] = std::nanf("");
      if (step == 4) gradient.head.weight.data()[0] = 1e30f;
      return gradient;
    };
    const auto update_of = [](Index step) {
      return fit::UpdateOptions{.learning_rate = 1e-2 / static_cast<double>(step + 1),
                                .clip = step == 1 ? 1e9 : 0.5,
                                .not_finite = fit::NotFinite::skip};
    };
    for (Index step = 0; step < 6; ++step) {
      Model gradient = gradient_of(step);
      norms.push_back(alone.update(gradient, update_of(step), workspace));
    }
    fit::save(folder / "alone.safetensors", alone, {.metadata = {{"run", "7"}}});
    for (const int members : {1, 2, 3, 5}) {
      with_team(members, [&](Team& team) {
        fit::Workspace own;  // memory stays taken while others have their turn
        fit::ShardedState<Model> state(team, Model(fit::Random(1)), options, fit::Random(5), averaged);
        fit::GradientTree<Model> tree(team.size(), {team.rank(), 1});
        for (Index step = 0; step < 6; ++step) {
          Model gradient = team.leads() ? gradient_of(step) : Model();
          tree.add(gradient, own);
          const double norm = state.update(state.sum(tree, own), update_of(step), own);
          tree.clear();
          const double expected = norms[static_cast<std::size_t>(step)];
          CAPTURE(members, team.rank(), step, norm, expected);
          CHECK((norm == expected || (std::isnan(norm) && std::isnan(expected))));
          if (step == 2) {
            fit::save(folder / "middle.safetensors", state);
            fit::load(folder / "middle.safetensors", state);
          }
        }
        CHECK(same_bits(state.model, alone.model));
        CHECK(same_bits(state.weights(), alone.weights()));
        fit::save(folder / "team.safetensors", state, {.metadata = {{"run", "7"}}});
      });
      const bool same = test::text_of(folder / "team.safetensors") == test::text_of(folder / "alone.safetensors");
      CHECK(same);
    }
  }
}

TEST_CASE("what is sent in several parts is whole again", "[team]") {
  const auto ramp = [](float factor) {
    Wide model;
    float i = 0;
    fit::for_each_parameter(
        [&](const fit::ParameterName&, auto p) {
          for (Index j = 0; j < p.size; ++j) p.data[j] = factor * ++i;
        },
        model);
    return model;
  };
  const test::TemporaryFolder folder;
  std::vector<std::string> files;
  for (const int members : {1, 2}) {
    with_team(members, [&](Team& team) {
      fit::Workspace workspace;
      fit::ShardedState<Wide> state(team, ramp(1e-6f), {}, fit::Random(1), true);
      fit::GradientTree<Wide> tree(3, fit::share_of(3, team.rank(), members));
      for (int round = 0; round < 2; ++round) {
        for (Index i = 0; i < fit::share_of(3, team.rank(), members).count; ++i) {
          Wide gradient = ramp(0.1f * static_cast<float>(fit::share_of(3, team.rank(), members).first + i + 1));
          tree.add(gradient, workspace);
        }
        state.update(state.sum(tree, workspace), {.clip = 1e30}, workspace);
        tree.clear();
      }
      fit::save(folder / "state.safetensors", state);
      fit::ShardedState<Wide> loaded(team, Wide());
      fit::load(folder / "state.safetensors", loaded);
      fit::save(folder / "again.safetensors", loaded);
    });
    for (const char* name : {"state.safetensors", "again.safetensors"}) files.push_back(test::text_of(folder / name));
  }
  for (const std::string& file : files) CHECK((file == files[0]));
}

TEST_CASE("a state that is loaded forgets the weights and the average that it had", "[team]") {
  const test::TemporaryFolder folder;
  with_team(2, [&](Team& team) {
    fit::ShardedState<Model> state(team, Model(fit::Random(1)), {}, fit::Random(0), true);
    fit::ShardedState<Model> other(team, Model(fit::Random(2)), {}, fit::Random(0), true);
    fit::ShardedState<Model> plain(team, Model(fit::Random(3)));
    fit::save(folder / "other.safetensors", other);
    fit::save(folder / "plain.safetensors", plain);
    state.weights();
    fit::load(folder / "other.safetensors", state);
    CHECK(same_bits(state.weights(), Model(fit::Random(2))));
    fit::load(folder / "plain.safetensors", state);
    CHECK_FALSE(state.average);
    CHECK(same_bits(state.weights(), Model(fit::Random(3))));
  });
}

TEST_CASE("a file that the first member cannot write or read is everyone's error", "[team]") {
  const test::TemporaryFolder folder;
  with_team(3, [&](Team& team) {
    fit::ShardedState<Model> state(team, Model(fit::Random(1)));
    const auto nowhere = folder / "nowhere/state.safetensors";
    CHECK(test::contains(test::error_of([&] { fit::save(nowhere, state); }), "nowhere"));
    CHECK(test::contains(test::error_of([&] { fit::load(nowhere, state); }), "nowhere"));
    CHECK(same_bits(state.model, Model(fit::Random(1))));
  });
}

TEST_CASE("a run of a team has the bits of one that is alone, with as many leaves", "[team]") {
  const test::TemporaryFolder folder;
  /// Scores that are another member's must not count, nor its clock.
  const auto train = [&](auto& state, const std::string& name, int rank, Index steps, Index leaves,
                         double minutes = 0) {
    fit::Tape tape;
    fit::Run run(state, {.folder = folder / name,
                         .steps = steps,
                         .minutes = minutes,
                         .rate = {.peak = 1e-2, .floor = 1e-2},
                         .accumulate = 7,
                         .leaves = leaves,
                         .evaluate_every = 3,
                         .log_every = 2,
                         .resume = true,
                         .terminal = nullptr});
    std::vector<Index> taken;
    fit::Prefetch<Index> batches([](Index number, Index& batch) { batch = number; }, run.batches());
    Model gradient;
    while (run.next()) {
      CHECK(batches.next() == run.batch());
      taken.push_back(run.batch());
      const Model drawn = noise(run.batch());
      fit::detail::add_gradient(gradient, drawn, tape);
      const double loss = run.batch() == 30 ? std::nan("") : 1.0 / static_cast<double>(1 + run.batch());
      run.update(gradient, loss, tape, {{"number", static_cast<double>(run.batch())}});
      if (run.evaluates()) run.evaluated("score", rank == 0 ? static_cast<double>(state.step % 5) : 1e9);
    }
    CHECK(run.finish() == 0);
    CHECK(same_bits(gradient, Model()));
    return std::pair(run.total(), taken);
  };
  /// All but the seconds and what follows from them.
  const auto table_of = [&](const std::string& name) {
    std::istringstream table(test::text_of(folder / (name + "/model.csv")));
    std::vector<std::string> rows;
    for (std::string line; std::getline(table, line);) {
      std::istringstream cells(line);
      std::string row;
      int column = 0;
      for (std::string cell; std::getline(cells, cell, ',');) {
        if (++column != 2 && column != 6) row += cell + ",";
      }
      rows.push_back(row);
    }
    return rows;
  };
  std::vector<float> in_order;
  for (const Index leaves : {1, 3, 5, 7}) {
    const std::string name = "alone_" + std::to_string(leaves);
    fit::TrainingState<Model> alone{.model = Model(fit::Random(1)), .random = fit::Random(2)};
    alone.average = alone.model;
    std::filesystem::create_directories(folder / name);
    train(alone, name, 0, 8, leaves);
    CHECK(table_of(name).size() > 5);
    if (leaves == 1) in_order = test::values_of(alone.model);
    const auto values = test::values_of(alone.model);  // the same but for rounding
    CHECK(test::relative_error(values.data(), in_order.data(), static_cast<Index>(values.size())) < 1e-4);
    for (int members = 1; members <= std::min<Index>(leaves, 4); ++members) {
      const std::string together = name + "_" + std::to_string(members);
      std::set<Index> all;
      const auto of_team = [&](int size, Index steps) {
        with_team(size, [&](Team& team) {
          fit::ShardedState<Model> state(team, Model(fit::Random(1)), {}, fit::Random(2), true);
          const auto [total, taken] = train(state, together, team.rank(), steps, leaves);
          for (const Index batch : taken) CHECK(all.insert(batch).second);
          if (steps == 8) CHECK(same_bits(state.model, alone.model));
          if (steps == 8) CHECK(same_bits(state.weights(), *alone.average));
        });
      };
      of_team(members, 6);
      of_team(members == 1 ? 1 : members - 1, 8);  // resumed by another number of members
      CHECK(all.size() == 56);
      CHECK(table_of(together) == table_of(name));
      CHECK((test::text_of(folder / (together + "/model.safetensors")) ==
             test::text_of(folder / (name + "/model.safetensors"))));
    }
  }
  // A run by time takes as many steps everywhere.
  std::set<Index> totals;
  with_team(3, [&](Team& team) {
    fit::ShardedState<Model> state(team, Model(fit::Random(1)));
    totals.insert(train(state, "minutes", team.rank(), 0, 3, 0.005).first);
  });
  CHECK(totals.size() == 1);
  CHECK(*totals.begin() > 0);

  const auto refused = [&](int members, fit::RunOptions options) {
    return test::error_of([&] {
      with_team(members, [&](Team& team) {
        fit::ShardedState<Model> state(team, Model());
        options.folder = folder / "refused";
        fit::Run run(state, options);
      });
    });
  };
  CHECK(test::contains(refused(3, {.steps = 1, .accumulate = 4, .leaves = 2}),
                       "a team of 3 needs a run of as many leaves, not 2"));
  CHECK(test::contains(refused(1, {.steps = 1, .accumulate = 4, .leaves = 5}), "leaves of a run must be 1 to its 4"));
  CHECK(test::contains(refused(1, {.steps = 1, .accumulate = 4, .leaves = 0}), "leaves of a run must be 1 to its 4"));
}
