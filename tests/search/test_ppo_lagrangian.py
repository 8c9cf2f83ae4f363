import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    Config,
    HParams,
    archive_init,
    candidate_costs,
    feasible,
    ppo_lagrangian,
    run_search,
)

SMALL = {"candidates": 6, "epochs": 2, "hidden_sizes": (8,)}
VARIANTS = [
    Config(**SMALL, granularity="coarse", constraint="both", critic=True, minibatches=2),
    Config(**SMALL, granularity="fine", constraint="multiplier", dual="softplus_adam"),
    Config(**SMALL, granularity="fine", constraint="projection", shaping="elite"),
]
IDS = [f"{config.granularity}-{config.constraint}" for config in VARIANTS]


def program(env, config, reward, iterations=3):
    """A whole search as a function of numbers and key."""
    agent = ppo_lagrangian(env, config)

    def run(hparams, key):
        init_key, run_key = jax.random.split(key)
        return run_search(
            agent,
            reward,
            env.limits,
            agent.init(hparams, init_key),
            archive_init(env, 3),
            iterations,
            run_key,
            cost_fn=env.cost_fn,
        )

    return run


def arrays(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree)]
    return [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_vmapped_over_seeds_and_every_number_equals_single_runs(env, units_reward, config):
    run = program(env, config, units_reward)
    single = jax.jit(run)
    scale = jnp.array([1.0, 0.8])
    hparams = jax.tree.map(lambda number: number * scale, HParams(entropy_coef=0.01))
    keys = jax.random.split(jax.random.key(0), 2)
    batched = jax.jit(jax.vmap(run))(hparams, keys)
    for index in range(2):
        alone = single(jax.tree.map(lambda leaf, i=index: leaf[i], hparams), keys[index])
        for a, b in zip(arrays(batched), arrays(alone), strict=True):
            np.testing.assert_allclose(a[index], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_second_call_compiles_nothing_leaks_nothing_and_reuses_no_key(env, units_reward, config):
    with jax.checking_leaks(), jax.debug_key_reuse(True):
        run = jax.jit(program(env, config, units_reward, 2))
        jax.block_until_ready(run(HParams(), jax.random.key(0)))
    run = jax.jit(program(env, config, units_reward, 2))
    first = run(HParams(), jax.random.key(0))
    with jax.no_tracing():
        second = run(HParams(learning_rate=0.5, sharpness=3.0), jax.random.key(1))
    assert not np.array_equal(first.history.rewards, second.history.rewards)


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_state_holds_arrays_only(env, config):
    agent = ppo_lagrangian(env, config)
    state = agent.init(HParams(), jax.random.key(0))
    candidates, state = agent.ask(state, jax.random.key(1))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((state, candidates)))
    assert candidates.masks.shape == (6, 3, 16)


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_projected_candidates_are_always_feasible(env, units_reward, granularity):
    config = Config(**SMALL, granularity=granularity)
    run = jax.jit(jax.vmap(program(env, config, units_reward, 6), in_axes=(None, 0)))
    result = run(HParams(), jax.random.split(jax.random.key(0), 4))
    assert bool(feasible(result.history.costs, env.limits).all())
    assert (result.metrics["multiplier"] == 0.0).all()


def test_missing_rewards_teach_to_avoid_and_never_poison(env):
    agent = ppo_lagrangian(env, VARIANTS[1])
    state = agent.init(HParams(), jax.random.key(0))
    candidates, state = agent.ask(state, jax.random.key(1))
    costs = candidate_costs(env, candidates.masks)
    rewards = jnp.array([1.0, jnp.nan, 2.0, 0.5, jnp.inf, 3.0])
    as_worst = jnp.array([1.0, 0.5, 2.0, 0.5, 0.5, 3.0])
    tell = jax.jit(agent.tell)
    found, metrics = tell(state, candidates, rewards, costs)
    expected, _ = tell(state, candidates, as_worst, costs)
    for a, b in zip(arrays(found), arrays(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(metrics["missing_fraction"], 1 / 3, rtol=1e-6)
    broken, _ = tell(state, candidates, jnp.full(6, jnp.nan), costs.at[0].set(jnp.nan))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in arrays(broken))


def test_identical_candidates_teach_nothing(env):
    agent = ppo_lagrangian(env, Config(**SMALL))
    state = agent.init(HParams(), jax.random.key(0))
    candidates, state = agent.ask(state, jax.random.key(1))
    told, _ = agent.tell(state, candidates, jnp.full(6, 0.3), jnp.full((6, 2), 0.2))
    for a, b in zip(arrays(told.params), arrays(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_divergence_stops_the_updates(env, units_reward):
    config = Config(**SMALL | {"epochs": 8})
    run = jax.jit(program(env, config, units_reward))
    free = run(HParams(target_kl=1e9), jax.random.key(0)).metrics
    held = run(HParams(target_kl=1e-4), jax.random.key(0)).metrics
    assert (free["update_fraction"] == 1.0).all()
    assert (held["update_fraction"] < 0.5).all() and (held["update_fraction"] > 0.0).all()


def test_action_clip_opens_over_the_run(env, units_reward):
    config = Config(**SMALL, constraint="multiplier", iterations=4)
    hparams = HParams(action_clip_start=0.1, action_clip_slope=0.8, initial_std=3.0)
    costs = jax.jit(program(env, config, units_reward, 4))(hparams, jax.random.key(0)).history.costs
    # Keeping 0.9 of 29 units, rounded per group, is 26; later the clip allows far fewer.
    assert float(costs[0, :, 1].min()) >= 25 / 29
    assert float(costs[3, :, 1].min()) < 20 / 29


def test_effective_weights_and_caps_are_reported(env, units_reward):
    config = Config(**SMALL, constraint="multiplier")
    hparams = HParams(dual_initial=3.0, dual_kp=0.0, dual_ki=0.0, dual_kd=0.0, multiplier_max=3.0)
    metrics = jax.jit(program(env, config, units_reward))(hparams, jax.random.key(0)).metrics
    np.testing.assert_allclose(metrics["reward_weight"], 1 / 7, rtol=1e-5)
    np.testing.assert_allclose(metrics["cost_weight"], 3 / 7, rtol=1e-5)
    assert (metrics["multiplier_capped"] == 1.0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "finest"}, "granularity='finest'"),
        ({"constraint": "wall"}, "constraint='wall'"),
        ({"dual": "sgd"}, "dual='sgd'"),
        ({"shaping": "best"}, "shaping='best'"),
        ({"candidates": 0}, "candidates=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"minibatches": 5}, "minibatches=5"),
        ({"iterations": 0}, "iterations=0"),
        ({"critic": True, "shaping": "rank"}, "critic=False"),
    ],
)
def test_bad_configurations_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_projection_needs_traceable_costs(env):
    host = dataclasses.replace(env, cost_fn=None)
    with pytest.raises(ValueError, match="constraint='projection'"):
        ppo_lagrangian(host, Config(**SMALL))
    ppo_lagrangian(host, Config(**SMALL, constraint="multiplier"))


def test_wrong_shapes_told_are_refused_by_name(env):
    agent = ppo_lagrangian(env, Config(**SMALL))
    candidates, state = agent.ask(agent.init(HParams(), jax.random.key(0)), jax.random.key(1))
    with pytest.raises(ValueError, match="rewards"):
        agent.tell(state, candidates, jnp.ones(5), jnp.ones((6, 2)))
    with pytest.raises(ValueError, match="costs"):
        agent.tell(state, candidates, jnp.ones(6), jnp.ones((6, 3)))
