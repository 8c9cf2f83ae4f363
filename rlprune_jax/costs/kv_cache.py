"""Bytes of keys and values that a decoder keeps for each token of its context.

A decoder that writes token after token keeps what its attention reads of the tokens before: for
each layer the keys and the values, whatever the weights that make them are called. The cache of a
context of T tokens has T times so many bytes.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.cost import Cost, NetworkLike, without_noise
from rlprune_jax.costs.extents import Axes, exact_extents, traced_extents
from rlprune_jax.costs.options import KV_LAYERS, CostOptions
from rlprune_jax.graph.groups import Graph, Layer
from rlprune_jax.types import Gates


class KeysAndValues(NamedTuple):
    """Hold the layers that make keys and values.

    Attributes:
        names: of the layers, as in ``Graph.layers``.
        made: for each of them what it makes for a token, by the unit that owns each index: the axes
            of its weights but for those that are summed over.
        weights: bytes of an entry, times the uses of weights that are used again and again.
    """

    names: tuple[str, ...]
    made: tuple[Axes, ...]
    weights: tuple[int, ...]


def find_keys_and_values(graph: Graph, layers: str = KV_LAYERS) -> KeysAndValues:
    """Find the layers that make keys and values.

    Args:
        graph: of the network.
        layers: regular expression, searched for in the paths of the layers, without collection and
            leaf name, as in ``"block1/attention/key"``.

    Raises:
        ValueError: no regular expression, one that no layer with weights matches, or weights whose
            axes cannot be told apart.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["key"]) @ variables["out"]
        >>> variables = {"key": jnp.ones((3, 5)), "out": jnp.ones((5, 2))}
        >>> find_keys_and_values(trace_graph(apply, variables, jnp.ones((1, 3)))).names
        ('key',)
    """
    try:
        expression = re.compile(layers)
    except re.error as error:
        raise ValueError(f"kv_layers={layers!r} is no regular expression: {error}") from None
    made = [layer for layer in graph.layers if layer.makes]
    found = [layer for layer in made if expression.search(layer.name)]
    if not found:
        known = ", ".join(dict.fromkeys(layer.name for layer in made))
        raise ValueError(
            f"kv_layers={layers!r} matches no layer, so there is nothing to count for "
            f"kv_cache_bytes; layers are {known}; name those that make keys and values by a "
            "regular expression"
        )
    uses = Counter(layer.name for layer in found)
    by_name = {layer.name: layer for layer in found}
    weights = []
    for name, layer in by_name.items():
        variable = graph.variables[_weights_of(graph, name)]
        entries = math.prod(map(len, (*layer.reads, *layer.makes)))
        # Stacked layers are one contraction in a loop, or as many as layers where it is unrolled;
        # weights that are not stacked are cached wherever they are used.
        again = max(1, uses[name] * entries // variable.size)
        weights.append(variable.dtype.itemsize * again)
    return KeysAndValues(
        names=tuple(by_name),
        made=tuple(_made(graph, layer) for layer in by_name.values()),
        weights=tuple(weights),
    )


def _made(graph: Graph, layer: Layer) -> Axes:
    """Return the axes of a layer's weights, stacked layers too, but for those summed over."""
    left = list(graph.extents(_weights_of(graph, layer.name)))
    for owners in layer.reads:
        # Axes with the same owners have the same size, so any of them will do.
        place = next((i for i, axis in enumerate(left) if np.array_equal(axis, owners)), None)
        if place is None:
            raise ValueError(
                f"the weights of {layer.name!r} are reshaped before they make keys and values, so "
                "kv_cache_bytes cannot tell which of their axes these are; store them with an axis "
                "of its own for what is summed over"
            )
        del left[place]
    return tuple(left)


def _weights_of(graph: Graph, name: str) -> str:
    """Return the path of a layer's weights, the greatest variable below its name."""

    def is_below(path: str) -> bool:
        return f"{path.removeprefix('params/')}/".startswith(f"{name}/")

    return max(filter(is_below, graph.variables), key=lambda path: graph.variables[path].size)


def count_kv_cache_bytes(graph: Graph, gates: Gates | None = None, layers: str = KV_LAYERS) -> int:
    """Count the bytes of keys and values of a token.

    They are counted in the type of the weights that make them.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps all.
        layers: regular expression of the layers that make them.

    Raises:
        ValueError: the gates do not fit the graph, or no layer matches.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["key"]) @ variables["out"]
        >>> variables = {"key": jnp.ones((3, 5)), "out": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> gates = {"key": jnp.array([1.0, 0, 0, 0, 1])}
        >>> count_kv_cache_bytes(graph), count_kv_cache_bytes(graph, gates)
        (20, 8)
    """
    found = find_keys_and_values(graph, layers)
    sizes = [math.prod(extents) for extents in exact_extents(graph, found.made, gates)]
    return sum(weight * size for weight, size in zip(found.weights, sizes, strict=True))


def kv_cache_bytes_ratio(graph: Graph, layers: str = KV_LAYERS) -> Callable[[Gates], jax.Array]:
    """Return the traceable fraction of these bytes, gates -> f32[].

    Args:
        graph: of the network.
        layers: regular expression of the layers that make keys and values.

    Raises:
        ValueError: no layer matches.
    """
    found = find_keys_and_values(graph, layers)
    extents = traced_extents(graph, found.made)
    dense = jnp.asarray([math.prod(map(len, axes)) for axes in found.made], jnp.float32)
    bytes_of = dense * jnp.asarray(found.weights, jnp.float32)
    fractions = bytes_of / bytes_of.sum()
    return lambda gates: jnp.sum(fractions * jnp.prod(extents(gates), axis=-1) / dense)


def kv_cache_bytes_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of keys and values of a token."""
    graph, layers = network.graph, options.kv_layers
    return Cost(
        unit="bytes",
        dense=count_kv_cache_bytes(graph, None, layers),
        estimate=kv_cache_bytes_ratio(graph, layers),
        exact=lambda gates: without_noise(count_kv_cache_bytes(graph, gates, layers)),
    )
