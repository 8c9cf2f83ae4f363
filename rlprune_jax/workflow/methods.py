"""The methods that search: the agent and its rivals, in one registry."""

import dataclasses
import math
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from rlprune_jax.graph.groups import Graph
from rlprune_jax.kept import rank
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
    gates_to_masks,
    global_threshold,
    knapsack,
    masks_to_gates,
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
from rlprune_jax.training.task import count_examples
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.units.comparisons import normalise_scores
from rlprune_jax.units.structured_sap import group_sparsity, structured_sap_scores
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.iterative_fisher import (
    Comparison,
    FisherData,
    FisherSteps,
    iterative_fisher_priorities,
    step_cost,
)
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.pruning import Pruning, candidate_data
from rlprune_jax.workflow.scoring import score_units


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy:
    """Hold how a method goes about one problem.

    Attributes:
        method: makes the searcher; programs are shared by all problems of one structure.
        env: the decision process, as the method sees it.
        iterations: of a search.
        hparams: numbers of the agent, None of a rival.
        fill: whether room that is left within the budgets is filled in what is delivered.
        spent: what came before the search, in evaluations of a candidate.
        remembers: whether rewards of different iterations are compared, so that all are finetuned
            before by the last entry of ``reward_finetune``.
    """

    method: SearchMethod
    env: Environment
    iterations: int
    hparams: PyTree = None
    fill: bool = True
    spent: int = 0
    remembers: bool = False


class Method(Protocol):
    """Solve a pruning problem in one way."""

    def __call__(self, pruning: Pruning, /) -> Strategy:
        """Return the strategy for a problem."""


def agent_config(config: PruneConfig) -> AgentConfig:
    """Return the static structure of the agent."""
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


def global_magnitude(pruning: Pruning) -> Strategy:
    """Cut all units at one threshold on their norms.

    Over the mean of their group, and by LAMP; with a minimum of units per group, tried from none to
    what is uniform.
    """
    return _one_cut(
        pruning, own_scores(pruning, score="magnitude"), own_scores(pruning, score="lamp")
    )


def network_slimming(pruning: Pruning) -> Strategy:
    """Cut all units at one threshold on their norms' scales.

    As they are, and normalised as LAMP; with a minimum as ``global_magnitude``.
    """
    raw = own_scores(pruning, score="norm_scale")
    return _one_cut(pruning, raw, normalise_scores(pruning.graph, raw, "lamp"))


def isomorphic_magnitude(pruning: Pruning) -> Strategy:
    """Cut groups of one kind at one norm.

    With a minimum of units per group, as ``global_magnitude``.
    """
    return _one_cut(pruning, own_scores(pruning, score="magnitude", score_scope="isomorphic"))


def isomorphic_fisher(pruning: Pruning) -> Strategy:
    """Cut groups of one kind at one Fisher score.

    Per-sample Fisher scores over their group's mean, with a minimum as ``global_magnitude``.
    """
    scores = own_scores(pruning, score="fisher", score_normaliser="mean", score_scope="isomorphic")
    return _one_cut(pruning, scores)


def uniform_magnitude(pruning: Pruning) -> Strategy:
    """Keep the same fraction of every group, by norm."""
    scores = own_scores(pruning, score="magnitude")
    method = search_method(uniform, num_candidates=1)
    return _strategy(pruning, method, env=_ranked_by(pruning.env, scores), iterations=1, fill=False)


@jax.jit
def _ranked_by(env: Environment, scores: Gates) -> Environment:
    """Return an environment whose units are in the order of other scores."""
    raw = gates_to_masks(env, scores)
    ranks = jnp.where(env.alive, rank(jnp.where(env.alive, raw, -jnp.inf)), env.num_units)
    lowest = jnp.where(env.alive, raw, jnp.inf).min(1, keepdims=True)
    above = jnp.where(env.alive, raw - jnp.minimum(lowest, 0.0), 0.0)
    relative = above / jnp.maximum(above.max(1, keepdims=True), 1e-12)
    return dataclasses.replace(env, ranks=ranks, raw_scores=raw, scores=relative)


def own_scores(pruning: Pruning, **options: str) -> Gates:
    """Return scores that a method brings along.

    Args:
        pruning: the problem.
        **options: fields of the settings of scores; those of the run do not count.
    """
    own = {"score_normaliser": "usual", "score_scope": "network", "score_reduction": "usual"}
    config = dataclasses.replace(pruning.config, **own | options)  # type: ignore[arg-type]
    return score_units(pruning.network, pruning.task, config, pruning.constraints)


