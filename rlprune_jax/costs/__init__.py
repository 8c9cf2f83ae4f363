"""Costs of pruned networks, and budgets that limit them.

A cost is a function of a network's gates: parameters, MACs, bytes, memory, latency, or any Python
function of the user. A ``Budget`` is what the user wrote, a ``Constraint`` that budget bound to one
network::

    constraints = constrain(network, ["params=0.1", "latency=2.5ms"])
    check_reachable(network.graph, constraints, min_keep=2)
    estimate_costs(constraints)          # gates -> f32[K], traceable: what a search projects with
    satisfies(constraints, gates)        # exact counts and measurements: what is delivered

A new cost is one function ``(network, options) -> Cost``, registered in ``COSTS``.
"""

from rlprune_jax.costs.budgets import Budget, parse_budget, parse_budgets
from rlprune_jax.costs.constraints import (
    Constraint,
    check_reachable,
    constrain,
    estimate_costs,
    exact_costs,
    limits,
    measured_costs,
    satisfies,
    search_costs,
)
from rlprune_jax.costs.cost import Cost, CostFactory, Measured, NetworkLike
from rlprune_jax.costs.counts import (
    count_macs,
    count_params,
    count_weight_bytes,
    macs_ratio,
    params_ratio,
    weight_bytes_ratio,
)
from rlprune_jax.costs.host import (
    CostError,
    CostTimeout,
    UserFunction,
    import_function,
    source_digest,
)
from rlprune_jax.costs.latency import Latency, measure_in_turn, measure_latency
from rlprune_jax.costs.latency_table import LatencyTable, measure_latency_table
from rlprune_jax.costs.memory import ActivationMemory, activation_memory
from rlprune_jax.costs.options import CostOptions, Tile
from rlprune_jax.costs.registry import COSTS, UNITS
from rlprune_jax.costs.slim_latency import SlimLatency
from rlprune_jax.costs.tiles import count_tiled_macs, tiled_macs_ratio

__all__ = [
    "COSTS",
    "UNITS",
    "ActivationMemory",
    "Budget",
    "Constraint",
    "Cost",
    "CostError",
    "CostFactory",
    "CostOptions",
    "CostTimeout",
    "Latency",
    "LatencyTable",
    "Measured",
    "NetworkLike",
    "SlimLatency",
    "Tile",
    "UserFunction",
    "activation_memory",
    "check_reachable",
    "constrain",
    "count_macs",
    "count_params",
    "count_tiled_macs",
    "count_weight_bytes",
    "estimate_costs",
    "exact_costs",
    "import_function",
    "limits",
    "macs_ratio",
    "measure_in_turn",
    "measure_latency",
    "measure_latency_table",
    "measured_costs",
    "params_ratio",
    "parse_budget",
    "parse_budgets",
    "satisfies",
    "search_costs",
    "source_digest",
    "tiled_macs_ratio",
    "weight_bytes_ratio",
]
