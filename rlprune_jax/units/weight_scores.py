"""Score units by their weights alone: norms, LAMP, distances to one another."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require_above, require_choice
from rlprune_jax.graph.groups import PRODUCER, Graph, Group, Slot
from rlprune_jax.graph.matching import check_variables
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.units.comparisons import Normaliser, normalise_scores

SlotReduction = Literal["sum", "mean", "max", "first"]
"""How the scores of a unit's coupled slots become one."""

_Flat = dict[str, PyTree]


def magnitude_scores(
    graph: Graph,
    variables: Variables,
    *,
    norm: float = 2.0,
    reduction: SlotReduction = "sum",
    normaliser: Normaliser = "mean",
) -> Gates:
    """Score units by the norm of their weights.

    Groups with several producers (a residual stream) reduce their sums of ``|w|^norm`` to one, of
    which the root is taken. Filters' norms grow with fan-in, so across groups each is divided by
    the group's mean.

    Args:
        graph: of the network.
        variables: dense.
        norm: 2 or 1, or any number above 0.
        reduction: over producers; ``"sum"`` is the norm of all weights together.
        normaliser: as in ``normalise_scores``.

    Returns:
        Group name -> f32[units].

    Raises:
        ValueError: a norm that is not above 0, or an unknown reduction or normaliser.

    Reference:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets" (with L1).

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.array([[3.0, 0.0], [4.0, -1.0]]), "b": jnp.ones((2, 1))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 2)))
        >>> magnitude_scores(graph, variables, norm=1, normaliser="none")["a"].tolist()
        [7.0, 1.0]
    """
    require_above("norm", norm)
    check_variables(graph, variables)
    flat = flatten_with_paths(variables)
    scores = {
        group.name: reduce_slots(_power_sums(group, flat, norm), reduction) ** (1 / norm)
        for group in graph.groups
    }
    return normalise_scores(graph, scores, normaliser)


def lamp_scores(graph: Graph, variables: Variables, *, reduction: SlotReduction = "sum") -> Gates:
    """Score units by LAMP, layer-adaptive magnitude.

    A unit's squared norm over the sum of those of its group that are no smaller. It compares units
    across groups and keeps one of every group longest.

    Args:
        graph: of the network.
        variables: dense.
        reduction: over producers.

    Returns:
        Group name -> f32[units] in [0, 1].

    Reference:
        Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", eq. 1, with
        units in place of weights.
    """
    check_variables(graph, variables)
    flat = flatten_with_paths(variables)
    squares = {
        group.name: reduce_slots(_power_sums(group, flat, 2.0), reduction) for group in graph.groups
    }
    return normalise_scores(graph, squares, "lamp")


def geometric_median_scores(
    graph: Graph,
    variables: Variables,
    *,
    reduction: SlotReduction = "sum",
    normaliser: Normaliser = "mean",
) -> Gates:
    """Score units by their distance from the others (FPGM).

    The sum of the Euclidean distances of a unit's weights to those of all units of its group: what
    lies near the geometric median is replaced best by what remains. Residual branches, whose
    variables have no common shape, score as ``magnitude_scores``.

    Args:
        graph: of the network.
        variables: dense.
        reduction: over producers.
        normaliser: as in ``normalise_scores``.

    Returns:
        Group name -> f32[units].

    Reference:
        He et al. 2019, "Filter Pruning via Geometric Median", eq. 5.
    """
    check_variables(graph, variables)
    flat = flatten_with_paths(variables)
    scores = {}
    for group in graph.groups:
        if group.branches:
            each = [jnp.sqrt(power) for power in _power_sums(group, flat, 2.0)]
        else:
            each = [_distances(rows) for rows in _rows(group, flat)]
        scores[group.name] = reduce_slots(each or [jnp.zeros(group.size)], reduction)
    return normalise_scores(graph, scores, normaliser)


def reduce_slots(scores: Sequence[jax.Array], reduction: SlotReduction) -> jax.Array:
    """Reduce the scores of coupled slots to one.

    Args:
        scores: f32[units] of each slot.
        reduction: sum, mean, max or first.

    Raises:
        ValueError: an unknown reduction.
    """
    require_choice("reduction", reduction, get_args(SlotReduction))
    if reduction == "first":
        return scores[0]
    stacked = jnp.stack(list(scores))
    if reduction == "max":
        return stacked.max(0)
    return stacked.sum(0) if reduction == "sum" else stacked.mean(0)


def _rows(group: Group, flat: _Flat) -> list[jax.Array]:
    """Return the weights that each producer gives to each unit, f32[units, weights] each.

    A step of a loop owns slices of many variables, which are one producer together.
    """
    if group.are_layers:
        return [jnp.concatenate([_slot_rows(group, flat, slot) for slot in group.slots], axis=1)]
    return [_slot_rows(group, flat, slot) for slot in group.slots_of(PRODUCER)]


def _slot_rows(group: Group, flat: _Flat, slot: Slot) -> jax.Array:
    weights = jnp.moveaxis(jnp.asarray(flat[slot.path], jnp.float32), slot.axis, 0)
    return weights.reshape(weights.shape[0], -1)[slot.indices].reshape(group.size, -1)


def _power_sums(group: Group, flat: _Flat, norm: float) -> list[jax.Array]:
    """Return the sums of ``|w|^norm`` of each producer, f32[units] each.

    Of layers and branches, whose numbers of weights may differ, the mean.
    """
    if group.branches:
        return [
            jnp.stack([_mean_power([flat[path] for path in each], norm) for each in group.branches])
        ]
    powers = [_power(rows, norm) for rows in _rows(group, flat)]
    if group.are_layers:
        return [each.mean(1) for each in powers]
    return [each.sum(1) for each in powers] or [jnp.zeros(group.size)]


def _power(values: jax.Array, norm: float) -> jax.Array:
    return jnp.square(values) if norm == 2.0 else jnp.abs(values) ** norm


def _mean_power(arrays: list[PyTree], norm: float) -> jax.Array:
    total = sum(jnp.sum(_power(jnp.asarray(each, jnp.float32), norm)) for each in arrays)
    return jnp.asarray(total / sum(jnp.size(each) for each in arrays))


def _distances(rows: jax.Array) -> jax.Array:
    """Return each row's sum of distances to all rows, f32[units]."""
    # Row by row: the closed form by a Gram matrix loses what lies close together.
    return jax.lax.map(lambda row: jnp.sqrt(jnp.sum(jnp.square(rows - row), axis=1)).sum(), rows)
