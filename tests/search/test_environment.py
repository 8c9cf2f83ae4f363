import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprune_jax import trace_graph
from rlprune_jax.search import (
    candidate_costs,
    feasible,
    gates_to_masks,
    make_environment,
    masks_to_gates,
    masks_to_ratios,
    minimum_costs,
    project_priorities,
    project_ratios,
    ratios_to_masks,
    reachable,
    start_from,
)
from rlprune_jax.search.environment import project_logits, round_masks
from rlprune_jax.units.gates import round_gates

SIZES = (8, 16, 5)
SCORES = [np.arange(size, dtype=np.float32) for size in SIZES]
FEATURES = np.zeros((3, 1))


PROJECT_RATIOS, PROJECT_LOGITS = jax.jit(project_ratios), jax.jit(project_logits)
PROJECT_PRIORITIES = jax.jit(project_priorities)


def test_ranks_go_by_falling_score_with_ties_by_index():
    env = make_environment([4, 2], [[1.0, 3.0, 3.0, 2.0], [5.0, 5.0]], FEATURES[:2], 0.5)
    assert env.ranks.tolist() == [[3, 0, 1, 2], [0, 1, 4, 4]]
    assert env.scores.max() == 1.0 and env.scores[1, 2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("least", [0, 1, 3])
def test_ratios_keep_exactly_the_rounded_number_even_where_all_scores_tie(least):
    env = make_environment(SIZES, [np.ones(s) for s in SIZES], FEATURES, 0.5, min_keep=least)
    for ratio in (0.0, 0.24, 0.5, 0.77, 1.0):
        masks = ratios_to_masks(env, jnp.full(3, ratio))
        wanted = np.clip(np.round(np.float32(ratio) * np.array(SIZES)), least, SIZES)
        assert masks.sum(-1).tolist() == wanted.tolist()
        assert not masks[~env.alive].any()


@functools.cache
def rounding_environment(cost_fn, multiples, least=1):
    rng = np.random.default_rng(0)
    scores = [rng.uniform(size=size) for size in SIZES]
    return make_environment(SIZES, scores, FEATURES, [0.3, 0.5], least, cost_fn, round_to=multiples)


def allowed(env, masks):
    """Whether each group keeps a multiple or all, and ``min_keep`` units."""
    counts = np.asarray(masks.sum(-1)).astype(int)
    sizes, least = np.array(env.sizes), np.array(env.min_keep)
    whole = (counts % np.array(env.multiples) == 0) | (counts == sizes)
    return (whole & (counts >= least)).all() and not np.asarray(masks)[..., ~env.alive].any()


@given(multiples=st.sampled_from([(4, 4, 4), (3, 8, 1), (2, 5, 9)]), seed=st.integers(0, 1000))
def test_rounded_candidates_keep_multiples_within_the_budgets(env, multiples, seed):
    env = rounding_environment(env.cost_fn, multiples)
    key = jax.random.key(seed)
    logits = 3 * jax.random.normal(key, (4, 3))
    priorities = jax.random.normal(key, (4, 3, 16))
    coarse, _ = PROJECT_LOGITS(env, logits)
    fine = PROJECT_PRIORITIES(env, priorities)
    ratios = ratios_to_masks(env, jax.nn.sigmoid(logits))
    loose = round_masks(env, (priorities > 0) * env.alive.astype(jnp.float32), priorities)
    for masks in (coarse, fine, ratios, loose):
        assert allowed(env, masks)
    assert reachable(env).all()
    for masks in (coarse, fine):
        assert feasible(candidate_costs(env, masks), env.limits).all()
    # What is rounded stays as it is, and survives the way through ratios.
    np.testing.assert_array_equal(round_masks(env, fine, priorities), fine)
    np.testing.assert_array_equal(
        ratios_to_masks(env, masks_to_ratios(env, fine)).sum(-1), fine.sum(-1)
    )


def test_rounding_is_that_of_gates():
    """Two implementations: padded masks of a search, gates of a graph."""
    names = ["a", "b", "c"]

    def apply(v, x):
        for name in names:
            x = jax.nn.relu(x @ v[name])
        return x @ v["d"]

    shapes = [3, *SIZES, 2]
    variables = {n: jnp.ones(shapes[i : i + 2]) for i, n in enumerate([*names, "d"])}
    graph = trace_graph(apply, variables, jnp.ones((1, 3)))
    env = make_environment(
        *(graph.sizes, [np.ones(size) for size in SIZES], FEATURES, 0.5), 2, round_to=4
    )
    priorities = jax.random.normal(jax.random.key(0), (20, 3, 16))
    masks = (jax.random.uniform(jax.random.key(1), (20, 3, 16)) < 0.4) * env.alive.astype(float)

    def by_name(rows):
        return {n: rows[:, i, :s] for i, (n, s) in enumerate(zip(names, SIZES, strict=True))}

    expected = round_gates(
        graph, by_name(masks), round_to=4, min_keep=2, priorities=by_name(priorities)
    )
    found = by_name(jax.jit(round_masks)(env, masks, priorities))
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])


