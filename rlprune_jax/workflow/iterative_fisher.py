"""Prune in many small steps by the Fisher scores of the network as it is by then."""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.kept import is_kept, rank
from rlprune_jax.search import Environment, gates_to_masks, masks_to_gates, project_priorities
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.training.task import Batch, Objective, count_examples
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.units.comparisons import isomorphic_scores, normalise_scores, per_cost
from rlprune_jax.units.gradient_scores import fisher_scores
from rlprune_jax.workflow.candidates import masked_training
from rlprune_jax.workflow.network import Definition
from rlprune_jax.workflow.scoring import in_minibatches, masked_loss

Comparison = Literal["root_cost", "cost", "none", "mean", "isomorphic"]
"""How units of different groups are compared: by their scores over the root of what they cost, over
what they cost, as they are, over the mean of their group, or with groups of one kind alone."""


@dataclasses.dataclass(frozen=True)
class FisherSteps:
    """Hold how the steps go. Static structure of a jitted program.

    Attributes:
        definition: of the network.
        objective: of the task.
        steps: from the dense network to the budgets.
        examples: that each step scores on, drawn anew.
        comparison: of units of different groups.
    """

    definition: Definition
    objective: Objective
    steps: int
    examples: int
    comparison: Comparison


class FisherData(NamedTuple):
    """Hold training examples.

    Attributes:
        calibration: inputs of the network, of which statistics are taken after each step.
        pool: raw examples, of which each step draws its own.
    """

    calibration: tuple[PyTree, ...]
    pool: Batch


@partial(jax.jit, static_argnums=0)
def iterative_fisher_priorities(
    how: FisherSteps, variables: Variables, env: Environment, data: FisherData, key: jax.Array
) -> Gates:
    """Return priorities by when steps of Fisher pruning take each unit.

    Each step goes the same factor nearer to every budget: in ``steps`` steps costs fall from those
    of the dense network to the limits. It recalibrates the batch statistics of the masked network,
    scores what is left by the per-sample Fisher information of its gates, and keeps the best within
    the step's limits. What is gone stays gone but where rounding needs it back.

    Args:
        how: the steps.
        variables: dense.
        env: with traceable costs; its ``min_keep`` and ``round_to`` hold at every step.
        data: training examples.
        key: draws the examples.

    Returns:
        Group name -> f32[units]: of what is kept 1 to 2 by its last place, of all else the number
        of the step that took it, less all steps. The greatest within the budgets are the mask.

    Reference:
        Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression".
    """
    graph = how.definition.graph
    whole = env.alive.astype(jnp.float32)
    start = jnp.maximum(env.cost_fn(whole), env.limits)  # type: ignore[misc]
    count = count_examples(data.pool)

    def scored(masks: jax.Array, key: jax.Array) -> jax.Array:
        gates = masks_to_gates(env, masks)
        own = variables
        if how.definition.apply_train is not None:
            own = recalibrate(masked_training(how.definition, gates), own, *data.calibration)
        chosen = jax.random.randint(key, (min(how.examples, count),), 0, count)
        batches = in_minibatches(jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data.pool))
        loss = masked_loss(how.definition, how.objective, own)
        return gates_to_masks(env, compared(fisher_scores(graph, loss, batches, gates), gates))

    def compared(scores: Gates, gates: Gates) -> Gates:
        if how.comparison in ("cost", "root_cost"):
            power = 1.0 if how.comparison == "cost" else 0.5
            return per_cost(graph, scores, costs, gates, power=power)
        if how.comparison == "isomorphic":
            means = normalise_scores(graph, scores, "mean", gates)
            return isomorphic_scores(graph, means, gates)
        return normalise_scores(graph, scores, how.comparison, gates)

    def costs(gates: Gates) -> jax.Array:
        return env.cost_fn(gates_to_masks(env, gates)) / env.limits  # type: ignore[misc]

    def step(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
        masks, _, last = carry
        scores = scored(masks, jax.random.fold_in(key, number))
        # What is gone comes last, the longest gone behind.
        priorities = jnp.where(is_kept(masks), scores, last - how.steps - 1.0)
        progress = (number + 1.0) / how.steps
        bounds = jnp.exp((1 - progress) * jnp.log(start) + progress * jnp.log(env.limits))
        # Of the last step the limits themselves, not what rounding makes of them.
        bounds = jnp.where(number + 1 == how.steps, env.limits, bounds)
        masks = project_priorities(dataclasses.replace(env, limits=bounds), priorities)
        return (masks, priorities, jnp.where(is_kept(masks), number + 1.0, last)), None

    begin = (whole, whole, jnp.zeros_like(whole))
    (masks, priorities, last), _ = jax.lax.scan(
        step, begin, jnp.arange(how.steps, dtype=jnp.float32)
    )
    kept = is_kept(masks)
    places = rank(jnp.where(kept, priorities, -jnp.inf).reshape(-1)).reshape(kept.shape)
    inside = 2.0 - places / kept.size
    return masks_to_gates(env, jnp.where(kept, inside, last - how.steps))


def step_cost(calibration: int, examples: int, candidate: int) -> float:
    """Return what a step costs, in evaluations of a candidate.

    In examples that go through the network: those of the calibration once, and those that are
    differentiated three times (forward, and twice as much backward).

    Args:
        calibration: examples that statistics are taken of.
        examples: that a step scores on.
        candidate: examples that the evaluation of a candidate takes, its calibration with them.

    Example:
        >>> step_cost(calibration=512, examples=512, candidate=1024)
        2.0
    """
    return (calibration + 3 * examples) / candidate
