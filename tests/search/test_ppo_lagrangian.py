import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    AgentConfig,
    HParams,
    archive_init,
    feasible,
    ppo_lagrangian,
    run_search,
)

SMALL = {"candidates": 6, "epochs": 3, "hidden_sizes": (8,)}
CONFIGS = {
    "coarse-both": AgentConfig(
        **SMALL, constraint="both", policy="network", critic=True, minibatches=2
    ),
    "coarse-multiplier": AgentConfig(**SMALL, constraint="multiplier", iterations=4),
    "fine-multiplier": AgentConfig(
        **SMALL, granularity="fine", constraint="multiplier", dual="softplus_adam"
    ),
    "fine-projection": AgentConfig(
        **SMALL, granularity="fine", constraint="projection", shaping="elite"
    ),
}
ITERATIONS = 4


def program(env, config, reward):
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
            ITERATIONS,
            run_key,
            cost_fn=env.cost_fn,
        )

    return run


@pytest.fixture(scope="module")
def compiled(env, units_reward):
    """The jitted search of each configuration, compiled once for all tests."""
    return {name: jax.jit(program(env, config, units_reward)) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module", params=["coarse-both", "fine-multiplier"])
def asked(env, request):
    """An agent's jitted tell, its state and what it asked."""
    agent = ppo_lagrangian(env, CONFIGS[request.param])

    @jax.jit
    def start(key):
        return agent.ask(agent.init(HParams(), key), key)

    candidates, state = start(jax.random.key(0))
    return jax.jit(agent.tell), candidates, state


def arrays(tree):
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coarse-both", "fine-projection"])
def test_vmapped_over_seeds_and_every_number_equals_single_runs(env, units_reward, compiled, name):
    scale = jnp.array([1.0, 0.8])
    hparams = jax.tree.map(lambda number: number * scale, HParams(entropy_coef=0.01))
    keys = jax.random.split(jax.random.key(0), 2)
    batched = jax.jit(jax.vmap(program(env, CONFIGS[name], units_reward)))(hparams, keys)
    for index in range(2):
        alone = compiled[name](jax.tree.map(lambda leaf, i=index: leaf[i], hparams), keys[index])
        for a, b in zip(arrays(batched), arrays(alone), strict=True):
            np.testing.assert_allclose(a[index], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_second_call_compiles_nothing(compiled, name):
    first = compiled[name](HParams(), jax.random.key(0))
    with jax.no_tracing():
        second = compiled[name](HParams(learning_rate=0.5, sharpness=3.0), jax.random.key(1))
    assert not np.array_equal(first.history.rewards, second.history.rewards)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_leaks_and_no_key_is_used_twice(env, units_reward, name):
    run = jax.jit(program(env, CONFIGS[name], units_reward))
    with jax.checking_leaks(), jax.debug_key_reuse(True):
        run.trace(HParams(), jax.random.key(0))


def test_the_check_of_keys_would_see_one_used_twice():
    @jax.jit
    def reuse(key):
        return jax.random.normal(key) + jax.random.uniform(key)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        reuse.trace(jax.random.key(0))


def test_state_holds_arrays_only(asked):
    _, candidates, state = asked
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((state, candidates)))
    assert candidates.masks.shape == (6, 3, 16)


@pytest.mark.parametrize("name", ["coarse-both", "fine-projection"])
def test_projected_candidates_are_always_feasible(env, compiled, name):
    for seed in range(5):
        result = compiled[name](HParams(), jax.random.key(seed))
        assert bool(feasible(result.history.costs, env.limits).all())


def test_projection_alone_has_no_multiplier(compiled):
    metrics = compiled["fine-projection"](HParams(dual_initial=1.0), jax.random.key(0)).metrics
    assert (metrics["multiplier"] == 0.0).all() and (metrics["reward_weight"] == 1.0).all()


def test_missing_rewards_count_as_the_worst_and_never_poison(env, asked):
    tell, candidates, state = asked
    costs = jnp.linspace(0.2, 0.6, 12).reshape(6, 2)
    rewards = jnp.array([1.0, jnp.nan, 2.0, 0.5, jnp.inf, 3.0])
    as_worst = jnp.array([1.0, 0.5, 2.0, 0.5, 0.5, 3.0])
    found, metrics = tell(state, candidates, rewards, costs)
    expected, _ = tell(state, candidates, as_worst, costs)
    for a, b in zip(arrays(found), arrays(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(metrics["missing_fraction"], 1 / 3, rtol=1e-6)
    broken, _ = tell(state, candidates, jnp.nan * jnp.ones(6), costs.at[0].set(jnp.nan))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in arrays(broken))


def test_identical_candidates_teach_the_policy_nothing(asked):
    tell, candidates, state = asked
    told, _ = tell(state, candidates, 0.3 * jnp.ones(6), 0.2 * jnp.ones((6, 2)))
    if state.params["critics"]:
        return  # a critic's error differs along the episode, so it may prefer some steps
    for a, b in zip(arrays(told.params), arrays(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_divergence_stops_the_updates(compiled):
    free = compiled["coarse-multiplier"](HParams(target_kl=1e9), jax.random.key(0)).metrics
    held = compiled["coarse-multiplier"](HParams(target_kl=1e-4), jax.random.key(0)).metrics
    assert (free["update_fraction"] == 1.0).all()
    np.testing.assert_allclose(held["update_fraction"], 1 / 3, rtol=1e-5)


def test_action_clip_opens_over_the_run(compiled):
    hparams = HParams(action_clip_start=0.1, action_clip_slope=0.8, initial_std=3.0)
    costs = compiled["coarse-multiplier"](hparams, jax.random.key(0)).history.costs
    # Keeping 0.9 of 8, 16 and 5 units leaves 7 + 14 + 4 of 29; later far fewer are allowed.
    assert float(costs[0, :, 1].min()) >= 25 / 29 - 1e-6
    assert float(costs[3, :, 1].min()) < 20 / 29


def test_effective_weights_and_caps_are_reported(compiled):
    hparams = HParams(dual_initial=3.0, dual_kp=0.0, dual_ki=0.0, dual_kd=0.0, multiplier_max=3.0)
    metrics = compiled["coarse-multiplier"](hparams, jax.random.key(0)).metrics
    np.testing.assert_allclose(metrics["reward_weight"], 1 / 7, rtol=1e-5)
    np.testing.assert_allclose(metrics["cost_weight"], 3 / 7, rtol=1e-5)
    assert (metrics["multiplier_capped"] == 1.0).all()


def test_projection_needs_traceable_costs(env):
    host = dataclasses.replace(env, cost_fn=None)
    with pytest.raises(ValueError, match="constraint='projection'"):
        ppo_lagrangian(host, CONFIGS["fine-projection"])
    ppo_lagrangian(host, CONFIGS["fine-multiplier"])


def test_wrong_shapes_told_are_refused_by_name(asked):
    tell, candidates, state = asked
    with pytest.raises(ValueError, match="rewards"):
        tell(state, candidates, jnp.ones(5), jnp.ones((6, 2)))
    with pytest.raises(ValueError, match="costs"):
        tell(state, candidates, jnp.ones(6), jnp.ones((6, 3)))


def test_under_both_the_multiplier_of_a_measured_cost_follows_what_is_told(env):
    """The other budget's multiplier follows the candidates as proposed, told costs or not."""
    asked = dataclasses.replace(env, measured=(True, False))
    config = AgentConfig(constraint="both", candidates=4, epochs=1, hidden_sizes=(4,))
    agent = ppo_lagrangian(asked, config)
    state = agent.init(HParams(), jax.random.key(0))
    candidates, state = jax.jit(agent.ask)(state, jax.random.key(1))
    told = jnp.full((4, 2), 7.0)
    _, metrics = jax.jit(agent.tell)(state, candidates, jnp.arange(4.0), told)
    proposed = jax.vmap(env.cost_fn)(candidates.trajectory[0].proposed_masks)
    np.testing.assert_allclose(
        metrics["proposed_cost_mean"], [7.0, proposed[:, 1].mean()], rtol=1e-5
    )
