import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprune_jax.search import (
    EmptyArchiveError,
    archive_best,
    archive_init,
    archive_is_empty,
    archive_update,
    check_archive,
)

UPDATE = jax.jit(archive_update)


def some_masks(env, seed, count=8, kinds=1000):
    rng = np.random.default_rng(seed)
    pool = np.random.default_rng(99).integers(0, 2, (kinds, 3, 16)).astype(np.float32)
    return jnp.asarray(pool[rng.integers(0, kinds, count)])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), kinds=st.sampled_from([3, 1000]))
def test_archive_keeps_the_best_feasible_masks_once_each(env, seed, kinds):
    rng = np.random.default_rng(seed)
    archive = archive_init(env, 4)
    seen = {}
    for step in range(4):
        masks = some_masks(env, seed + step, kinds=kinds)
        rewards = rng.normal(size=8).astype(np.float32)
        costs = rng.uniform(0.1, 0.7, (8, 2)).astype(np.float32)
        rewards[rng.uniform(size=8) < 0.2] = np.nan
        costs[rng.uniform(size=8) < 0.1, 0] = np.inf
        archive = UPDATE(archive, masks, rewards, costs, env.limits)
        for i in range(8):
            good = np.isfinite(rewards[i]) and (costs[i] <= np.asarray(env.limits)).all()
            if good:
                seen.setdefault(np.asarray(masks[i]).tobytes(), (rewards[i], 8 * step + i))
    best = sorted(seen.values(), key=lambda entry: -entry[0])[:4]
    held = np.asarray(archive.feasible.valid)
    # A mask that once fell off may come back with a later reward; the others must agree exactly.
    if kinds == 1000:
        assert held.sum() == len(best)
        np.testing.assert_array_equal(archive.feasible.rewards[held], [r for r, _ in best])
        np.testing.assert_array_equal(archive.feasible.evaluations[held], [n for _, n in best])
    kept = [np.asarray(m).tobytes() for m in archive.feasible.masks[held]]
    assert len(set(kept)) == len(kept)
    assert (np.asarray(archive.feasible.costs)[held] <= np.asarray(env.limits)).all()
    assert np.isfinite(np.asarray(archive.feasible.rewards)[held]).all()
    assert int(archive.seen) == 32


def test_infeasible_masks_are_kept_by_violation(env):
    masks = some_masks(env, 0, 4)
    costs = jnp.array([[0.6, 0.4], [0.33, 0.55], [0.2, 0.2], [0.3, 0.9]])
    archive = archive_update(archive_init(env, 2), masks, jnp.arange(4.0), costs, env.limits)
    assert archive.infeasible.evaluations.tolist() == [1, 3]
    assert archive.feasible.evaluations.tolist() == [2, -1]
    assert archive.feasible.rewards.tolist() == [2.0, -np.inf]


def test_missing_rewards_and_costs_never_enter(env):
    masks = some_masks(env, 0, 3)
    rewards = jnp.array([jnp.nan, jnp.inf, 1.0])
    costs = jnp.array([[0.1, 0.1], [0.1, 0.1], [jnp.nan, 0.1]])
    archive = archive_update(archive_init(env, 2), masks, rewards, costs, env.limits)
    assert not archive.feasible.valid.any() and not archive.infeasible.valid.any()
    assert not bool(archive_best(archive).valid)


def test_the_first_reward_of_a_mask_stands(env):
    masks = jnp.ones((2, 3, 16))
    costs = jnp.full((2, 2), 0.1)
    archive = archive_update(archive_init(env, 3), masks, jnp.array([1.0, 9.0]), costs, env.limits)
    archive = archive_update(archive, masks, jnp.array([5.0, 9.0]), costs, env.limits)
    assert archive.feasible.rewards.tolist() == [1.0, -np.inf, -np.inf]
    assert bool(archive_best(archive).masks.all())


@pytest.mark.parametrize(
    ("rewards", "costs", "message"),
    [(jnp.ones(3), jnp.ones((2, 2)), "rewards"), (jnp.ones(2), jnp.ones((2, 3)), "costs")],
)
def test_wrong_shapes_are_refused_by_name(env, rewards, costs, message):
    with pytest.raises(ValueError, match=message):
        archive_update(archive_init(env, 2), jnp.ones((2, 3, 16)), rewards, costs, env.limits)


def test_an_archive_holds_something(env):
    with pytest.raises(ValueError, match="capacity=0"):
        archive_init(env, 0)
    one = dataclasses.replace(env, limits=jnp.array([0.5]))
    assert archive_init(one, 2).feasible.costs.shape == (2, 1)


def test_a_unit_at_one_half_is_kept(env):
    masks = jnp.full((1, 3, 16), 0.5)
    archive = archive_update(
        archive_init(env, 1), masks, jnp.ones(1), jnp.zeros((1, 2)), env.limits
    )
    assert bool(archive_best(archive).masks.all())


@pytest.mark.parametrize(
    ("rewards", "cost", "message"),
    [
        ([], 0.1, "no candidate was evaluated"),
        ([jnp.nan, jnp.inf], 0.1, "every reward was NaN or infinite, of all 2 candidates"),
        ([1.0, jnp.nan], jnp.nan, r"no candidate of 2 has both.*\(1 rewards are missing\)"),
    ],
)
def test_an_archive_in_which_nothing_is_says_why(env, rewards, cost, message):
    archive = archive_init(env, 2)
    if rewards:
        masks, costs = some_masks(env, 0, len(rewards)), jnp.full((len(rewards), 2), cost)
        archive = archive_update(archive, masks, jnp.asarray(rewards), costs, env.limits)
    assert bool(archive_is_empty(archive))
    with pytest.raises(EmptyArchiveError, match=message):
        check_archive(archive)


@pytest.mark.parametrize("cost", [0.1, 0.9])
def test_a_near_miss_is_something(env, cost):
    masks, costs = some_masks(env, 0, 2), jnp.full((2, 2), cost)
    rewards = jnp.array([jnp.nan, 1.0])
    archive = archive_update(archive_init(env, 2), masks, rewards, costs, env.limits)
    assert not bool(archive_is_empty(archive)) and int(archive.missing) == 1
    check_archive(archive)


def test_the_first_update_changes_no_types(env):
    # Otherwise every program that takes an archive is compiled twice.
    empty = archive_init(env, 4)
    masks = some_masks(env, 0)
    costs = jnp.ones((8, env.num_budgets))
    after = UPDATE(empty, masks, jnp.ones(8), costs, env.limits)
    types = [[leaf.aval for leaf in jax.tree.leaves(archive)] for archive in (empty, after)]
    assert types[0] == types[1]
