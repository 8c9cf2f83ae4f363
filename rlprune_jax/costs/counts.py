"""Parameters, bytes of weights and MACs of a network as functions of its gates.

One MAC (multiply-accumulate) is two FLOPs. Parameters are the entries of the variables below
``"params"`` (of all variables where there is no such collection); bytes are those of all variables,
running statistics included; MACs are those of convolutions and dots, for one example.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.extents import Axes, exact_extents, traced_extents
from rlprune_jax.graph.groups import Graph
from rlprune_jax.types import Gates


def count_params(graph: Graph, gates: Gates | None = None) -> int:
    """Return the exact number of parameters of the network that ``gates`` leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.
    """
    return _count(graph, [graph.owners[path] for path in graph.parameters], gates)


def count_macs(graph: Graph, gates: Gates | None = None) -> int:
    """Return the exact number of MACs per example of the network that ``gates`` leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.
    """
    return _count(graph, [layer.factors for layer in graph.layers], gates) // graph.batch


def count_weight_bytes(graph: Graph, gates: Gates | None = None) -> int:
    """Return the exact number of bytes of all variables of the network that ``gates`` leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.
    """
    return _count(graph, list(graph.owners.values()), gates, _item_sizes(graph))


def params_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[], parameters left over dense ones."""
    return _ratio(graph, [graph.owners[path] for path in graph.parameters])


def macs_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[], MACs left over dense ones."""
    return _ratio(graph, [layer.factors for layer in graph.layers])


def weight_bytes_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[], bytes of variables left over dense ones."""
    return _ratio(graph, list(graph.owners.values()), _item_sizes(graph))


def _item_sizes(graph: Graph) -> list[int]:
    return [graph.variables[path].dtype.itemsize for path in graph.owners]


def _count(
    graph: Graph,
    products: Sequence[Axes],
    gates: Gates | None,
    weights: Sequence[int] | None = None,
) -> int:
    sizes = [math.prod(extents) for extents in exact_extents(graph, products, gates)]
    weights = [1] * len(sizes) if weights is None else weights
    return sum(weight * size for weight, size in zip(weights, sizes, strict=True))


def _ratio(
    graph: Graph, products: Sequence[Axes], weights: Sequence[int] | None = None
) -> Callable[[Gates], jax.Array]:
    # Relative to the dense sizes every factor stays near one, so float32 neither overflows nor
    # loses the small terms.
    weights = [1] * len(products) if weights is None else weights
    pairs = [
        (axes, each) for axes, each in zip(products, weights, strict=True) if all(map(len, axes))
    ]
    products = [axes for axes, _ in pairs]
    share = np.array([each * math.prod(map(len, axes)) for axes, each in pairs], np.float64)
    extents = traced_extents(graph, products)
    width = max(len(axes) for axes in products)
    dense = np.ones((len(products), width))
    for row, axes in enumerate(products):
        dense[row, : len(axes)] = [len(owners) for owners in axes]
    share32 = jnp.asarray(share / share.sum(), jnp.float32)
    dense32 = jnp.asarray(dense, jnp.float32)
    return lambda gates: jnp.sum(share32 * jnp.prod(extents(gates) / dense32, axis=-1))
