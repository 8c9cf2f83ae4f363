"""MACs as hardware spends them: channels rounded up to whole tiles."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.extents import Axes, exact_extents, traced_extents
from rlprune_jax.graph.groups import Graph, Layer
from rlprune_jax.types import Gates


class Tile(NamedTuple):
    """Channels that a unit of the hardware takes at once: 8 x 8 of a tensor core in half precision.

    Attributes:
        inputs: multiple that summed-over channels are rounded up to.
        outputs: multiple that produced channels are rounded up to.
    """

    inputs: int = 8
    outputs: int = 8


DEFAULT_TILE = Tile()


def count_tiled_macs(graph: Graph, gates: Gates | None = None, tile: Tile = DEFAULT_TILE) -> int:
    """Return the MACs per example with the channels of every layer rounded up to whole tiles.

    A step function of the widths: removing a channel helps only where it empties a tile. Of a
    grouped convolution the inputs are those of one group; a depthwise one contracts no channels and
    is counted as it is.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.
        tile: of the hardware.

    Raises:
        ValueError: the gates do not fit the graph, or the tile is below 1.
    """
    _check(tile)
    parts = [part for layer in graph.layers for part in _parts(layer)]
    sizes = [math.prod(extents) for extents in exact_extents(graph, parts, gates)]
    total = 0
    for reads, makes, rest in zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True):
        total += rest * _up(reads, tile.inputs) * _up(makes, tile.outputs)
    return total // graph.batch


def tiled_macs_ratio(graph: Graph, tile: Tile = DEFAULT_TILE) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[], tiled MACs left over dense ones.

    Raises:
        ValueError: the tile is below 1.
    """
    _check(tile)
    parts = [part for layer in graph.layers for part in _parts(layer)]
    extents = traced_extents(graph, parts)
    dense = np.array([math.prod(map(len, axes)) for axes in parts], np.float64).reshape(-1, 3)
    multiple = np.array([tile.inputs, tile.outputs, 1], np.float64)
    rounded = np.ceil(dense / multiple) * multiple
    share = rounded.prod(-1)
    share32 = jnp.asarray(share / share.sum(), jnp.float32)
    multiple32, rounded32 = jnp.asarray(multiple, jnp.float32), jnp.asarray(rounded, jnp.float32)

    def ratio(gates: Gates) -> jax.Array:
        sizes = jnp.prod(extents(gates), axis=-1).reshape(-1, 3)
        tiles = jnp.ceil(sizes / multiple32) * multiple32
        return jnp.sum(share32 * jnp.prod(tiles / rounded32, axis=-1))

    return ratio


def _parts(layer: Layer) -> tuple[Axes, Axes, Axes]:
    """Split the factors of a layer into channels read, channels made, and all others."""
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


def _check(tile: Tile) -> None:
    if min(tile) < 1:
        raise ValueError(f"tile={tuple(tile)} must be two integers of at least 1")
