"""The costs that a budget may limit, by name; nothing here imports JAX."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlprune_jax.costs.cost import Cost, CostFactory, NetworkLike
    from rlprune_jax.costs.options import CostOptions

OWN_UNIT = "of its own unit"
"""Unit of a cost that does not say what it counts, as a user's function."""


def on_demand(module: str, name: str) -> "CostFactory":
    """Return a factory that is imported when called.

    Use it for entries of ``COSTS``, so that a command line knows their names before JAX is there.

    Args:
        module: of this package.
        name: of the factory in it.

    Example:
        >>> on_demand("counts", "params_cost").__name__
        'params_cost'
    """

    def make(network: "NetworkLike", options: "CostOptions") -> "Cost":
        home = importlib.import_module(f"rlprune_jax.costs.{module}")
        return getattr(home, name)(network, options)

    make.__name__ = name
    return make


COSTS: dict[str, "CostFactory"] = {
    "params": on_demand("counts", "params_cost"),
    "macs": on_demand("counts", "macs_cost"),
    "weight_bytes": on_demand("counts", "weight_bytes_cost"),
    "kv_cache_bytes": on_demand("kv_cache", "kv_cache_bytes_cost"),
    "tiled_macs": on_demand("tiles", "tiled_macs_cost"),
    "activation_memory": on_demand("memory", "activation_memory_cost"),
    "latency_table": on_demand("latency_table", "latency_table_cost"),
    "latency": on_demand("slim_latency", "latency_cost"),
}
"""Name -> factory. A new cost is one function ``(network, options) -> Cost`` and an entry here."""

UNITS: dict[str, str] = {
    "params": "parameters",
    "macs": "MACs",
    "weight_bytes": "bytes",
    "kv_cache_bytes": "bytes",
    "tiled_macs": "MACs",
    "activation_memory": "bytes",
    "latency_table": "ms",
    "latency": "ms",
}
"""Name -> unit of absolute limits; a cost that is not named here has a unit of its own."""
