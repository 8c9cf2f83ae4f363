"""Networks that are not in the zoo, random variables and gates, and comparisons made on them."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax import compact, gated, respecialise


class ResidualNetwork(nn.Module):
    """Stem, one plain and one strided block, then average pooling, flatten and a linear head."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm(name="stem_norm")(nn.Conv(4, (3, 3), name="stem")(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for block, (width, stride) in enumerate([(4, 1), (6, 2)]):
            y = nn.relu(norm()(nn.Conv(5, (3, 3), strides=stride, name=f"inner{block}")(x)))
            y = norm()(nn.Conv(width, (3, 3), name=f"outer{block}")(y))
            if x.shape != y.shape:
                x = norm()(nn.Conv(width, (1, 1), strides=stride, name=f"shortcut{block}")(x))
            x = nn.relu(x + y)
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


class DenseNetwork(nn.Module):
    """Each convolution reads all maps before it, concatenated."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for depth, width in enumerate([3, 4, 5]):
            y = nn.BatchNorm(use_running_average=not train)(x)
            y = nn.Conv(width, (3, 3), name=f"conv{depth}")(nn.relu(y))
            x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class SeparableNetwork(nn.Module):
    """Depthwise and grouped convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(nn.Conv(4, (1, 1), name="expand")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=4, name="depthwise")(x))
        x = nn.relu(nn.Conv(6, (1, 1), name="project")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class NormedNetwork(nn.Module):
    """Group norm, layer norm and dropout between dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.gelu(nn.GroupNorm(num_groups=3)(nn.Dense(6, name="grouped")(x)))
        x = nn.silu(nn.LayerNorm()(nn.Dense(5, name="whole")(x)))
        x = jnp.tanh(nn.Dense(7, name="free")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="head")(x)


class TrainedNetwork(nn.Module):
    """No bias stands before a batch norm: its gradient is noise about 0, which Adam amplifies."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in (4, 5):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


def random_variables(module: nn.Module, x: Any) -> Any:
    """Draw variables without running the network; variances are positive."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return random_like(shapes)


def random_like(shapes: Any, seed: int = 1) -> Any:
    """Draw a pytree of these shapes; leaves called ``var`` are positive."""
    generator = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        values = generator.standard_normal(leaf.shape) / np.sqrt(max(2, np.prod(leaf.shape[:-1])))
        if path and "var" in str(path[-1]):
            values = np.abs(values) + 0.5
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_gates(graph: Any, seed: int) -> dict[str, jax.Array]:
    """Draw a gate per unit, as many of each group kept as it needs."""
    generator = np.random.default_rng(seed)
    gates = {}
    for group in graph.groups:
        gate = generator.random(group.size) < 0.5
        gate[generator.integers(group.size)] = True
        # Where a ``top_k`` needs more, the first that are missing.
        gate[np.flatnonzero(~gate)[: max(group.least - int(gate.sum()), 0)]] = True
        gates[group.name] = jnp.asarray(gate, jnp.float32)
    return gates


def images(batch: int = 3, size: int = 8, channels: int = 2) -> jax.Array:
    """Draw images f32[batch, size, size, channels]."""
    return jax.random.normal(jax.random.key(7), (batch, size, size, channels))


def assert_close(first: Any, second: Any, tolerance: float = 1e-4) -> None:
    """Assert that two pytrees have the same shapes, and values equal relative to the largest."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.shape(a) == np.shape(b)
        assert np.isfinite(np.asarray(a)).all()
        scale = 1 + np.abs(np.asarray(a)).max(initial=0)
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


def compile_quickly(function: Any, *args: Any) -> Any:
    """Compile for ``args`` with little optimization: tests run each program once."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*args).compile(options)


def assert_masked_equals_slim(
    apply: Any, graph: Any, variables: Any, gates: Any, *inputs: Any, gradient: bool = True
) -> None:
    """Compare outputs, and gradients of what is kept, of the masked and the slim network.

    ``apply`` returns predictions, or a pair of them and a dictionary of new variables.
    """
    slim = compact(graph, variables, gates)

    def outputs_and_gradient(network: Any, variables: Any) -> Any:
        def value(variables: Any) -> Any:
            outputs = network(variables)
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            return jnp.sum(jnp.sin(first)), outputs

        if not gradient:
            return network(variables), None
        slope, outputs = jax.grad(value, has_aux=True, allow_int=True)(variables)
        return outputs, slope

    def both(variables: Any, slim: Any) -> Any:
        return (
            outputs_and_gradient(lambda v: gated(apply, graph)(v, gates, *inputs), variables),
            outputs_and_gradient(lambda v: respecialise(apply, graph, gates)(v, *inputs), slim),
        )

    (masked, masked_slope), (thin, slim_slope) = compile_quickly(both, variables, slim)(
        variables, slim
    )
    if isinstance(masked, tuple):
        # Updated statistics of pruned units are there in the masked network alone.
        updates = compact(graph, {**variables, **masked[1]}, gates)
        masked = (masked[0], {name: updates[name] for name in masked[1]})
    assert_close(masked, thin)
    if gradient:
        floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(variables)]
        cut = jax.tree.leaves(compact(graph, masked_slope, gates))
        for a, b, real in zip(cut, jax.tree.leaves(slim_slope), floating, strict=True):
            if real:
                assert_close(a, b, 1e-3)
