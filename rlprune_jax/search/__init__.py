"""Search for masks under budgets.

`make_environment` states the problem, `ppo_lagrangian` and the baselines search it through the
same three functions (`Searcher`), `run_search` and `run_search_host` drive them, and an `Archive`
keeps the best masks. Nothing here knows networks.
"""

from rlprune_jax.lazy import call_as
from rlprune_jax.search.archive import (
    Archive,
    EmptyArchiveError,
    Entries,
    archive_best,
    archive_init,
    archive_is_empty,
    archive_update,
    archive_with_rewards,
    check_archive,
)
from rlprune_jax.search.baselines import (
    cross_entropy,
    global_threshold,
    random_search,
    ranked,
    uniform,
)
from rlprune_jax.search.cma import cma_es
from rlprune_jax.search.coefficients import LevelErrors, spdy
from rlprune_jax.search.config import (
    AgentConfig,
    ConstraintHandling,
    DualRule,
    Granularity,
    HParams,
    Shaping,
)
from rlprune_jax.search.environment import (
    CostFunction,
    Environment,
    candidate_costs,
    feasible,
    gates_to_masks,
    masks_to_gates,
    masks_to_ratios,
    minimum_costs,
    project_priorities,
    project_ratios,
    ratios_to_masks,
    reachable,
)
from rlprune_jax.search.evolution import evopress
from rlprune_jax.search.loop import (
    Evaluate,
    History,
    HostCosts,
    SearchMethod,
    SearchResult,
    SearchState,
    renew_rewards,
    run_search,
    run_search_host,
    search_method,
    start_search,
)
from rlprune_jax.search.measuring import dynamic_programming, fastnas, knapsack
from rlprune_jax.search.ppo_lagrangian import AgentState, ppo_lagrangian
from rlprune_jax.search.problem import make_environment, start_from
from rlprune_jax.search.searcher import Candidates, Metrics, Searcher

__all__ = [
    "AgentConfig",
    "AgentState",
    "Archive",
    "Candidates",
    "ConstraintHandling",
    "CostFunction",
    "DualRule",
    "EmptyArchiveError",
    "Entries",
    "Environment",
    "Evaluate",
    "Granularity",
    "HParams",
    "History",
    "HostCosts",
    "LevelErrors",
    "Metrics",
    "SearchMethod",
    "SearchResult",
    "SearchState",
    "Searcher",
    "Shaping",
    "archive_best",
    "archive_init",
    "archive_is_empty",
    "archive_update",
    "archive_with_rewards",
    "candidate_costs",
    "check_archive",
    "cma_es",
    "cross_entropy",
    "dynamic_programming",
    "evopress",
    "fastnas",
    "feasible",
    "gates_to_masks",
    "global_threshold",
    "knapsack",
    "make_environment",
    "masks_to_gates",
    "masks_to_ratios",
    "minimum_costs",
    "ppo_lagrangian",
    "project_priorities",
    "project_ratios",
    "random_search",
    "ranked",
    "ratios_to_masks",
    "reachable",
    "renew_rewards",
    "run_search",
    "run_search_host",
    "search_method",
    "spdy",
    "start_from",
    "start_search",
    "uniform",
]

call_as(__name__, "rlprune_jax.workflow.searches", "search")
