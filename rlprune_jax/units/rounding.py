"""Numbers of units that hardware likes: gates rounded to multiples, with a least number kept."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.groups import Graph, Group, check_gates
from rlprune_jax.types import Gates

PerGroup = int | Mapping[str, int]
"""One number for all groups, or group name -> number, 1 for a group that is not named."""


def round_gates(
    graph: Graph,
    gates: Gates,
    *,
    round_to: PerGroup = 1,
    min_keep: PerGroup = 1,
    priorities: Gates | None = None,
    towards: Literal["fewer", "more"] = "fewer",
) -> Gates:
    """Change as few gates as it takes to keep a multiple of ``round_to`` units of each group.

    A unit counts as kept from 0.5. Units are taken away in the order of rising priority and put
    back in that of falling priority, the first of equals staying. A group of fewer units than the
    multiple above its limits keeps all that it has. With ``towards="fewer"`` no group grows but to
    reach ``min_keep`` or the first multiple, so costs that fall with units only fall.

    Args:
        graph: of the network.
        gates: group name -> f32[..., units], the same leading axes for all; may be traced.
        round_to: multiples of how many units.
        min_keep: least units kept, rounded up to the multiple.
        priorities: group name -> f32[..., units], broadcast against the gates; none for gates.
        towards: whether a number between two multiples goes down or up.

    Returns:
        Group name -> f32[..., units] of 0 and 1.

    Raises:
        ValueError: gates, priorities or names that do not fit the graph, a number below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> graph = trace_graph(
        ...     apply, {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}, jnp.ones((1, 3))
        ... )
        >>> gates = {"a": jnp.array([1.0, 0, 1, 1, 1, 1])}
        >>> round_gates(graph, gates, round_to=4)["a"].tolist()
        [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    """
    if towards not in ("fewer", "more"):
        raise ValueError(f"towards={towards!r} must be 'fewer' or 'more'")
    multiples = _per_group(graph, "round_to", round_to)
    least = _per_group(graph, "min_keep", min_keep)
    unbatched = {
        name: gate[(0,) * (jnp.ndim(gate) - 1)] if jnp.ndim(gate) > 1 else gate
        for name, gate in gates.items()
    }
    check_gates(graph, unbatched)
    if priorities is not None and set(priorities) != set(graph.names):
        raise ValueError(
            f"priorities must name the groups of the graph, {', '.join(graph.names)}; "
            f"got {', '.join(priorities)}"
        )
    rounded = {}
    for group in graph.groups:
        priority = gates[group.name] if priorities is None else priorities[group.name]
        rounded[group.name] = _round(
            group, gates[group.name], priority, multiples[group.name], least[group.name], towards
        )
    return rounded


def _round(
    group: Group, gate: jax.Array, priority: jax.Array, multiple: int, least: int, towards: str
) -> jax.Array:
    if np.shape(priority)[-1:] != (group.size,):
        raise ValueError(
            f"priorities[{group.name!r}] has shape {np.shape(priority)}, needs (..., {group.size})"
        )
    kept = jnp.asarray(gate) >= 0.5
    count = kept.sum(-1, keepdims=True, dtype=jnp.int32)
    up = multiple - 1 if towards == "more" else 0
    lowest = min(-(-least // multiple) * multiple, group.size)
    wanted = jnp.clip((count + up) // multiple * multiple, lowest, group.size)
    # Where all are kept they stay: a size that is no multiple is nobody's choice.
    wanted = jnp.where(count == group.size, count, wanted)
    order = jnp.lexsort((-jnp.broadcast_to(priority, kept.shape), ~kept))
    place = jnp.argsort(order, axis=-1)
    return (place < wanted).astype(jnp.float32)


def _per_group(graph: Graph, argument: str, value: PerGroup) -> dict[str, int]:
    given = value if isinstance(value, Mapping) else dict.fromkeys(graph.names, value)
    unknown = set(given) - set(graph.names)
    if unknown:
        raise ValueError(
            f"{argument} names {', '.join(sorted(unknown))}; the graph has the groups "
            f"{', '.join(graph.names)}"
        )
    for name, number in given.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(
                f"{argument}={number!r} of group {name!r} must be an integer of at least 1"
            )
    return {name: given.get(name, 1) for name in graph.names}
