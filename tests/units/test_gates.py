import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax import compact, count_params, round_gates, trace_graph
from rlprune_jax.units.gates import keep_best, keep_first, kept_counts, smallest_gates, widths


def apply(v, x):
    return jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"]) @ v["c"]


SHAPES = {"a": (3, 10), "b": (10, 7), "c": (7, 2)}
GRAPH = trace_graph(
    apply,
    {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()},
    jnp.ones((1, 3)),
)


def gates_of(a, b):
    """Keep the first ``a`` and ``b`` units."""
    return {"a": (jnp.arange(10) < a) * 1.0, "b": (jnp.arange(7) < b) * 1.0}


def counts(gates):
    return {name: int(gate.sum()) for name, gate in gates.items()}


SOFT = {"a": jnp.array([1.0, 1, 0.5] + [0.3] * 7), "b": jnp.array([0.49] * 6 + [1])}


def test_soft_gates_count_as_what_they_are_rounded_to():
    assert widths(GRAPH, SOFT) == {"a": 3, "b": 1}
    np.testing.assert_array_equal(jax.jit(lambda g: kept_counts(GRAPH, g))(SOFT), [3, 1])
    assert counts(round_gates(GRAPH, SOFT)) == {"a": 3, "b": 1}
    assert count_params(GRAPH, SOFT) == 3 * 3 + 3 * 1 + 1 * 2
    variables = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    slim = compact(GRAPH, variables, round_gates(GRAPH, SOFT))
    assert sum(map(np.size, slim.values())) == count_params(GRAPH, SOFT)
    with pytest.raises(ValueError, match="every gate must be 0 or 1"):
        compact(GRAPH, variables, SOFT)


def test_widths_are_told_inside_of_jit_for_gates_that_are_known():
    assert jax.jit(lambda x: x + widths(GRAPH, SOFT)["a"])(1) == 4


def test_counts_of_many_candidates():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), gates_of(3, 2), gates_of(5, 7))
    np.testing.assert_array_equal(kept_counts(GRAPH, stacked), [[3, 2], [5, 7]])


@given(st.integers(0, 12), st.integers(0, 12))
def test_first_units(a, b):
    gates = keep_first(GRAPH, {"a": a, "b": b})
    assert widths(GRAPH, gates) == {"a": min(a, 10), "b": min(b, 7)}
    jax.tree.map(np.testing.assert_array_equal, gates, gates_of(a, b))


@given(
    st.lists(st.floats(-2, 2, width=16), min_size=10, max_size=10),
    st.integers(0, 12),
)
def test_best_units(scores, count):
    # A stable sort by falling score is the oracle: the first of equals is kept.
    order = sorted(range(10), key=lambda unit: (-scores[unit], unit))
    given_scores = {"a": jnp.asarray(scores), "b": jnp.arange(7.0)}
    gates = keep_best(GRAPH, given_scores, {"a": count, "b": 2})
    assert sorted(order[:count]) == np.flatnonzero(gates["a"]).tolist()
    assert np.flatnonzero(gates["b"]).tolist() == [5, 6]


def test_best_units_of_traced_scores():
    scores = {"a": jnp.array([3.0, jnp.nan, 5] + [1] * 7), "b": jnp.ones(7)}
    found = jax.jit(lambda scores: keep_best(GRAPH, scores, 3))(scores)
    assert np.flatnonzero(found["a"]).tolist() == [0, 2, 3]
    assert np.flatnonzero(found["b"]).tolist() == [0, 1, 2]


def test_fewest_units():
    assert widths(GRAPH, smallest_gates(GRAPH)) == {"a": 1, "b": 1}
    assert widths(GRAPH, smallest_gates(GRAPH, 8)) == {"a": 8, "b": 7}
    assert widths(GRAPH, smallest_gates(GRAPH, {"^b": 99})) == {"a": 1, "b": 7}
    with pytest.raises(ValueError, match="min_keep=0 must be at least 1"):
        smallest_gates(GRAPH, 0)


def test_widths_and_scores_that_do_not_fit():
    with pytest.raises(ValueError, match="widths leaves out b"):
        keep_first(GRAPH, {"a": 3})
    with pytest.raises(ValueError, match="widths=-1 must be at least 0"):
        keep_first(GRAPH, -1)
    with pytest.raises(ValueError, match="scores must name the groups of the graph, a, b; got a"):
        keep_best(GRAPH, {"a": jnp.ones(10)}, 1)
    with pytest.raises(ValueError, match=r"scores\['b'\] has shape \(8,\), needs \(7,\)"):
        keep_best(GRAPH, {"a": jnp.ones(10), "b": jnp.ones(8)}, 1)


