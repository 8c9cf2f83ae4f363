import jax
import jax.numpy as jnp
import numpy as np
import pytest
from costs_networks import branching, draw

from rlprune_jax import count_macs, count_params, ones_gates
from rlprune_jax.costs import latency_table, measured
from rlprune_jax.costs.binding import CostOptions, Network, bind_budgets, estimate
from rlprune_jax.costs.budget import (
    check_reachable,
    cost_function,
    exact_costs,
    measured_costs,
    parse_budgets,
    satisfies,
    search_costs,
)
from rlprune_jax.costs.latency import Latency
from rlprune_jax.costs.tiles import Tile

APPLY, GRAPH, VARIABLES, X = branching()
NETWORK = Network(APPLY, GRAPH, VARIABLES, X)
HERE = "test_binding"


def energy(widths, gates):
    """A user's function."""
    return float(sum(widths.values()))


def free(widths, gates):
    return 0.0


@pytest.fixture
def sizes_as_times(monkeypatch):
    def count(function, *arrays, repeats):
        size = sum(leaf.size for leaf in jax.tree.leaves(arrays)) / 1000
        return Latency(size, 0.9 * size, 1.1 * size)

    def in_turn(networks, repeats):
        return [count(each.func, *each.args, repeats=repeats) for each in networks]

    monkeypatch.setattr(latency_table, "measure_latency", count)
    monkeypatch.setattr(latency_table, "measure_in_turn", in_turn)
    monkeypatch.setattr(measured, "measure_latency", count)


def test_every_cost_at_once(sizes_as_times):
    texts = [
        *("params=0.5", "macs=0.6", "weight_bytes=0.5", "activation_memory=0.9", "tiled_macs=0.8"),
        *("latency_table=0.7x", "latency=1.5"),
    ]
    budgets = bind_budgets(
        parse_budgets(texts, [f"{HERE}:energy=20"]), NETWORK, CostOptions(tile=Tile(2, 2))
    )
    gates = draw(GRAPH, 1)
    exact = exact_costs(GRAPH, budgets, gates)
    assert exact[0] == count_params(GRAPH, gates) / count_params(GRAPH)
    assert exact[1] == count_macs(GRAPH, gates) / count_macs(GRAPH)
    assert exact[7] == sum(float(gate.sum()) for gate in gates.values())
    traced = jax.jit(cost_function(GRAPH, budgets))(gates)
    np.testing.assert_allclose(traced[:6], exact[:6], rtol=1e-5)
    np.testing.assert_allclose(
        exact_costs(GRAPH, budgets, ones_gates(GRAPH))[:6], np.ones(6), rtol=1e-6
    )
    # In a search the host's costs are asked for; only there they are more than estimates.
    batch = jax.tree.map(lambda *rows: jnp.stack(rows), gates, draw(GRAPH, 2))
    told = search_costs(GRAPH, budgets)(batch)
    assert told.shape == (2, 8)
    np.testing.assert_allclose(told[0, :6], exact[:6], rtol=1e-5)
    assert told[0, 7] == exact[7]
    # The noise counts: the upper quartile has to be within.
    spread = measured_costs(GRAPH, budgets, gates)[6]
    assert spread.lower < spread.value < spread.upper
    for limit, within in [(spread.upper * 1.01, True), (spread.value * 1.01, False)]:
        (budget,) = bind_budgets(parse_budgets([f"latency={limit}"]), NETWORK)
        assert satisfies(GRAPH, [budget], gates) is within


def test_unreachable_times_and_functions_are_refused_with_the_least_value(sizes_as_times):
    for texts, functions, message in [
        (["latency_table=1e-6"], [], r"latency_table'=1e-06 cannot be met: .* leaves .* ms; raise"),
        (["latency=1e-6"], [], r"latency'=1e-06 cannot be met: .* leaves .* ms; raise"),
        ([], [f"{HERE}:energy=2"], r"energy'=2 cannot be met: min_keep=1 leaves 3 of its own unit"),
        (["activation_memory=0.01"], [], r"cannot be met: .* of the bytes"),
    ]:
        budgets = bind_budgets(parse_budgets(texts, functions), NETWORK)
        with pytest.raises(ValueError, match=message):
            check_reachable(GRAPH, budgets)


def test_a_fraction_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"free'=0\.5x: the cost of the dense network is 0"):
        bind_budgets(parse_budgets([], [f"{HERE}:free=0.5x"]), NETWORK)
    (budget,) = bind_budgets(parse_budgets([], [f"{HERE}:free=0.5"]), NETWORK)
    assert satisfies(GRAPH, [budget], ones_gates(GRAPH))
    assert float(cost_function(GRAPH, [budget])(ones_gates(GRAPH))[0]) == 0


def test_an_estimate_meets_uniform_networks_and_never_falls():
    values = iter([5.0, 4.0, 6.0, 10.0, 12.0, 20.0])
    share = estimate(GRAPH, lambda gates: next(values), 20.0)
    assert float(share(ones_gates(GRAPH))) == 1
    least = {
        name: jnp.arange(size) < 1 for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)
    }
    assert float(share(least)) == 0.25
    half = {
        name: jnp.arange(size) < size // 2
        for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)
    }
    assert float(share(half)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("texts", "functions", "message"),
    [
        (["latency=-1"], [], "must be a number above 0"),
        (["latency=1.5x"], [], r"must be a fraction of the dense network in \(0, 1\]"),
        (["params=0.5x"], [], "the limit '0.5x' is not a number"),
        ([], ["energy=3"], "not of the form module:function=LIMIT"),
        ([], [":energy=3"], "not of the form module:function=LIMIT"),
        ([], ["a:b"], "not of the form module:function=LIMIT"),
        ([], ["a:b=nan"], "must be a number above 0"),
        ([], ["a:b=1", "a:b=2"], "'a:b' is given twice"),
        (["a:b=1"], [], "--budget-fn"),
    ],
)
def test_limits_that_cannot_be_are_refused(texts, functions, message):
    with pytest.raises(ValueError, match=message):
        parse_budgets(texts, functions)


def test_an_unbound_budget_says_what_to_do():
    with pytest.raises(ValueError, match="'latency' is not bound to a network; call bind_budgets"):
        exact_costs(GRAPH, parse_budgets(["latency=1"]), ones_gates(GRAPH))
