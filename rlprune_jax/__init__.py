"""Pruning of JAX networks by constrained reinforcement learning and by their own sparsity."""

from rlprune_jax.costs.counts import count_macs, count_params
from rlprune_jax.graph.gating import gated
from rlprune_jax.graph.groups import Graph, Group, ones_gates
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.graph.trace import trace_graph
from rlprune_jax.sparsity.masks import apply_mask, density_report, make_mask
from rlprune_jax.sparsity.pqi import gini, pq_bound, pq_index, pq_index_grid
from rlprune_jax.sparsity.pruners import (
    Pruner,
    cubic_schedule,
    gradual,
    lottery_ticket,
    one_shot,
    random_pruning,
    sap,
)
from rlprune_jax.sparsity.selection import drop_smallest
from rlprune_jax.sparsity.updates import mask_moments, masked_updates, replace_mask
from rlprune_jax.study.run import run_study
from rlprune_jax.units.gates import round_gates

__all__ = [
    "Graph",
    "Group",
    "Pruner",
    "apply_mask",
    "compact",
    "count_macs",
    "count_params",
    "cubic_schedule",
    "density_report",
    "drop_smallest",
    "gated",
    "gini",
    "gradual",
    "lottery_ticket",
    "make_mask",
    "mask_moments",
    "masked_updates",
    "one_shot",
    "ones_gates",
    "pq_bound",
    "pq_index",
    "pq_index_grid",
    "random_pruning",
    "replace_mask",
    "respecialise",
    "round_gates",
    "run_study",
    "sap",
    "trace_graph",
]