@given(
    st.lists(st.booleans(), min_size=10, max_size=10),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["fewer", "more"]),
)
def test_counts_are_multiples_within_the_limits(kept, multiple, least, towards):
    gates = {"a": jnp.asarray(kept, jnp.float32), "b": jnp.ones(7)}
    rounded = round_gates(GRAPH, gates, round_to=multiple, min_keep=least, towards=towards)
    before, after = sum(kept), int(rounded["a"].sum())
    assert after % multiple == 0 or after == 10
    assert after >= min(least, 10)
    if towards == "fewer" and before >= min(-(-least // multiple) * multiple, 10):
        assert before - multiple < after <= before
        assert count_params(GRAPH, rounded) <= count_params(GRAPH, gates)
    if towards == "more":
        assert after >= before
    # Units only go, or only come.
    changed = np.asarray(rounded["a"]) - np.asarray(gates["a"])
    assert (changed >= 0).all() or (changed <= 0).all()
    np.testing.assert_array_equal(rounded["b"], np.ones(7))


def test_numbers_per_group():
    gates = gates_of(7, 3)
    assert counts(round_gates(GRAPH, gates)) == {"a": 7, "b": 3}
    assert counts(round_gates(GRAPH, gates, round_to={"a": 4})) == {"a": 4, "b": 3}
    assert counts(round_gates(GRAPH, gates, min_keep={"b": 5})) == {"a": 7, "b": 5}
    assert counts(round_gates(GRAPH, gates, round_to=4, towards="more")) == {"a": 8, "b": 4}
    assert counts(round_gates(GRAPH, gates, round_to=16)) == {"a": 10, "b": 7}
    # More than a group has means all of it.
    assert counts(round_gates(GRAPH, gates, min_keep=999)) == {"a": 10, "b": 7}
    assert counts(round_gates(GRAPH, gates, min_keep=[9, 1])) == {"a": 9, "b": 3}


def test_priorities_say_who_goes_and_who_comes():
    gates = {"a": jnp.array([0.0, 1, 1, 1, 0, 0, 1, 0, 0, 1]), "b": jnp.ones(7)}
    priorities = {"a": jnp.array([9.0, 5, 1, 4, 8, 0, 2, 0, 0, 3]), "b": jnp.zeros(7)}
    fewer = round_gates(GRAPH, gates, round_to=2, priorities=priorities)["a"]
    assert np.flatnonzero(fewer).tolist() == [1, 3, 6, 9]
    more = round_gates(GRAPH, gates, round_to=7, priorities=priorities, towards="more")["a"]
    assert np.flatnonzero(more).tolist() == [0, 1, 2, 3, 4, 6, 9]


def test_many_candidates_in_one_program():
    def batched(gates):
        return round_gates(GRAPH, gates, round_to=4)

    generator = np.random.default_rng(0)
    gates = {
        name: jnp.asarray(generator.integers(0, 2, (5, size)), jnp.float32)
        for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)
    }
    single = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *[batched(jax.tree.map(lambda leaf: leaf[i], gates)) for i in range(5)],  # noqa: B023
    )
    for function in (batched, jax.jit(batched), jax.vmap(batched)):
        jax.tree.map(np.testing.assert_array_equal, function(gates), single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"round_to": 0}, "round_to=0 must be at least 1"),
        ({"min_keep": {"b": 2.5}}, r"min_keep\['b'\]=2.5 must be an integer"),
        (
            {"round_to": {"z": 2}},
            "round_to has the key 'z', which is found in no group; the groups are a, b",
        ),
        ({"towards": "less"}, "towards='less' must be 'fewer' or 'more'"),
        (
            {"priorities": {"a": jnp.ones(10), "b": jnp.full(7, jnp.nan)}},
            r"priorities\['b'\] holds NaN; give every unit a number",
        ),
        ({"priorities": {"a": jnp.ones(10)}}, "priorities must name the groups"),
        (
            {"priorities": {"a": jnp.ones(3), "b": jnp.ones(7)}},
            r"priorities\['a'\] has shape \(3,\), needs \(..., 10\)",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        round_gates(GRAPH, gates_of(5, 5), **options)


def test_bad_gates():
    with pytest.raises(ValueError, match=r"missing: \['b'\]"):
        round_gates(GRAPH, {"a": jnp.ones(10)})
