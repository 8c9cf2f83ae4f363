"""A network with a depthwise convolution, a residual sum and a concatenation, and gates of it."""

import functools

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