def test_rounding_without_jit_is_the_same(env):
    env = rounding_environment(env.cost_fn, (4, 4, 4))
    logits = 3 * jax.random.normal(jax.random.key(0), (4, 3))
    priorities = jax.random.normal(jax.random.key(0), (4, 3, 16))
    np.testing.assert_array_equal(PROJECT_LOGITS(env, logits)[0], project_logits(env, logits)[0])
    np.testing.assert_array_equal(
        PROJECT_PRIORITIES(env, priorities), project_priorities(env, priorities)
    )


def test_rounding_raises_min_keep_and_is_refused_below_one(env):
    assert rounding_environment(env.cost_fn, (4, 3, 9), (2, 4, 1)).min_keep == (4, 6, 5)
    with pytest.raises(ValueError, match="round_to"):
        rounding_environment(env.cost_fn, 0)


def test_a_smaller_group_than_min_keep_keeps_all():
    scores = [np.ones(size) for size in SIZES]
    for least in (6, {"group": 6}, [6, 6, 99]):
        env = make_environment(SIZES, scores, FEATURES, 0.5, min_keep=least)
        assert env.min_keep == (6, 6, 5)


def test_gates_and_masks_are_inverse(env):
    masks = ratios_to_masks(env, jax.random.uniform(jax.random.key(0), (4, 3)))
    gates = masks_to_gates(env, masks)
    assert {name: gate.shape for name, gate in gates.items()} == {
        "group0": (4, 8),
        "group1": (4, 16),
        "group2": (4, 5),
    }
    np.testing.assert_array_equal(gates_to_masks(env, gates), masks)
    np.testing.assert_allclose(
        masks_to_ratios(env, masks)[:, 1], gates["group1"].mean(-1), rtol=1e-6
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    logits=st.lists(st.floats(-12, 12), min_size=3, max_size=3),
    limits=st.tuples(st.floats(0.03, 1.0), st.floats(0.11, 1.0)),
)
def test_projected_ratios_respect_reachable_budgets_and_use_them(env, logits, limits):
    problem = dataclasses.replace(env, limits=jnp.asarray(limits, jnp.float32))
    keep = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
    ratios = PROJECT_RATIOS(problem, keep)
    masks = ratios_to_masks(problem, ratios)
    assert bool(feasible(candidate_costs(problem, masks), problem.limits))
    kept, shift = PROJECT_LOGITS(problem, jnp.asarray(logits, jnp.float32))
    assert bool(feasible(candidate_costs(problem, kept), problem.limits))
    more = ratios_to_masks(problem, jax.nn.sigmoid(jnp.asarray(logits) + shift + 1e-3))
    if bool(jnp.any(more != kept)):
        assert not bool(feasible(candidate_costs(problem, more), problem.limits))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    limits=st.tuples(st.floats(0.03, 1.0), st.floats(0.11, 1.0)),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_projected_priorities_respect_budgets_and_stop_at_the_next_unit(env, seed, limits, levels):
    problem = dataclasses.replace(env, limits=jnp.asarray(limits, jnp.float32))
    priorities = np.random.default_rng(seed).integers(0, levels, (3, 16)).astype(np.float32)
    masks = PROJECT_PRIORITIES(problem, priorities)
    costs = candidate_costs(problem, masks)
    assert bool(feasible(costs, problem.limits))
    assert (masks.sum(-1) >= 1).all() and not masks[~env.alive].any()
    dropped = np.asarray(env.alive & (masks < 0.5))
    if dropped.any():
        highest = np.where(dropped, priorities, -np.inf)
        one_more = masks.at[np.unravel_index(highest.argmax(), highest.shape)].set(1.0)
        assert not bool(feasible(candidate_costs(problem, one_more), problem.limits))
        kept_freely = np.where((masks > 0.5) & (masks.sum(-1) > 1)[:, None], priorities, np.inf)
        assert kept_freely.min() >= highest.max()


