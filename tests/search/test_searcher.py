import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    AgentConfig,
    cma_es,
    cross_entropy,
    dynamic_programming,
    evopress,
    fastnas,
    global_threshold,
    knapsack,
    ppo_lagrangian,
    random_search,
    spdy,
    uniform,
)
from rlprune_jax.search.searcher import (
    batch_metrics,
    check_told,
    violation,
    worst_for_missing,
    worst_for_missing_costs,
)

LIMITS = jnp.array([1.0, 2.0])


def test_missing_rewards_count_as_the_worst():
    found = worst_for_missing(jnp.array([jnp.nan, 3.0, jnp.inf, -2.0, -jnp.inf]))
    assert found.tolist() == [-2.0, 3.0, -2.0, -2.0, -2.0]
    assert worst_for_missing(jnp.full(3, jnp.nan)).tolist() == [0.0, 0.0, 0.0]


def test_missing_costs_count_as_far_over_budget():
    found = worst_for_missing_costs(jnp.array([[jnp.nan, 9.0], [0.5, jnp.inf]]), LIMITS)
    assert found.tolist() == [[2.0, 9.0], [0.5, 9.0]]


def test_violation_is_relative_to_each_budget():
    assert violation(jnp.array([[1.5, 3.0], [0.5, 1.0]]), LIMITS).tolist() == [1.0, 0.0]


def test_metrics_of_a_batch():
    rewards = jnp.array([5.0, 1.0, jnp.nan, 2.0])
    costs = jnp.array([[1.5, 1.0], [1.0, 2.0], [0.5, 0.5], [1.0, 1.0]])
    found = batch_metrics(rewards, costs, LIMITS)
    assert float(found["reward_best"]) == 2.0  # 5 is over budget
    assert float(found["reward_mean"]) == 2.25  # NaN counts as 1
    assert float(found["feasible_fraction"]) == 0.75
    assert float(found["missing_fraction"]) == 0.25
    np.testing.assert_allclose(found["cost_mean"], [1.0, 1.125])


@pytest.mark.parametrize(
    ("rewards", "costs", "message"),
    [
        (["a", "b"], jnp.ones((2, 1)), "rewards must be numbers"),
        (jnp.ones(2), [["a"], ["b"]], "costs must be numbers"),
        (None, jnp.ones((2, 1)), "rewards must be numbers|rewards has shape"),
        (jnp.ones(3), jnp.ones((2, 1)), r"rewards has shape \(3,\) and must have \(2,\)"),
        (jnp.ones(2), jnp.ones((2, 2)), r"costs has shape \(2, 2\) and must have \(2, 1\)"),
    ],
)
def test_what_is_no_numbers_is_refused_by_name(rewards, costs, message):
    with pytest.raises(ValueError, match=message):
        check_told(jnp.ones((2, 1, 4)), rewards, costs, 1)


def test_missing_numbers_are_accepted():
    rewards, costs = check_told(jnp.ones((2, 1, 4)), [jnp.nan, jnp.inf], [[jnp.nan], [1.0]], 1)
    assert rewards.shape == (2,) and costs.shape == (2, 1)


MAKERS = {
    "agent": lambda env: ppo_lagrangian(env, AgentConfig(candidates=4)),
    "spdy": lambda env: spdy(env, 4, iterations=4),
    "cma_es": lambda env: cma_es(env, 4, iterations=4),
    "fastnas": lambda env: fastnas(env, 4, most_iterations=4),
    "dynamic_programming": lambda env: dynamic_programming(env, 4, most_iterations=4),
    **{
        make.__name__: lambda env, make=make: make(env, 4)
        for make in (cross_entropy, evopress, global_threshold, knapsack, random_search, uniform)
    },
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_searcher_carries_the_costs_and_limits_of_its_environment(env, name):
    if name == "cma_es":
        pytest.importorskip("cmaes")
    searcher = MAKERS[name](env)
    assert searcher.cost_fn is env.cost_fn and searcher.limits is env.limits
