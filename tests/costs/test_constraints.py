import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from costs_networks import branching, draw, network_of
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax import compact, count_macs, count_params, ones_gates, respecialise, trace_graph
from rlprune_jax.costs import latency_table, slim_latency
from rlprune_jax.costs.budgets import Budget, parse_budgets
from rlprune_jax.costs.constraints import (
    check_reachable,
    constrain,
    estimate_costs,
    exact_costs,
    limits,
    measured_costs,
    satisfies,
    search_costs,
)
from rlprune_jax.costs.cost import Cost, without_noise
from rlprune_jax.costs.latency import Latency
from rlprune_jax.costs.options import CostOptions, Tile
from rlprune_jax.costs.registry import COSTS, UNITS
from rlprune_jax.units.gates import smallest_gates

APPLY, GRAPH, VARIABLES, X = branching()
NETWORK = network_of(APPLY, GRAPH, VARIABLES, X)
HERE = "test_constraints"


def energy(widths, gates):
    """A user's function."""
    return float(sum(widths.values()))


def free(widths, gates):
    return 0.0


def make_chain():
    """Two hidden layers of 5 and 4 units, 43 weights."""

    def apply(v, x):
        return jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["c"]

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 4)), "c": jnp.ones((4, 2))}
    x = jnp.ones((1, 3))
    return network_of(apply, trace_graph(apply, variables, x), variables, x)


CHAIN = make_chain()


@pytest.fixture
def sizes_as_times(monkeypatch):
    def count(function, *arrays, repeats):
        size = sum(leaf.size for leaf in jax.tree.leaves(arrays)) / 1000
        return Latency(size, 0.9 * size, 1.1 * size)

    def in_turn(networks, repeats):
        return [count(each.func, *each.args, repeats=repeats) for each in networks]

    monkeypatch.setattr(latency_table, "measure_latency", count)
    monkeypatch.setattr(latency_table, "measure_in_turn", in_turn)
    monkeypatch.setattr(slim_latency, "measure_latency", count)


def test_every_cost_at_once(sizes_as_times):
    texts = [
        *("params=0.5", "macs=0.6", "weight_bytes=0.5", "activation_memory=0.9", "tiled_macs=0.8"),
        *("latency_table=0.7x", "latency=1.5"),
    ]
    options = CostOptions(tile=Tile(2, 2))
    constraints = constrain(NETWORK, parse_budgets(texts, [f"{HERE}:energy=20"]), options)
    gates = draw(GRAPH, 1)
    exact = exact_costs(constraints, gates)
    assert exact[0] == count_params(GRAPH, gates) / count_params(GRAPH)
    assert exact[1] == count_macs(GRAPH, gates) / count_macs(GRAPH)
    assert exact[7] == sum(float(gate.sum()) for gate in gates.values())
    traced = jax.jit(estimate_costs(constraints))(gates)
    np.testing.assert_allclose(traced[:6], exact[:6], rtol=1e-5)
    np.testing.assert_allclose(
        exact_costs(constraints, ones_gates(GRAPH))[:6], np.ones(6), rtol=1e-6
    )
    assert all(each.cost.unit == UNITS[each.budget.name] for each in constraints[:7])
    assert constraints[0].unit == "fraction of dense parameters" and constraints[6].unit == "ms"
    assert [each.is_measured for each in constraints] == [False] * 6 + [True] * 2
    # In a search the host's costs are asked for; only there they are more than estimates.
    batch = jax.tree.map(lambda *rows: jnp.stack(rows), gates, draw(GRAPH, 2))
    told = search_costs(constraints)(batch)
    assert told.shape == (2, 8)
    np.testing.assert_allclose(told[0, :6], exact[:6], rtol=1e-5)
    assert told[0, 7] == exact[7]
    # The noise counts: the upper quartile has to be within.
    spread = measured_costs(constraints, gates)[6]
    assert spread.lower < spread.value < spread.upper
    for limit, within in [(spread.upper * 1.01, True), (spread.value * 1.01, False)]:
        assert satisfies(constrain(NETWORK, f"latency={limit}", options), gates) is within


