import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search.advantages import (
    episode_advantages,
    generalized_advantage_estimation,
    leave_one_out,
    normalise,
    rank_utilities,
    terminal_rewards,
)


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0)])
def test_gae_equals_a_numpy_loop(gamma, lambda_):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(7, 3)), rng.normal(size=(8, 3))
    discount = np.where(rng.uniform(size=(7, 3)) < 0.2, 0.0, gamma)
    expected, after = np.zeros((7, 3)), np.zeros(3)
    for t in reversed(range(7)):
        delta = rewards[t] + discount[t] * values[t + 1] - values[t]
        after = delta + discount[t] * lambda_ * after
        expected[t] = after
    found = generalized_advantage_estimation(
        jnp.asarray(rewards), jnp.asarray(discount), lambda_, jnp.asarray(values)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_shapes_that_differ_are_refused():
    with pytest.raises(AssertionError):
        generalized_advantage_estimation(jnp.ones((4, 2)), jnp.ones((4, 2)), 1.0, jnp.ones((4, 2)))


def test_undiscounted_episode_advantage_is_the_reward_less_the_value():
    reward, values = jnp.array([3.0, -1.0]), jnp.array([[1.0, 0.0], [2.0, 5.0], [0.0, 1.0]])
    found = episode_advantages(reward, values, 1.0, 1.0)
    np.testing.assert_allclose(found, reward - values, atol=1e-6)


def test_reward_comes_at_the_end():
    assert terminal_rewards(jnp.array([2.0, 3.0]), 3).tolist() == [[0, 0], [0, 0], [2, 3]]


def test_leave_one_out_is_the_distance_to_the_mean_of_the_others():
    reward = np.array([1.0, 4.0, 7.0])
    expected = [reward[i] - np.delete(reward, i).mean() for i in range(3)]
    np.testing.assert_allclose(leave_one_out(jnp.asarray(reward)), expected, rtol=1e-6)
    assert leave_one_out(jnp.array([5.0])).tolist() == [0.0]


def test_normalise_has_unit_deviation_and_is_zero_where_all_are_equal():
    found = normalise(jnp.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose([found.mean(), found.std()], [0.0, 1.0], atol=1e-6)
    assert normalise(jnp.full(7, 0.1)).tolist() == [0.0] * 7
    assert normalise(jnp.full(7, 1e8)).tolist() == [0.0] * 7
    np.testing.assert_allclose(normalise(jnp.array([1.0, 3.0]), centre_only=True), [-1.0, 1.0])


def test_gradient_of_normalise_is_finite_where_all_are_equal():
    gradient = jax.grad(lambda x: jnp.sum(normalise(x) * jnp.arange(3.0)))(jnp.ones(3))
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize("elite", [None, 0.5])
def test_rank_utilities_see_order_only_and_share_ties(elite):
    values = jnp.array([0.3, -5.0, 2.0, 0.3, 9.0])
    found = rank_utilities(values, elite)
    np.testing.assert_allclose(found, rank_utilities(jnp.exp(values), elite), atol=1e-6)
    assert found[0] == found[3] and found[4] > found[2] > found[0] >= found[1]
    np.testing.assert_allclose([found.mean(), found.std()], [0.0, 1.0], atol=1e-6)
    assert rank_utilities(jnp.ones(4), elite).tolist() == [0.0] * 4
