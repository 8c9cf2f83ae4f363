"""Make scores of units comparable: within groups, by cost, among groups of one kind."""

from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_choice, require_range
from rlprune_jax.graph.groups import FOLLOWER, Graph, ones_gates
from rlprune_jax.kept import is_kept, rank
from rlprune_jax.types import Gates
from rlprune_jax.units.scores import require_groups

Normaliser = Literal["none", "mean", "max", "sum", "standard", "lamp"]
"""What the scores of a group are put in relation to."""


def normalise_scores(
    graph: Graph, scores: Gates, normaliser: Normaliser, gates: Gates | None = None
) -> Gates:
    """Normalise the scores of each group by itself.

    Use it before groups are compared whose scores have scales of their own. The order within a
    group stays. Over the units of a group that are kept:

        none      s
        mean      s / mean(s)
        max       s / max(s)
        sum       s / sum(s)
        standard  (s - mean(s)) / std(s)
        lamp      s / (sum of those that are no smaller; of equals, of those before and itself)

    What would be divided by 0 is 0, so scores of one value stay of one value but for ``lamp``.

    Args:
        graph: of the network.
        scores: group name -> f32[units].
        normaliser: its name.
        gates: which units count (``is_kept``); all by default. The others score 0.

    Returns:
        Group name -> f32[units].

    Raises:
        ValueError: an unknown normaliser.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"]) @ variables["b"]
        >>> graph = trace_graph(apply, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))},
        ...                     jnp.ones((1, 2)))
        >>> normalise_scores(graph, {"a": jnp.array([1.0, 2.0, 1.0])}, "lamp")["a"].tolist()
        [0.3333333432674408, 1.0, 0.25]
    """
    require_choice("normaliser", normaliser, get_args(Normaliser))
    require_groups(graph, scores)
    counted = ones_gates(graph) if gates is None else gates
    return {
        name: _normalised(jnp.asarray(scores[name]), is_kept(counted[name]), normaliser)
        for name in graph.names
    }


def _normalised(scores: jax.Array, kept: jax.Array, normaliser: str) -> jax.Array:
    scores = jnp.where(kept, scores, 0.0)
    if normaliser == "none":
        return scores
    if normaliser == "max":
        return _over(scores, jnp.max(jnp.where(kept, scores, -jnp.inf)))
    total = scores.sum()
    if normaliser == "sum":
        return _over(scores, total)
    if normaliser == "lamp":
        places = rank(jnp.where(kept, scores, -jnp.inf))
        falling = jnp.zeros_like(scores).at[places].set(scores)
        return _over(scores, jnp.cumsum(falling)[places])
    mean = total / jnp.maximum(kept.sum(), 1)
    if normaliser == "mean":
        return _over(scores, mean)
    centred = jnp.where(kept, scores - mean, 0.0)
    variance = jnp.square(centred).sum() / jnp.maximum(kept.sum(), 1)
    return _over(centred, jnp.sqrt(variance))


def _over(scores: jax.Array, divisor: jax.Array) -> jax.Array:
    """Divide, 0 by 0 being 0; no least divisor, as gradients may be tiny as they are."""
    usable = (divisor != 0) & jnp.isfinite(divisor)
    found = jnp.where(usable, scores / jnp.where(usable, divisor, 1.0), 0.0)
    return jnp.where(jnp.isnan(scores), jnp.nan, found)


class UnitCosts(Protocol):
    """Price gates, traceably."""

    def __call__(self, gates: Gates, /) -> jax.Array:
        """Return costs f32[K], each in a unit in which they may be added."""


def marginal_costs(graph: Graph, costs: UnitCosts, gates: Gates | None = None) -> Gates:
    """Return what the network saves without each unit.

    All units of a group own as much, so one is priced for all of them, but residual branches each
    by itself.

    Args:
        graph: of the network.
        costs: of gates; several costs are added.
        gates: which units are there (``is_kept``); all by default.

    Returns:
        Group name -> f32[units], the sum of the costs less without the unit; 0 of pruned units.
    """
    at = ones_gates(graph) if gates is None else gates
    whole = costs(at)

    def saved(name: str, unit: jax.Array) -> jax.Array:
        return (whole - costs(at | {name: at[name].at[unit].set(0.0)})).sum()

    found = {}
    for group in graph.groups:
        kept = is_kept(at[group.name])
        if group.branches or group.are_layers:
            name = group.name
            each = jnp.stack([saved(name, jnp.int32(unit)) for unit in range(group.size)])
        else:
            each = jnp.broadcast_to(saved(group.name, jnp.argmax(kept)), (group.size,))
        found[group.name] = jnp.where(kept, each, 0.0)
    return found