def test_costs_and_satisfaction_by_hand():
    constraints = constrain(CHAIN, ["params=0.5", "macs=0.6"])
    # 43 parameters: 3*2 + 2*4 + 4*2 = 22 with two units of the first group; 22 > 43/2.
    gates = {"a": jnp.array([1.0, 1, 0, 0, 0]), "b": jnp.ones(4)}
    assert count_params(CHAIN.graph, gates) == count_macs(CHAIN.graph, gates) == 22
    assert exact_costs(constraints, gates) == [22 / 43, 22 / 43]
    np.testing.assert_allclose(
        jax.jit(estimate_costs(constraints))(gates), [22 / 43, 22 / 43], rtol=1e-6
    )
    np.testing.assert_array_equal(limits(constraints), np.float32([0.5, 0.6]))
    assert not satisfies(constraints, gates)
    assert satisfies(constrain(CHAIN, "params=22"), gates)
    assert not satisfies(constrain(CHAIN, "params=21"), gates)
    assert satisfies(constrain(CHAIN, Budget("params", 22 / 43, relative=True)), gates)
    assert satisfies(constraints, gates | {"b": jnp.array([1.0, 1, 1, 0])})


@given(
    name=st.sampled_from(["params", "macs", "weight_bytes", "tiled_macs", "activation_memory"]),
    fraction=st.floats(0.05, 1.0),
    seed=st.integers(0, 5),
)
def test_an_absolute_limit_is_the_fraction_with_the_same_number(name, fraction, seed):
    (dense,) = (each.cost.dense for each in constrain(NETWORK, f"{name}=1"))
    number = max(2, int(fraction * dense))
    absolute = constrain(NETWORK, f"{name}={number}")
    relative = constrain(NETWORK, Budget(name, number / dense, relative=True))
    gates = draw(GRAPH, seed)
    assert satisfies(absolute, gates) == satisfies(relative, gates)
    (count,), (ratio,) = exact_costs(absolute, gates), exact_costs(relative, gates)
    assert count == int(count) and ratio == count / dense
    estimates = [estimate_costs(each)(gates)[0] / limits(each)[0] for each in (absolute, relative)]
    np.testing.assert_allclose(*estimates, rtol=1e-5)


def test_costs_of_one_network_are_the_same_objects():
    first = constrain(NETWORK, ["params=0.1", f"{HERE}:energy=7"])
    again = constrain(NETWORK, ["params=0.2", f"{HERE}:energy=9"])
    assert all(a.cost is b.cost for a, b in zip(first, again, strict=True))
    assert estimate_costs(first) is estimate_costs(again)
    # Another order, unit of limit, option, function or input is another function.
    other_tile = CostOptions(tile=Tile(4, 4))
    for network, budgets, options in [
        (NETWORK, [f"{HERE}:energy=7", "params=0.1"], None),
        (NETWORK, ["params=5000", f"{HERE}:energy=7"], None),
        (NETWORK, ["params=0.1", f"{HERE}:energy=7"], other_tile),
        (NETWORK, ["params=0.1", Budget(f"{HERE}:energy", 7.0, False, free)], None),
        (network_of(APPLY, GRAPH, VARIABLES, X[:1]), ["params=0.1", f"{HERE}:energy=7"], None),
    ]:
        assert estimate_costs(constrain(network, budgets, options)) is not estimate_costs(first)


def test_a_second_call_traces_nothing(monkeypatch):
    traced = []

    def counted_cost(network, options):
        def estimate(gates):
            traced.append(gates)
            return gates["a"].mean()

        return Cost(unit="units", dense=5, estimate=estimate, exact=lambda gates: without_noise(5))

    monkeypatch.setitem(COSTS, "counted", counted_cost)
    batch = {name: gate[None] for name, gate in ones_gates(CHAIN.graph).items()}
    for budgets, times in [
        (["params=0.5", "counted=4"], 1),
        (["params=0.3", "counted=3"], 1),
        (["params=0.3", "counted=60%"], 2),
    ]:
        table = search_costs(constrain(CHAIN, budgets))(batch)
        np.testing.assert_array_equal(table, [[1, 5 if times == 1 else 1]])
        assert len(traced) == times


