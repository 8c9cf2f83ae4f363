"""Networks that are not Linen's: Flax NNX, Equinox, and shared parameters in both."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import assert_close, assert_masked_equals_slim, random_gates

from rlprune_jax import compact, count_params, gated, respecialise, trace_graph
from rlprune_jax.pytree import flatten_with_paths, is_key


def groups_of(graph):
    return {group.name: group.size for group in graph.groups}


class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.inner = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.outer = nnx.Conv(6, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = x + self.outer(nnx.gelu(self.inner(x)))
        return self.head(x.mean((1, 2)))


def test_nnx_through_split_in_both_modes():
    definition, params, stats = nnx.split(NNXNetwork(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
    variables = {"params": params, "batch_stats": stats}
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))

    def network(variables):
        return nnx.merge(definition, variables["params"], variables["batch_stats"])

    def apply(variables, x):
        module = network(variables)
        module.eval()
        return module(x)

    def train(variables, x):
        module = network(variables)
        module.train()
        return module(x), {"batch_stats": nnx.state(module, nnx.BatchStat)}

    graph = trace_graph(apply, variables, x)
    assert groups_of(graph) == {"stem": 4, "inner": 6}
    assert all(path.startswith("params/") for path in graph.parameters)
    gates = random_gates(graph, 0)
    for function in (apply, train):
        assert_masked_equals_slim(function, graph, variables, gates, x, gradient=False)


def test_nnx_state_with_its_random_keys_and_counters():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(3, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.dropout(nnx.relu(self.up(x))))

    definition, variables = nnx.split(Noisy(nnx.Rngs(0)))

    def module(variables, train):
        found = nnx.merge(definition, variables)
        (found.train if train else found.eval)()
        return found

    def apply(variables, x):
        return module(variables, False)(x)

    def train(variables, x):
        found = module(variables, True)
        return found(x), nnx.state(found, nnx.RngState)

    x = jax.random.normal(jax.random.key(0), (4, 3))
    graph = trace_graph(apply, variables, x)
    assert groups_of(graph) == {"up": 8}
    # The key and its counter are variables but no parameters.
    assert len(graph.variables) == len(graph.parameters) + 2 == 6
    assert count_params(graph) == 3 * 8 + 8 + 8 * 2 + 2
    gates = random_gates(graph, 0)
    slim = compact(graph, variables, gates)
    before, after = flatten_with_paths(variables), flatten_with_paths(slim)
    (key,) = (path for path, leaf in before.items() if is_key(leaf))
    assert (jax.random.key_data(after[key]) == jax.random.key_data(before[key])).all()
    (count,) = (path for path, leaf in before.items() if leaf.dtype == jnp.uint32)
    assert after[count].dtype == jnp.uint32
    assert_close(
        respecialise(apply, graph)(slim, x), gated(apply, graph)(variables, gates, x), 1e-5
    )
    masked, state = jax.jit(gated(train, graph))(variables, gates, x)
    found, slim_state = jax.jit(respecialise(train, graph, gates))(slim, x)
    assert_close(found, masked, 1e-5)
    assert [int(leaf) for leaf in jax.tree.leaves(slim_state) if not is_key(leaf)] == [1]
    assert jax.tree.structure(slim_state) == jax.tree.structure(state)


class Attention(eqx.Module):
    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    activation: object = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.embedding = eqx.nn.Embedding(11, 8, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
        self.norm = eqx.nn.LayerNorm(8)
        self.up = eqx.nn.Linear(8, 5, key=keys[2])
        self.down = eqx.nn.Linear(5, 3, key=keys[3])
        self.activation = jax.nn.silu

    def __call__(self, tokens):
        x = jax.vmap(self.embedding)(tokens)
        x = jax.vmap(self.norm)(x + self.attention(x, x, x))
        return jax.vmap(self.down)(self.activation(jax.vmap(self.up)(x))).mean(0)


def test_equinox_heads_and_hidden_units():
    variables, static = eqx.partition(Attention(jax.random.key(0)), eqx.is_inexact_array)

    def apply(variables, tokens):
        return jax.vmap(eqx.combine(variables, static))(tokens)

    tokens = jnp.array([[1, 2, 3], [4, 5, 10]])
    graph = trace_graph(apply, variables, tokens)
    # A flat projection split into heads: a head goes as a whole.
    assert groups_of(graph) == {"attention/query_proj": 2, "embedding": 8, "up": 5}
    frozen = {each.path: each.reason for each in graph.frozen}
    assert frozen["embedding/weight"].startswith("looked up by 'gather'")
    gates = random_gates(graph, 0)
    slim = compact(graph, variables, gates)
    assert isinstance(slim, Attention)
    masked = gated(apply, graph)(variables, gates, tokens)
    assert_close(respecialise(apply, graph, gates)(slim, tokens), masked)


class Convolutional(eqx.Module):
    layers: list
    shared: eqx.nn.Shared

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.layers = [
            eqx.nn.Conv2d(2, 12, 3, padding=1, key=keys[0]),
            eqx.nn.GroupNorm(6, 12),
            eqx.nn.Conv2d(12, 12, 3, groups=12, padding=1, key=keys[1]),
            eqx.nn.MaxPool2d(2, 2),
        ]
        first, second = (eqx.nn.Linear(12, 12, key=key) for key in keys[2:4])
        self.shared = eqx.nn.Shared(
            (first, second), lambda pair: pair[1].weight, lambda pair: pair[0].weight
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        first, second = self.shared()
        x = jnp.tanh(first(jax.nn.relu(x).mean((1, 2))))
        return second(x)[:3]


def test_equinox_channels_first_with_shared_weights():
    variables, static = eqx.partition(Convolutional(jax.random.key(0)), eqx.is_inexact_array)

    def apply(variables, x):
        return jax.vmap(eqx.combine(variables, static))(x)

    x = jax.random.normal(jax.random.key(1), (3, 2, 6, 6))
    graph = trace_graph(apply, variables, x)
    # Rows 0 to 2 of the shared weights make outputs, so the units they make and those read by the
    # weights (each of which is both) stay for these; norm groups hold two channels.
    assert graph.sizes == (4,)
    for seed in range(3):
        gates = random_gates(graph, seed)
        slim = compact(graph, variables, gates)
        masked = gated(apply, graph)(variables, gates, x)
        assert_close(respecialise(apply, graph, gates)(slim, x), masked)


def test_nnx_shared_layer_is_one_set_of_units():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 5, rngs=rngs)
            self.middle = self.again = nnx.Linear(5, 5, rngs=rngs)
            self.head = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            x = jnp.tanh(self.first(x))
            return self.head(jnp.tanh(self.again(jnp.tanh(self.middle(x)))))

    definition, variables = nnx.split(Tied(nnx.Rngs(0)))

    def apply(variables, x):
        return nnx.merge(definition, variables)(x)

    x = jax.random.normal(jax.random.key(1), (4, 3))
    graph = trace_graph(apply, variables, x)
    assert groups_of(graph) == {"first": 5}
    gates = random_gates(graph, 1)
    slim = compact(graph, variables, gates)
    assert_close(
        respecialise(apply, graph)(slim, x), gated(apply, graph)(variables, gates, x), 1e-5
    )


def test_leaves_that_are_no_arrays_are_refused():
    module = Attention(jax.random.key(0))
    variables = {"module": module, "activation": jax.nn.relu}
    with pytest.raises(TypeError, match=r"a custom_jvp at 'activation'; pass arrays alone"):
        trace_graph(lambda v, x: v["module"](x), variables, np.zeros(3, int))