def per_cost(
    graph: Graph,
    scores: Gates,
    costs: UnitCosts,
    gates: Gates | None = None,
    *,
    power: float = 1.0,
) -> Gates:
    """Divide scores by what the units cost.

    Use it where a dear unit has to be worth its price: with a cost in bytes of activations it is
    Group Fisher's normalisation.

    Args:
        graph: of the network.
        scores: group name -> f32[units].
        costs: as in ``marginal_costs``.
        gates: as in ``marginal_costs``.
        power: of the cost; below 1 dear units are favoured somewhat.

    Returns:
        Group name -> f32[units]; a unit that costs nothing scores as if it cost the least above 0.

    Reference:
        Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression", eq. 9.
    """
    prices = marginal_costs(graph, costs, gates)
    every = jnp.concatenate([prices[name] for name in graph.names])
    least = jnp.min(jnp.where(every > 0, every, jnp.inf))
    least = jnp.where(jnp.isfinite(least), least, 1.0)
    require_range("power", power)
    return {name: scores[name] / jnp.maximum(prices[name], least) ** power for name in graph.names}


def isomorphic_scopes(graph: Graph) -> tuple[int, ...]:
    """Return a number for each kind of group.

    Of one kind are groups that are made, followed and read by as many layers of the same kinds:
    the inner widths of residual blocks, the residual widths, heads, feed-forward widths.

    Args:
        graph: of the network.

    Returns:
        One integer a group, in depth order, from 0.

    Reference:
        Fang et al. 2024, "Isomorphic Pruning for Vision Models".

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return ((x @ variables["a"]) @ variables["b"]) @ variables["c"]
        >>> variables = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4)), "c": jnp.ones((4, 1))}
        >>> isomorphic_scopes(trace_graph(apply, variables, jnp.ones((1, 2))))
        (0, 0)
    """
    found: list[list[tuple[str, str, int]]] = [[] for _ in graph.groups]
    for layer in graph.layers:
        kind = (layer.kind, len(layer.kernel))
        for verb, axes in (("makes", layer.makes), ("reads", layer.reads)):
            units = np.unique(np.concatenate([np.zeros(0, np.int32), *axes]))
            for number in np.unique(graph.group_of_unit[units[units >= 0]]):
                found[number].append((verb, *kind))
    numbers: dict[object, int] = {}
    scopes = []
    for group, roles in zip(graph.groups, found, strict=True):
        is_depth = bool(group.branches) or group.are_layers
        kind_of = "depth" if is_depth else (*sorted(roles), len(group.slots_of(FOLLOWER)))
        scopes.append(numbers.setdefault(kind_of, len(numbers)))
    return tuple(scopes)


def isomorphic_scores(graph: Graph, scores: Gates, gates: Gates | None = None) -> Gates:
    """Return each unit's place among those of its kind.

    One threshold on these places takes the same fraction of every scope (``isomorphic_scopes``), so
    that only groups of one kind are compared with one another.

    Args:
        graph: of the network.
        scores: group name -> f32[units].
        gates: which units are there (``is_kept``); all by default.

    Returns:
        Group name -> f32[units]: 1 of the best of a scope, then falling by 1 over its number of
        units; of equals the first is the better. At most 0 of pruned units.

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return ((x @ variables["a"]) @ variables["b"]) @ variables["c"]
        >>> variables = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones((2, 1))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 2)))
        >>> scores = {"a": jnp.array([5.0, 1.0]), "b": jnp.array([2.0, 7.0])}
        >>> {name: row.tolist() for name, row in isomorphic_scores(graph, scores).items()}
        {'a': [0.75, 0.25], 'b': [0.5, 1.0]}
    """
    require_groups(graph, scores)
    at = ones_gates(graph) if gates is None else gates
    scopes = np.asarray(isomorphic_scopes(graph))
    found: dict[str, jax.Array] = {}
    for scope in range(int(scopes.max(initial=-1)) + 1):
        members = [group for group, own in zip(graph.groups, scopes, strict=True) if own == scope]
        kept = jnp.concatenate([is_kept(at[group.name]) for group in members])
        values = jnp.concatenate([jnp.asarray(scores[group.name]) for group in members])
        places = 1.0 - rank(jnp.where(kept, values, -jnp.inf)) / jnp.maximum(kept.sum(), 1)
        ends = np.cumsum([group.size for group in members])[:-1]
        parts = jnp.split(places.astype(jnp.float32), ends)
        found |= {group.name: part for group, part in zip(members, parts, strict=True)}
    return {name: found[name] for name in graph.names}
