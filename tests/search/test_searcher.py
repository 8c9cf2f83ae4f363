import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search.searcher import (
    batch_metrics,
    check_positive,
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


def test_counts_below_one_are_refused_by_name():
    with pytest.raises(ValueError, match="candidates=0"):
        check_positive("candidates", 0)
