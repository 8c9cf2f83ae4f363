import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    AgentConfig,
    EmptyArchiveError,
    HParams,
    archive_init,
    check_archive,
    cross_entropy,
    global_threshold,
    make_environment,
    ppo_lagrangian,
    random_search,
    ranked,
    renew_rewards,
    run_search,
    run_search_host,
    search_method,
    start_search,
    uniform,
)

CONFIG = AgentConfig(candidates=6, epochs=2, hidden_sizes=(8,))


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


def test_host_loop_equals_the_scan(env, units_reward):
    method = search_method(ppo_lagrangian, config=CONFIG)
    begin = start_search(method, env, HParams(), capacity=4, key=jax.random.key(3))
    search, metrics, history = run_search_host(method, env, units_reward, begin, 3)
    searcher = ppo_lagrangian(env, CONFIG)
    whole = jax.jit(
        lambda search: run_search(
            searcher, units_reward, env.limits, search.state, search.archive, 3, search.key
        )
    )(begin)
    assert int(search.iteration) == 3 and history.rewards.shape == (3, 6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (search.state, search.archive, metrics, history),
        tuple(whole),
    )


def test_a_host_run_in_parts_equals_one(env, units_reward):
    method = search_method(random_search, num_candidates=4)
    begin = start_search(method, env, None, capacity=2, key=jax.random.key(0))
    whole = run_search_host(method, env, units_reward, begin, 3)[0]
    first = run_search_host(method, env, units_reward, begin, 2)[0]
    second = run_search_host(method, env, units_reward, first, 1)[0]
    jax.tree.map(np.testing.assert_array_equal, whole.archive, second.archive)


def some_scores(env, seed):
    keys = jax.random.split(jax.random.key(seed), len(env.sizes))
    pairs = zip(env.names, env.sizes, keys, strict=True)
    return {name: jax.random.uniform(key, (2, size)) for name, size, key in pairs}


METHODS = {
    "agent": lambda env, seed: search_method(ppo_lagrangian, config=CONFIG),
    "uniform": lambda env, seed: search_method(uniform, num_candidates=2),
    "global_threshold": lambda env, seed: search_method(global_threshold, num_candidates=2),
    "ranked": lambda env, seed: search_method(ranked, scores=some_scores(env, seed)),
    "random_search": lambda env, seed: search_method(
        random_search, num_candidates=4, granularity="fine"
    ),
    "cross_entropy": lambda env, seed: search_method(cross_entropy, num_candidates=4),
}


@pytest.mark.parametrize("name", METHODS)
def test_another_problem_of_the_same_structure_compiles_nothing(env, units_reward, name):
    def run(problem, seed, rate):
        method = METHODS[name](problem, seed)
        hparams = HParams(group_learning_rate=rate)
        search = start_search(method, problem, hparams, capacity=3, key=jax.random.key(seed))
        return run_search_host(method, problem, units_reward, search, 2)

    first = run(env, 0, 0.1)
    rng = np.random.default_rng(7)
    scores = [rng.uniform(size=size) for size in env.sizes]
    descriptors = rng.uniform(size=env.descriptors.shape)
    other = make_environment(env.sizes, scores, descriptors, limits=[0.2, 0.4], cost_fn=env.cost_fn)
    compiled = []
    listener = lambda event, seconds, **_: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        second = run(other, 1, 0.3)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert [event for event in compiled if "backend_compile" in event] == []
    assert second[2].costs.shape == first[2].costs.shape
    assert not np.array_equal(first[2].rewards, second[2].rewards)
    assert (second[2].costs <= np.asarray(other.limits)).all()


def test_the_count_of_compilations_would_see_one(env):
    compiled = []
    listener = lambda event, seconds, **_: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.jit(lambda x: x * 3.25 + jnp.tanh(x))(jnp.ones(17))
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert any("backend_compile" in event for event in compiled)


def test_host_costs_are_used_and_missing_ones_are_never_within_budget(env, units_reward):
    host = dataclasses.replace(env, cost_fn=None)
    method = search_method(random_search, num_candidates=4)
    begin = start_search(method, host, None, capacity=2, key=jax.random.key(0))

    def measure(masks):
        return np.stack([masks.mean((1, 2)), np.full(4, np.nan)], axis=1)

    search, metrics, history = run_search_host(method, host, units_reward, begin, 2, measure)
    assert np.isfinite(history.costs[..., 0]).all()
    assert not search.archive.feasible.valid.any()
    assert (metrics["feasible_fraction"] == 0.0).all()


