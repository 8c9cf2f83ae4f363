"""Sizes of axes as functions of gates, exact on the host and float32 inside jit."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.groups import Graph, check_gates, kept_mask
from rlprune_jax.kept import is_kept
from rlprune_jax.types import Gates
from rlprune_jax.units.gates import kept_counts

Axes = tuple[np.ndarray, ...]
"""For each axis of an array the unit that owns each index, int32[size], -1 for none."""


def alive_units(graph: Graph, gates: Gates | None = None) -> np.ndarray:
    """Return which units are kept, bool[units + 1].

    The last entry is True, so that an owner of -1, an index that is always kept, picks it.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.
    """
    if gates is None:
        return np.ones(graph.units + 1, bool)
    check_gates(graph, gates)
    return kept_mask(graph, gates)


def exact_extents(
    graph: Graph, arrays: Sequence[Axes], gates: Gates | None = None
) -> list[tuple[int, ...]]:
    """Return the exact size of every axis of every array.

    Args:
        graph: of the network.
        arrays: owners of each axis.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.
    """
    alive = alive_units(graph, gates)
    return [tuple(int(alive[axis].sum()) for axis in axes) for axes in arrays]


def traced_extents(graph: Graph, arrays: Sequence[Axes]) -> Callable[[Gates], jax.Array]:
    """Return the traceable sizes of all axes.

    Args:
        graph: of the network.
        arrays: owners of each axis.

    Returns:
        Function gates -> f32[arrays, axes]; axes that an array does not have get size 1. Sizes are
        whole numbers, exact below 2**24.
    """
    width = max((len(axes) for axes in arrays), default=0)
    size = np.asarray(graph.sizes, np.float64)
    fixed = np.ones((len(arrays), width))
    per_unit = np.zeros((len(arrays), width, len(graph.groups)))
    group_of = np.append(graph.group_of_unit, -1)
    single, places = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for row, axes in enumerate(arrays):
        for column, owners in enumerate(axes):
            owned = owners[owners >= 0]
            fixed[row, column] = len(owners) - len(owned)
            held = np.bincount(group_of[owned], minlength=len(graph.groups))
            times = np.bincount(owned, minlength=graph.units)
            if (times == (held / size)[graph.group_of_unit]).all():
                per_unit[row, column] = held / size
            else:
                # An axis of some units of a group alone, as what lies in one residual branch.
                single.append(owned)
                places.append(np.full(len(owned), row * width + column, np.int32))
    fixed32, per_unit32 = jnp.asarray(fixed, jnp.float32), jnp.asarray(per_unit, jnp.float32)
    units, segments = np.concatenate(single), np.concatenate(places)

    def extents(gates: Gates) -> jax.Array:
        # At the default precision an accelerator would round counts to a few digits.
        counts = jnp.einsum(
            "lag,g->la", per_unit32, kept_counts(graph, gates), precision=jax.lax.Precision.HIGHEST
        )
        if not len(units):
            return fixed32 + counts
        kept = jnp.concatenate([is_kept(gates[name]) for name in graph.names])
        more = jax.ops.segment_sum(
            kept[units].astype(jnp.float32), segments, num_segments=fixed32.size
        )
        return fixed32 + counts + more.reshape(fixed32.shape)

    return extents
