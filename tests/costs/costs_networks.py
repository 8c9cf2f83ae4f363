"""A network with a depthwise convolution, a residual sum and a concatenation, and gates of it."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax import trace_graph


class Branching(nn.Module):
    """Narrow, on 8x8 images."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        y = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = x + nn.Conv(8, (1, 1))(y)
        z = nn.relu(nn.Conv(12, (3, 3), strides=2)(x))
        w = nn.relu(nn.Conv(6, (1, 1), strides=2)(x))
        x = jnp.concatenate([z, w], -1)
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@functools.cache
def branching(batch=2):
    """Return ``(apply, graph, variables, x)`` of the network."""
    module = Branching()
    x = jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
    variables = module.init(jax.random.key(0), x)

    def apply(variables, x):
        return module.apply(variables, x)

    return apply, trace_graph(apply, variables, x), variables, x


def draw(graph, seed, ratio=0.5):
    """Return gates of zeros and ones, one unit of each group at least kept."""
    generator = np.random.default_rng(seed)
    gates = {}
    for group in graph.groups:
        gate = generator.random(group.size) < ratio
        gate[generator.integers(group.size)] = True
        gates[group.name] = jnp.asarray(gate, jnp.float32)
    return gates


def network_of(apply, graph, variables, *example):
    """Return what costs read of a network."""
    return types.SimpleNamespace(apply=apply, graph=graph, variables=variables, example=example)


class Joining(nn.Module):
    """Norms, a sum, norms over a concatenation, a pooling: what lies between layers."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        y = norm()(nn.Conv(16, (3, 3), strides=2, use_bias=False)(x))
        x = nn.relu(y + nn.Conv(16, (1, 1), strides=2)(x))
        z = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(norm()(jnp.concatenate([x, z], -1)))
        x = nn.relu(norm()(nn.Conv(12, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


@functools.cache
def joining(batch=4):
    """Return ``(apply, graph, variables, x)`` of the network."""
    module = Joining()
    x = jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
    variables = module.init(jax.random.key(0), x)
    return module.apply, trace_graph(module.apply, variables, x), variables, x


def work(function, *arrays):
    """Count what a function computes: MACs of contractions, entries of all arithmetic."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            size = eqn.outvars[0].aval.size
            inner = [p for p in eqn.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
            if eqn.primitive.name == "dot_general":
                (axes, _), _ = eqn.params["dimension_numbers"]
                total += size * np.prod([eqn.invars[0].aval.shape[axis] for axis in axes])
            elif eqn.primitive.name == "conv_general_dilated":
                total += size * eqn.invars[1].aval.size // eqn.invars[1].aval.shape[-1]
            elif eqn.primitive.name.startswith("reduce_"):
                total += eqn.invars[0].aval.size
            elif inner:
                total += sum(count(getattr(each, "jaxpr", each)) for each in inner)
            elif eqn.primitive.name in ARITHMETIC:
                total += size
        return total

    return float(count(jax.make_jaxpr(function)(*arrays).jaxpr))


ARITHMETIC = frozenset(["add", "sub", "mul", "div", "max", "rsqrt", "exp"])
