import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax import count_params, round_gates, trace_graph


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
