import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    Config,
    HParams,
    archive_init,
    candidate_costs,
    ppo_lagrangian,
    random_search,
    run_search,
    run_search_host,
)

CONFIG = Config(candidates=6, epochs=2, hidden_sizes=(8,))


@pytest.fixture(scope="module")
def searcher(env):
    agent = ppo_lagrangian(env, CONFIG)
    return agent._replace(init=jax.jit(agent.init))


def starts(env, searcher):
    return searcher.init(HParams(), jax.random.key(0)), archive_init(env, 4)


def test_two_halves_equal_one_run_bit_for_bit(env, searcher, units_reward):
    @jax.jit
    def run(state, archive, start):
        return run_search(
            searcher,
            units_reward,
            env.limits,
            state,
            archive,
            3,
            jax.random.key(7),
            start,
            env.cost_fn,
        )

    @jax.jit
    def run_all(state, archive):
        return run_search(
            searcher,
            units_reward,
            env.limits,
            state,
            archive,
            6,
            jax.random.key(7),
            cost_fn=env.cost_fn,
        )

    state, archive = starts(env, searcher)
    whole = run_all(state, archive)
    first = run(state, archive, 0)
    second = run(first.state, first.archive, 3)
    jax.tree.map(
        np.testing.assert_array_equal,
        (whole.state, whole.archive),
        (second.state, second.archive),
    )
    np.testing.assert_array_equal(
        whole.history.rewards, jnp.concatenate([first.history.rewards, second.history.rewards])
    )
    assert int(whole.archive.seen) == 36 and int(whole.state.iteration) == 6
    assert whole.history.costs.shape == (6, 6, 2)
    assert whole.metrics["cost_mean"].shape == (6, 2)


def test_host_loop_equals_the_scan(env, searcher, units_reward):
    state, archive = starts(env, searcher)
    key = jax.random.key(3)
    seen = []
    host = run_search_host(
        searcher,
        units_reward,
        lambda masks: np.asarray(candidate_costs(env, masks)),
        env.limits,
        state,
        archive,
        3,
        key,
        callback=lambda iteration, metrics: seen.append(iteration),
    )
    whole = jax.jit(
        lambda: run_search(
            searcher, units_reward, env.limits, state, archive, 3, key, cost_fn=env.cost_fn
        )
    )()
    assert seen == [0, 1, 2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), host, whole)


def test_host_costs_reach_an_agent_by_ask_and_tell(env, units_reward):
    searcher = random_search(env, 4)
    state = searcher.init(None, jax.random.key(0))
    result = run_search_host(
        searcher,
        units_reward,
        lambda masks: np.stack([masks.mean((1, 2)), np.full(4, np.nan)], axis=1),
        env.limits,
        state,
        archive_init(env, 2),
        2,
        jax.random.key(0),
    )
    # A cost that could not be measured is never within budget.
    assert not result.archive.feasible.valid.any()
    assert (result.metrics["feasible_fraction"] == 0.0).all()


@pytest.mark.parametrize("iterations", [0, -1])
def test_a_run_of_no_evaluations_is_refused(env, searcher, units_reward, iterations):
    state, archive = starts(env, searcher)
    arguments = (env.limits, state, archive, iterations, jax.random.key(0))
    with pytest.raises(ValueError, match=f"num_iterations={iterations}"):
        run_search(searcher, units_reward, *arguments, cost_fn=env.cost_fn)
    with pytest.raises(ValueError, match=f"num_iterations={iterations}"):
        run_search_host(searcher, units_reward, lambda masks: masks, *arguments)


def test_the_scan_needs_traceable_costs(env, searcher, units_reward):
    state, archive = starts(env, searcher)
    with pytest.raises(ValueError, match="cost_fn=None"):
        run_search(searcher, units_reward, env.limits, state, archive, 1, jax.random.key(0))


def test_host_costs_of_a_wrong_shape_are_refused(env, searcher, units_reward):
    state, archive = starts(env, searcher)
    with pytest.raises(ValueError, match="costs has shape"):
        run_search_host(
            searcher,
            units_reward,
            lambda masks: masks.mean((1, 2)),
            env.limits,
            state,
            archive,
            1,
            jax.random.key(0),
        )
