"""Score units by their activations: mean absolute value, variance."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_choice
from rlprune_jax.graph.groups import Graph, Group
from rlprune_jax.graph.matching import Inputs, Matched, flat_arguments, match
from rlprune_jax.graph.program import Value
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.comparisons import Normaliser, normalise_scores
from rlprune_jax.units.readings import Reading, look_at_readings
from rlprune_jax.units.weight_scores import SlotReduction, reduce_slots

ActivationStatistic = Literal["absolute", "variance"]
"""What is taken of an activation over examples and positions."""


def activation_scores(
    apply: Apply,
    graph: Graph,
    variables: Variables,
    inputs: Inputs,
    *,
    statistic: ActivationStatistic = "absolute",
    reduction: SlotReduction = "mean",
    normaliser: Normaliser = "mean",
) -> Gates:
    """Score units by what their consumers read of them.

    That is after norm, activation function and pooling: the mean absolute value over examples and
    positions, or the variance, which is what is lost where a removed unit is replaced by its mean.
    Of a residual branch it is what the branch adds.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense.
        inputs: of ``apply``, a few hundred examples.
        statistic: ``"absolute"`` or ``"variance"``.
        reduction: over the layers that read a unit.
        normaliser: as in ``normalise_scores``.

    Returns:
        Group name -> f32[units].

    Raises:
        ValueError: an unknown option, or a group that is read inside of loops alone.

    Reference:
        Hu et al. 2016, "Network Trimming", for the mean; the variance as in Variance-Based
        Pruning (2025).

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
        >>> x = jnp.array([[1.0, 3.0], [-1.0, 3.0]])
        >>> graph = trace_graph(apply, variables, x)
        >>> for statistic in ("absolute", "variance"):
        ...     found = activation_scores(apply, graph, variables, (x,), statistic=statistic,
        ...                               normaliser="none")
        ...     print(found["a"].tolist())
        [1.0, 3.0]
        [1.0, 0.0]
    """
    require_choice("statistic", statistic, get_args(ActivationStatistic))
    matched = match(apply, graph, variables, inputs)
    found = _statistics(matched, flat_arguments(variables, inputs), graph.units, statistic)
    scores = {}
    for group in graph.groups:
        each = _of_group(found, group)
        if not each:
            raise ValueError(
                f"score='activation' finds no layer that reads the units of {group.name!r} but "
                "inside of a loop; choose a score of gradients, such as 'fisher'"
            )
        scores[group.name] = reduce_slots(each, reduction)
    return normalise_scores(graph, scores, normaliser)


class _Found(NamedTuple):
    """Hold what one reading gives: f32[units], bool[units] where it has any."""

    values: jax.Array
    there: np.ndarray
    is_reduction: bool


def _of_group(found: list[_Found], group: Group) -> list[jax.Array]:
    """Return what each layer that reads a group gives, f32[units] each."""
    own = slice(group.first, group.first + group.size)
    for reductions in (False, True):
        readings = [each for each in found if each.is_reduction == reductions]
        whole = [each.values[own] for each in readings if each.there[own].all()]
        if whole:
            return whole
        if readings and np.any([each.there[own] for each in readings], axis=0).all():
            # Each layer reads some of the units, as after a split.
            times = np.sum([each.there[own] for each in readings], axis=0)
            return [jnp.stack([each.values[own] for each in readings]).sum(0) / times]
    return []


def _statistics(
    matched: Matched, arguments: list[Value], count: int, statistic: str
) -> list[_Found]:
    """Return what each reading gives of ``count`` units."""
    found: list[_Found] = []

    def look(reading: Reading) -> None:
        values = _of_axis(reading.operand, reading.axis, statistic)
        owned = np.flatnonzero(reading.units >= 0)
        times = np.bincount(reading.units[owned], minlength=count)
        total = jnp.zeros(count).at[reading.units[owned]].add(values[owned])
        found.append(_Found(total / np.maximum(times, 1), times > 0, reading.is_reduction))

    look_at_readings(matched, arguments, look)
    return found


def _of_axis(operand: jax.Array, axis: int, statistic: str) -> jax.Array:
    """Return the statistic over all other axes; over all of them where the axis is -1."""
    values = operand.astype(jnp.float32)
    values = values.reshape(-1, 1) if axis < 0 else jnp.moveaxis(values, axis, -1)
    values = values.reshape(-1, values.shape[-1])
    return jnp.abs(values).mean(0) if statistic == "absolute" else values.var(0)
