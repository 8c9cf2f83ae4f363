"""Score the units of a network for a run, by any of the scores."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.costs import Constraint, estimate_costs, limits
from rlprune_jax.graph.groups import Graph
from rlprune_jax.training.task import Batch, Objective, Task, count_examples
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.units.activation_scores import ActivationStatistic, activation_scores
from rlprune_jax.units.comparisons import (
    Normaliser,
    isomorphic_scores,
    normalise_scores,
    per_cost,
)
from rlprune_jax.units.gradient_scores import GatedLoss, fisher_scores, taylor_scores
from rlprune_jax.units.norm_scores import norm_scale_scores
from rlprune_jax.units.scores import check_scores, random_scores
from rlprune_jax.units.weight_scores import (
    geometric_median_scores,
    lamp_scores,
    magnitude_scores,
)
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.network import Definition, Network

SCORE_BATCH, SCORE_EXAMPLES = 64, 1024
"""Examples that a gradient is taken of at once, and examples in all."""

ACTIVATION_EXAMPLES = 512
"""Training examples that activations are read of."""


class Scored(NamedTuple):
    """Hold what units are scored by.

    Attributes:
        network: dense and trained.
        task: whose training examples are looked at.
        config: ``score_reduction`` and ``seed`` are read.
    """

    network: Network
    task: Task
    config: PruneConfig

    @property
    def reduction(self) -> dict[str, PyTree]:
        """The option ``reduction``, where it is not the score's own."""
        given = self.config.score_reduction
        return {} if given == "usual" else {"reduction": given}


def score_units(
    network: Network, task: Task, config: PruneConfig, constraints: tuple[Constraint, ...] = ()
) -> Gates:
    """Score the importance of every unit.

    As a run's settings say, on training data, where the score looks at any.

    Args:
        network: dense and trained.
        task: what it is to do.
        config: ``score`` and its options.
        constraints: what the normaliser ``"cost"`` divides by.

    Returns:
        Group name -> f32[units].

    Raises:
        ValueError: a score that the network does not have, or that is not finite, or costs that
            are to be divided by and are not there.
    """
    raw = raw_scores(network, task, config)
    check_scores(config.score, raw)
    return normalised(network.graph, raw, config, constraints)


def normalised(
    graph: Graph, raw: Gates, config: PruneConfig, constraints: tuple[Constraint, ...] = ()
) -> Gates:
    """Return scores as groups are compared by, of ``raw_scores``.

    Args:
        graph: of the network.
        raw: group name -> f32[units].
        config: its ``score_normaliser`` and ``score_scope``.
        constraints: as in ``score_units``.

    Raises:
        ValueError: costs that are to be divided by and are not there.
    """
    if config.score_normaliser == "cost":
        if not constraints:
            raise ValueError(
                "score_normaliser='cost' divides by what a unit costs in the budgets; give some"
            )
        raw = per_cost(graph, raw, relative_costs(constraints))
    else:
        raw = normalise_scores(graph, raw, normaliser_of(config))
    return isomorphic_scores(graph, raw) if config.score_scope == "isomorphic" else raw


def normaliser_of(config: PruneConfig) -> Normaliser:
    """Return the normaliser, the usual one filled in."""
    given = config.score_normaliser
    if given == "usual" or given == "cost":
        return "mean" if config.score in MEAN_NORMALISED else "none"
    return given


MEAN_NORMALISED = (
    *("magnitude", "magnitude_l1", "geometric_median"),
    *("activation", "activation_variance"),
)
"""Scores whose scales differ from group to group for no reason of importance."""


def raw_scores(network: Network, task: Task, config: PruneConfig) -> Gates:
    """Return the scores of ``config.score``, not normalised."""
    return _SCORES[config.score](Scored(network=network, task=task, config=config))


@dataclasses.dataclass(frozen=True)
class _RelativeCosts:
    """Costs over their limits, equal where they are, so that programs are shared."""

    estimate: Callable[[Gates], jax.Array]
    limits: tuple[float, ...]

    def __call__(self, gates: Gates) -> jax.Array:
        return self.estimate(gates) / jnp.asarray(self.limits)


def relative_costs(constraints: tuple[Constraint, ...]) -> Callable[[Gates], jax.Array]:
    """Return the costs over their limits, which may be added."""
    bounds = tuple(float(limit) for limit in limits(constraints))
    return _RelativeCosts(estimate_costs(constraints), bounds)


def masked_loss(definition: Definition, objective: Objective, variables: Variables) -> GatedLoss:
    """Return the masked network's loss, a function of gates."""

    def loss(gates: Gates, batch: Batch) -> jax.Array:
        inputs = objective.network_inputs(batch)
        return objective.loss(definition.masked(variables, gates, *inputs), batch)

    return loss


def in_minibatches(examples: Batch, size: int = SCORE_BATCH) -> Batch:
    """Return examples [N, ...] as minibatches [M, B, ...].

    What is left over goes.

    Example:
        >>> in_minibatches(jnp.arange(5.0), 2).tolist()
        [[0.0, 1.0], [2.0, 3.0]]
    """
    count = count_examples(examples)
    size = min(size, count)
    return jax.tree.map(
        lambda leaf: leaf[: count // size * size].reshape(count // size, size, *leaf.shape[1:]),
        examples,
    )


def _of_gradients(score: Callable[..., Gates], scored: Scored) -> Gates:
    batches = in_minibatches(scored.task.sample("train", SCORE_EXAMPLES))
    network, objective = scored.network, scored.task.objective
    return _gradients(network.definition, objective, score, network.variables, batches)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradients(
    definition: Definition,
    objective: Objective,
    score: Callable[..., Gates],
    variables: Variables,
    batches: Batch,
) -> Gates:
    return score(definition.graph, masked_loss(definition, objective, variables), batches)


def _of_activations(statistic: ActivationStatistic, scored: Scored) -> Gates:
    network = scored.network
    batch = scored.task.sample("train", ACTIVATION_EXAMPLES)
    inputs = scored.task.objective.network_inputs(batch)
    options = (statistic, scored.reduction.get("reduction", "mean"))
    return _activations(network.definition, options, network.variables, inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _activations(
    definition: Definition, options: tuple, variables: Variables, inputs: tuple[PyTree, ...]
) -> Gates:
    statistic, reduction = options
    return activation_scores(
        definition.apply,
        definition.graph,
        variables,
        inputs,
        statistic=statistic,
        reduction=reduction,
        normaliser="none",
    )


def _of_norms(scored: Scored) -> Gates:
    network = scored.network
    return norm_scale_scores(
        network.apply, network.graph, network.variables, network.example, **scored.reduction
    )


def _of_weights(score: Callable[..., Gates], scored: Scored, **options: PyTree) -> Gates:
    return score(scored.network.graph, scored.network.variables, **options, **scored.reduction)


_SCORES: dict[str, Callable[[Scored], Gates]] = {
    "taylor": partial(_of_gradients, taylor_scores),
    "fisher": partial(_of_gradients, fisher_scores),
    "magnitude": partial(_of_weights, magnitude_scores, normaliser="none"),
    "magnitude_l1": partial(_of_weights, magnitude_scores, norm=1.0, normaliser="none"),
    "lamp": partial(_of_weights, lamp_scores),
    "geometric_median": partial(_of_weights, geometric_median_scores, normaliser="none"),
    "norm_scale": _of_norms,
    "activation": partial(_of_activations, "absolute"),
    "activation_variance": partial(_of_activations, "variance"),
    "random": lambda scored: random_scores(
        scored.network.graph, stage_key(scored.config.seed, "scores")
    ),
}
"""Each score by its name in ``UNIT_SCORES``."""
