"""A weight goes with a unit exactly where its gradient is zero while the unit's gate is 0."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compile_quickly, images, random_variables

from rlprune_jax import gated, ones_gates, trace_graph
from rlprune_jax.pytree import flatten_with_paths


class Smooth(nn.Module):
    """Activations without flat parts, so that only pruning makes a gradient exactly zero."""

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.Conv(4, (3, 3))(x))
        if self.kind == "residual":
            y = nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3))(x))
            x = jnp.tanh(x + nn.Conv(4, (1, 1))(jnp.tanh(y)))
        elif self.kind == "concat":
            x = jnp.concatenate(
                [x, jnp.tanh(nn.Conv(3, (3, 3), strides=2)(x)).repeat(2, 1).repeat(2, 2)], -1
            )
        elif self.kind == "depthwise":
            x = jnp.tanh(nn.Conv(8, (3, 3), feature_group_count=4)(x))
        elif self.kind == "grouped":
            x = jnp.tanh(nn.Conv(6, (3, 3), feature_group_count=2)(x))
        elif self.kind == "normed":
            x = jnp.tanh(nn.GroupNorm(2)(nn.Conv(4, (1, 1))(x)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("kind", ["plain", "residual", "concat", "depthwise", "grouped", "normed"])
def test_owned_weights_are_those_without_gradient(kind):
    module, x = Smooth(kind), images(size=4)
    variables = random_variables(module, x)

    def apply(variables, x):
        return module.apply(variables, x)

    graph = trace_graph(apply, variables, x)

    def gradient(gates):
        def loss(params):
            return jnp.sin(gated(apply, graph)({**variables, "params": params}, gates, x)).sum()

        return {"params": jax.grad(loss)(variables["params"])}

    # All units at once: candidate number u prunes unit u alone.
    one_less = 1 - jnp.eye(graph.units)
    gates = {
        group.name: one_less[:, group.first : group.first + group.size] for group in graph.groups
    }
    slopes = compile_quickly(jax.vmap(gradient), gates)(gates)
    dense = compile_quickly(gradient, ones_gates(graph))(ones_gates(graph))
    for path, slope in flatten_with_paths(slopes).items():
        assert (np.asarray(flatten_with_paths(dense)[path]) != 0).all(), path
        for unit in range(graph.units):
            owned = np.zeros(slope.shape[1:], bool)
            for axis, owners in enumerate(graph.owners[path]):
                shape = [1] * owned.ndim
                shape[axis] = -1
                owned |= (owners == unit).reshape(shape)
            np.testing.assert_array_equal(np.asarray(slope[unit]) == 0, owned, err_msg=path)
