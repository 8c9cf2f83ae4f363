"""What is delivered respects every budget, counted in integers, whatever the search found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import random_gates, small_cnn, small_mlp

from rlprune_jax import compact, count_macs, count_params
from rlprune_jax.costs import (
    check_reachable,
    constrain,
    estimate_costs,
    import_function,
    limits,
    parse_budgets,
    satisfies,
)
from rlprune_jax.search import archive_init, archive_update, make_environment
from rlprune_jax.units.descriptors import FEATURES, layer_descriptors
from rlprune_jax.workflow.fitting import best_of, deliverable, equivalence, fit_to_budgets

SMALL = small_cnn()
GRAPH = SMALL.graph
NETWORK = SMALL.network


def environment(constraints, round_to=1):
    cost = estimate_costs(constraints)

    def mask_cost(masks):
        sizes = zip(GRAPH.names, GRAPH.sizes, strict=True)
        return cost({name: masks[i, :size] for i, (name, size) in enumerate(sizes)})

    scores = {
        name: np.linspace(1, 2, size) for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)
    }
    return make_environment(
        dict(zip(GRAPH.names, GRAPH.sizes, strict=True)),
        scores,
        layer_descriptors(GRAPH),
        limits(constraints),
        cost_fn=mask_cost,
        round_to=round_to,
    )


ENVIRONMENTS = {
    texts: (constrain(NETWORK, texts), environment(constrain(NETWORK, texts)))
    for texts in [("params=0.4", "macs=0.5"), ("params=0.15",), ("macs=0.9",)]
}


@settings(max_examples=25)
@given(
    texts=st.sampled_from(sorted(ENVIRONMENTS)),
    seed=st.integers(0, 1000),
    keep=st.floats(0.0, 1.0),
)
def test_fitted_masks_respect_every_budget_and_leave_no_room(texts, seed, keep):
    constraints, env = ENVIRONMENTS[texts]
    mask = jax.random.bernoulli(jax.random.key(seed), keep, env.ranks.shape)
    gates = fit_to_budgets(env, constraints, mask)
    assert satisfies(constraints, gates)
    dense = {"params": count_params(GRAPH), "macs": count_macs(GRAPH)}
    slim = compact(GRAPH, SMALL.variables, gates)
    params = sum(leaf.size for leaf in jax.tree.leaves(slim["params"]))
    for budget, _ in constraints:
        if budget.name == "params":
            assert params <= budget.limit * dense["params"]
    pruned = [
        (name, unit)
        for name in GRAPH.names
        for unit in np.flatnonzero(np.asarray(gates[name]) == 0)
    ]
    scores = {
        (name, unit): float(np.linspace(1, 2, size)[unit])
        for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)
        for unit in range(size)
    }
    if pruned:
        name, unit = max(pruned, key=lambda each: (scores[each], -GRAPH.names.index(each[0])))
        more = gates | {name: gates[name].at[unit].set(1.0)}
        assert not satisfies(constraints, more)


ROUNDING = {
    (texts, multiple): (constrain(NETWORK, texts), environment(constrain(NETWORK, texts), multiple))
    for texts, multiple in [(("params=0.4", "macs=0.5"), 2), (("params=0.6",), 4)]
}


@settings(max_examples=8)
@given(case=st.sampled_from(sorted(ROUNDING)), seed=st.integers(0, 1000), keep=st.floats(0, 1))
def test_fitted_masks_keep_multiples_within_the_budgets_and_leave_no_room(case, seed, keep):
    constraints, env = ROUNDING[case]
    multiple = case[1]
    mask = jax.random.bernoulli(jax.random.key(seed), keep, env.ranks.shape)
    for fill in (True, False):
        gates = fit_to_budgets(env, constraints, mask, fill=fill)
        assert satisfies(constraints, gates)
        for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True):
            width = int(gates[name].sum())
            assert width == size or (width and width % multiple == 0)
            wider = gates | {name: (jnp.arange(size) < width + multiple).astype(jnp.float32)}
            assert not fill or width == size or not satisfies(constraints, wider)


def test_a_mask_within_budget_keeps_all_it_kept():
    constraints, env = ENVIRONMENTS[("params=0.4", "macs=0.5")]
    mask = env.ranks < 2
    gates = fit_to_budgets(env, constraints, mask)
    for index, name in enumerate(GRAPH.names):
        kept = np.asarray(mask[index, : len(gates[name])])
        assert (np.asarray(gates[name])[kept] == 1).all()


def test_without_filling_a_feasible_mask_stays_as_it_is():
    constraints, env = ENVIRONMENTS[("params=0.4", "macs=0.5")]
    mask = env.ranks < 2
    gates = fit_to_budgets(env, constraints, mask, fill=False)
    for index, name in enumerate(GRAPH.names):
        np.testing.assert_array_equal(gates[name], mask[index, : len(gates[name])])


@pytest.mark.parametrize("fill", [True, False])
def test_groups_that_a_mask_prunes_whole_keep_their_least(fill):
    constraints, env = ENVIRONMENTS[("params=0.4", "macs=0.5")]
    gates = fit_to_budgets(env, constraints, jnp.zeros(env.ranks.shape), fill=fill)
    assert satisfies(constraints, gates)
    for index, name in enumerate(GRAPH.names):
        kept = np.asarray(gates[name])
        assert kept[np.asarray(env.ranks[index, : kept.size]) == 0] == 1
        assert fill or kept.sum() == env.min_keep[index]


def test_deliverable_takes_feasible_then_near_misses_then_uniform():
    constraints, env = ENVIRONMENTS[("params=0.4", "macs=0.5")]
    empty = archive_init(env, 4)
    only_uniform = deliverable(env, constraints, empty, 3)
    assert len(only_uniform) == 1
    wide_end = (env.ranks < jnp.array([1, 1, 4, 8])[:, None]) & env.alive
    masks = jnp.stack([env.ranks < 2, wide_end]).astype(jnp.float32)
    costs = jax.vmap(env.cost_fn)(masks)
    archive = archive_update(empty, masks, jnp.array([0.1, 0.9]), costs, env.limits)
    found = deliverable(env, constraints, archive, 3)
    assert len(found) == 2
    for gates in [*found, *only_uniform]:
        assert satisfies(constraints, gates)
    for index, name in enumerate(GRAPH.names):
        size = len(found[0][name])
        assert (np.asarray(found[0][name]) >= np.asarray(masks[0, index, :size])).all()
    with pytest.raises(ValueError, match="count=0"):
        deliverable(env, constraints, archive, 0)


def test_best_of_never_picks_nan():
    gates = [{"a": jnp.ones(1) * i} for i in range(3)]
    ratings = iter([float("nan"), 0.2, 0.1])
    best, seen = best_of(gates, lambda each: next(ratings))
    assert best is gates[1]
    assert np.isnan(seen[0])
    with pytest.raises(ValueError, match="candidates is empty"):
        best_of([], lambda each: 0.0)


def test_equivalence_measures_the_difference():
    gates = jax.tree.map(lambda each: each[0], random_gates(GRAPH, 1, jax.random.key(0)))
    slim, x = NETWORK.slim(gates), SMALL.data.batch[0]
    found = equivalence(NETWORK, slim, gates, (x,))
    assert found.max_abs_diff < 1e-5
    assert found.largest == pytest.approx(float(jnp.abs(slim(x)).max()), rel=1e-5)
    spoilt = slim.replace(jax.tree.map(lambda leaf: leaf + 0.1, slim.variables))
    assert equivalence(NETWORK, spoilt, gates, (x,)).max_abs_diff > 1e-3


def test_nan_of_both_networks_is_no_difference_and_of_one_it_is():
    small = small_mlp()
    network, gates = small.network, jax.tree.map(lambda g: g.at[0].set(0.0), small.ones)
    x = np.full((1, 4), np.nan, np.float32)
    slim = network.slim(gates)
    assert equivalence(network, slim, gates, (x,)).max_abs_diff == 0
    spoilt = slim.replace(jax.tree.map(lambda leaf: leaf * np.nan, slim.variables))
    good = np.ones((1, 4), np.float32)
    assert np.isnan(equivalence(network, spoilt, gates, (good,)).max_abs_diff)


def test_descriptors_are_finite_and_ordered():
    table = layer_descriptors(GRAPH)
    assert table.shape == (len(GRAPH.groups), len(FEATURES))
    assert np.isfinite(table).all()
    assert (np.diff(table[:, 0]) > 0).all()
    params = table[:, FEATURES.index("params_share")]
    without = {
        name: jnp.zeros_like(jnp.ones(size))
        for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)
    }
    gates = {name: jnp.ones(size) for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)}
    name = GRAPH.names[-1]
    expected = 1 - count_params(GRAPH, gates | {name: without[name]}) / count_params(GRAPH)
    np.testing.assert_allclose(params[-1], expected, rtol=1e-5)


def test_costs_of_the_host_are_respected_by_what_is_delivered(tmp_path, monkeypatch):
    """A step function that its estimate over uniform ratios gets wrong, beside a count."""
    (tmp_path / "costs_of_deploy.py").write_text(
        "calls = []\n"
        "def energy(widths, gates):\n"
        "    calls.append(1)\n"
        "    first, *rest = widths.values()\n"
        "    return 10.0 * first + sum(-(-width // 4) * 4 for width in rest)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    parsed = parse_budgets(["params=0.6"], ["costs_of_deploy:energy=41"])
    constraints = constrain(NETWORK, parsed)
    env = environment(constraints)
    energy = import_function("costs_of_deploy:energy")
    calls = energy.__globals__["calls"]
    calls.clear()
    for seed in range(4):
        mask = jax.random.bernoulli(jax.random.key(seed), 0.3 + 0.2 * seed, env.ranks.shape)
        gates = fit_to_budgets(env, constraints, mask)
        widths = {name: int(gate.sum()) for name, gate in gates.items()}
        assert energy(widths, {}) <= 41
        assert count_params(GRAPH, gates) <= 0.6 * count_params(GRAPH)
    # 128 networks a mask at most, of which each is asked for twice.
    assert len(calls) < 4 * 2 * 128
    refused = constrain(NETWORK, "costs_of_deploy:energy=21")
    with pytest.raises(ValueError, match=r"energy'=21 cannot be met: .* leaves 22 of its own unit"):
        check_reachable(GRAPH, refused)
    with pytest.raises(ValueError, match="no mask with min_keep"):
        fit_to_budgets(environment(refused), refused, mask)


def test_costs_of_the_host_are_met_by_multiples(tmp_path, monkeypatch):
    (tmp_path / "costs_of_rounding.py").write_text(
        "def energy(widths, gates):\n    return sum(width**1.5 for width in widths.values())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    constraints = constrain(NETWORK, "costs_of_rounding:energy=40")
    env = environment(constraints, 2)
    gates = fit_to_budgets(env, constraints, env.ranks < 100)
    widths = {name: int(gate.sum()) for name, gate in gates.items()}
    assert all(width % 2 == 0 or width == len(gates[name]) for name, width in widths.items())
    assert sum(width**1.5 for width in widths.values()) <= 40
    with pytest.raises(ValueError, match=r"min_keep=1 and round_to=4 leave .* or round_to"):
        check_reachable(GRAPH, constrain(NETWORK, "params=0.05"), 1, 4)
