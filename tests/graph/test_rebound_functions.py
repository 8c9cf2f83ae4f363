"""A function with our convolution put in has the graph of the original, and masked equals slim."""

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from networks import (
    ResidualNetwork,
    SeparableNetwork,
    assert_masked_equals_slim,
    images,
    random_gates,
    random_variables,
)

from rlprune_jax import count_macs, count_params, ones_gates, trace_graph
from rlprune_jax.models.convolution import rebind_convolutions
from rlprune_jax.units.descriptors import layer_descriptors


class Signal(nn.Module):
    """Convolutions over one dimension: plain, grouped, depthwise."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3,), name="plain")(x))
        x = nn.relu(nn.Conv(6, (5,), strides=2, feature_group_count=2, name="grouped")(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Conv(6, (3,), feature_group_count=6, name="depthwise")(x)
        return nn.Dense(3, name="head")(nn.relu(x).mean(1))


class ChannelsFirst(eqx.Module):
    layers: list
    head: eqx.nn.Linear

    def __init__(self, space, key):
        keys = jax.random.split(key, 4)
        conv = {1: eqx.nn.Conv1d, 2: eqx.nn.Conv2d}[space]
        self.layers = [
            conv(2, 6, 3, padding=1, key=keys[0]),
            conv(6, 6, 3, groups=6, padding=1, key=keys[1]),
            conv(6, 4, 3, stride=2, groups=2, key=keys[2]),
        ]
        self.head = eqx.nn.Linear(4, 3, key=keys[3])

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.head(x.mean(tuple(range(1, x.ndim))))


class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.outer = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        return self.head(nnx.relu(self.outer(x)).mean((1, 2)))


def linen(module, x):
    return module.apply, random_variables(module, x), x


def equinox(space):
    variables, static = eqx.partition(ChannelsFirst(space, jax.random.key(0)), eqx.is_array)
    x = jax.random.normal(jax.random.key(1), (3, 2, *(7,) * space))
    return lambda variables, x: jax.vmap(eqx.combine(variables, static))(x), variables, x


def of_nnx():
    definition, params, stats = nnx.split(NNXNetwork(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

    def apply(variables, x):
        network = nnx.merge(definition, variables["params"], variables["batch_stats"])
        network.eval()
        return network(x)

    return apply, {"params": params, "batch_stats": stats}, images()


def checkpointed():
    apply, variables, x = linen(SeparableNetwork(), images())
    return jax.jit(jax.checkpoint(apply)), variables, x


NETWORKS = {
    "residual": lambda: linen(ResidualNetwork(), images()),
    "signal": lambda: linen(Signal(), jax.random.normal(jax.random.key(2), (3, 9, 2))),
    "checkpointed": checkpointed,
    "nnx": of_nnx,
    "equinox": lambda: equinox(2),
    "equinox signal": lambda: equinox(1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_same_graph_and_masked_equals_slim(name):
    apply, variables, x = NETWORKS[name]()
    rebound = rebind_convolutions(apply)
    original, graph = (trace_graph(f, variables, x) for f in (apply, rebound))
    text = str(jax.make_jaxpr(rebound)(variables, x))
    assert "rlprune_convolution" in text and "conv_general_dilated" not in text
    assert str(graph) == str(original)
    jax.tree.map(np.testing.assert_array_equal, graph.owners, original.owners)
    for ours, others in zip(graph.groups, original.groups, strict=True):
        for a, b in zip(ours.slots, others.slots, strict=True):
            assert (a.path, a.axis, a.role) == (b.path, b.axis, b.role)
            np.testing.assert_array_equal(a.indices, b.indices)
    for a, b in zip(graph.layers, original.layers, strict=True):
        assert (a.name, a.kind) == (b.name, b.kind)
        # A dimension of size one is put before a single one.
        assert a.kernel[-len(b.kernel) :] == b.kernel and np.prod(a.kernel) == np.prod(b.kernel)
        assert a.space[-len(b.space) :] == b.space and np.prod(a.space) == np.prod(b.space)
    np.testing.assert_array_equal(layer_descriptors(graph), layer_descriptors(original))
    gates = random_gates(graph, 0)
    for count in (count_params, count_macs):
        for each in (gates, ones_gates(graph)):
            assert float(count(graph, each)) == float(count(original, each))
    # The graph of the original runs the function that is rebound.
    gradient = name in ("signal", "equinox signal", "checkpointed")
    assert_masked_equals_slim(rebound, original, variables, gates, x, gradient=gradient)