def test_costs_go_with_their_graph():
    network = make_chain()
    constraints = constrain(network, "params=0.5")
    search_costs(constraints)
    gone = weakref.ref(network.graph)
    del network, constraints
    gc.collect()
    assert gone() is None


def test_a_new_cost_is_one_function(monkeypatch):
    def widest_cost(network, options):
        def widest(gates):
            return jnp.stack([gate.sum() for gate in gates.values()]).max()

        return Cost(
            unit="units",
            dense=max(network.graph.sizes),
            estimate=lambda gates: widest(gates) / max(network.graph.sizes),
            exact=lambda gates: without_noise(int(widest(gates))),
        )

    monkeypatch.setitem(COSTS, "widest", widest_cost)
    constraints = constrain(CHAIN, "widest=4")
    assert not satisfies(constraints, ones_gates(CHAIN.graph))
    assert satisfies(constraints, ones_gates(CHAIN.graph) | {"a": jnp.array([1.0, 1, 1, 1, 0])})
    assert float(estimate_costs(constraints)(ones_gates(CHAIN.graph))[0]) == 5


def test_a_function_is_given_directly():
    calls = []

    class Counting:
        """Equal to all of its kind and without a hash, as a dataclass is."""

        __hash__ = None

        def __call__(self, widths, gates):
            calls.append(widths)
            return sum(widths.values())

    budget = Budget("counting", 6.0, relative=False, function=Counting())
    constraints = constrain(CHAIN, [budget])
    gates = {"a": jnp.array([1.0, 1, 0, 0, 0]), "b": jnp.ones(4)}
    assert satisfies(constraints, gates) and exact_costs(constraints, gates) == [6.0]
    count = len(calls)
    assert constrain(CHAIN, [budget])[0].cost is constraints[0].cost and len(calls) == count


@pytest.mark.parametrize("only_shapes", [False, True])
def test_several_inputs(only_shapes, sizes_as_times):
    """A network of two inputs, one of them a dictionary with integers."""

    def apply(v, image, other):
        hidden = jnp.tanh(image @ v["a"] + v["table"][other["token"]])
        return hidden @ v["b"]

    variables = {"a": jnp.ones((3, 5)), "table": jnp.ones((7, 5)), "b": jnp.ones((5, 2))}
    example = (jnp.ones((4, 3)), {"token": jnp.zeros(4, jnp.int32)})
    graph = trace_graph(apply, variables, *example)
    if only_shapes:
        variables, example = jax.eval_shape(lambda *each: each, variables, example)
    network = network_of(apply, graph, variables, *example)
    texts = ["activation_memory=1", "latency=1x", "latency_table=1x", "params=60"]
    constraints = constrain(network, texts)
    gates = {"a": jnp.arange(5) < 2}
    assert graph.names == ("a",)
    exact = exact_costs(constraints, gates)
    # Memory of one example, at its peak 5 sums, the token and its row of 5, of 4 bytes each.
    assert constraints[0].cost.dense == 4 * (5 + 1 + 5)
    assert constraints[0].cost.exact(gates).value == 4 * (2 + 1 + 3)
    assert exact[3] == 3 * 2 + 7 * 2 + 2 * 2
    # What the fake clock counts: slim variables and both inputs of the whole batch.
    assert constraints[1].cost.exact(gates).value == pytest.approx((24 + 4 * 3 + 4) / 1000)
    assert satisfies(constraints, gates)


def test_one_example_must_be_a_tuple():
    network = network_of(APPLY, GRAPH, VARIABLES)
    network.example = X
    with pytest.raises(ValueError, match=r"network\.example is a .* it must be a tuple of inputs"):
        constrain(network, "params=0.1")


