"""From a network, a task and budgets to a smaller network."""

from typing import TYPE_CHECKING

from rlprune_jax.lazy import lazy_names

if TYPE_CHECKING:
    from rlprune_jax.workflow.candidates import CandidateData as CandidateData
    from rlprune_jax.workflow.candidates import Evaluator as Evaluator
    from rlprune_jax.workflow.candidates import evaluate_candidate as evaluate_candidate
    from rlprune_jax.workflow.candidates import evaluate_candidates as evaluate_candidates
    from rlprune_jax.workflow.config import PruneConfig as PruneConfig
    from rlprune_jax.workflow.config import resolve as resolve
    from rlprune_jax.workflow.controls import Control as Control
    from rlprune_jax.workflow.controls import all_controls as all_controls
    from rlprune_jax.workflow.controls import from_scratch as from_scratch
    from rlprune_jax.workflow.controls import trained_on as trained_on
    from rlprune_jax.workflow.curves import Curve as Curve
    from rlprune_jax.workflow.curves import IterativeOptions as IterativeOptions
    from rlprune_jax.workflow.curves import IterativeResult as IterativeResult
    from rlprune_jax.workflow.curves import paper_optimizer as paper_optimizer
    from rlprune_jax.workflow.curves import prune_iteratively as prune_iteratively
    from rlprune_jax.workflow.delivery import Delivered as Delivered
    from rlprune_jax.workflow.delivery import deliver as deliver
    from rlprune_jax.workflow.delivery import evaluate_masked as evaluate_masked
    from rlprune_jax.workflow.delivery import evaluate_network as evaluate_network
    from rlprune_jax.workflow.fitting import deliverable as deliverable
    from rlprune_jax.workflow.fitting import equivalence as equivalence
    from rlprune_jax.workflow.fitting import fit_to_budgets as fit_to_budgets
    from rlprune_jax.workflow.iterative import IterativeData as IterativeData
    from rlprune_jax.workflow.iterative import IterativePruning as IterativePruning
    from rlprune_jax.workflow.iterative import Schedule as Schedule
    from rlprune_jax.workflow.iterative import iterative_pruning as iterative_pruning
    from rlprune_jax.workflow.iterative import over_seeds as over_seeds
    from rlprune_jax.workflow.learning import train_dense as train_dense
    from rlprune_jax.workflow.methods import METHODS as METHODS
    from rlprune_jax.workflow.methods import Method as Method
    from rlprune_jax.workflow.methods import Strategy as Strategy
    from rlprune_jax.workflow.network import Definition as Definition
    from rlprune_jax.workflow.network import Network as Network
    from rlprune_jax.workflow.network import NetworkError as NetworkError
    from rlprune_jax.workflow.pipeline import prune as prune
    from rlprune_jax.workflow.pruning import Pruning as Pruning
    from rlprune_jax.workflow.pruning import bind_budgets as bind_budgets
    from rlprune_jax.workflow.pruning import make_pruning as make_pruning
    from rlprune_jax.workflow.recipes import DenseRecipe as DenseRecipe
    from rlprune_jax.workflow.recipes import FastRecipe as FastRecipe
    from rlprune_jax.workflow.recipes import FinetuneRecipe as FinetuneRecipe
    from rlprune_jax.workflow.recipes import finetune_recipe as finetune_recipe
    from rlprune_jax.workflow.results import NetworkResult as NetworkResult
    from rlprune_jax.workflow.results import PruneResult as PruneResult
    from rlprune_jax.workflow.results import ResultError as ResultError
    from rlprune_jax.workflow.sap import compare_pruners as compare_pruners
    from rlprune_jax.workflow.sap_config import SapConfig as SapConfig
    from rlprune_jax.workflow.searches import Search as Search
    from rlprune_jax.workflow.searches import search as search
    from rlprune_jax.workflow.seeds import TrainedSeeds as TrainedSeeds
    from rlprune_jax.workflow.seeds import train_seeds as train_seeds
    from rlprune_jax.workflow.shipping import Shipped as Shipped
    from rlprune_jax.workflow.shipping import ship as ship
    from rlprune_jax.workflow.tuning import Finetune as Finetune

_HOMES = {
    "CandidateData": "candidates",
    "Control": "controls",
    "Curve": "curves",
    "Definition": "network",
    "Delivered": "delivery",
    "DenseRecipe": "recipes",
    "FastRecipe": "recipes",
    "TrainedSeeds": "seeds",
    "train_seeds": "seeds",
    "Evaluator": "candidates",
    "Finetune": "tuning",
    "FinetuneRecipe": "recipes",
    "IterativeData": "iterative",
    "IterativeOptions": "curves",
    "IterativePruning": "iterative",
    "IterativeResult": "curves",
    "METHODS": "methods",
    "Method": "methods",
    "Network": "network",
    "NetworkError": "network",
    "NetworkResult": "results",
    "PruneConfig": "config",
    "PruneResult": "results",
    "Pruning": "pruning",
    "ResultError": "results",
    "SapConfig": "sap_config",
    "Schedule": "iterative",
    "Search": "searches",
    "Shipped": "shipping",
    "Strategy": "methods",
    "all_controls": "controls",
    "bind_budgets": "pruning",
    "compare_pruners": "sap",
    "deliver": "delivery",
    "deliverable": "fitting",
    "equivalence": "fitting",
    "evaluate_candidate": "candidates",
    "evaluate_candidates": "candidates",
    "evaluate_masked": "delivery",
    "evaluate_network": "delivery",
    "finetune_recipe": "recipes",
    "fit_to_budgets": "fitting",
    "from_scratch": "controls",
    "iterative_pruning": "iterative",
    "make_pruning": "pruning",
    "over_seeds": "iterative",
    "paper_optimizer": "curves",
    "prune": "pipeline",
    "prune_iteratively": "curves",
    "resolve": "config",
    "search": "searches",
    "ship": "shipping",
    "train_dense": "learning",
    "trained_on": "controls",
}

__all__ = [
    "METHODS",
    "CandidateData",
    "Control",
    "Curve",
    "Definition",
    "Delivered",
    "DenseRecipe",
    "Evaluator",
    "FastRecipe",
    "Finetune",
    "FinetuneRecipe",
    "IterativeData",
    "IterativeOptions",
    "IterativePruning",
    "IterativeResult",
    "Method",
    "Network",
    "NetworkError",
    "NetworkResult",
    "PruneConfig",
    "PruneResult",
    "Pruning",
    "ResultError",
    "SapConfig",
    "Schedule",
    "Search",
    "Shipped",
    "Strategy",
    "TrainedSeeds",
    "all_controls",
    "bind_budgets",
    "compare_pruners",
    "deliver",
    "deliverable",
    "equivalence",
    "evaluate_candidate",
    "evaluate_candidates",
    "evaluate_masked",
    "evaluate_network",
    "finetune_recipe",
    "fit_to_budgets",
    "from_scratch",
    "iterative_pruning",
    "make_pruning",
    "over_seeds",
    "paper_optimizer",
    "prune",
    "prune_iteratively",
    "resolve",
    "search",
    "ship",
    "train_dense",
    "train_seeds",
    "trained_on",
]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
