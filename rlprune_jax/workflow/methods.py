"""The methods that search: the agent and its rivals, in one registry."""

import dataclasses
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from rlprune_jax.graph.groups import Graph
from rlprune_jax.search import (
    AgentConfig,
    Environment,
    HParams,
    SearchMethod,
    cma_es,
    cross_entropy,
    dynamic_programming,
    evopress,
    fastnas,
    global_threshold,
    knapsack,
    ppo_lagrangian,
    project_ratios,
    random_search,
    ranked,
    search_method,
    spdy,
    uniform,
)
from rlprune_jax.search.loop import MakeSearcher
from rlprune_jax.search.measuring import plan_solution
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.units.structured_sap import group_sparsity, structured_sap_scores
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.pruning import Pruning


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy:
    """Hold how a method goes about one problem.

    Attributes:
        method: makes the searcher; programs are shared by all problems of one structure.
        env: the decision process, as the method sees it.
        iterations: of a search.
        hparams: numbers of the agent, None of a rival.
        fill: whether room that is left within the budgets is filled in what is delivered.
    """

    method: SearchMethod
    env: Environment
    iterations: int
    hparams: PyTree = None
    fill: bool = True


class Method(Protocol):
    """Solve a pruning problem in one way."""

    def __call__(self, pruning: Pruning, /) -> Strategy:
        """Return the strategy for a problem."""


def agent_config(config: PruneConfig) -> AgentConfig:
    """Return the static structure of the agent."""
    assert config.constraint is not None
    return AgentConfig(
        granularity=config.granularity,
        constraint=config.constraint,
        policy="network" if config.sparsity_informed else config.policy,
        dual=config.dual,
        candidates=config.candidates,
        iterations=config.evaluations // config.candidates,
    )


def informed(pruning: Pruning) -> Environment:
    """Return an environment that shows each group's own sparsity.

    An agent sees the PQ Index of a group and the fraction of units that it says are enough, and
    starts from these fractions, shifted onto the budgets.
    """
    sparsity = _group_sparsity(pruning.graph, pruning.network.variables)
    env = pruning.env
    start = jnp.clip(sparsity.keep_ratio, 0.02, 1.0)
    return dataclasses.replace(
        env,
        descriptors=jnp.column_stack([env.descriptors, sparsity.pq_index, sparsity.keep_ratio]),
        initial_keep=_project(env, start),
    )


