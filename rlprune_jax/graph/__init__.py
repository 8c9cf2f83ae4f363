"""Groups of coupled units of any traced function, masked by gates and cut to them.

``trace_graph`` finds the groups, ``gated`` masks the network on what its consumers read,
``compact`` cuts its variables and ``respecialise`` runs any function of them on the cut ones.
"""

from rlprune_jax.graph.gating import gated
from rlprune_jax.graph.groups import (
    CONSUMER,
    FOLLOWER,
    PRODUCER,
    Frozen,
    Graph,
    Group,
    Layer,
    Slot,
    check_gates,
    ones_gates,
)
from rlprune_jax.graph.matching import Matched, match
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.graph.trace import trace_graph

__all__ = [
    "CONSUMER",
    "FOLLOWER",
    "PRODUCER",
    "Frozen",
    "Graph",
    "Group",
    "Layer",
    "Matched",
    "Slot",
    "check_gates",
    "compact",
    "gated",
    "match",
    "ones_gates",
    "respecialise",
    "trace_graph",
]
