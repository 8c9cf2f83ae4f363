"""Traceable estimates of costs that only the host knows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.counts import macs_ratio
from rlprune_jax.graph.groups import Graph
from rlprune_jax.types import Gates

UNIFORM_RATIOS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Keep ratios of the networks that a cost is interpolated between; 0 keeps one unit."""


def interpolate_uniform(
    graph: Graph, cost: Callable[[Gates], float], dense: float
) -> Callable[[Gates], jax.Array]:
    """Return a traceable estimate of a cost of the host.

    The cost is asked for networks that keep the same fraction of every group, and interpolated
    between them by the fraction of MACs that is left. The estimate never falls when a unit is
    added, so a search can project candidates on a limit with it.

    Args:
        graph: of the network.
        cost: of concrete gates, 0 or more.
        dense: what the result is divided by; 0 stands for 1.

    Returns:
        Function gates -> f32[], the estimated cost over ``dense``.

    Raises:
        CostError: the cost fails on one of the uniform networks.
    """
    ratio = macs_ratio(graph)
    fractions: list[float] = []
    values: list[float] = []
    for keep in UNIFORM_RATIOS:
        gates = {
            group.name: jnp.asarray(
                np.arange(group.size) < max(1, round(keep * group.size)), jnp.float32
            )
            for group in graph.groups
        }
        fractions.append(float(ratio(gates)))
        values.append(cost(gates))
    x = jnp.asarray(fractions, jnp.float32)
    y = jnp.asarray(np.maximum.accumulate(values) / (dense or 1.0), jnp.float32)
    return lambda gates: jnp.interp(ratio(gates), x, y)