_project = jax.jit(project_ratios)
_group_sparsity = jax.jit(group_sparsity, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _sap_scores(graph: Graph, variables: Variables, p: jax.Array) -> Gates:
    return jax.vmap(lambda p: structured_sap_scores(graph, variables, p=p, q=2 * p))(p)


def agent(pruning: Pruning) -> Strategy:
    """Search by constrained policy gradient, PPO with Lagrange multipliers."""
    return _agent(pruning, informed(pruning) if pruning.config.sparsity_informed else pruning.env)


def agent_sparsity_informed(pruning: Pruning) -> Strategy:
    """Search by the agent that sees each group's PQ Index."""
    config = dataclasses.replace(pruning.config, sparsity_informed=True)
    return _agent(dataclasses.replace(pruning, config=config), informed(pruning))


def _agent(pruning: Pruning, env: Environment) -> Strategy:
    config = agent_config(pruning.config)
    return _strategy(
        pruning, search_method(ppo_lagrangian, config=config), env=env, hparams=HParams()
    )


def uniform_ratio(pruning: Pruning) -> Strategy:
    """Keep the same fraction of every group."""
    method = search_method(uniform, num_candidates=1)
    return _strategy(pruning, method, iterations=1, fill=False)


def one_threshold(pruning: Pruning) -> Strategy:
    """Cut all units at one threshold on their scores."""
    method = search_method(global_threshold, num_candidates=pruning.config.candidates)
    return _strategy(pruning, method, iterations=1)


def structured_sap(pruning: Pruning) -> Strategy:
    """Cut units as structured SAP does.

    Exponents go from the paper's (0.5, 1) to its (1, 2).
    """
    p = jnp.linspace(0.5, 1.0, pruning.config.candidates)
    scores = _sap_scores(pruning.graph, pruning.network.variables, p)
    return _strategy(pruning, search_method(ranked, scores=scores), iterations=1)


def random(pruning: Pruning) -> Strategy:
    """Draw candidates at random, of the run's granularity."""
    return _random(pruning, pruning.config.granularity)


def random_coarse(pruning: Pruning) -> Strategy:
    """Draw keep ratios at random."""
    return _random(pruning, "coarse")


def _random(pruning: Pruning, granularity: str) -> Strategy:
    count = pruning.config.candidates
    method = search_method(random_search, num_candidates=count, granularity=granularity)
    return _strategy(pruning, method)


def cross_entropy_method(pruning: Pruning) -> Strategy:
    """Move a distribution to the best candidates.

    Of the run's granularity.
    """
    return _cross_entropy(pruning, pruning.config.granularity)


def cross_entropy_coarse(pruning: Pruning) -> Strategy:
    """Move a distribution over keep ratios to the best candidates."""
    return _cross_entropy(pruning, "coarse")


def _cross_entropy(pruning: Pruning, granularity: str) -> Strategy:
    count = pruning.config.candidates
    method = search_method(cross_entropy, num_candidates=count, granularity=granularity)
    return _strategy(pruning, method)


def fastnas_threshold(pruning: Pruning) -> Strategy:
    """Narrow all groups until each loses as much alone."""
    return _measuring(pruning, fastnas)


def dynamic_programming_on_losses(pruning: Pruning) -> Strategy:
    """Solve for the widths of least summed loss, measured alone."""
    return _measuring(pruning, dynamic_programming)


def _measuring(pruning: Pruning, make: MakeSearcher) -> Strategy:
    """Measure, in as many iterations as needed, and solve in one more."""
    count, most = pruning.config.candidates, _iterations(pruning)
    plan = plan_solution(pruning.env, count, most)
    method = search_method(make, num_candidates=count, most_iterations=most)
    return _strategy(pruning, method, iterations=plan.iterations + 1)


def coefficient_search(pruning: Pruning) -> Strategy:
    """Search for the weight of each group's errors (SPDY)."""
    count, iterations = pruning.config.candidates, _iterations(pruning)
    return _strategy(pruning, search_method(spdy, num_candidates=count, iterations=iterations))


def level_swaps(pruning: Pruning) -> Strategy:
    """Swap levels between groups, as EvoPress does."""
    return _strategy(pruning, search_method(evopress, num_candidates=pruning.config.candidates))


def importance_knapsack(pruning: Pruning) -> Strategy:
    """Keep the units of most importance for their cost."""
    method = search_method(knapsack, num_candidates=pruning.config.candidates)
    return _strategy(pruning, method, iterations=1)


def covariance_adaptation(pruning: Pruning) -> Strategy:
    """Search keep ratios by CMA-ES, of the extra ``rivals``."""
    count, iterations = pruning.config.candidates, _iterations(pruning)
    return _strategy(pruning, search_method(cma_es, num_candidates=count, iterations=iterations))


def _iterations(pruning: Pruning) -> int:
    return pruning.config.evaluations // pruning.config.candidates


def _strategy(pruning: Pruning, method: SearchMethod, **changed: PyTree) -> Strategy:
    usual: dict[str, PyTree] = {"env": pruning.env, "iterations": _iterations(pruning)}
    return Strategy(method=method, **usual | changed)


METHODS: dict[str, Method] = {
    "agent": agent,
    "uniform": uniform_ratio,
    "global_threshold": one_threshold,
    "structured_sap": structured_sap,
    "random_search": random,
    "cross_entropy": cross_entropy_method,
    "random_search_coarse": random_coarse,
    "cross_entropy_coarse": cross_entropy_coarse,
    "agent_sparsity_informed": agent_sparsity_informed,
    "fastnas": fastnas_threshold,
    "dynamic_programming": dynamic_programming_on_losses,
    "spdy": coefficient_search,
    "evopress": level_swaps,
    "knapsack": importance_knapsack,
    "cma_es": covariance_adaptation,
}
"""All methods by name, for command line, studies and library. A new one is one function here."""
