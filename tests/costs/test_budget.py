import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import count_macs, count_params, trace_graph
from rlprune_jax.costs.budget import (
    check_reachable,
    cost_function,
    exact_costs,
    limits,
    make_budget,
    parse_budgets,
    satisfies,
)


@pytest.fixture
def graph():
    def apply(v, x):
        return jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["c"]

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 4)), "c": jnp.ones((4, 2))}
    return trace_graph(apply, variables, jnp.ones((1, 3)))


def test_parse():
    budgets = parse_budgets(["params=0.1", "macs=1"])
    assert [(each.name, each.limit, each.unit) for each in budgets] == [
        ("params", 0.1, "parameters"),
        ("macs", 1.0, "MACs"),
    ]
    np.testing.assert_array_equal(limits(budgets), np.float32([0.1, 1]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no budget is given"),
        (["params"], "'params' is not of the form NAME=LIMIT"),
        (["params=few"], "the limit 'few' is not a number"),
        (["params="], "the limit '' is not a number"),
        (["size=0.1"], "'size' is unknown; known budgets: params, macs"),
        (["params=0.1", "params=0.2"], "'params' is given twice"),
        (["params=0"], r"'params'=0 must be a fraction .* in \(0, 1\]"),
        (["params=-0.5"], "'params'=-0.5 must"),
        (["macs=1.01"], "'macs'=1.01 must"),
        (["macs=nan"], "'macs'=nan must"),
        (["macs=inf"], "'macs'=inf must"),
    ],
)
def test_bad_budgets_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_budgets(texts)


def test_costs_and_satisfaction(graph):
    budgets = parse_budgets(["params=0.5", "macs=0.6"])
    # 43 parameters: 3*2 + 2*4 + 4*2 = 22 with two units of the first group; 22 > 43/2.
    gates = {"a": jnp.array([1.0, 1, 0, 0, 0]), "b": jnp.ones(4)}
    assert count_params(graph, gates) == count_macs(graph, gates) == 22
    assert exact_costs(graph, budgets, gates) == [22 / 43, 22 / 43]
    np.testing.assert_allclose(
        jax.jit(cost_function(graph, budgets))(gates), [22 / 43, 22 / 43], rtol=1e-6
    )
    assert not satisfies(graph, budgets, gates)
    assert satisfies(graph, [make_budget("params", 22 / 43)], gates)
    assert satisfies(graph, budgets, gates | {"b": jnp.array([1.0, 1, 1, 0])})


def test_unreachable_budgets_are_refused_with_the_least_value(graph):
    # One unit each leaves 3 + 1 + 2 = 6 of 43, 0.1395.
    check_reachable(graph, [make_budget("params", 0.14)])
    with pytest.raises(ValueError) as error:
        check_reachable(graph, parse_budgets(["macs=0.9", "params=0.139"]))
    assert str(error.value) == (
        "budget 'params'=0.139 cannot be met: min_keep=1 leaves 0.1395 of the parameters; raise "
        "the budget to at least 0.1396 or lower min_keep"
    )
    # More than a group has means all of it, as for an environment.
    check_reachable(graph, [make_budget("params", 1.0)], min_keep=99)
    with pytest.raises(ValueError, match=r"min_keep=3 leaves 0\.5581 of the parameters"):
        check_reachable(graph, [make_budget("params", 0.14)], min_keep=3)


@pytest.mark.parametrize(
    ("min_keep", "message"),
    [
        (0, "min_keep=0 must be at least 1"),
        (1.5, "min_keep=1.5 must be"),
        ({"z": 1}, "min_keep has the key 'z', which is found in no group; the groups are a, b"),
    ],
)
def test_bad_min_keep_is_refused(graph, min_keep, message):
    with pytest.raises(ValueError, match=message):
        check_reachable(graph, [make_budget("params", 0.5)], min_keep=min_keep)
