"""The direction of an update against the gradient of the expected reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import AgentConfig, make_environment
from rlprune_jax.search.credit import FAR, common_part, thresholds
from rlprune_jax.search.environment import project_priorities
from rlprune_jax.search.policy import (
    Normaliser,
    PolicySettings,
    coarse_policy,
    fine_policy,
    observation_size,
    offset_by,
)

SIZES = (6, 10, 4, 8)
SAMPLES = 4096
REPEATS = 16
SETTINGS = PolicySettings(initial_std=0.5, minimum_std=0.05, sharpness=2.5, least_ratio=0.0)


def problem(limit, min_keep=1, alike=False):
    """Units of fixed value with falling returns; all cost alike, or alike within a group."""
    rng = np.random.default_rng(0)
    price = jnp.asarray(rng.uniform(0.3, 3.0, 4), jnp.float32)
    price = jnp.ones(4) if alike else price
    value = jnp.asarray(rng.gamma(1.0, 1.0, (4, 10)), jnp.float32)
    power = jnp.asarray(rng.uniform(0.3, 0.9, 4), jnp.float32)

    def cost(masks):
        return (masks.sum(-1) @ price)[None] / (jnp.asarray(SIZES, jnp.float32) @ price)

    def reward(masks):
        return jnp.sum((jnp.sum(masks * value, -1) + 1e-3) ** power, -1)

    scores = [np.asarray(value[i, :size]) for i, size in enumerate(SIZES)]
    env = make_environment(SIZES, scores, np.eye(4), [limit], min_keep=min_keep, cost_fn=cost)
    return env, reward


def directions(env, reward, granularity):
    """The gradient by what was sampled, unbiased as it stands, and by the policy's credit.

    Both are means over many batches, of the location of each action.
    """
    make = coarse_policy if granularity == "coarse" else fine_policy
    config = AgentConfig(granularity=granularity, candidates=SAMPLES)
    policy = make(env, config)
    size = observation_size(env)
    normaliser = Normaliser(jnp.zeros(size), jnp.ones(size))
    params = jax.tree.map(
        lambda leaf: leaf + 0.4 * jax.random.normal(jax.random.key(7), leaf.shape),
        policy.init(jax.random.key(0)),
    )

    @jax.jit
    def batch(key):
        masks, trajectory = policy.act(params, SETTINGS, normaliser, key)
        gained = reward(masks)
        advantage = gained - gained.mean()
        location, *rest = policy.describe(params, SETTINGS, normaliser, trajectory)
        location = jnp.broadcast_to(location, trajectory.executed.actions.shape)

        def log_prob(location, taken):
            moved = offset_by((location, *rest), taken.offset)
            return jnp.sum(policy.log_prob(moved, taken.actions) * advantage[:, None])

        found = jax.grad(log_prob)(location, trajectory.executed).mean(1)
        if granularity == "coarse":
            true = jax.grad(log_prob)(location, trajectory.proposed).mean(1)
        else:
            # The same draw of noise as in act: its score is that of the logistic distribution.
            noise = jax.random.logistic(key, (SAMPLES, *env.ranks.shape))
            score = jnp.tanh(noise / 2) * advantage[:, None, None]
            true = jnp.where(env.alive, score.mean(0), 0.0)
        return true, found

    both = [batch(key) for key in jax.random.split(jax.random.key(3), REPEATS)]
    true, found = (np.stack([np.asarray(each[i]).ravel() for each in both]) for i in range(2))
    live = np.asarray(env.alive).ravel() if granularity == "fine" else slice(None)
    return true[:, live], found[:, live]


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.fixture(
    scope="module",
    params=[
        ("coarse", 0.5, 1, False),
        ("coarse", 0.2, 1, False),
        ("fine", 0.5, 1, True),
        ("fine", 0.3, 2, True),
        ("fine", 0.3, 2, False),
    ],
    ids=str,
)
def measured(request):
    granularity, limit, min_keep, alike = request.param
    env, reward = problem(limit, min_keep, alike)
    exact = alike or granularity == "coarse"
    return exact, directions(env, reward, granularity)


def test_credit_is_the_gradient_of_the_expected_reward(measured):
    exact, (true, found) = measured
    assert cosine(true.mean(0), found.mean(0)) > 0.995
    if not exact:
        return
    # No difference beyond what so many samples leave open.
    error = (true - found).mean(0) / np.maximum((true - found).std(0, ddof=1), 1e-9)
    assert np.abs(error * np.sqrt(REPEATS)).max() < 6.0


def test_credit_varies_less_than_the_score_of_what_was_sampled(measured):
    _, (true, found) = measured
    assert found.var(0).sum() < true.var(0).sum()


def test_what_all_actions_share_takes_no_credit_in_coarse():
    env, reward = problem(0.3)
    _, found = directions(env, reward, "coarse")
    # Deviations are alike, so precisions are, and what is left sums to zero in every batch.
    np.testing.assert_allclose(found.sum(1), 0.0, atol=1e-4 * np.abs(found).sum())


def test_units_that_are_kept_in_any_case_take_no_credit():
    env, _ = problem(0.5, min_keep=4)  # group 2 has four units
    priorities = jax.random.normal(jax.random.key(0), (5, 4, 10))
    masks = project_priorities(env, priorities)
    passed = thresholds(env, priorities, masks)
    assert (passed[:, 2, :4] == -FAR).all()


@pytest.mark.parametrize("round_to", [1, 2])
def test_a_unit_is_kept_where_it_passes_its_threshold(round_to):
    """Lowering one priority below its threshold drops the unit; raising it keeps the mask."""
    rng = np.random.default_rng(1)
    env = make_environment(
        (5, 5),
        [rng.uniform(size=5)] * 2,
        np.eye(2),
        [0.6],
        cost_fn=lambda masks: masks.sum()[None] / 10,
        round_to=round_to,
    )
    for seed in range(20):
        priorities = jax.random.normal(jax.random.key(seed), (1, 2, 5))
        masks = np.asarray(project_priorities(env, priorities))
        passed = np.asarray(thresholds(env, priorities, jnp.asarray(masks)))
        kept = masks > 0.5
        assert (np.asarray(priorities)[kept] > passed[kept]).all()
        if round_to > 1:
            continue
        for group, unit in np.argwhere(kept[0]):
            if passed[0, group, unit] == -FAR:
                continue
            below = priorities.at[0, group, unit].set(passed[0, group, unit] - 1e-3)
            assert project_priorities(env, below)[0, group, unit] == 0.0
            above = priorities.at[0, group, unit].set(passed[0, group, unit] + 1e-3)
            np.testing.assert_array_equal(project_priorities(env, above), masks)


def test_common_part_is_the_mean_by_precision():
    noise, std = jnp.array([[1.0], [4.0]]), jnp.array([[1.0], [2.0]])
    assert float(common_part(noise, std)[0]) == pytest.approx((1 + 4 / 4) / (1 + 1 / 4))
