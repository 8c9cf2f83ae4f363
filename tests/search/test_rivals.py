"""Rivals on the ask and tell seam: what they find, and what they keep to."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from separable import (
    attention,
    best_value,
    linear,
    problem,
    product,
    reward,
    separable_value,
)

from rlprune_jax.search import (
    archive_best,
    archive_init,
    cma_es,
    dynamic_programming,
    evopress,
    fastnas,
    feasible,
    knapsack,
    run_search,
    run_search_host,
    search_method,
    spdy,
    start_search,
)
from rlprune_jax.search.evolution import swap_levels
from rlprune_jax.search.levels import group_levels, kept_counts
from rlprune_jax.search.loop import iteration_keys

ITERATIONS, CANDIDATES = 12, 8
LENGTH = {"num_candidates": CANDIDATES, "iterations": ITERATIONS}
PLANNED = {"num_candidates": CANDIDATES, "most_iterations": ITERATIONS}
RIVALS = {
    "fastnas": search_method(fastnas, **PLANNED),
    "dynamic_programming": search_method(dynamic_programming, **PLANNED),
    "spdy": search_method(spdy, **LENGTH),
    "spdy_measured": search_method(spdy, errors="measured", **LENGTH),
    "evopress": search_method(evopress, num_candidates=CANDIDATES),
    "knapsack": search_method(knapsack, num_candidates=CANDIDATES),
    "cma_es": search_method(cma_es, **LENGTH),
}
MEASURING = ("fastnas", "dynamic_programming", "spdy_measured")
HAS_CMAES = importlib.util.find_spec("cmaes") is not None
NAMES = [
    pytest.param(name, marks=[] if HAS_CMAES or name != "cma_es" else pytest.mark.skip("cmaes"))
    for name in RIVALS
]
SUM = [42.0]  # of a price per unit: 32 above the 10 of the smallest network


def priced(masks):
    return linear(masks)[:1]


MADE_ALIKE = ("fastnas", "spdy", "spdy_measured", "knapsack")


def searched(name, env, evaluate=reward):
    """What a rival leaves; tests of one problem share its programs."""
    search = start_search(RIVALS[name], env, None, 8, jax.random.key(0))
    search, _, history = run_search_host(RIVALS[name], env, evaluate, search, ITERATIONS)
    return search, history


PROBLEMS = {
    "two": lambda: problem(linear, [30.0, 12.0], round_to=2, min_keep=2),
    "product": lambda: problem(product, [60.0], min_keep=2),
}
# The part of the way from the smallest network to the best widths that is gone at the least.
NEAR = {
    "fastnas": 0.8,
    "dynamic_programming": 0.9,
    "spdy": 0.9,
    "spdy_measured": 0.9,
    "evopress": 0.9,
    "cma_es": 0.9,
}


CASES = [
    *[pytest.param("product", *each.values, marks=each.marks) for each in NAMES],
    *[pytest.param("two", name) for name in ("fastnas", "dynamic_programming", "evopress")],
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_rivals_come_near_the_best_and_keep_to_the_rules(kind, name):
    env = PROBLEMS[kind]()
    found, history = searched(name, env)
    best = archive_best(found.archive)
    assert bool(best.valid) and bool(feasible(best.costs, env.limits))
    costs, limits = history.costs, np.asarray(env.limits)
    over = ~(costs <= limits).all(-1)
    measuring = np.zeros(over.shape, bool)
    if name in MEASURING:
        measuring[: np.argmax(~over.all(1) & ~over.any(1))] = True
    # Only what measures single groups may be over the budgets.
    assert not (over & ~measuring).any()
    assert over.any() == (name in MEASURING)
    # None of it is among what can be delivered.
    kept = found.archive.feasible
    assert (np.asarray(kept.costs)[np.asarray(kept.valid)] <= limits).all()
    counts = np.asarray(kept_counts(env, jnp.asarray(kept.masks, jnp.float32)))
    counts = counts[np.asarray(kept.valid)]
    assert (counts >= env.min_keep).all()
    assert ((counts % np.array(env.multiples) == 0) | (counts == np.array(env.sizes))).all()
    if name in NEAR:
        least = separable_value(np.array([env.min_keep]))[0]
        room = best_value(env, separable_value, _allowed(env)) - least
        assert float(best.rewards) - least >= NEAR[name] * room


def _allowed(env):
    return [
        [n for n in range(least, size + 1) if n % multiple == 0 or n in (least, size)]
        for least, size, multiple in zip(env.min_keep, env.sizes, env.multiples, strict=True)
    ]


def test_dynamic_programming_finds_the_best_widths_of_a_sum():
    env = problem(priced, SUM)
    best = best_value(env, separable_value)
    searcher = dynamic_programming(env, 8, ITERATIONS, num_levels=40)
    run = jax.jit(
        lambda key: run_search(
            searcher, reward, env.limits, searcher.init(None, key), archive_init(env, 2), 8, key
        )
    )
    found = run(jax.random.key(0))
    assert float(archive_best(found.archive).rewards) == pytest.approx(best, rel=1e-6)
    # By its first candidate after the measurements, whatever the mixtures do.
    over = ~np.asarray(found.history.costs <= env.limits).all((1, 2))
    first = int(np.argmin(over))
    assert float(found.history.rewards[first, 0]) == pytest.approx(best, rel=1e-6)


def stepped(masks):
    """A cost that jumps with every third unit, as that of a device with tiles, f32[1]."""
    return linear(jnp.ceil(masks.sum(-1, keepdims=True) / 3))[:1]


# The smallest network costs 10 of either; what is above it is whole buckets.
@pytest.mark.parametrize(("cost_fn", "limit"), [(priced, SUM), (stepped, [18.0])])
def test_the_knapsack_keeps_the_most_importance_of_a_sum(cost_fn, limit):
    rng = np.random.default_rng(2)
    scores = [rng.uniform(0.1, 1.0, size) for size in (6, 9, 4, 7)]
    env = problem(cost_fn, limit, scores)

    def importance(counts):
        tables = [np.concatenate([[0], np.cumsum(-np.sort(-each))]) for each in scores]
        return sum(table[column] for table, column in zip(tables, counts.T, strict=True))

    searcher = knapsack(env, 1)
    masks = searcher.ask(searcher.init(None, jax.random.key(0)), jax.random.key(1))[0].masks
    kept = float(jnp.sum(masks[0] * env.raw_scores))
    assert kept == pytest.approx(best_value(env, importance), rel=1e-6)
    # The best units of each group, as many as are kept.
    order = np.sort(np.where(np.asarray(masks[0]) > 0.5, env.ranks, -1), axis=1)[:, ::-1]
    counts = np.asarray(masks[0].sum(-1), int)
    for row, count in zip(order, counts, strict=True):
        assert row[:count].tolist() == list(range(count))[::-1]


# The others are made of the same parts.
@pytest.mark.parametrize("name", [each for each in NAMES if each.values[0] not in MADE_ALIKE])
def test_under_jit_and_without_it_is_the_same(name):
    env = PROBLEMS["product"]()
    search = start_search(RIVALS[name], env, None, 8, jax.random.key(0))
    _, _, jitted = run_search_host(RIVALS[name], env, reward, search, 2)
    searcher, state = RIVALS[name](env), search.state
    for iteration in range(2):
        key, _ = iteration_keys(jax.random.key(0), iteration)
        candidates, state = searcher.ask(state, key)
        rewards = reward(candidates.masks)
        np.testing.assert_allclose(rewards, jitted.rewards[iteration], rtol=1e-5)
        costs = jax.vmap(env.cost_fn)(candidates.masks)
        state, _ = searcher.tell(state, candidates, rewards, costs)


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_that_is_missing_does_no_harm(name):
    env = PROBLEMS["product"]()

    def failing(masks, key):
        return jnp.where(jnp.arange(len(masks)) % 3 == 1, jnp.nan, reward(masks))

    best = archive_best(searched(name, env, failing)[0].archive)
    assert bool(best.valid) and np.isfinite(float(best.rewards))
    nothing, history = searched(name, env, lambda masks, key: jnp.full(len(masks), jnp.nan))
    assert not nothing.archive.feasible.valid.any()
    assert np.isfinite(history.costs).all()


@pytest.mark.parametrize("name", [each for each in NAMES if each.values[0] != "knapsack"])
def test_a_constant_reward_is_searched_too(name):
    env = PROBLEMS["product"]()
    best = archive_best(searched(name, env, lambda masks, key: jnp.ones(len(masks)))[0].archive)
    assert bool(best.valid) and float(best.rewards) == 1.0


def test_one_iteration_is_enough_for_a_solution():
    env = problem(product, [60.0])
    searcher = dynamic_programming(env, 4, 1)

    @jax.jit
    def first(key):
        return searcher.ask(searcher.init(None, key), key)[0].masks

    assert bool(feasible(jax.vmap(env.cost_fn)(first(jax.random.key(0))), env.limits).all())


@pytest.mark.parametrize("name", [each for each in NAMES if each.values[0] != "cma_es"])
def test_costs_that_only_the_host_knows_are_refused_by_name(name):
    with pytest.raises(ValueError, match=r"cost_fn=None: \w+ needs traceable costs"):
        RIVALS[name](problem(None, [1.0]))


@pytest.mark.skipif(not HAS_CMAES, reason="cmaes")
def test_cma_es_leaves_out_what_is_over_budgets_of_the_host():
    env = problem(None, [60.0], initial_keep=0.4)
    method = search_method(cma_es, num_candidates=8, iterations=6)
    search = start_search(method, env, None, 4, jax.random.key(0))

    def costs(masks):
        return np.asarray(jax.vmap(product)(jnp.asarray(masks)))

    search, _, history = run_search_host(method, env, reward, search, 6, costs)
    assert (history.costs > 60).any() and (history.costs <= 60).any()
    assert (np.asarray(search.state.values) <= -history.rewards.min() + 1e-6).all()
    entries = search.archive.feasible
    assert (np.asarray(entries.costs)[np.asarray(entries.valid)] <= 60).all()


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"cma_es needs cmaes.*rlprune_jax\[rivals\]"):
        cma_es(problem(product, [60.0]), 4, 2)


def test_swaps_narrow_one_group_and_widen_another():
    env = problem(product, [60.0])
    table = jnp.asarray(group_levels(env, 6))
    counts = jnp.array([3, 5, 2, 6])
    keys = jax.random.split(jax.random.key(0), 50)
    change = np.asarray(jax.vmap(lambda key: swap_levels(table, counts, key))(keys) - counts)
    assert ((change < 0).sum(1) == 1).all() and ((change > 0).sum(1) == 1).all()
    assert (change < 0).any(0).all() and (change > 0).any(0).all()
    whole = jnp.asarray(env.sizes)
    assert (swap_levels(table, whole, keys[0]) == whole).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda env: fastnas(env, 0, 4), "num_candidates=0"),
        (lambda env: fastnas(env, 4, 0), "most_iterations=0"),
        (lambda env: spdy(env, 4, 0), "iterations=0"),
        (lambda env: spdy(env, 4, 4, "guessed"), "errors='guessed'"),
        (lambda env: evopress(env, 0), "num_candidates=0"),
        (lambda env: knapsack(env, 0), "num_candidates=0"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make(problem(product, [60.0]))


def test_costs_of_three_widths_are_searched_by_the_cost_function_itself():
    env = problem(attention, [60.0])
    found, _ = searched("dynamic_programming", env)
    assert bool(found.archive.feasible.valid[0])
    least = separable_value(np.array([env.min_keep]))[0]
    room = best_value(env, separable_value) - least
    assert float(found.archive.feasible.rewards[0]) - least >= 0.9 * room
