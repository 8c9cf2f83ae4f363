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

from rlprune_jax.costs.cost import Cost, NetworkLike, without_noise
from rlprune_jax.costs.extents import Axes, exact_extents, traced_extents
from rlprune_jax.costs.options import CostOptions
from rlprune_jax.graph.groups import Graph, check_graph
from rlprune_jax.types import Gates


def count_params(graph: Graph, gates: Gates | None = None) -> int:
    """Count the parameters of the network that the gates leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> count_params(graph), count_params(graph, {"a": jnp.array([1.0, 0, 0, 0, 1])})
        (25, 10)
    """
    check_graph(graph)
    return _count(graph, *_params(graph), gates)


def count_macs(graph: Graph, gates: Gates | None = None) -> int:
    """Count the MACs per example that the gates leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> count_macs(graph), count_macs(graph, {"a": jnp.array([1.0, 0, 0, 0, 1])})
        (25, 10)
    """
    check_graph(graph)
    return _count(graph, *_macs(graph), gates) // graph.batch


def count_weight_bytes(graph: Graph, gates: Gates | None = None) -> int:
    """Count the bytes of all variables that the gates leave.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.

    Raises:
        ValueError: the gates do not fit the graph.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> gates = {"a": jnp.array([1.0, 0, 0, 0, 1])}
        >>> count_weight_bytes(graph), count_weight_bytes(graph, gates)
        (100, 40)
    """
    return _count(graph, *_bytes(graph), gates)


def params_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable fraction of parameters, gates -> f32[]."""
    return _ratio(graph, *_params(graph))


def macs_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable fraction of MACs, gates -> f32[]."""
    return _ratio(graph, *_macs(graph))


def weight_bytes_ratio(graph: Graph) -> Callable[[Gates], jax.Array]:
    """Return the traceable fraction of bytes, gates -> f32[]."""
    return _ratio(graph, *_bytes(graph))


def params_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of parameters."""
    return _cost("parameters", network.graph, count_params, params_ratio)


def macs_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of MACs per example."""
    return _cost("MACs", network.graph, count_macs, macs_ratio)


def weight_bytes_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of bytes of all variables."""
    return _cost("bytes", network.graph, count_weight_bytes, weight_bytes_ratio)


def _cost(
    unit: str,
    graph: Graph,
    count: Callable[[Graph, Gates | None], int],
    ratio: Callable[[Graph], Callable[[Gates], jax.Array]],
) -> Cost:
    return Cost(
        unit=unit,
        dense=count(graph, None),
        estimate=ratio(graph),
        exact=lambda gates: without_noise(count(graph, gates)),
    )


Products = tuple[list[Axes], list[int]]
"""Axes whose sizes are multiplied, and what each product counts."""


def _params(graph: Graph) -> Products:
    return [graph.extents(path) for path in graph.parameters], [1] * len(graph.parameters)


def _macs(graph: Graph) -> Products:
    return [layer.factors for layer in graph.layers], [layer.runs for layer in graph.layers]


def _bytes(graph: Graph) -> Products:
    sizes = [graph.variables[path].dtype.itemsize for path in graph.owners]
    return [graph.extents(path) for path in graph.owners], sizes


def _count(
    graph: Graph, products: Sequence[Axes], weights: Sequence[int], gates: Gates | None
) -> int:
    sizes = [math.prod(extents) for extents in exact_extents(graph, products, gates)]
    return sum(weight * size for weight, size in zip(weights, sizes, strict=True))


def _ratio(
    graph: Graph, products: Sequence[Axes], weights: Sequence[int]
) -> Callable[[Gates], jax.Array]:
    # Relative to the dense sizes every factor stays near one, so float32 neither overflows nor
    # loses the small terms.
    pairs = [
        (axes, each) for axes, each in zip(products, weights, strict=True) if all(map(len, axes))
    ]
    products = [axes for axes, _ in pairs]
    fractions = np.array([each * math.prod(map(len, axes)) for axes, each in pairs], np.float64)
    extents = traced_extents(graph, products)
    width = max(len(axes) for axes in products)
    dense = np.ones((len(products), width))
    for row, axes in enumerate(products):
        dense[row, : len(axes)] = [len(owners) for owners in axes]
    fractions32 = jnp.asarray(fractions / fractions.sum(), jnp.float32)
    dense32 = jnp.asarray(dense, jnp.float32)
    return lambda gates: jnp.sum(fractions32 * jnp.prod(extents(gates) / dense32, axis=-1))
