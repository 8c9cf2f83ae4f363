"""A search is resumable, compiles once, and takes any reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import count_compilations, in_batches, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.costs import limits
from rlprune_jax.runs import MemoryRun, open_run_at
from rlprune_jax.search import EmptyArchiveError
from rlprune_jax.training.task import Evaluation
from rlprune_jax.workflow import searches
from rlprune_jax.workflow.delivery import deliver, evaluate_masked
from rlprune_jax.workflow.searches import search


def test_rewards_and_costs_are_those_of_the_masks_it_kept():
    pruning = small_pruning("params=0.5")
    found = search(pruning, "random_search")
    assert found.rewards.shape == (2, 8) and found.costs.shape == (2, 8, 1)
    assert found.evaluations == 16
    entries = found.archive.feasible
    gates = rp.ones_gates(pruning.graph)
    for index, (name, size) in enumerate(zip(pruning.env.names, pruning.env.sizes, strict=True)):
        gates[name] = jnp.asarray(entries.masks[0, index, :size], jnp.float32)
    share = rp.count_params(pruning.graph, gates) / rp.count_params(pruning.graph)
    assert float(entries.costs[0, 0]) == pytest.approx(share, rel=1e-5)
    alone = evaluate_masked(
        pruning.network,
        pruning.task.objective,
        pruning.network.variables,
        gates,
        pruning.task.sample("held_out", pruning.config.reward_images),
    )
    assert found.best_reward == pytest.approx(float(alone.metric), abs=1e-6)
    assert found.best_reward == np.max(found.rewards[np.all(found.costs <= 0.5, -1)])


def test_a_second_search_compiles_nothing_with_other_limits_too():
    search(small_pruning("params=0.5"))
    with count_compilations() as compiled:
        for limit, seed in (("params=0.5", 1), ("params=0.4", 0)):
            search(small_pruning(limit, seed=seed))
    assert compiled == []


def test_metrics_of_every_iteration_are_recorded():
    run = MemoryRun()
    search(small_pruning("params=0.5"), "random_search", run)
    rows = run.metrics("search-random_search")
    assert [row["step"] for row in rows] == [1, 2]
    assert {"best", "reward_mean", "seconds", "compile_seconds"} <= set(rows[0])
    assert rows[0]["best"] <= rows[1]["best"]


@pytest.mark.parametrize(
    ("method", "stairs"), [("agent", (0,)), ("cross_entropy", (0,)), ("agent", (0, 2))]
)
def test_an_interrupted_search_ends_as_one_that_was_not(tmp_path, monkeypatch, method, stairs):
    pruning = small_pruning("params=0.5", save_seconds=0.0, reward_finetune=stairs)
    whole = search(pruning, method)
    original, calls = searches.run_search_host, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(searches, "run_search_host", killed)
    with pytest.raises(KeyboardInterrupt), open_run_at(tmp_path / "run", {}) as run:
        search(pruning, method, run)
    with open_run_at(tmp_path / "run", {}) as run:
        resumed = search(pruning, method, run)
    assert len(calls) == 3  # one before the kill, the killed one, and the one that was left
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_streams_reward_as_arrays_do():
    small = small_mlp()
    task = rp.Task(
        small.task.loss,
        small.task.metric,
        *[in_batches(getattr(small.task, split), 7) for split in ("train", "held_out", "test")],
    )
    arrays = search(small_pruning("params=0.5"), "random_search")
    streams = search(small_pruning("params=0.5", task=task), "random_search")
    np.testing.assert_array_equal(arrays.rewards, streams.rewards)


def test_the_reward_may_be_the_loss():
    by_loss = search(small_pruning("params=0.5", reward="loss"), "random_search")
    by_metric = search(small_pruning("params=0.5"), "random_search")
    np.testing.assert_array_equal(by_loss.costs, by_metric.costs)
    assert (by_loss.rewards < 0).all() and (by_metric.rewards >= 0).all()


def test_a_staircase_of_finetuning_before_the_reward():
    plain = search(small_pruning("params=0.5"), "random_search")
    stairs = search(small_pruning("params=0.5", reward_finetune=(0, 2)), "random_search")
    np.testing.assert_array_equal(plain.rewards[0], stairs.rewards[0])
    by_loss = [
        search(small_pruning("params=0.5", reward_finetune=steps, reward="loss"), "random_search")
        for steps in ((0,), (0, 2))
    ]
    assert (by_loss[0].rewards[1] != by_loss[1].rewards[1]).any()


def high_before(evaluator, variables, env, masks, data, key):
    """Reward units, and a hundred more where nothing is finetuned."""
    units = jnp.asarray(masks).sum((1, 2))
    found = units + 100.0 * (evaluator.finetune_steps == 0)
    return Evaluation(loss=found, metric=found)


@pytest.mark.parametrize("method", ["agent", "random_search", "uniform"])
def test_rewards_after_different_numbers_of_steps_are_never_compared(monkeypatch, method):
    monkeypatch.setattr(searches, "_evaluate", high_before)
    pruning = small_pruning("params=0.5", reward_finetune=(0, 2))
    run = MemoryRun()
    found = search(pruning, method, run)
    entries = found.archive.feasible
    valid = np.asarray(entries.valid)
    # What the archive holds has the rewards of the last stair, those of earlier candidates too.
    np.testing.assert_array_equal(
        entries.rewards[valid], np.asarray(entries.masks)[valid].sum((1, 2))
    )
    assert (np.diff(entries.rewards[valid]) <= 0).all()
    rows = run.metrics(f"search-{method}")
    if method == "uniform":
        assert [row["reward_finetune"] for row in rows] == [2]
        return
    assert [row["reward_finetune"] for row in rows] == [0, 2]
    assert (found.rewards[0] > 100).all() and (found.rewards[1] < 100).all()
    # The best of the first part is still there where it is better than all of the second.
    assert entries.rewards[0] == np.max(np.asarray(found.rewards) % 100)


def test_a_search_that_is_extended_rewards_anew_what_it_had(tmp_path, monkeypatch):
    """Of four iterations the third is in the first half again, and has the shorter finetune."""
    asked = []

    def watched(evaluator, *arguments):
        asked.append(evaluator.finetune_steps)
        return high_before(evaluator, *arguments)

    monkeypatch.setattr(searches, "_evaluate", watched)
    stairs = {"reward_finetune": (0, 0, 2), "save_seconds": 0.0}
    with open_run_at(tmp_path / "run", {}) as run:
        search(small_pruning("params=0.5", **stairs), "random_search", run)
    longer = small_pruning("params=0.5", evaluations=48, **stairs)
    with open_run_at(tmp_path / "run", {}) as run:
        found = search(longer, "random_search", run)
        rows = run.metrics("search-random_search")
    assert [row["reward_finetune"] for row in rows] == [0, 2, 0, 0, 2, 2]
    # Before the second, third and fifth iteration the archive too.
    assert asked == [0, 2, 2, 0, 0, 0, 2, 2, 2]
    entries = found.archive.feasible
    valid = np.asarray(entries.valid)
    assert (np.asarray(entries.rewards)[valid] < 100).all()


def test_coarse_candidates_keep_the_best_units_of_each_group():
    pruning = small_pruning("params=0.5", granularity="coarse")
    found = search(pruning, "random_search")
    ranks = np.asarray(pruning.env.ranks)
    for mask in np.asarray(found.archive.feasible.masks)[np.asarray(found.archive.feasible.valid)]:
        np.testing.assert_array_equal(mask, (ranks < mask.sum(-1, keepdims=True)))


def test_multiplier_and_projection_together_stay_within_the_budgets():
    """With the multiplier alone candidates may be over the limits; what is delivered is not."""
    pruning = small_pruning("params=0.5", constraint="both")
    found = search(pruning)
    assert found.feasible_fraction(limits(pruning.constraints)) == 1
    assert deliver(pruning, found).params <= 0.5 * rp.count_params(pruning.graph)


def test_a_multiplier_alone_may_go_over_and_delivers_within():
    pruning = small_pruning("params=0.5", constraint="multiplier", granularity="coarse")
    found = search(pruning)
    assert found.evaluations == 16
    assert deliver(pruning, found).params <= 0.5 * rp.count_params(pruning.graph)


def test_rewards_that_are_all_nan_deliver_nothing_and_say_so():
    small = small_mlp()
    task = rp.Task(
        small.task.loss,
        lambda outputs, batch: jnp.nan * outputs.sum(),
        *[small.data.batch] * 3,
    )
    pruning = small_pruning("params=0.5", task=task)
    found = search(pruning, "random_search")
    assert np.isnan(found.rewards).all() and found.best_reward == -np.inf
    with pytest.raises(EmptyArchiveError, match="every reward was NaN or infinite, of all 16"):
        deliver(pruning, found)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method='anneal' is unknown; choose from agent, uniform"):
        search(small_pruning("params=0.5"), "anneal")


def test_the_room_of_the_same_name_can_be_called():
    """``rlprune_jax.search`` is a room, and calling it is this function."""
    pruning = small_pruning("params=0.5")
    one, other = rp.search(pruning, method="uniform"), search(pruning, "uniform")
    np.testing.assert_array_equal(one.rewards, other.rewards)
    assert rp.search.make_environment is not None


@pytest.mark.parametrize(
    ("start", "granularity"),
    [("dynamic_programming", "fine"), ("random_search", "coarse"), ("uniform", "coarse")],
)
def test_a_start_is_counted_and_never_lost(start, granularity):
    settings = {"evaluations": 48, "granularity": granularity}
    pruning = small_pruning("params=0.5", start=start, start_evaluations=16, **settings)
    run = MemoryRun()
    found = search(pruning, run=run)
    alone = search(small_pruning("params=0.5", **settings | {"evaluations": 16}), start)
    used = alone.evaluations
    rows = {stage: run.metrics(stage) for stage in (searches.START_STAGE, "search-agent")}
    count = len(alone.rewards)
    assert len(rows[searches.START_STAGE]) == count
    assert len(rows["search-agent"]) == (48 - used) // 8
    # The start's numbers come first, filled up where it has fewer candidates an iteration.
    width = alone.rewards.shape[1]
    np.testing.assert_array_equal(found.rewards[:count, :width], alone.rewards)
    assert np.isnan(found.rewards[:count, width:]).all()
    assert used < found.evaluations <= 48
    assert found.evaluations == int(found.archive.seen)
    assert found.best_reward >= alone.best_reward
    assert found.best_reward == np.nanmax(np.where(found.costs[..., 0] <= 0.5, found.rewards, -1))


def test_the_agent_begins_at_the_best_of_its_start():
    pruning = small_pruning("params=0.5", start="random_search", evaluations=48)
    strategy, archive = searches.begun(pruning, MemoryRun())
    mask = np.asarray(archive.feasible.masks[0], bool)
    sizes = np.asarray(pruning.env.sizes)
    np.testing.assert_allclose(strategy.env.initial_keep, mask.sum(1) / sizes)
    ranks = np.asarray(strategy.env.ranks)
    np.testing.assert_array_equal(ranks < mask.sum(1, keepdims=True), mask)
    # A quarter of the evaluations, in whole iterations, and at least one of these.
    assert int(archive.seen) == 8 and strategy.iterations == 5
    # One program serves both: only numbers differ.
    plain = searches.METHODS["agent"](small_pruning("params=0.5", evaluations=40))
    assert plain.method == strategy.method
    assert jax.tree.structure(plain.env) == jax.tree.structure(strategy.env)


def test_the_best_of_a_start_stays_where_the_agent_finds_nothing(monkeypatch):
    pruning = small_pruning("params=0.5", start="random_search", evaluations=32)
    strategy, archive = searches.begun(pruning, MemoryRun())
    monkeypatch.setattr(searches, "begun", lambda *arguments: (strategy, archive))
    found = jnp.full(8, jnp.nan)
    monkeypatch.setattr(searches, "_evaluate", lambda *arguments: Evaluation(found, found))
    rewards = search(pruning).archive.feasible.rewards
    np.testing.assert_array_equal(rewards, archive.feasible.rewards)


@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_start_that_is_interrupted_ends_as_one_that_was_not(tmp_path, monkeypatch, killed_at):
    pruning = small_pruning(
        "params=0.5", save_seconds=0.0, start="random_search", evaluations=48, start_evaluations=16
    )
    whole = search(pruning)
    original, calls = searches.run_search_host, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(searches, "run_search_host", killed)
    with pytest.raises(KeyboardInterrupt), open_run_at(tmp_path / "run", {}) as run:
        search(pruning, run=run)
    with open_run_at(tmp_path / "run", {}) as run:
        resumed = search(pruning, run=run)
    assert len(calls) == 6 + 1  # each iteration once, and the killed one
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
