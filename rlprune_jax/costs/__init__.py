"""Costs of pruned networks, and budgets that limit them.

A cost is a function of a network's gates: parameters, MACs, bytes, memory, latency, or any Python
function of the user. A ``Budget`` is what the user wrote, a ``Constraint`` that budget bound to one
network::

    constraints = constrain(network, ["params=0.1", "latency=2.5ms"])
    check_reachable(network.graph, constraints, min_keep=2)
    estimate_costs(constraints)          # gates -> f32[K], traceable: what a search projects with
    satisfies(constraints, gates)        # exact counts and measurements: what is delivered

A new cost is one function ``(network, options) -> Cost``, registered in ``COSTS``.

Each name is loaded when it is first used, so that budgets are read before JAX is there.
"""

from typing import TYPE_CHECKING

from rlprune_jax.lazy import lazy_names

if TYPE_CHECKING:
    from rlprune_jax.costs.budgets import Budget as Budget
    from rlprune_jax.costs.budgets import parse_budget as parse_budget
    from rlprune_jax.costs.budgets import parse_budgets as parse_budgets
    from rlprune_jax.costs.constraints import Constraint as Constraint
    from rlprune_jax.costs.constraints import check_reachable as check_reachable
    from rlprune_jax.costs.constraints import constrain as constrain
    from rlprune_jax.costs.constraints import estimate_costs as estimate_costs
    from rlprune_jax.costs.constraints import exact_costs as exact_costs
    from rlprune_jax.costs.constraints import limits as limits
    from rlprune_jax.costs.constraints import measured_costs as measured_costs
    from rlprune_jax.costs.constraints import satisfies as satisfies
    from rlprune_jax.costs.constraints import search_costs as search_costs
    from rlprune_jax.costs.cost import Cost as Cost
    from rlprune_jax.costs.cost import CostFactory as CostFactory
    from rlprune_jax.costs.cost import Measured as Measured
    from rlprune_jax.costs.cost import NetworkLike as NetworkLike
    from rlprune_jax.costs.counts import count_macs as count_macs
    from rlprune_jax.costs.counts import count_params as count_params
    from rlprune_jax.costs.counts import count_weight_bytes as count_weight_bytes
    from rlprune_jax.costs.counts import macs_ratio as macs_ratio
    from rlprune_jax.costs.counts import params_ratio as params_ratio
    from rlprune_jax.costs.counts import weight_bytes_ratio as weight_bytes_ratio
    from rlprune_jax.costs.host import CostError as CostError
    from rlprune_jax.costs.host import CostTimeout as CostTimeout
    from rlprune_jax.costs.host import UserFunction as UserFunction
    from rlprune_jax.costs.host import import_function as import_function
    from rlprune_jax.costs.host import source_digest as source_digest
    from rlprune_jax.costs.kv_cache import count_kv_cache_bytes as count_kv_cache_bytes
    from rlprune_jax.costs.kv_cache import kv_cache_bytes_ratio as kv_cache_bytes_ratio
    from rlprune_jax.costs.latency import Latency as Latency
    from rlprune_jax.costs.latency import measure_in_turn as measure_in_turn
    from rlprune_jax.costs.latency import measure_latency as measure_latency
    from rlprune_jax.costs.latency_table import LatencyTable as LatencyTable
    from rlprune_jax.costs.latency_table import measure_latency_table as measure_latency_table
    from rlprune_jax.costs.memory import ActivationMemory as ActivationMemory
    from rlprune_jax.costs.memory import activation_memory as activation_memory
    from rlprune_jax.costs.options import CostOptions as CostOptions
    from rlprune_jax.costs.options import Tile as Tile
    from rlprune_jax.costs.registry import COSTS as COSTS
    from rlprune_jax.costs.registry import UNITS as UNITS
    from rlprune_jax.costs.slim_latency import SlimLatency as SlimLatency
    from rlprune_jax.costs.tiles import count_tiled_macs as count_tiled_macs
    from rlprune_jax.costs.tiles import tiled_macs_ratio as tiled_macs_ratio

_HOMES = {
    "ActivationMemory": "memory",
    "Budget": "budgets",
    "COSTS": "registry",
    "Constraint": "constraints",
    "Cost": "cost",
    "CostError": "host",
    "CostFactory": "cost",
    "CostOptions": "options",
    "CostTimeout": "host",
    "Latency": "latency",
    "LatencyTable": "latency_table",
    "Measured": "cost",
    "NetworkLike": "cost",
    "SlimLatency": "slim_latency",
    "Tile": "options",
    "UNITS": "registry",
    "UserFunction": "host",
    "activation_memory": "memory",
    "check_reachable": "constraints",
    "constrain": "constraints",
    "count_kv_cache_bytes": "kv_cache",
    "count_macs": "counts",
    "count_params": "counts",
    "count_tiled_macs": "tiles",
    "count_weight_bytes": "counts",
    "estimate_costs": "constraints",
    "exact_costs": "constraints",
    "import_function": "host",
    "kv_cache_bytes_ratio": "kv_cache",
    "limits": "constraints",
    "macs_ratio": "counts",
    "measure_in_turn": "latency",
    "measure_latency": "latency",
    "measure_latency_table": "latency_table",
    "measured_costs": "constraints",
    "params_ratio": "counts",
    "parse_budget": "budgets",
    "parse_budgets": "budgets",
    "satisfies": "constraints",
    "search_costs": "constraints",
    "source_digest": "host",
    "tiled_macs_ratio": "tiles",
    "weight_bytes_ratio": "counts",
}

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
    "count_kv_cache_bytes",
    "count_macs",
    "count_params",
    "count_tiled_macs",
    "count_weight_bytes",
    "estimate_costs",
    "exact_costs",
    "import_function",
    "kv_cache_bytes_ratio",
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

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
