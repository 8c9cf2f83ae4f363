import jax
import jax.numpy as jnp
import numpy as np
import pytest
from costs_networks import branching, draw

from rlprune_jax import compact, ones_gates, respecialise, trace_graph
from rlprune_jax.costs.memory import activation_memory


def chain():
    def apply(v, x):
        x = jnp.tanh(x @ v["a"] + v["bias"])
        return jnp.tanh(x @ v["b"]) @ v["c"]

    variables = {
        "a": jnp.ones((3, 50)),
        "bias": jnp.ones(50),
        "b": jnp.ones((50, 40)),
        "c": jnp.ones((40, 2)),
    }
    x = jnp.ones((1, 3))
    return apply, trace_graph(apply, variables, x), variables, x


def test_by_hand():
    apply, graph, variables, x = chain()
    memory = activation_memory(apply, graph, variables, x)
    # The peak is the second product: its 50 inputs and 40 outputs of 4 bytes; tanh is in place.
    assert memory.count() == 4 * (50 + 40)
    # With 2 of 50 units it is the third: 40 and 2. The peak moves, so it is no sum of layers.
    assert memory.count({"a": jnp.arange(50) < 2, "b": jnp.ones(40)}) == 4 * (2 + 40)
    assert memory.count({"a": jnp.arange(50) < 9, "b": jnp.arange(40) < 2}) == 4 * (9 + 3)


def test_a_value_that_is_read_again_stays():
    def apply(v, x):
        y = x @ v["a"]
        return (jnp.tanh(y) + y) @ v["b"]

    variables = {"a": jnp.ones((3, 50)), "b": jnp.ones((50, 2))}
    x = jnp.ones((2, 3))
    graph = trace_graph(apply, variables, x)
    memory = activation_memory(apply, graph, variables, x)
    assert memory.count() == 2 * 4 * (50 + 50)
    assert activation_memory(apply, graph, variables, x[:1]).count() == 4 * 100


def test_what_is_looked_up_by_an_input_counts():
    """An embedding: the gather reads weights and a fused broadcast of the tokens."""

    def apply(v, tokens):
        return v["table"][tokens] @ v["a"]

    variables = {"table": jnp.ones((7, 50)), "a": jnp.ones((50, 40))}
    tokens = jnp.zeros((1, 3), jnp.int32)
    graph = trace_graph(apply, variables, tokens)
    # The peak is the product: 3 rows of 50 and 3 of 40 results.
    assert activation_memory(apply, graph, variables, tokens).count() == 4 * 3 * (50 + 40)


def test_ratio_is_the_exact_count_and_that_of_the_slim_network():
    apply, graph, variables, x = branching()
    memory = activation_memory(apply, graph, variables, x)
    ratio = jax.jit(memory.ratio())
    assert float(ratio(ones_gates(graph))) == pytest.approx(1)
    for seed in range(4):
        gates = draw(graph, seed, 0.4)
        assert float(ratio(gates)) == pytest.approx(memory.count(gates) / memory.count(), rel=1e-6)
        # The same model on the slim network, a program of its own, none of whose units is pruned.
        slim = compact(graph, variables, gates)
        slim_apply = respecialise(apply, graph, gates)
        narrow = activation_memory(slim_apply, trace_graph(slim_apply, slim, x), slim, x)
        assert memory.count(gates) == narrow.count()


def test_more_units_never_take_less():
    apply, graph, variables, x = branching()
    ratio = jax.vmap(activation_memory(apply, graph, variables, x).ratio())
    order = np.random.default_rng(0).permutation(graph.units)
    kept = np.stack([np.isin(np.arange(graph.units), order[:n]) for n in range(graph.units)])
    gates = {
        group.name: jnp.asarray(kept[:, group.first : group.first + group.size], jnp.float32)
        for group in graph.groups
    }
    assert (np.diff(ratio(gates)) >= 0).all()


def test_other_variables_are_refused():
    apply, graph, variables, x = chain()
    with pytest.raises(ValueError, match="'c' is not in variables"):
        activation_memory(apply, graph, {k: variables[k] for k in ("a", "b", "bias")}, x)
