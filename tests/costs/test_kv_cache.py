"""Bytes of keys and values are those of the arrays that a slim decoder makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import compact, ones_gates, trace_graph
from rlprune_jax.costs import constrain
from rlprune_jax.costs.kv_cache import (
    count_kv_cache_bytes,
    find_keys_and_values,
    kv_cache_bytes_ratio,
)
from rlprune_jax.costs.options import CostOptions
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.workflow.network import Network

TOKENS = jnp.zeros((2, 6), jnp.int32)


def decoder(name, dtype=jnp.float32, depth_groups=False, **options):
    functions = model_functions(create_model(name, 11, depth=2, width=1 / 4, **options))
    shapes = jax.eval_shape(functions.init, jax.random.key(0), TOKENS)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, dtype), shapes)
    graph = trace_graph(functions.apply, variables, TOKENS, depth_groups=depth_groups)
    return functions.apply, variables, graph


def draw(graph, seed):
    generator = np.random.default_rng(seed)
    gates = {}
    for name, gate in ones_gates(graph).items():
        kept = generator.random(gate.shape) < 0.5
        kept[0] = True
        gates[name] = jnp.asarray(kept, jnp.float32)
    return gates


def cached(variables):
    """Bytes of a token's keys and values: all axes of their kernels but the embedding's."""
    stacked = "layers" in variables["params"]
    return sum(
        leaf.dtype.itemsize * leaf.size // max(leaf.shape[1 if stacked else 0], 1)
        for path, leaf in flatten_with_paths(variables).items()
        if path.endswith(("/key/kernel", "/value/kernel"))
    )


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("gpt", jnp.float32, {}),
        ("llama", jnp.bfloat16, {"scan": False}),
        ("llama", jnp.float32, {"scan": True}),
        ("gpt", jnp.float32, {"depth_groups": True}),
        ("llama", jnp.float32, {"scan": True, "depth_groups": True}),
    ],
)
def test_what_is_counted_are_the_arrays_of_the_slim_network(name, dtype, options):
    _, variables, graph = decoder(name, dtype, **options)
    ratio = jax.jit(kv_cache_bytes_ratio(graph))
    dense = count_kv_cache_bytes(graph)
    # Two layers, keys and values of 4 heads (llama: 2) of 8 channels.
    assert dense == cached(variables) == 2 * 2 * (4 if name == "gpt" else 2) * 8 * dtype(0).itemsize
    for seed in range(3):
        gates = draw(graph, seed)
        expected = cached(compact(graph, variables, gates))
        assert count_kv_cache_bytes(graph, gates) == expected
        assert float(ratio(gates)) == pytest.approx(expected / dense, rel=1e-6)


def test_stacked_layers_count_once_each():
    # The stack holds three layers; where the loop is unrolled there are three contractions.
    variables = {"key": jnp.ones((3, 4, 5)), "value": jnp.ones((3, 5, 4))}

    def apply(variables, x):
        for layer in range(3):
            x = jax.nn.relu(x @ variables["key"][layer]) @ variables["value"][layer]
        return x

    graph = trace_graph(apply, variables, jnp.ones((2, 4)))
    assert count_kv_cache_bytes(graph) == 3 * (5 + 4) * 4


def test_weights_used_twice_are_cached_twice():
    variables = {"in": jnp.ones((4, 4)), "key": jnp.ones((4, 4)), "out": jnp.ones((4, 3))}

    def apply(variables, x):
        x = jax.nn.relu(jax.nn.relu(x @ variables["in"]) @ variables["key"])
        return jax.nn.relu(x @ variables["key"]) @ variables["out"]

    graph = trace_graph(apply, variables, jnp.ones((2, 4)))
    assert count_kv_cache_bytes(graph) == 2 * 4 * 4


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, True) for name in ("k", "key", "keys", "v", "value", "kv", "k_proj", "v_proj")),
        *((name, True) for name in ("self_attn/k_proj", "cross_key", "attn_v", "key_value")),
        *((name, False) for name in ("query", "q", "qkv", "query_key_value", "monkey", "out")),
        *((name, False) for name in ("key/out", "values_norm", "back", "mlp_k2")),
    ],
)
def test_names_of_keys_and_values(name, found):
    variables = {name: {"kernel": jnp.ones((4, 5))}, "last": {"kernel": jnp.ones((5, 3))}}

    def apply(variables, x):
        return jax.nn.relu(x @ variables[name]["kernel"]) @ variables["last"]["kernel"]

    graph = trace_graph(apply, variables, jnp.ones((2, 4)))
    if found:
        assert find_keys_and_values(graph).names == (name,)
        return
    with pytest.raises(ValueError, match=rf"matches no layer.*layers are {name}, last"):
        count_kv_cache_bytes(graph)


def test_the_user_names_the_layers():
    apply, variables, graph = decoder("gpt")
    network = Network(apply, variables, TOKENS)
    options = CostOptions(kv_layers="block1/attention/(key|value)$")
    (constraint,) = constrain(network, ["kv_cache_bytes=0.5"], options)
    assert constraint.cost.dense == count_kv_cache_bytes(graph) / 2
    assert constraint.cost.unit == "bytes"
    for layers, message in [("(", "'\\(' is no regular expression"), ("norm", "matches no layer")]:
        with pytest.raises(ValueError, match=message):
            find_keys_and_values(graph, layers)