def _one_cut(pruning: Pruning, *ways: Gates) -> Strategy:
    """Cut at one threshold, with minimal fractions of every group from none to the uniform one.

    Several ways to score share the candidates of one iteration, of which there are at least two.
    """
    count = pruning.config.candidates
    counts = [count - count // 2, count // 2] if len(ways) == 2 else [count]
    rows = [
        with_minimum(pruning.env, scores, own) for scores, own in zip(ways, counts, strict=True)
    ]
    raised = jax.tree.map(lambda *each: jnp.concatenate(each), *rows)
    return _strategy(pruning, search_method(ranked, scores=raised), iterations=1)


@partial(jax.jit, static_argnums=2)
def with_minimum(env: Environment, scores: Gates, count: int) -> Gates:
    """Raise the best units of each group above all others.

    Use it with a threshold over all groups, which may leave a group next to nothing.

    Args:
        env: the problem.
        scores: group name -> f32[units], comparable across groups.
        count: how many minimums are tried, evenly from none to the largest uniform ratio.

    Returns:
        Group name -> f32[count, units], priorities.
    """
    ratios = project_ratios(env, jnp.full(env.num_groups, 0.5, jnp.float32))
    priorities = gates_to_masks(env, scores)
    values = jnp.where(env.alive, priorities, -jnp.inf)
    # Places over all groups, so that nothing depends on the scale of the scores.
    overall = rank(values.reshape(-1)).reshape(values.shape)
    own = rank(values)
    least = jnp.linspace(0.0, 1.0, count)[:, None] * jnp.floor(ratios * jnp.asarray(env.sizes))
    spared = own < jnp.round(least)[:, :, None]
    return masks_to_gates(env, jnp.where(spared, 1.0, 0.0) - overall / overall.size)


FISHER_STEPS = 75
"""Steps of iterative Fisher pruning, where the evaluations suffice for so many."""

FISHER_EXAMPLES = 256
"""Training examples that each step scores on."""

FISHER_POOL = 8192
"""Training examples that they are drawn of."""

COMPARISONS: tuple[Comparison, ...] = ("root_cost", "cost", "none", "mean")
"""How iterative Fisher pruning compares groups, tried in this order while evaluations last."""


def iterative_fisher(pruning: Pruning) -> Strategy:
    """Prune step by step by Fisher scores.

    Steps are counted as evaluations, by the examples that go through the network.
    """
    config, task, network = pruning.config, pruning.task, pruning.network
    assert config.calibration_images is not None
    data = candidate_data(pruning)
    calibration = count_examples(data.calibration) if network.apply_train is not None else 0
    examples = min(FISHER_EXAMPLES, count_examples(task.sample("train", FISHER_EXAMPLES)))
    each = step_cost(calibration, examples, calibration + count_examples(data.batch))
    runs = min(len(COMPARISONS), max(1, int(config.evaluations // (FISHER_STEPS * each + 1))))
    steps = max(1, min(FISHER_STEPS, int((config.evaluations / runs - 1) // each)))
    pool = FisherData(data.calibration, task.sample("train", FISHER_POOL))
    how = FisherSteps(network.definition, task.objective, steps, examples, COMPARISONS[:runs])
    key = stage_key(config.seed, "iterative_fisher")
    scores = iterative_fisher_priorities(how, network.variables, pruning.env, pool, key)
    spent = math.ceil(runs * steps * each)
    return _strategy(pruning, search_method(ranked, scores=scores), iterations=1, spent=spent)


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
    return _strategy(pruning, method, iterations=plan.iterations + 1, remembers=True)


def coefficient_search(pruning: Pruning) -> Strategy:
    """Search for the weight of each group's errors (SPDY)."""
    count, iterations = pruning.config.candidates, _iterations(pruning)
    method = search_method(spdy, num_candidates=count, iterations=iterations)
    return _strategy(pruning, method, remembers=True)


def level_swaps(pruning: Pruning) -> Strategy:
    """Swap levels between groups, as EvoPress does."""
    method = search_method(evopress, num_candidates=pruning.config.candidates)
    return _strategy(pruning, method, remembers=True)


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
    "global_magnitude": global_magnitude,
    "uniform_magnitude": uniform_magnitude,
    "network_slimming": network_slimming,
    "isomorphic_magnitude": isomorphic_magnitude,
    "isomorphic_fisher": isomorphic_fisher,
    "iterative_fisher": iterative_fisher,
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
