"""Budgets: limits on costs of the pruned network, and what the network can reach at all."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.counts import (
    count_macs,
    count_params,
    count_weight_bytes,
    macs_ratio,
    params_ratio,
    weight_bytes_ratio,
)
from rlprune_jax.costs.tiles import count_tiled_macs, tiled_macs_ratio
from rlprune_jax.graph.groups import Graph
from rlprune_jax.per_group import PerGroup
from rlprune_jax.types import Gates
from rlprune_jax.units.gates import round_gates, smallest_gates


class Measured(NamedTuple):
    """A cost of one network and, where it is noisy, the quartiles around it."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class Cost:
    """A cost bound to one network.

    Attributes:
        unit: what is counted.
        dense: cost of the dense network.
        share: traceable function gates -> f32[], the cost over ``dense``; of a cost that only the
            host knows an estimate, for proposing candidates.
        exact: cost of concrete gates (None keeps all): an integer where it is a count; with noise
            ``Measured``.
        in_search: of a cost that only the host knows, its value for a candidate of a search.
    """

    unit: str
    dense: float
    share: Callable[[Gates], jax.Array]
    exact: Callable[[Gates | None], float | Measured]
    in_search: Callable[[Gates], float] | None = None


@dataclass(frozen=True)
class Budget:
    """One limit.

    Attributes:
        name: of the cost, one of ``KNOWN``, or of a user's function as ``module:function``.
        limit: fraction of the dense network's cost, in (0, 1]; else in ``unit``.
        unit: what is counted.
        relative: whether the limit is a fraction of the dense network's cost.
        cost: bound to a network; ``params``, ``macs`` and the like need none.
    """

    name: str
    limit: float
    unit: str
    relative: bool = True
    cost: Cost | None = None

    @property
    def is_function(self) -> bool:
        """Whether the cost is a user's function."""
        return ":" in self.name

    @property
    def is_measured(self) -> bool:
        """Whether only the host knows the cost."""
        return self.is_function or self.name == "latency"


class Count(NamedTuple):
    """A cost that the graph alone tells: ``exact(graph, gates)`` and ``ratio(graph)(gates)``."""

    unit: str
    exact: Callable[[Graph, Gates | None], int]
    ratio: Callable[[Graph], Callable[[Gates], jax.Array]]


COUNTS: Mapping[str, Count] = {
    "params": Count("parameters", count_params, params_ratio),
    "macs": Count("MACs", count_macs, macs_ratio),
    "weight_bytes": Count("bytes", count_weight_bytes, weight_bytes_ratio),
    "tiled_macs": Count("MACs", count_tiled_macs, tiled_macs_ratio),
}
"""The costs that need no more than a graph."""

KNOWN: Mapping[str, str] = {name: count.unit for name, count in COUNTS.items()} | {
    "activation_memory": "bytes",
    "latency_table": "ms",
    "latency": "ms",
}
"""Units of the costs that a budget may limit, by name."""

TIMES = ("latency_table", "latency")
"""Costs whose limit is given in milliseconds, or with an x as a fraction of dense."""


def parse_budgets(texts: Sequence[str], functions: Sequence[str] = ()) -> tuple[Budget, ...]:
    """Read budgets written as ``NAME=LIMIT``, and ``module:function=LIMIT`` for functions.

    Limits of counts are fractions of the dense network; those of times milliseconds and those of
    functions in their own unit, or with an x behind them fractions of dense: ``latency=0.5x``.

    Raises:
        ValueError: not of that form, an unknown or repeated name, or a limit that cannot be.

    Example:
        >>> [b.limit for b in parse_budgets(["params=0.1", "latency=2.5"], ["my_costs:energy=7"])]
        [0.1, 2.5, 7.0]
    """
    budgets: list[Budget] = []
    for text in (*texts, *functions):
        is_function = len(budgets) >= len(texts)
        form = "module:function=LIMIT" if is_function else "NAME=LIMIT, as in params=0.1"
        name, found, number = text.rpartition("=")
        if not found or (is_function and not all(name.partition(":"))):
            raise ValueError(f"budget {text!r} is not of the form {form}")
        share = number.endswith("x") and (is_function or name in TIMES)
        try:
            limit = float(number.removesuffix("x") if share else number)
        except ValueError:
            raise ValueError(f"budget {text!r}: the limit {number!r} is not a number") from None
        if any(name == budget.name for budget in budgets):
            raise ValueError(f"budget {name!r} is given twice; give each budget once")
        if is_function:
            budgets.append(_checked(Budget(name, limit, "of its own unit", share)))
        else:
            budgets.append(make_budget(name, limit, relative=share or None))
    if not budgets:
        raise ValueError("no budget is given; give at least one, as in --budget params=0.1")
    return tuple(budgets)


def make_budget(name: str, limit: float, relative: bool | None = None) -> Budget:
    """Return a checked budget.

    Args:
        name: one of ``KNOWN``.
        limit: see ``Budget``.
        relative: whether it is a fraction of dense; by default for all but times.

    Raises:
        ValueError: unknown name, or a limit that cannot be.
    """
    if name not in KNOWN:
        raise ValueError(
            f"budget {name!r} is unknown; known budgets: {', '.join(KNOWN)}; a function of your "
            "own is given as --budget-fn module:function=LIMIT"
        )
    relative = name not in TIMES if relative is None else relative
    return _checked(Budget(name, limit, KNOWN[name], relative))


