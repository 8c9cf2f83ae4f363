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
    """Hold how the steps go.

    Static structure of a jitted program.

    Attributes:
        definition: of the network.
        objective: of the task.
        steps: from the dense network to the budgets.
        examples: that each step scores on, drawn anew.
        comparisons: of units of different groups; all steps are done with each.
    """

    definition: Definition
    objective: Objective
    steps: int
    examples: int
    comparisons: tuple[Comparison, ...]


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
    """Return priorities by how long Fisher pruning keeps units.

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
        Group name -> f32[R, units], a row for each comparison: of what is kept 1 to 2 by its last
        place, of all else how many steps it was kept, less all steps, with a fraction for its place
        among those that went with it. The greatest within the budgets are the mask.

    Reference:
        Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression".
    """
    whole = env.alive.astype(jnp.float32)
    start = jnp.maximum(env.cost_fn(whole), env.limits)  # type: ignore[misc]

    def run(comparison: jax.Array) -> jax.Array:
        own_key = jax.random.fold_in(key, comparison)

        def step(carry: _Carry, number: jax.Array) -> tuple[_Carry, None]:
            gates = masks_to_gates(env, carry.masks)
            scores = _scores(how, variables, data, gates, jax.random.fold_in(own_key, number))
            compared = gates_to_masks(env, _compared(how, env, (scores, gates), comparison))
            # What is gone comes last, the longest gone behind.
            priorities = jnp.where(is_kept(carry.masks), compared, carry.last - how.steps - 1.0)
            progress = (number + 1.0) / how.steps
            bounds = jnp.exp((1 - progress) * jnp.log(start) + progress * jnp.log(env.limits))
            # Of the last step the limits themselves, not what rounding makes of them.
            bounds = jnp.where(number + 1 == how.steps, env.limits, bounds)
            masks = project_priorities(dataclasses.replace(env, limits=bounds), priorities)
            # Of those that go together the best goes last: what did not fit then does not fit now.
            goes = number + 1.0 - (_places(priorities) + 1.0) / (masks.size + 1.0)
            last = jnp.where(is_kept(carry.masks), goes, carry.last)
            last = jnp.where(is_kept(masks), number + 1.0, last)
            return _Carry(masks=masks, priorities=priorities, last=last), None

        begin = _Carry(masks=whole, priorities=whole, last=jnp.zeros_like(whole))
        numbers = jnp.arange(how.steps, dtype=jnp.int32)
        end, _ = jax.lax.scan(step, begin, numbers)
        kept = is_kept(end.masks)
        places = _places(jnp.where(kept, end.priorities, -jnp.inf))
        return jnp.where(kept, 2.0 - places / kept.size, end.last - how.steps)

    found = jax.lax.map(run, jnp.arange(len(how.comparisons), dtype=jnp.int32))
    return masks_to_gates(env, found)


def _places(priorities: jax.Array) -> jax.Array:
    """Return the places of priorities f32[G, Cmax] over all groups, i32[G, Cmax]."""
    return rank(priorities.reshape(-1)).reshape(priorities.shape)


class _Carry(NamedTuple):
    """Hold masks, priorities, and how many steps units were kept, f32[G, Cmax] each."""

    masks: jax.Array
    priorities: jax.Array
    last: jax.Array


def _scores(
    how: FisherSteps, variables: Variables, data: FisherData, gates: Gates, key: jax.Array
) -> Gates:
    """Return the Fisher scores of a masked network, its statistics recalibrated."""
    definition = how.definition
    if definition.apply_train is not None:
        masked = masked_training(definition, gates)
        variables = recalibrate(masked, variables, *data.calibration)
    count = count_examples(data.pool)
    chosen = jax.random.randint(key, (min(how.examples, count),), 0, count)
    batches = in_minibatches(jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data.pool))
    loss = masked_loss(definition, how.objective, variables)
    return fisher_scores(definition.graph, loss, batches, gates)


def _compared(
    how: FisherSteps, env: Environment, scored: tuple[Gates, Gates], comparison: jax.Array
) -> Gates:
    """Return scores as units of different groups are compared by."""
    graph = how.definition.graph

    def costs(gates: Gates) -> jax.Array:
        return env.cost_fn(gates_to_masks(env, gates)) / env.limits  # type: ignore[misc]

    def compare(name: Comparison, scores: Gates, gates: Gates) -> Gates:
        if name in ("cost", "root_cost"):
            return per_cost(graph, scores, costs, gates, power=1.0 if name == "cost" else 0.5)
        if name == "isomorphic":
            means = normalise_scores(graph, scores, "mean", gates)
            return isomorphic_scores(graph, means, gates)
        return normalise_scores(graph, scores, "mean" if name == "mean" else "none", gates)

    return jax.lax.switch(comparison, [partial(compare, name) for name in how.comparisons], *scored)


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
