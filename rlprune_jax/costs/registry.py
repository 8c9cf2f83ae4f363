"""The costs that a budget may limit, by name."""

from rlprune_jax.costs.cost import CostFactory
from rlprune_jax.costs.counts import macs_cost, params_cost, weight_bytes_cost
from rlprune_jax.costs.latency_table import latency_table_cost
from rlprune_jax.costs.memory import activation_memory_cost
from rlprune_jax.costs.slim_latency import latency_cost
from rlprune_jax.costs.tiles import tiled_macs_cost

COSTS: dict[str, CostFactory] = {
    "params": params_cost,
    "macs": macs_cost,
    "weight_bytes": weight_bytes_cost,
    "tiled_macs": tiled_macs_cost,
    "activation_memory": activation_memory_cost,
    "latency_table": latency_table_cost,
    "latency": latency_cost,
}
"""Name -> factory. A new cost is one function ``(network, options) -> Cost`` and an entry here."""

UNITS: dict[str, str] = {
    "params": "parameters",
    "macs": "MACs",
    "weight_bytes": "bytes",
    "tiled_macs": "MACs",
    "activation_memory": "bytes",
    "latency_table": "ms",
    "latency": "ms",
}
"""Name -> unit of absolute limits; a cost that is not named here has a unit of its own."""