def test_a_search_of_rewards_that_are_nan_is_refused_afterwards(env):
    method = search_method(random_search, num_candidates=4)
    begin = start_search(method, env, None, capacity=2, key=jax.random.key(0))
    nothing = lambda masks, key: jnp.full(4, jnp.nan)  # noqa: E731
    search, metrics, _ = run_search_host(method, env, nothing, begin, 2)
    assert (metrics["missing_fraction"] == 1.0).all()
    with pytest.raises(EmptyArchiveError, match="every reward was NaN or infinite, of all 8"):
        check_archive(search.archive)


@pytest.mark.parametrize("iterations", [0, -1, 2.5])
def test_a_run_of_no_evaluations_is_refused(env, searcher, units_reward, iterations):
    state, archive = starts(env, searcher)
    arguments = (env.limits, state, archive, iterations, jax.random.key(0))
    with pytest.raises(ValueError, match=f"num_iterations={iterations}"):
        run_search(searcher, units_reward, *arguments)
    method = search_method(uniform, num_candidates=2)
    begin = start_search(method, env, None, capacity=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=f"num_iterations={iterations}"):
        run_search_host(method, env, units_reward, begin, iterations)


def test_costs_that_nobody_has_are_refused(env, units_reward):
    host = dataclasses.replace(env, cost_fn=None)
    searcher = random_search(host, 4)
    arguments = (None, archive_init(host, 2), 1, jax.random.key(0))
    with pytest.raises(ValueError, match="cost_fn=None"):
        run_search(searcher, units_reward, host.limits, *arguments)
    method = search_method(random_search, num_candidates=4)
    begin = start_search(method, host, None, capacity=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="host_costs=None"):
        run_search_host(method, host, units_reward, begin, 1)


def test_an_integer_is_no_key(env, searcher, units_reward):
    state, archive = starts(env, searcher)
    with pytest.raises(ValueError, match=r"key=0 must be one typed key; make it by jax.random"):
        run_search(searcher, units_reward, env.limits, state, archive, 1, 0)
    method = search_method(ppo_lagrangian, config=CONFIG)
    for key in (0, jax.random.PRNGKey(0), jax.random.split(jax.random.key(0))):
        with pytest.raises(ValueError, match="must be one typed key"):
            start_search(method, env, HParams(), 2, key)
        with pytest.raises(ValueError, match="must be one typed key"):
            ppo_lagrangian(env, CONFIG).init(HParams(), key)


def test_numbers_out_of_range_are_refused_before_the_search(env):
    method = search_method(ppo_lagrangian, config=CONFIG)
    with pytest.raises(ValueError, match=r"hparams\.gamma=7"):
        start_search(method, env, HParams(gamma=7), 2, jax.random.key(0))


def test_an_option_that_is_no_structure_is_refused():
    with pytest.raises(ValueError, match=r"sizes=\[1, 2\] must be hashable"):
        search_method(random_search, sizes=[1, 2])


def test_host_costs_and_rewards_of_a_wrong_shape_are_refused(env, units_reward):
    method = search_method(random_search, num_candidates=4)
    begin = start_search(method, env, None, capacity=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="costs has shape"):
        run_search_host(method, env, units_reward, begin, 1, lambda masks: masks.mean((1, 2)))
    with pytest.raises(ValueError, match="rewards has shape"):
        run_search_host(method, env, lambda masks, key: jnp.ones(3), begin, 1)


def test_rewards_that_change_their_meaning_are_asked_for_anew(env, units_reward):
    method = search_method(ppo_lagrangian, config=CONFIG)
    search = start_search(method, env, HParams(), 4, jax.random.key(0))
    search, _, _ = run_search_host(method, env, units_reward, search, 2)
    before, seen = search.archive, float(search.state.outcomes.size)
    assert seen == 12 and before.feasible.valid.sum() >= 2

    def turned(masks, key):
        return jnp.where(jnp.arange(len(masks)) == 0, jnp.nan, -units_reward(masks, key))

    after = renew_rewards(method, env, turned, search)
    count = int(before.feasible.valid.sum())
    # The first is NaN by now and leaves; the others turn round.
    assert int(after.archive.feasible.valid.sum()) == count - 1
    expected = np.sort(-np.asarray(before.feasible.rewards[1:count]))[::-1]
    np.testing.assert_array_equal(after.archive.feasible.rewards[: count - 1], expected)
    np.testing.assert_array_equal(after.archive.feasible.masks[0], before.feasible.masks[count - 1])
    jax.tree.map(np.testing.assert_array_equal, after.archive.infeasible, before.infeasible)
    assert float(after.state.outcomes.size) == 0
    jax.tree.map(np.testing.assert_array_equal, after.state.params, search.state.params)
    baseline = search_method(random_search, num_candidates=4)
    plain = start_search(baseline, env, None, 4, jax.random.key(0))
    assert int(renew_rewards(baseline, env, turned, plain).archive.feasible.valid.sum()) == 0
