"""How much of what each group's consumers read the kept units span: the retention of a mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_count
from rlprune_jax.graph.groups import Graph, Group, check_gates
from rlprune_jax.graph.matching import Inputs, flat_arguments, match
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.readings import Reading, look_at_readings

RIDGE = 1e-4
"""Damping of the least squares, relative to the mean variance of a group's units."""

LEAST_RIDGE = 1e-5
"""Least damping, relative to the sum of variances: below it float32 is not sure of the sign."""

MOST_UNITS = 4096
"""Units of the largest group whose covariances are kept; larger ones have no retention."""


class Covariances(NamedTuple):
    """Hold how units vary together, of the dense network.

    Attributes:
        of: group name -> f32[units, units], divided by their trace; zeros of a group that never
            varies, which loses nothing. Groups that are read inside of loops alone, or that are
            larger than ``MOST_UNITS``, are not there.
    """

    of: dict[str, jax.Array]


def unit_covariances(
    apply: Apply, graph: Graph, variables: Variables, inputs: Inputs
) -> Covariances:
    """Return the covariances of units as their consumers read them.

    Use it once for a dense network, and ``retention`` for each mask. What is read is after norm,
    activation function and pooling, over examples and positions; of several layers that read a
    group, each counts as much.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense.
        inputs: of ``apply``, a few hundred examples.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), "b": jnp.ones((3, 1))}
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> graph = trace_graph(apply, variables, x)
        >>> found = unit_covariances(apply, graph, variables, (x,))
        >>> (6 * found.of["a"]).tolist()
        [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 4.0]]
    """
    matched = match(apply, graph, variables, inputs)
    wanted = {group.name: group for group in graph.groups if group.size <= MOST_UNITS}
    sums: dict[str, jax.Array] = {}

    def look(reading: Reading) -> None:
        for name, group in wanted.items():
            found = _covariance(reading, group)
            if found is not None:
                sums[name] = sums.get(name, 0.0) + found

    look_at_readings(matched, flat_arguments(variables, inputs), look)
    return Covariances({name: _to_trace_one(found) for name, found in sums.items()})


def _covariance(reading: Reading, group: Group) -> jax.Array | None:
    """Return f32[units, units] of one reading, 0 where a unit is not read; None without any."""
    operand = reading.operand
    if reading.axis < 0 or operand.ndim < 2:
        return None
    own = reading.units - group.first
    places = np.flatnonzero((own >= 0) & (own < group.size))
    if not len(places):
        return None
    read, times = np.unique(own[places], return_counts=True)
    if len(set(times.tolist())) > 1:
        return None  # Units of a group are read equally often by all layers that we know.
    # All places of one unit, such as the positions of a channel that was flattened, are rows.
    order = places[np.argsort(own[places], kind="stable")].reshape(len(read), times[0])
    values = jnp.moveaxis(operand.astype(jnp.float32), reading.axis, -1)[..., order.T]
    values = values.reshape(-1, len(read))
    centred = values - values.mean(0)
    found = _to_trace_one(centred.T @ centred)
    weight = len(read) / group.size
    return jnp.zeros((group.size,) * 2).at[np.ix_(read, read)].set(weight * found)


def _to_trace_one(covariance: jax.Array) -> jax.Array:
    """Divide by the trace; zeros stay zeros."""
    return covariance / jnp.maximum(jnp.trace(covariance), 1e-30)


def retention(graph: Graph, covariances: Covariances, gates: Gates) -> Gates:
    """Return how much of each group's variance kept units explain.

    The fraction of the variance of all units that the best linear function of the kept ones gives:
    1 where nothing is lost, 0 where nothing is left. A layer that keeps little is a bottleneck,
    whatever the others keep, and no training gets around it.

    Args:
        graph: of the network.
        covariances: of the dense network.
        gates: group name -> f32[units]; may be traced, also under ``vmap``.

    Returns:
        Group name -> f32, of the groups that have covariances.

    Raises:
        ValueError: gates that do not fit the graph.
    """
    check_gates(graph, gates)
    by_size: dict[int, list[str]] = {}
    for name, covariance in covariances.of.items():
        by_size.setdefault(len(covariance), []).append(name)
    found: Gates = {}
    for names in by_size.values():
        explained = jax.vmap(_explained)(
            jnp.stack([covariances.of[name] for name in names]),
            jnp.stack([gates[name].astype(jnp.float32) for name in names]),
        )
        found |= dict(zip(names, explained, strict=True))
    return found


def _explained(covariance: jax.Array, gate: jax.Array) -> jax.Array:
    """Return the fraction of the trace that is explained, and 1 of an empty one."""
    ridge = RIDGE / len(covariance) + LEAST_RIDGE
    kept = covariance * gate[:, None]
    among = kept * gate[None] + jnp.diag(jnp.where(gate > 0, ridge, 1.0))
    solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(among), kept)
    alone = jnp.sum(jnp.diag(covariance) * gate)  # what rounding leaves where it is too much
    fraction = jnp.sum(kept * solved)
    fraction = jnp.clip(jnp.where(jnp.isfinite(fraction), fraction, alone), 0.0, 1.0)
    return jnp.where(jnp.trace(covariance) > 0.5, fraction, 1.0)


def mean_retention(found: Gates, power: float = -2.0) -> jax.Array:
    """Return one number of the retention of all groups.

    A power mean, near the smallest: a network keeps what its narrowest layer lets through.

    Args:
        found: group name -> f32 within 0 and 1, as ``retention`` gives; at least one.
        power: of the mean, below 0; the lower, the nearer to the smallest.

    Raises:
        ValueError: no groups.

    Example:
        >>> mean_retention({"a": jnp.float32(0.5), "b": jnp.float32(0.5)}).tolist()
        0.5
    """
    require_count("groups", len(found))
    values = jnp.maximum(jnp.stack(list(found.values())), 1e-3)
    return jnp.mean(values**power) ** (1 / power)
