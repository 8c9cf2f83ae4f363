"""Features of groups that an agent sees: place, size, surroundings, part of the costs."""

import math

import numpy as np

from rlprune_jax.graph.groups import Graph

FEATURES = (
    "depth",
    "log2_units",
    "log2_fan_in",
    "log2_kernel_area",
    "log2_positions",
    "makers",
    "readers",
    "params_share",
    "macs_share",
)
"""Names of the columns of ``layer_descriptors``."""


def layer_descriptors(graph: Graph) -> np.ndarray:
    """Describe each group by numbers near 1.

    Fan-in, kernel and positions are those of the first layer that makes the group's units; a
    group's fraction of a cost is what the dense network would save without the group.

    Args:
        graph: of the network.

    Returns:
        f32[G, 9], one row per group in depth order, one column per name in ``FEATURES``.
    """
    units = [np.arange(group.first, group.first + group.size) for group in graph.groups]
    params = _fractions(graph, [(1, graph.extents(path)) for path in graph.parameters])
    macs = _fractions(graph, [(layer.runs, layer.factors) for layer in graph.layers])
    rows = []
    for number, group in enumerate(graph.groups):
        makers = [
            layer
            for layer in graph.layers
            if any(np.isin(units[number], made).any() for made in layer.makes)
        ]
        readers = [
            layer
            for layer in graph.layers
            if any(np.isin(units[number], read).any() for read in layer.reads)
        ]
        first = makers[0] if makers else None
        fan_in = math.prod(len(read) for read in first.reads[-1:]) if first else 1
        rows.append(
            [
                (number + 1) / len(graph.groups),
                math.log2(group.size) / 10,
                math.log2(max(fan_in, 1)) / 10,
                math.log2(max(math.prod(first.kernel), 1)) / 4 if first else 0.0,
                math.log2(max(math.prod(first.space), 1)) / 10 if first else 0.0,
                len(makers) / 4,
                len(readers) / 4,
                params[number],
                macs[number],
            ]
        )
    return np.asarray(rows, np.float32)


def _fractions(graph: Graph, products: list[tuple[int, tuple[np.ndarray, ...]]]) -> np.ndarray:
    total = sum(times * math.prod(map(len, axes)) for times, axes in products)
    fractions = []
    for group in graph.groups:
        alive = np.ones(graph.units + 1, bool)
        alive[group.first : group.first + group.size] = False
        left = sum(
            times * math.prod(int(alive[axis].sum()) for axis in axes) for times, axes in products
        )
        fractions.append(1 - left / max(total, 1))
    return np.asarray(fractions)
