"""Pruning of JAX networks by constrained reinforcement learning and by their own sparsity."""

from rlprune_jax.costs.counts import count_macs, count_params
from rlprune_jax.graph.gating import gated
from rlprune_jax.graph.groups import Graph, Group, ones_gates
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.graph.trace import trace_graph
from rlprune_jax.study.run import run_study

__all__ = [
    "Graph",
    "Group",
    "compact",
    "count_macs",
    "count_params",
    "gated",
    "ones_gates",
    "respecialise",
    "run_study",
    "trace_graph",
]
