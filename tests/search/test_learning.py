"""The agent learns: in every mode it ends near a known optimum, and never turns back."""

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
    run_search,
)

UNITS, LIMIT = 16, 0.4
WEIGHTS = np.array([1.0, 2.0])
MOST = int(LIMIT * 2 * UNITS)
OPTIMUM = max(
    float(WEIGHTS @ np.sqrt([first / UNITS, (MOST - first) / UNITS])) for first in range(1, MOST)
)
"""Of ``sum a sqrt(x)`` over all widths within the limit."""
CONTINUOUS = float(np.sqrt(2 * LIMIT * np.square(WEIGHTS).sum()))
"""Of any ``x`` with its mean at the limit: ``x`` is as ``a ** 2``, by Lagrange."""
UNIFORM = float(WEIGHTS.sum() * np.sqrt(MOST / 2 / UNITS))
SEEDS = 3


@pytest.fixture(scope="module")
def two_groups():
    return make_environment(
        [UNITS, UNITS],
        [np.arange(UNITS)] * 2,
        np.eye(2),
        [LIMIT],
        min_keep=1,
        cost_fn=lambda masks: masks.mean()[None],
    )


def concave(masks, key):
    return jnp.sqrt(masks.mean(-1)) @ jnp.asarray(WEIGHTS, jnp.float32)


def searched(env, config, reward, iterations, hparams):
    """Metrics of a few seeds, [SEEDS, iterations, ...] each."""
    agent = ppo_lagrangian(env, config)

    def run(key):
        init_key, run_key = jax.random.split(key)
        state, archive = agent.init(hparams, init_key), archive_init(env, 1)
        return run_search(agent, reward, None, state, archive, iterations, run_key).metrics

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS))


@pytest.fixture(
    scope="module",
    params=[(g, c) for g in ("fine", "coarse") for c in ("projection", "both", "multiplier")],
    ids="-".join,
)
def learned(request, two_groups):
    granularity, constraint = request.param
    config = AgentConfig(granularity=granularity, constraint=constraint, candidates=16)
    return constraint, searched(two_groups, config, concave, 80, HParams())


def test_the_optimum_is_above_the_uniform_ratio():
    assert 1.04 * UNIFORM < OPTIMUM <= CONTINUOUS


def test_it_ends_near_the_optimum_within_the_budget(learned):
    constraint, metrics = learned
    last = np.asarray(metrics["reward_mean"])[:, -20:].mean()
    # The mean over candidates, which still vary; a multiplier holds their mean cost at the limit.
    most = CONTINUOUS if constraint == "multiplier" else OPTIMUM
    assert OPTIMUM - 0.2 * (OPTIMUM - UNIFORM) <= last <= most + 1e-5
    cost = np.asarray(metrics["cost_mean"])[:, -20:, 0]
    assert cost.mean() <= LIMIT * (1.03 if constraint == "multiplier" else 1.0 + 1e-6)


def test_the_mean_reward_never_falls_back(learned):
    """By windows of 20 iterations; under a multiplier the first one is far over the budget."""
    constraint, metrics = learned
    windows = np.asarray(metrics["reward_mean"]).mean(0).reshape(4, 20).mean(1)
    start = 1 if constraint == "multiplier" else 0
    assert (np.diff(windows[start:]) >= -0.01 * OPTIMUM).all()


@pytest.mark.parametrize("granularity", ["fine", "coarse"])
def test_an_entropy_bonus_raises_the_entropy(two_groups, granularity):
    """Where all masks are worth the same, nothing else moves it."""
    config = AgentConfig(granularity=granularity, candidates=8)
    # The fine policy starts near a coin's entropy unless its scores weigh more.
    sharper = {"sharpness": 12.0} if granularity == "fine" else {}
    hparams = HParams(entropy_coef=0.05, **sharper)

    def nothing(masks, key):
        return jnp.zeros(masks.shape[0])

    entropy = np.asarray(searched(two_groups, config, nothing, 12, hparams)["entropy"])
    assert (entropy[:, -1] > entropy[:, 0] + 0.01).all()
