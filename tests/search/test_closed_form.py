"""Constrained problems whose optimum and multiplier are known, over many vmapped seeds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    AgentConfig,
    HParams,
    archive_init,
    make_environment,
    ppo_lagrangian,
    reachable,
    run_search,
)

pytestmark = pytest.mark.slow
SEEDS = 12
UNITS = 16


def learn(env, config, reward, key, iterations, hparams):
    """Metrics of one search."""
    agent = ppo_lagrangian(env, config)
    init_key, run_key = jax.random.split(key)
    state, archive = agent.init(hparams, init_key), archive_init(env, 1)
    return run_search(
        agent, reward, env.limits, state, archive, iterations, run_key, cost_fn=env.cost_fn
    ).metrics


def mean_of_last(series, count=30):
    return np.asarray(series)[:, -count:].mean(1)


def share_within(values, expected, tolerance):
    """Fraction of seeds within the tolerance."""
    return np.mean(np.abs(np.asarray(values) - expected) <= tolerance)


@pytest.fixture(scope="module", params=["fine", "coarse"])
def concave(request):
    """Two groups of 16 units, reward sqrt(kept fraction), cost the kept fraction, twice.

    Cases: 0 the first budget binds at 0.4 and the second is slack; 1 the same with costs and
    limits times ten; 2 both slack; 3 the first below what ``min_keep`` (a quarter) reaches.
    """
    base = make_environment(
        [UNITS, UNITS],
        [np.arange(UNITS)] * 2,
        np.eye(2),
        [0.4, 9.0],
        min_keep=4,
        cost_fn=lambda masks: jnp.stack([masks.mean(), masks.mean()]),
        initial_keep=0.6,
    )
    limits = jnp.array([[0.4, 9.0], [4.0, 90.0], [9.0, 9.0], [0.01, 9.0]])
    scale = jnp.array([1.0, 10.0, 1.0, 1.0])
    config = AgentConfig(
        granularity=request.param, constraint="multiplier", candidates=32, hidden_sizes=(16,)
    )

    def reward(masks, key):
        return jnp.sqrt(masks.mean(-1)).mean(-1)

    def solve(limits, scale, key):
        env = dataclasses.replace(
            base, limits=limits, cost_fn=lambda masks: scale * base.cost_fn(masks)
        )
        return learn(env, config, reward, key, 100, HParams())

    keys = jax.random.split(jax.random.key(0), SEEDS)
    over_seeds = jax.vmap(solve, in_axes=(None, None, 0))
    metrics = jax.jit(jax.vmap(over_seeds, in_axes=(0, 0, None)))(limits, scale, keys)
    return [jax.tree.map(lambda leaf, i=case: leaf[i], metrics) for case in range(4)]


def test_concave_reward_settles_on_the_budget(concave):
    binding = concave[0]
    assert share_within(mean_of_last(binding["cost_mean"])[:, 0], 0.4, 0.01) == 1.0
    assert share_within(mean_of_last(binding["reward_mean"]), np.sqrt(0.4), 0.01) == 1.0
    # Reward and cost advantages are both standardised and rise together, so they cancel at 1.
    assert share_within(mean_of_last(binding["multiplier"])[:, 0], 1.0, 0.1) == 1.0


def test_redundant_budget_has_no_multiplier(concave):
    assert np.max(mean_of_last(concave[0]["multiplier"])[:, 1]) == 0.0


def test_scaling_costs_and_budgets_changes_nothing(concave):
    for name in ("multiplier", "reward_mean", "entropy"):
        np.testing.assert_allclose(concave[0][name], concave[1][name], rtol=1e-3, atol=1e-3)


def test_inactive_budget_leaves_the_unconstrained_optimum(concave):
    slack = concave[2]
    assert np.max(mean_of_last(slack["multiplier"])) == 0.0
    assert share_within(mean_of_last(slack["reward_mean"]), 1.0, 0.02) == 1.0
    assert (slack["feasible_fraction"] == 1.0).all()


def test_unreachable_budget_drives_its_multiplier_to_the_cap_and_is_flagged(concave):
    over = concave[3]
    assert (over["multiplier_capped"][:, -1, 0] == 1.0).all()
    assert (over["multiplier"][:, -1, 1] == 0.0).all()
    assert (over["feasible_fraction"] == 0.0).all()
    assert share_within(mean_of_last(over["cost_mean"])[:, 0], 0.25, 0.01) == 1.0
    env = make_environment(
        [UNITS], [np.arange(UNITS)], np.ones((1, 1)), 0.01, 4, lambda masks: masks.mean()[None]
    )
    assert not bool(reachable(env)[0])


@pytest.fixture(scope="module")
def knapsack():
    """Twelve units of known value and weight, one Bernoulli each; capacity for part of them."""
    rng = np.random.default_rng(3)
    value = rng.uniform(0.5, 2.0, 12).astype(np.float32)
    weight = rng.uniform(0.5, 2.0, 12).astype(np.float32)
    capacity = 0.45
    order = np.argsort(-value / weight)
    before = np.cumsum(weight[order]) - weight[order]
    kept = np.clip((capacity * weight.sum() - before) / weight[order], 0.0, 1.0)
    critical = order[np.flatnonzero(kept > 0)[-1]]
    # The price of one relative unit of budget, from the critical ratio of the linear program.
    price = value[critical] / weight[critical] * capacity * weight.sum()
    env = make_environment(
        [12],
        [np.ones(12)],
        np.ones((1, 1)),
        capacity,
        min_keep=0,
        cost_fn=lambda masks: jnp.sum(masks[0] * weight)[None] / weight.sum(),
        initial_keep=0.5,
    )
    config = AgentConfig(
        granularity="fine", constraint="multiplier", candidates=64, hidden_sizes=(8,)
    )
    hparams = HParams(sharpness=0.0, unit_learning_rate=0.05, dual_initial=1.0, entropy_coef=0.01)

    def reward(masks, key):
        return masks[:, 0] @ value

    def solve(key):
        return learn(env, config, reward, key, 150, hparams)

    metrics = jax.jit(jax.vmap(solve))(jax.random.split(jax.random.key(0), SEEDS))
    return metrics, float(value[order] @ kept), price, capacity


def test_knapsack_reaches_the_linear_program(knapsack):
    metrics, optimum, _, capacity = knapsack
    assert share_within(mean_of_last(metrics["cost_mean"])[:, 0], capacity, 0.02) >= 0.9
    assert np.mean(mean_of_last(metrics["reward_mean"]) >= 0.95 * optimum) >= 0.9


def test_knapsack_multiplier_is_the_critical_ratio(knapsack):
    metrics, _, price, _ = knapsack
    found = mean_of_last(metrics["shadow_price"])[:, 0]
    assert share_within(found, price, 0.25 * price) >= 0.8
