"""MACs as hardware spends them, with channels rounded up to whole tiles."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.cost import Cost, NetworkLike, without_noise
from rlprune_jax.costs.extents import Axes, exact_extents, traced_extents
from rlprune_jax.costs.options import DEFAULT_TILE, CostOptions, Tile, check_tile
from rlprune_jax.graph.groups import Graph, Layer
from rlprune_jax.types import Gates


def count_tiled_macs(graph: Graph, gates: Gates | None = None, tile: Tile = DEFAULT_TILE) -> int:
    """Count the MACs per example in whole tiles of channels.

    A step function of the widths: removing a channel helps only where it empties a tile. Of a
    grouped convolution the inputs are those of one group; a depthwise one contracts no channels and
    is counted as it is.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.
        tile: of the hardware.

    Raises:
        ValueError: the gates do not fit the graph, or the tile is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 20)), "b": jnp.ones((20, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> count_tiled_macs(graph), 8 * 24 + 24 * 8
        (384, 384)
        >>> count_tiled_macs(graph, {"a": jnp.arange(20) < 17}), 8 * 24 + 24 * 8
        (384, 384)
    """
    check_tile(tile)
    parts = [part for layer in graph.layers for part in _parts(layer)]
    sizes = [math.prod(extents) for extents in exact_extents(graph, parts, gates)]
    runs = [layer.runs for layer in graph.layers]
    total = 0
    for run, reads, makes, rest in zip(runs, sizes[::3], sizes[1::3], sizes[2::3], strict=True):
        total += run * rest * _up(reads, tile.inputs) * _up(makes, tile.outputs)
    return total // graph.batch


def tiled_macs_ratio(graph: Graph, tile: Tile = DEFAULT_TILE) -> Callable[[Gates], jax.Array]:
    """Return the traceable fraction of tiled MACs, gates -> f32[].

    Args:
        graph: of the network.
        tile: of the hardware.

    Raises:
        ValueError: the tile is below 1.
    """
    check_tile(tile)
    parts = [part for layer in graph.layers for part in _parts(layer)]
    extents = traced_extents(graph, parts)
    dense = np.array([math.prod(map(len, axes)) for axes in parts], np.float64).reshape(-1, 3)
    multiple = np.array([tile.inputs, tile.outputs, 1], np.float64)
    rounded = np.ceil(dense / multiple) * multiple
    fractions = rounded.prod(-1) * np.array([layer.runs for layer in graph.layers], np.float64)
    fractions32 = jnp.asarray(fractions / fractions.sum(), jnp.float32)
    multiple32, rounded32 = jnp.asarray(multiple, jnp.float32), jnp.asarray(rounded, jnp.float32)

    def ratio(gates: Gates) -> jax.Array:
        sizes = jnp.prod(extents(gates), axis=-1).reshape(-1, 3)
        tiles = jnp.ceil(sizes / multiple32) * multiple32
        return jnp.sum(fractions32 * jnp.prod(tiles / rounded32, axis=-1))

    return ratio


def tiled_macs_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of MACs in tiles of ``options.tile``."""
    graph, tile = network.graph, options.tile
    return Cost(
        unit="MACs",
        dense=count_tiled_macs(graph, None, tile),
        estimate=tiled_macs_ratio(graph, tile),
        exact=lambda gates: without_noise(count_tiled_macs(graph, gates, tile)),
    )


def _parts(layer: Layer) -> tuple[Axes, Axes, Axes]:
    """Split a layer's factors into channels read, made, and others."""
    rest = list(layer.factors)

    def take(wanted: Axes) -> Axes:
        # Axes with the same owners have the same size, so any of them will do.
        taken = []
        for owners in wanted:
            for place in reversed(range(len(rest))):
                if np.array_equal(rest[place], owners):
                    taken.append(rest.pop(place))
                    break
        return tuple(taken)

    # Spatial axes of a kernel come last and must not be taken for channels of the same number.
    spatial = [rest.pop() for _ in layer.kernel]
    reads = take(layer.reads)
    makes = take(layer.makes)
    return reads, makes, (*rest, *spatial)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
