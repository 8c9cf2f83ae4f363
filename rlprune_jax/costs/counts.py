"""Parameters and MACs of a network as functions of its gates.

One MAC (multiply-accumulate) is two FLOPs. Parameters are the entries of the variables below
``"params"`` (of all variables where there is no such collection); MACs are those of convolutions
and dots, for one example.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.groups import Graph, check_gates
from rlprune_jax.types import Gates


def count_params(graph: Graph, gates: Gates | None = None) -> int:
    """Return the exact number of parameters of the network that ``gates`` leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.
    """
    return _count([graph.owners[path] for path in graph.parameters], graph, gates)


def count_macs(graph: Graph, gates: Gates | None = None) -> int:
    """Return the exact number of MACs per example of the network that ``gates`` leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.
    """
    return _count([layer.factors for layer in graph.layers], graph, gates) // graph.batch


def params_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[], parameters left over dense ones."""
    return _ratio([graph.owners[path] for path in graph.parameters], graph)


def macs_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[], MACs left over dense ones."""
    return _ratio([layer.factors for layer in graph.layers], graph)


def kept_counts(graph: Graph, gates: Gates) -> jax.Array:
    """Return f32[groups], how many units of each group the gates keep (from 0.5)."""
    return jnp.stack([jnp.sum(gates[name] >= 0.5).astype(jnp.float32) for name in graph.names])


def _count(products: Sequence[tuple[np.ndarray, ...]], graph: Graph, gates: Gates | None) -> int:
    alive = np.ones(graph.units + 1, bool)
    if gates is not None:
        check_gates(graph, gates)
        alive[:-1] = np.concatenate([np.asarray(gates[name]) >= 0.5 for name in graph.names])
    return sum(math.prod(int(alive[axis].sum()) for axis in axes) for axes in products)


def _ratio(
    products: Sequence[tuple[np.ndarray, ...]], graph: Graph
) -> Callable[[Gates], jax.Array]:
    # An axis keeps a fixed number of indices and, per kept unit of a group, so many more; relative
    # to the dense size both stay near one, so float32 neither overflows nor loses the small terms.
    size = np.asarray(graph.sizes, np.float64)
    width = max(len(axes) for axes in products)
    share = np.array([math.prod(map(len, axes)) for axes in products], np.float64)
    fixed = np.ones((len(products), width))
    per_unit = np.zeros((len(products), width, len(graph.groups)))
    group_of = np.append(graph.group_of_unit, -1)
    for row, axes in enumerate(products):
        for column, owners in enumerate(axes):
            if len(owners):
                fixed[row, column] = np.mean(owners < 0)
                held = np.bincount(group_of[owners[owners >= 0]], minlength=len(graph.groups))
                per_unit[row, column] = held / size / len(owners)
    keep = share > 0
    share32 = jnp.asarray(share[keep] / share.sum(), jnp.float32)
    fixed32 = jnp.asarray(fixed[keep], jnp.float32)
    per_unit32 = jnp.asarray(per_unit[keep], jnp.float32)

    def ratio(gates: Gates) -> jax.Array:
        extents = fixed32 + jnp.einsum("lag,g->la", per_unit32, kept_counts(graph, gates))
        return jnp.sum(share32 * jnp.prod(extents, axis=-1))

    return ratio