def test_unreachable_budget_falls_back_to_min_keep(env):
    problem = dataclasses.replace(env, limits=jnp.array([0.001, 0.5]))
    assert reachable(problem).tolist() == [False, True]
    np.testing.assert_allclose(minimum_costs(problem), [2 / 208, 3 / 29], rtol=1e-6)
    for masks in (
        ratios_to_masks(problem, project_ratios(problem, jnp.full(3, 0.9))),
        project_priorities(problem, jnp.ones((3, 16))),
    ):
        assert masks.sum(-1).tolist() == [1, 1, 1]


def test_projection_is_the_same_for_a_batch_as_one_by_one(env):
    keep = jax.random.uniform(jax.random.key(1), (5, 3))
    alone = [PROJECT_RATIOS(env, row) for row in keep]
    np.testing.assert_array_equal(PROJECT_RATIOS(env, keep), jnp.stack(alone))


def test_start_is_the_uniform_ratio_on_the_budget(env):
    sizes = np.array(env.sizes)
    kept = np.asarray(env.initial_keep) * sizes
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-5)
    assert np.abs(kept / sizes - kept.sum() / sizes.sum()).max() < 0.5 / 5
    costs = candidate_costs(env, ratios_to_masks(env, env.initial_keep))
    assert bool(feasible(costs, env.limits)) and float((costs / env.limits).max()) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": 0.0}, "limits="),
        ({"limits": [0.5, -1.0]}, "limits="),
        ({"limits": float("nan")}, "limits="),
        ({"min_keep": -1}, "min_keep=-1"),
        ({"min_keep": {"nowhere": 1}}, "nowhere"),
        ({"min_keep": [1, 1]}, "min_keep has 2 entries but there are 3 groups"),
        ({"round_to": 3.5}, "round_to=3.5 must be an integer of at least 1"),
        ({"descriptors": np.zeros((2, 1))}, "descriptors"),
        ({"descriptors": np.full((3, 1), np.nan)}, "descriptors"),
        ({"scores": SCORES[:2]}, "scores"),
        ({"scores": [SCORES[0], SCORES[1], np.ones(4)]}, "group2"),
        ({"scores": [SCORES[0], SCORES[1], np.full(5, np.nan)]}, "group2"),
        ({"scores": {"a": np.ones(8)}}, "scores"),
        ({"sizes": [8, 0, 5]}, "sizes"),
        ({"sizes": []}, "sizes"),
        ({"sizes": [8, 4.7, 5]}, r"sizes\['group1'\]=4.7 must be an integer"),
        ({"initial_keep": 0.0}, "initial_keep"),
        ({"initial_keep": [0.5, 0.5]}, r"initial_keep has shape \(2,\) and must have \(3,\)"),
        ({"initial_keep": [0.5]}, "initial_keep has shape"),
        ({"cost_fn": lambda masks: np.asarray(masks).sum()[None]}, "cost_fn must be traceable"),
        ({"cost_fn": lambda masks: masks.sum()[None] * np.nan}, r"cost_fn gives \[nan\]"),
        ({"cost_fn": lambda masks: -masks.sum()[None]}, r"cost_fn gives \[-29.0\]"),
        ({"cost_fn": lambda masks: None}, "cost_fn returns shape None"),
        ({"cost_fn": lambda masks: jnp.ones(2)}, "cost_fn"),
    ],
)
def test_bad_problems_are_refused_by_name(changes, message):
    good = {"sizes": SIZES, "scores": SCORES, "descriptors": FEATURES, "limits": 0.5}
    with pytest.raises(ValueError, match=message):
        make_environment(**(good | changes))