def _checked(budget: Budget) -> Budget:
    name, limit = budget.name, budget.limit
    if budget.relative and not 0 < limit <= 1:
        raise ValueError(
            f"budget {name!r}={limit:g} must be a fraction of the dense network in (0, 1]"
        )
    if not (limit > 0 and math.isfinite(limit)):
        raise ValueError(
            f"budget {name!r}={limit:g} must be a number above 0 ({budget.unit}), or with an x "
            "behind it a fraction of the dense network"
        )
    return budget


def cost_of(graph: Graph, budget: Budget) -> Cost:
    """Return the cost that a budget limits.

    Raises:
        ValueError: the cost needs more than the graph and is not bound; see ``bind_budgets``.
    """
    if budget.cost is not None:
        return budget.cost
    if budget.name not in COUNTS:
        raise ValueError(
            f"budget {budget.name!r} is not bound to a network; call bind_budgets before"
        )
    count = COUNTS[budget.name]
    return Cost(
        count.unit,
        count.exact(graph, None),
        # Made when asked for: exact counting, over and over, does not need its arrays.
        lambda gates: count.ratio(graph)(gates),
        lambda gates: count.exact(graph, gates),
    )


def cost_function(graph: Graph, budgets: Sequence[Budget]) -> Callable[[Gates], jax.Array]:
    """Return the traceable function gates -> f32[K], each cost in the unit of its limit.

    Costs that only the host knows are estimates there; see ``search_costs``.
    """
    costs = [cost_of(graph, budget) for budget in budgets]
    scales = [
        1.0 if budget.relative else cost.dense or 1.0
        for budget, cost in zip(budgets, costs, strict=True)
    ]
    return lambda gates: jnp.stack(
        [scale * cost.share(gates) for scale, cost in zip(scales, costs, strict=True)]
    )


def search_costs(graph: Graph, budgets: Sequence[Budget]) -> Callable[[Gates], np.ndarray]:
    """Return the host's function of N candidates, gates f32[N, units] -> f32[N, K].

    Traceable costs come from one jitted call; the others are asked for one candidate at a time.

    Raises:
        CostError: (on call) a cost of the host cannot be had.
    """
    traced = jax.jit(jax.vmap(cost_function(graph, budgets)))
    hosts = [(k, b, cost_of(graph, b)) for k, b in enumerate(budgets) if b.is_measured]

    def costs(gates: Gates) -> np.ndarray:
        table = np.array(traced(gates))
        rows = {name: np.asarray(gate) for name, gate in gates.items()}
        for k, budget, cost in hosts:
            assert cost.in_search is not None
            for n in range(len(table)):
                value = cost.in_search({name: gate[n] for name, gate in rows.items()})
                table[n, k] = value / cost.dense if budget.relative else value
        return table

    return costs


def limits(budgets: Sequence[Budget]) -> np.ndarray:
    """Return f32[K], the limits in the order of the budgets."""
    return np.asarray([budget.limit for budget in budgets], np.float32)


def measured_costs(graph: Graph, budgets: Sequence[Budget], gates: Gates) -> list[Measured]:
    """Return each budget's cost in the unit of its limit, with the noise of those measured."""
    results = []
    for budget in budgets:
        cost = cost_of(graph, budget)
        found = cost.exact(gates)
        spread = found if isinstance(found, Measured) else Measured(found, found, found)
        results.append(
            Measured(*(each / cost.dense for each in spread)) if budget.relative else spread
        )
    return results


def exact_costs(graph: Graph, budgets: Sequence[Budget], gates: Gates) -> list[float]:
    """Return each budget's cost in the unit of its limit, from exact integer counts."""
    return [cost.value for cost in measured_costs(graph, budgets, gates)]


def satisfies(graph: Graph, budgets: Sequence[Budget], gates: Gates) -> bool:
    """Return whether the network that ``gates`` leave respects every budget, exactly counted.

    Of a cost measured with noise the upper quartile has to. What is measured comes last, and only
    where all else is respected.
    """
    return all(
        measured_costs(graph, [budget], gates)[0].upper <= budget.limit
        for budget in sorted(budgets, key=lambda budget: budget.is_measured)
    )


def check_reachable(
    graph: Graph,
    budgets: Sequence[Budget],
    min_keep: PerGroup = 1,
    round_to: PerGroup = 1,
) -> None:
    """Refuse budgets that no pruning can meet.

    Args:
        graph: of the network.
        budgets: to meet.
        min_keep: units that each group keeps; a smaller group keeps all.
        round_to: multiples that kept units are rounded up to; all of a smaller group.

    Raises:
        ValueError: naming the budget and the smallest value that ``min_keep`` leaves, or
            ``min_keep`` is not an integer of at least 1 per group.
    """
    gates = smallest_gates(graph, min_keep)
    gates = round_gates(graph, gates, round_to=round_to, towards="more")
    smallest = measured_costs(graph, budgets, gates)
    # The upper quartile of what is measured, as ``satisfies`` will ask for it.
    for budget, least in zip(budgets, (cost.upper for cost in smallest), strict=True):
        if least > budget.limit:
            left = (
                f"{least:.4g} of the {budget.unit}"
                if budget.relative
                else (f"{least:.4g} {budget.unit}")
            )
            rounded = "" if round_to == 1 else f" and round_to={round_to}"
            raise ValueError(
                f"budget {budget.name!r}={budget.limit:g} cannot be met: min_keep={min_keep}"
                f"{rounded} leave{'' if rounded else 's'} {left}; raise the budget to at least "
                f"{_round_up(least):g} or lower min_keep{rounded and ' or round_to'}"
            )


def _round_up(value: float) -> float:
    return float(np.ceil(value * 10000) / 10000)
