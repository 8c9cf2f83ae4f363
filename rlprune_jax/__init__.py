"""Prune JAX networks by constrained reinforcement learning and by sparsity.

Start at `prune`, with a `Network`, a `Task` and budgets.
"""

from typing import TYPE_CHECKING

from rlprune_jax.lazy import lazy_names

if TYPE_CHECKING:
    from rlprune_jax import search as search
    from rlprune_jax.costs.budgets import Budget as Budget
    from rlprune_jax.costs.constraints import Constraint as Constraint
    from rlprune_jax.costs.constraints import constrain as constrain
    from rlprune_jax.costs.counts import count_macs as count_macs
    from rlprune_jax.costs.counts import count_params as count_params
    from rlprune_jax.costs.registry import COSTS as COSTS
    from rlprune_jax.graph.gating import gated as gated
    from rlprune_jax.graph.groups import Graph as Graph
    from rlprune_jax.graph.groups import Group as Group
    from rlprune_jax.graph.groups import ones_gates as ones_gates
    from rlprune_jax.graph.slim import compact as compact
    from rlprune_jax.graph.slim import respecialise as respecialise
    from rlprune_jax.graph.trace import trace_graph as trace_graph
    from rlprune_jax.sparsity.masks import apply_mask as apply_mask
    from rlprune_jax.sparsity.masks import density_report as density_report
    from rlprune_jax.sparsity.masks import make_mask as make_mask
    from rlprune_jax.sparsity.pqi import gini as gini
    from rlprune_jax.sparsity.pqi import pq_bound as pq_bound
    from rlprune_jax.sparsity.pqi import pq_index as pq_index
    from rlprune_jax.sparsity.pqi import pq_index_grid as pq_index_grid
    from rlprune_jax.sparsity.pruners import Pruner as Pruner
    from rlprune_jax.sparsity.pruners import cubic_schedule as cubic_schedule
    from rlprune_jax.sparsity.pruners import gradual as gradual
    from rlprune_jax.sparsity.pruners import lottery_ticket as lottery_ticket
    from rlprune_jax.sparsity.pruners import one_shot as one_shot
    from rlprune_jax.sparsity.pruners import random_pruning as random_pruning
    from rlprune_jax.sparsity.pruners import sap as sap
    from rlprune_jax.sparsity.selection import drop_smallest as drop_smallest
    from rlprune_jax.sparsity.updates import mask_moments as mask_moments
    from rlprune_jax.sparsity.updates import masked_updates as masked_updates
    from rlprune_jax.sparsity.updates import replace_mask as replace_mask
    from rlprune_jax.study.run import run_study as run_study
    from rlprune_jax.training.recalibration import recalibrate as recalibrate
    from rlprune_jax.training.task import Task as Task
    from rlprune_jax.training.task import classification as classification
    from rlprune_jax.training.task import next_token as next_token
    from rlprune_jax.training.task import regression as regression
    from rlprune_jax.units.gates import round_gates as round_gates
    from rlprune_jax.workflow.config import PruneConfig as PruneConfig
    from rlprune_jax.workflow.curves import IterativeResult as IterativeResult
    from rlprune_jax.workflow.curves import prune_iteratively as prune_iteratively
    from rlprune_jax.workflow.delivery import deliver as deliver
    from rlprune_jax.workflow.iterative import Schedule as Schedule
    from rlprune_jax.workflow.learning import DenseRecipe as DenseRecipe
    from rlprune_jax.workflow.learning import train_dense as train_dense
    from rlprune_jax.workflow.methods import METHODS as METHODS
    from rlprune_jax.workflow.network import Network as Network
    from rlprune_jax.workflow.pipeline import prune as prune
    from rlprune_jax.workflow.pruning import Pruning as Pruning
    from rlprune_jax.workflow.pruning import make_pruning as make_pruning
    from rlprune_jax.workflow.recipes import FastRecipe as FastRecipe
    from rlprune_jax.workflow.results import PruneResult as PruneResult
    from rlprune_jax.workflow.seeds import TrainedSeeds as TrainedSeeds
    from rlprune_jax.workflow.seeds import train_seeds as train_seeds
    from rlprune_jax.workflow.shipping import ship as ship

_HOMES = {
    "Budget": "costs.budgets",
    "COSTS": "costs.registry",
    "Constraint": "costs.constraints",
    "DenseRecipe": "workflow.learning",
    "FastRecipe": "workflow.recipes",
    "TrainedSeeds": "workflow.seeds",
    "train_seeds": "workflow.seeds",
    "Graph": "graph.groups",
    "Group": "graph.groups",
    "IterativeResult": "workflow.curves",
    "METHODS": "workflow.methods",
    "Network": "workflow.network",
    "PruneConfig": "workflow.config",
    "PruneResult": "workflow.results",
    "Pruner": "sparsity.pruners",
    "Pruning": "workflow.pruning",
    "Schedule": "workflow.iterative",
    "Task": "training.task",
    "apply_mask": "sparsity.masks",
    "classification": "training.task",
    "compact": "graph.slim",
    "constrain": "costs.constraints",
    "count_macs": "costs.counts",
    "count_params": "costs.counts",
    "cubic_schedule": "sparsity.pruners",
    "deliver": "workflow.delivery",
    "density_report": "sparsity.masks",
    "drop_smallest": "sparsity.selection",
    "gated": "graph.gating",
    "gini": "sparsity.pqi",
    "gradual": "sparsity.pruners",
    "lottery_ticket": "sparsity.pruners",
    "make_mask": "sparsity.masks",
    "make_pruning": "workflow.pruning",
    "mask_moments": "sparsity.updates",
    "masked_updates": "sparsity.updates",
    "next_token": "training.task",
    "one_shot": "sparsity.pruners",
    "ones_gates": "graph.groups",
    "pq_bound": "sparsity.pqi",
    "pq_index": "sparsity.pqi",
    "pq_index_grid": "sparsity.pqi",
    "prune": "workflow.pipeline",
    "prune_iteratively": "workflow.curves",
    "random_pruning": "sparsity.pruners",
    "recalibrate": "training.recalibration",
    "regression": "training.task",
    "replace_mask": "sparsity.updates",
    "respecialise": "graph.slim",
    "round_gates": "units.gates",
    "run_study": "study.run",
    "sap": "sparsity.pruners",
    "search": "search",
    "ship": "workflow.shipping",
    "trace_graph": "graph.trace",
    "train_dense": "workflow.learning",
}

__all__ = [
    "COSTS",
    "METHODS",
    "Budget",
    "Constraint",
    "DenseRecipe",
    "FastRecipe",
    "Graph",
    "Group",
    "IterativeResult",
    "Network",
    "PruneConfig",
    "PruneResult",
    "Pruner",
    "Pruning",
    "Schedule",
    "Task",
    "TrainedSeeds",
    "apply_mask",
    "classification",
    "compact",
    "constrain",
    "count_macs",
    "count_params",
    "cubic_schedule",
    "deliver",
    "density_report",
    "drop_smallest",
    "gated",
    "gini",
    "gradual",
    "lottery_ticket",
    "make_mask",
    "make_pruning",
    "mask_moments",
    "masked_updates",
    "next_token",
    "one_shot",
    "ones_gates",
    "pq_bound",
    "pq_index",
    "pq_index_grid",
    "prune",
    "prune_iteratively",
    "random_pruning",
    "recalibrate",
    "regression",
    "replace_mask",
    "respecialise",
    "round_gates",
    "run_study",
    "sap",
    "search",
    "ship",
    "trace_graph",
    "train_dense",
    "train_seeds",
]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