def test_wrong_shapes_are_refused_by_name(env):
    for function, argument in (
        (masks_to_gates, "masks"),
        (candidate_costs, "masks"),
        (ratios_to_masks, "keep_ratio"),
        (project_ratios, "keep_ratio"),
        (project_priorities, "priorities"),
    ):
        with pytest.raises(ValueError, match=argument):
            function(env, jnp.ones((2, 4)))


@pytest.mark.parametrize("ratios", [[0.5, 1.5, 0.5], [0.5, -0.1, 0.5], [0.5, np.nan, 0.5]])
@pytest.mark.parametrize("function", [ratios_to_masks, project_ratios])
def test_ratios_that_are_none_are_refused_and_harmless_where_they_are_traced(env, function, ratios):
    ratios = jnp.asarray(ratios)
    with pytest.raises(ValueError, match=r"keep_ratio=\[.*\] must be ratios from 0 to 1"):
        function(env, ratios)
    found = jax.jit(function)(env, ratios)
    clipped = jax.jit(function)(env, jnp.clip(ratios, 0, 1))
    missing = {ratios_to_masks: 0.0, project_ratios: 0.5}[function]
    expected = function(env, jnp.nan_to_num(jnp.clip(ratios, 0, 1), nan=missing))
    assert bool(jnp.isfinite(found).all())
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, clipped)


def test_bad_gates_are_refused_by_name(env):
    gates = masks_to_gates(env, jnp.ones((3, 16)))
    with pytest.raises(ValueError, match=r"group1.*NaN"):
        gates_to_masks(env, gates | {"group1": gates["group1"].at[0].set(jnp.nan)})
    with pytest.raises(ValueError, match="group1"):
        gates_to_masks(env, gates | {"group1": jnp.ones(3)})
    with pytest.raises(ValueError, match="gates names"):
        gates_to_masks(env, {"group0": gates["group0"]})


def test_host_costs_have_no_function_to_project_with():
    env = make_environment(SIZES, SCORES, FEATURES, 0.25)
    assert env.initial_keep.tolist() == [0.5, 0.5, 0.5]  # the square root of the limit
    with pytest.raises(ValueError, match="cost_fn=None"):
        project_ratios(env, jnp.full(3, 0.5))


def test_measured_needs_one_entry_per_budget():
    env = make_environment([2], [[1.0, 2.0]], [[0.0]], limits=[0.5, 1.0], measured=[False, True])
    assert env.measured == (False, True)
    with pytest.raises(ValueError, match=r"measured=\(True,\): needs 2 entries"):
        make_environment([2], [[1.0, 2.0]], [[0.0]], limits=[0.5, 1.0], measured=[True])


def test_a_start_ranks_what_it_keeps_before_the_rest(env):
    rng = np.random.default_rng(3)
    mask = (rng.uniform(size=env.ranks.shape) < 0.5) & np.asarray(env.alive)
    begun = start_from(env, mask)
    sizes = np.asarray(env.sizes)
    np.testing.assert_allclose(begun.initial_keep, mask.sum(1) / sizes, rtol=1e-6)
    ranks, old = np.asarray(begun.ranks), np.asarray(env.ranks)
    for row, was, kept, size in zip(ranks, old, mask, sizes, strict=True):
        assert sorted(row[:size]) == list(range(size)) and (row[size:] == env.num_units).all()
        np.testing.assert_array_equal(row < kept.sum(), kept)
        for part in (kept[:size], ~kept[:size]):  # the old order stays within each part
            assert (np.argsort(row[:size][part]) == np.argsort(was[:size][part])).all()
    for name in ("scores", "raw_scores"):
        new, given = np.asarray(getattr(begun, name)), np.asarray(getattr(env, name))
        np.testing.assert_allclose(np.sort(new), np.sort(given))
        assert all(
            (np.diff(one[np.argsort(row)][:size]) <= 0).all()
            for one, row, size in zip(new, ranks, sizes, strict=True)
        )
    # The best units by rank are the mask itself.
    assert (ratios_to_masks(begun, begun.initial_keep) == mask).all()
    unchanged = start_from(env, np.asarray(env.alive))
    np.testing.assert_array_equal(unchanged.ranks, env.ranks)
