"""Gates from widths, scores and ranks, and widths from gates."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_type, shown
from rlprune_jax.graph.groups import Graph, Group, check_gates, check_graph
from rlprune_jax.kept import is_kept as is_kept
from rlprune_jax.kept import rank as rank
from rlprune_jax.per_group import PerGroup, per_group
from rlprune_jax.types import Gates


def keep_first(graph: Graph, widths: PerGroup) -> Gates:
    """Return gates that keep the first units of each group.

    Use it where only the number of units matters, as for costs.

    Args:
        graph: of the network.
        widths: how many, at least 0; a number above a group's size keeps all of it.

    Returns:
        Group name -> f32[units] of 0 and 1.

    Raises:
        TypeError: ``widths`` are none of the kinds that ``per_group`` reads.
        ValueError: they do not fit the groups, leave one out, or one is negative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> graph = trace_graph(
        ...     apply, {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
        ... )
        >>> keep_first(graph, {"a": 3})["a"].tolist()
        [1.0, 1.0, 1.0, 0.0]
    """
    wanted = per_group(graph.names, "widths", widths, default=None, least=0)
    return {
        group.name: jnp.asarray(np.arange(group.size) < wanted[group.name], jnp.float32)
        for group in graph.groups
    }


def keep_best(graph: Graph, scores: Gates, widths: PerGroup) -> Gates:
    """Return gates that keep the units of highest score.

    Args:
        graph: of the network.
        scores: group name -> f32[units]; the first of equals is kept, NaN goes first. May be
            traced.
        widths: how many of each group, at least 0; a number above a group's size keeps all of it.

    Returns:
        Group name -> f32[units] of 0 and 1.

    Raises:
        TypeError: ``widths`` are none of the kinds that ``per_group`` reads.
        ValueError: scores or widths do not fit the groups.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> graph = trace_graph(
        ...     apply, {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
        ... )
        >>> keep_best(graph, {"a": jnp.array([1.0, 3.0, 2.0, 3.0])}, 2)["a"].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    _check_names(graph, "scores", scores)
    wanted = per_group(graph.names, "widths", widths, default=None, least=0)
    gates = {}
    for group in graph.groups:
        if np.shape(scores[group.name]) != (group.size,):
            raise ValueError(
                f"scores[{group.name!r}] has shape {np.shape(scores[group.name])}, "
                f"needs ({group.size},)"
            )
        gates[group.name] = jnp.asarray(rank(scores[group.name]) < wanted[group.name], jnp.float32)
    return gates


def smallest_gates(graph: Graph, min_keep: PerGroup = 1) -> Gates:
    """Return gates that keep as few units as allowed.

    Args:
        graph: of the network.
        min_keep: units of each group, at least 1; a smaller group keeps all.

    Returns:
        Group name -> f32[units] of 0 and 1, the first units kept.

    Raises:
        TypeError: ``min_keep`` is none of the kinds that ``per_group`` reads.
        ValueError: it does not fit the groups, or a number is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> graph = trace_graph(
        ...     apply, {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
        ... )
        >>> smallest_gates(graph, 2)["a"].tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    return keep_first(graph, least_kept(graph, min_keep))


def least_kept(graph: Graph, min_keep: PerGroup) -> dict[str, int]:
    """Return how many units of each group must be kept.

    It is what the user asks for, and at least what the network needs (a ``top_k`` over the units).

    Args:
        graph: of the network.
        min_keep: units of each group, at least 1.

    Raises:
        TypeError: ``min_keep`` is none of the kinds that ``per_group`` reads.
        ValueError: it does not fit the groups, or a number is below 1.
    """
    asked = per_group(graph.names, "min_keep", min_keep)
    return {group.name: max(asked[group.name], group.least) for group in graph.groups}


def widths(graph: Graph, gates: Gates) -> dict[str, int]:
    """Return how many units of each group are kept.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; soft ones keep from 0.5 (``is_kept``).

    Raises:
        TypeError: the gates are no dictionary of arrays.
        ValueError: they do not fit the graph.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> graph = trace_graph(
        ...     apply, {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
        ... )
        >>> widths(graph, {"a": jnp.array([1.0, 1.0, 0.3, 0.3])})
        {'a': 2}
    """
    check_gates(graph, gates)
    return {name: int(is_kept(np.asarray(gates[name])).sum()) for name in graph.names}


def kept_counts(graph: Graph, gates: Gates) -> jax.Array:
    """Return how many units of each group are kept, traceably.

    Args:
        graph: of the network.
        gates: group name -> f32[..., units]; soft ones keep from 0.5 (``is_kept``), so the count
            is a step function of them and has no useful derivative.

    Returns:
        f32[..., groups], whole numbers.

    Raises:
        ValueError: the gates name other groups, or one has no units behind.
    """
    _check_rows(graph, "gates", gates)
    return jnp.stack([is_kept(gates[name]).sum(-1) for name in graph.names], -1).astype(jnp.float32)


def round_gates(
    graph: Graph,
    gates: Gates,
    *,
    round_to: PerGroup = 1,
    min_keep: PerGroup = 1,
    priorities: Gates | None = None,
    towards: Literal["fewer", "more"] = "fewer",
) -> Gates:
    """Change few gates until widths are multiples of a number.

    Use it for numbers of units that hardware likes. Units are taken away in the order of rising
    priority and put back in that of falling priority, the first of equals staying. A group of fewer
    units than the multiple above its limits keeps all that it has. With ``towards="fewer"`` no
    group grows but to reach ``min_keep`` or the first multiple, so costs that fall with units only
    fall.

    Args:
        graph: of the network.
        gates: group name -> f32[..., units], the same leading axes for all; may be traced. Soft
            ones keep from 0.5 (``is_kept``).
        round_to: multiples of how many units; a number above a group's size keeps all of it.
        min_keep: least units kept, rounded up to the multiple; a smaller group keeps all.
        priorities: group name -> f32[..., units], broadcast against the gates; none for gates.
        towards: whether a number between two multiples goes down or up.

    Returns:
        Group name -> f32[..., units] of 0 and 1.

    Raises:
        TypeError: gates are no dictionary of arrays, or a number is of no kind ``per_group`` reads.
        ValueError: gates, priorities or names do not fit the graph, concrete priorities are NaN, or
            a number is below 1.

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
    multiples = per_group(graph.names, "round_to", round_to)
    least = least_kept(graph, min_keep)
    check_gates(graph, _first_of_batch(gates))
    if priorities is not None:
        _check_priorities(graph, priorities)
    rounded = {}
    for group in graph.groups:
        priority = gates[group.name] if priorities is None else priorities[group.name]
        rounded[group.name] = _round(
            group, gates[group.name], priority, multiples[group.name], least[group.name], towards
        )
    return rounded


def _first_of_batch(gates: Gates) -> Gates:
    if not isinstance(gates, dict):
        return gates
    return {
        name: gate[(0,) * (np.ndim(gate) - 1)] if np.ndim(gate) > 1 else gate
        for name, gate in gates.items()
    }


def _check_priorities(graph: Graph, priorities: Gates) -> None:
    _check_rows(graph, "priorities", priorities)
    for group in graph.groups:
        priority = priorities[group.name]
        if not isinstance(priority, jax.core.Tracer) and np.isnan(np.asarray(priority)).any():
            raise ValueError(
                f"priorities[{group.name!r}] holds NaN; give every unit a number (-inf goes first)"
            )


def _check_rows(graph: Graph, argument: str, given: Gates) -> None:
    """Refuse what is not one row of numbers per group, with any axes before."""
    _check_names(graph, argument, given)
    for group in graph.groups:
        row = given[group.name]
        if np.shape(row)[-1:] != (group.size,):
            raise ValueError(
                f"{argument}[{group.name!r}] has shape {np.shape(row)}, needs (..., {group.size})"
            )
        if not hasattr(row, "dtype") or row.dtype.kind in "OSU":
            raise TypeError(f"{argument}[{group.name!r}] is {shown(row)}; pass an array of numbers")


def _check_names(graph: Graph, argument: str, given: Gates) -> None:
    check_graph(graph)
    require_type(argument, given, dict, "group name -> f32[units]")
    if set(given) != set(graph.names):
        raise ValueError(
            f"{argument} must name the groups of the graph, {', '.join(graph.names)}; "
            f"got {', '.join(given)}"
        )


def _round(
    group: Group, gate: jax.Array, priority: jax.Array, multiple: int, least: int, towards: str
) -> jax.Array:
    kept = is_kept(jnp.asarray(gate))
    count = kept.sum(-1, keepdims=True, dtype=jnp.int32)
    up = multiple - 1 if towards == "more" else 0
    lowest = min(-(-least // multiple) * multiple, group.size)
    wanted = jnp.clip((count + up) // multiple * multiple, lowest, group.size)
    # Where all are kept they stay: a size that is no multiple is nobody's choice.
    wanted = jnp.where(count == group.size, count, wanted)
    # Kept units come first, so that ranks by priority need not tell them from the others.
    standing = group.size - rank(jnp.broadcast_to(jnp.asarray(priority), kept.shape))
    return (rank(standing + group.size * kept) < wanted).astype(jnp.float32)
