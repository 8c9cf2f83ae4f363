"""Name the scores of units; random scores, and scores of whole groups.

Taylor and Fisher compare units of different groups; scores of weights and activations rank units
within a group, and between groups once they are normalised (``comparisons``).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_key
from rlprune_jax.graph.groups import Graph
from rlprune_jax.types import Gates

UNIT_SCORES = (
    "taylor",
    "fisher",
    "magnitude",
    "magnitude_l1",
    "lamp",
    "geometric_median",
    "norm_scale",
    "activation",
    "activation_variance",
    "random",
)
"""Names of the scores of units."""


def random_scores(graph: Graph, key: jax.Array) -> Gates:
    """Score units at random, the control of every other score.

    Args:
        graph: of the network.
        key: typed random key.

    Returns:
        Group name -> f32[units], uniform in [0, 1).
    """
    require_key("key", key)
    keys = jax.random.split(key, len(graph.groups))
    return {
        group.name: jax.random.uniform(group_key, (group.size,))
        for group, group_key in zip(graph.groups, keys, strict=True)
    }


def group_scores(
    graph: Graph, scores: Gates, reduce: Callable[[jax.Array], jax.Array] = jnp.sum
) -> jax.Array:
    """Reduce the scores of units to one per group.

    Args:
        graph: of the network.
        scores: group name -> f32[units].
        reduce: ``f32[units] -> f32[]``.

    Returns:
        f32[G], in depth order.
    """
    require_groups(graph, scores)
    return jnp.stack([reduce(scores[name]) for name in graph.names])


def require_groups(graph: Graph, scores: Gates) -> None:
    """Refuse scores that are not one row per group.

    Raises:
        ValueError: naming the first group that is missing, unknown or of another size.
    """
    for name in {**dict.fromkeys(graph.names), **scores}:
        if name not in scores or name not in graph.names:
            which = "lack" if name in graph.names else "hold"
            raise ValueError(
                f"scores {which} the group {name!r}; the groups are {', '.join(graph.names)}"
            )
    for group in graph.groups:
        found = np.shape(scores[group.name])
        if found != (group.size,):
            raise ValueError(f"scores[{group.name!r}] has shape {found}, needs ({group.size},)")


def check_scores(score: str, scores: Gates) -> None:
    """Refuse scores that are not finite.

    Args:
        score: its name, for the message.
        scores: group name -> f32[units]; those that are traced are not looked at.

    Raises:
        ValueError: naming score, group and unit.

    Example:
        >>> try:
        ...     check_scores("mine", {"conv1": np.array([1.0, np.nan])})
        ... except ValueError as error:
        ...     print(str(error).partition(";")[0])
        score='mine' gives nan to unit 1 of group 'conv1'
    """
    for name, values in scores.items():
        if isinstance(values, jax.core.Tracer):
            continue
        row = np.asarray(values)
        bad = np.flatnonzero(~np.isfinite(row))
        if bad.size:
            raise ValueError(
                f"score={score!r} gives {row[bad[0]]} to unit {bad[0]} of group {name!r}; every "
                "unit needs a finite number: look for weights, inputs or a loss that are not finite"
            )
