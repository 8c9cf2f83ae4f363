"""Budgets bound to a network: what needs its function, its inputs, a device or a user's code."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.budget import Budget, Cost, Measured, cost_of
from rlprune_jax.costs.counts import macs_ratio
from rlprune_jax.costs.host import FunctionCost, import_function
from rlprune_jax.costs.latency_table import LEVELS, measure_latency_table
from rlprune_jax.costs.measured import MeasuredLatency
from rlprune_jax.costs.memory import activation_memory
from rlprune_jax.costs.tiles import DEFAULT_TILE, Tile, count_tiled_macs, tiled_macs_ratio
from rlprune_jax.graph.groups import Graph, ones_gates
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.gates import keep_first

UNIFORM_RATIOS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Keep ratios at which a host's cost is asked to estimate it in between; 0 keeps one unit."""


class Network(NamedTuple):
    """What costs may need of a network.

    Attributes:
        apply: ``(variables, x) -> outputs``, in evaluation mode.
        graph: of it.
        variables: dense arrays; their values do not matter.
        example: array [B, ...], of the batch that is timed.
    """

    apply: Apply
    graph: Graph
    variables: Variables
    example: jax.Array


class CostOptions(NamedTuple):
    """How costs are had.

    Attributes:
        tile: of ``tiled_macs``.
        levels: shares of channels that the latency table measures.
        cache: folder of its files, None for none.
        steps: of a group's width in measuring latency.
        programs: how many networks a search may compile for that.
        repeats: timed calls.
        time_limit: seconds for one candidate of a cost of the host.
    """

    tile: Tile = DEFAULT_TILE
    levels: tuple[float, ...] = LEVELS
    cache: Path | None = None
    steps: int = 4
    programs: int = 64
    repeats: int = 30
    time_limit: float = 60.0


def bind_budgets(
    budgets: Sequence[Budget], network: Network, options: CostOptions | None = None
) -> tuple[Budget, ...]:
    """Return the budgets with their costs on this network.

    Times are measured and functions called here, a few times: for the dense network, and at uniform
    keep ratios for an estimate.

    Raises:
        ValueError: a function cannot be imported, or a fraction is asked of a cost that is 0.
        CostError: a cost of the host cannot be had.
    """
    options = CostOptions() if options is None else options
    bound = [
        dataclasses.replace(budget, cost=_bind(budget, network, options)) for budget in budgets
    ]
    for budget in bound:
        assert budget.cost is not None
        if budget.relative and not budget.cost.dense > 0:
            raise ValueError(
                f"budget {budget.name!r}={budget.limit:g}x: the cost of the dense network is 0, "
                "so no fraction can be taken of it; give the limit in the cost's own unit"
            )
    return tuple(bound)


def _bind(budget: Budget, network: Network, options: CostOptions) -> Cost:
    graph = network.graph
    if budget.is_function:
        function = import_function(budget.name)
        asked = FunctionCost(graph, budget.name, function, options.time_limit)
        dense = asked(ones_gates(graph))
        share = estimate(graph, asked, dense)
        return Cost(budget.unit, dense, share, lambda gates: asked(_all(graph, gates)), asked)
    if budget.name == "latency":
        return _bind_latency(network, options)
    if budget.name == "latency_table":
        table = measure_latency_table(
            network.apply,
            graph,
            network.variables,
            network.example,
            levels=options.levels,
            repeats=options.repeats,
            cache=options.cache,
        )
        dense, traced = table.exact(), table.traced()
        return Cost("ms", dense, lambda gates: traced(gates) / dense, table.exact)
    if budget.name == "activation_memory":
        memory = activation_memory(network.apply, graph, network.variables, network.example[:1])
        return Cost("bytes", memory.count(), memory.ratio(), memory.count)
    if budget.name == "tiled_macs":
        tile = options.tile
        dense = count_tiled_macs(graph, None, tile)
        share = tiled_macs_ratio(graph, tile)
        return Cost("MACs", dense, share, lambda gates: count_tiled_macs(graph, gates, tile))
    return cost_of(graph, budget)


def _bind_latency(network: Network, options: CostOptions) -> Cost:
    graph = network.graph
    latency = MeasuredLatency(
        network.apply,
        graph,
        network.variables,
        network.example,
        levels=options.steps,
        programs=options.programs,
        repeats=options.repeats,
        time_limit=options.time_limit,
    )

    def exact(gates: Gates | None) -> Measured:
        return Measured(*latency.exact(_all(graph, gates)))

    dense = exact(None).value
    # At their own widths: rounded ones would tell what a wider network takes.
    share = estimate(graph, lambda gates: latency.exact(gates).median, dense)
    return Cost("ms", dense, share, exact, lambda gates: latency.in_search(gates, share))


def _all(graph: Graph, gates: Gates | None) -> Gates:
    return ones_gates(graph) if gates is None else gates


def estimate(
    graph: Graph, cost: Callable[[Gates], float], dense: float
) -> Callable[[Gates], jax.Array]:
    """Return a traceable stand-in for a cost of the host: gates -> f32[], over ``dense``.

    The cost is asked for networks that keep the same share of every group, and interpolated
    between them by share of MACs. It never falls when a unit is added, so a search can put
    candidates near a budget by it; the cost itself is asked for what is told and delivered.

    Args:
        graph: of the network.
        cost: of concrete gates, 0 or more.
        dense: what the result is divided by; 0 stands for 1.
    """
    ratio = macs_ratio(graph)
    shares: list[float] = []
    values: list[float] = []
    for keep in UNIFORM_RATIOS:
        least = {name: max(1, round(keep * size)) for name, size in _sizes(graph)}
        gates = keep_first(graph, least)
        shares.append(float(ratio(gates)))
        values.append(cost(gates))
    x = jnp.asarray(shares, jnp.float32)
    y = jnp.asarray(np.maximum.accumulate(values) / (dense or 1.0), jnp.float32)
    return lambda gates: jnp.interp(ratio(gates), x, y)


def _sizes(graph: Graph) -> list[tuple[str, int]]:
    return list(zip(graph.names, graph.sizes, strict=True))
