"""Budgets: limits on costs of the pruned network, and what the network can reach at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.counts import count_macs, count_params, macs_ratio, params_ratio
from rlprune_jax.graph.groups import Graph
from rlprune_jax.types import Gates


@dataclass(frozen=True)
class Budget:
    """One limit.

    Attributes:
        name: of the cost, one of ``COSTS``.
        limit: fraction of the dense network's cost, in (0, 1].
        unit: what the fraction counts.
    """

    name: str
    limit: float
    unit: str


@dataclass(frozen=True)
class Cost:
    """A cost of gates: ``ratio(graph)`` for inside jit, ``count(graph, gates)`` exact."""

    unit: str
    ratio: Callable[[Graph], Callable[[Gates], jax.Array]]
    count: Callable[[Graph, Gates | None], int]


COSTS: Mapping[str, Cost] = {
    "params": Cost("parameters", params_ratio, count_params),
    "macs": Cost("MACs", macs_ratio, count_macs),
}
"""The costs that a budget may limit, by name."""


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Read budgets written as ``NAME=LIMIT``.

    Raises:
        ValueError: not of that form, an unknown or repeated name, or a limit outside (0, 1].

    Example:
        >>> parse_budgets(["params=0.1", "macs=0.3"])[1].limit
        0.3
    """
    budgets: list[Budget] = []
    for text in texts:
        name, found, number = text.partition("=")
        if not found:
            raise ValueError(f"budget {text!r} is not of the form NAME=LIMIT, as in params=0.1")
        try:
            limit = float(number)
        except ValueError:
            raise ValueError(f"budget {text!r}: the limit {number!r} is not a number") from None
        if any(name == budget.name for budget in budgets):
            raise ValueError(f"budget {name!r} is given twice; give each budget once")
        budgets.append(make_budget(name, limit))
    if not budgets:
        raise ValueError("no budget is given; give at least one, as in --budget params=0.1")
    return tuple(budgets)


def make_budget(name: str, limit: float) -> Budget:
    """Return a checked budget.

    Raises:
        ValueError: unknown name, or a limit outside (0, 1].
    """
    if name not in COSTS:
        raise ValueError(f"budget {name!r} is unknown; known budgets: {', '.join(COSTS)}")
    if not 0 < limit <= 1:
        raise ValueError(
            f"budget {name!r}={limit:g} must be a fraction of the dense network in (0, 1]"
        )
    return Budget(name, limit, COSTS[name].unit)


def cost_function(graph: Graph, budgets: Sequence[Budget]) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[K], each budget's cost relative to dense."""
    ratios = [COSTS[budget.name].ratio(graph) for budget in budgets]
    return lambda gates: jnp.stack([ratio(gates) for ratio in ratios])


def limits(budgets: Sequence[Budget]) -> np.ndarray:
    """Return f32[K], the limits in the order of the budgets."""
    return np.asarray([budget.limit for budget in budgets], np.float32)


def exact_costs(graph: Graph, budgets: Sequence[Budget], gates: Gates) -> list[float]:
    """Return each budget's cost relative to dense, from exact integer counts."""
    return [
        COSTS[budget.name].count(graph, gates) / COSTS[budget.name].count(graph, None)
        for budget in budgets
    ]


def satisfies(graph: Graph, budgets: Sequence[Budget], gates: Gates) -> bool:
    """Return whether the network that ``gates`` leave respects every budget, exactly counted."""
    costs = exact_costs(graph, budgets, gates)
    return all(cost <= budget.limit for cost, budget in zip(costs, budgets, strict=True))


def smallest_gates(graph: Graph, min_keep: int | Mapping[str, int] = 1) -> Gates:
    """Return gates that keep just ``min_keep`` units of each group (all of a smaller group).

    Raises:
        ValueError: ``min_keep`` is below 1, not an integer, or does not name the groups.
    """
    wanted = min_keep if isinstance(min_keep, Mapping) else dict.fromkeys(graph.names, min_keep)
    if set(wanted) != set(graph.names):
        unknown, missing = set(wanted) - set(graph.names), set(graph.names) - set(wanted)
        raise ValueError(
            f"min_keep must name the groups of the graph, {', '.join(graph.names)}; "
            f"unknown: {sorted(unknown)}, missing: {sorted(missing)}"
        )
    if any(not isinstance(least, int | np.integer) or least < 1 for least in wanted.values()):
        raise ValueError(f"min_keep={min_keep} must be an integer of at least 1")
    return {
        group.name: jnp.asarray(np.arange(group.size) < wanted[group.name], jnp.float32)
        for group in graph.groups
    }


def check_reachable(
    graph: Graph, budgets: Sequence[Budget], min_keep: int | Mapping[str, int] = 1
) -> None:
    """Refuse budgets that no pruning can meet.

    Raises:
        ValueError: naming the budget and the smallest value that ``min_keep`` leaves, or
            ``min_keep`` is not an integer of at least 1 per group.
    """
    smallest = exact_costs(graph, budgets, smallest_gates(graph, min_keep))
    for budget, least in zip(budgets, smallest, strict=True):
        if least > budget.limit:
            raise ValueError(
                f"budget {budget.name!r}={budget.limit:g} cannot be met: min_keep={min_keep} "
                f"leaves {least:.4g} of the {budget.unit}; raise the budget to at least "
                f"{_round_up(least):g} or lower min_keep"
            )


def _round_up(value: float) -> float:
    return float(np.ceil(value * 10000) / 10000)