def test_unreachable_times_and_functions_are_refused_with_the_least_value(sizes_as_times):
    for text, message in [
        ("latency_table=1e-6", r"latency_table'=1e-06 cannot be met: .* leaves .* ms; raise"),
        ("latency=1e-6", r"latency'=1e-06 cannot be met: .* leaves .* ms; raise"),
        ("latency=0.001x", r"latency'=0\.001x cannot be met: .* of the ms; .* at least 0\.\d+x or"),
        (f"{HERE}:energy=2", r"energy'=2 cannot be met: min_keep=1 leaves 3 of its own unit"),
        (f"{HERE}:energy=1%", r"energy'=0\.01x cannot be met: .* of the dense cost; raise"),
        ("activation_memory=0.01", r"cannot be met: .* of the bytes"),
        ("activation_memory=10B", r"memory'=10 cannot be met: min_keep=1 leaves \d+ bytes; raise"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_reachable(GRAPH, constrain(NETWORK, text))


def test_unreachable_budgets_are_refused_with_the_least_value():
    graph = CHAIN.graph
    # One unit each leaves 3 + 1 + 2 = 6 of 43, 0.1395.
    check_reachable(graph, constrain(CHAIN, "params=0.14"))
    check_reachable(graph, constrain(CHAIN, "params=6"))
    with pytest.raises(ValueError) as error:
        check_reachable(graph, constrain(CHAIN, ["macs=0.9", "params=0.139"]))
    assert str(error.value) == (
        "budget 'params'=0.139 cannot be met: min_keep=1 leaves 0.1395 of the parameters; raise "
        "the budget to at least 0.1396 or lower min_keep"
    )
    with pytest.raises(ValueError) as error:
        check_reachable(graph, constrain(CHAIN, "params=5"))
    assert str(error.value) == (
        "budget 'params'=5 cannot be met: min_keep=1 leaves 6 parameters; raise the budget to at "
        "least 6 or lower min_keep"
    )
    with pytest.raises(ValueError, match=r"min_keep=3 leaves 0\.5581 of the parameters"):
        check_reachable(graph, constrain(CHAIN, "params=0.14"), min_keep=3)


@pytest.mark.parametrize(
    ("min_keep", "message"),
    [
        (0, "min_keep=0 must be at least 1"),
        (1.5, "min_keep=1.5 must be"),
        ({"a": 1, "b": 1, "z": 1}, "min_keep has the key 'z', which is found in no group"),
    ],
)
def test_bad_min_keep_is_refused(min_keep, message):
    with pytest.raises(ValueError, match=message):
        check_reachable(CHAIN.graph, constrain(CHAIN, "params=0.5"), min_keep=min_keep)


def test_smallest_gates():
    graph = CHAIN.graph
    assert jax.tree.map(jnp.sum, smallest_gates(graph, 2)) == {"a": 2, "b": 2}
    assert jax.tree.map(jnp.sum, smallest_gates(graph, {"a": 1, "b": 99})) == {"a": 1, "b": 4}


def test_a_fraction_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"free'=0\.5x: the cost of the dense network is 0"):
        constrain(NETWORK, f"{HERE}:free=0.5x")
    constraints = constrain(NETWORK, f"{HERE}:free=0.5")
    assert satisfies(constraints, ones_gates(GRAPH))
    assert float(estimate_costs(constraints)(ones_gates(GRAPH))[0]) == 0


def test_a_count_is_that_of_the_network_that_is_cut():
    """A second way: count the arrays that are left, and trace what they are used for."""
    gates = draw(GRAPH, 3)
    slim, slim_apply = compact(GRAPH, VARIABLES, gates), respecialise(APPLY, GRAPH, gates)
    narrow = network_of(slim_apply, trace_graph(slim_apply, slim, X), slim, X)
    names = ["params", "macs", "weight_bytes", "tiled_macs", "activation_memory"]
    texts = [f"{name}=1" for name in names]
    left = [each.cost.exact(gates).value for each in constrain(NETWORK, texts)]
    assert left == [each.cost.dense for each in constrain(narrow, texts)]
    assert left[0] == sum(leaf.size for leaf in jax.tree.leaves(slim["params"]))
