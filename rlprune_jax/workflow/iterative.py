"""Train, measure, prune and rewind again and again, as pure functions.

``prune_iteratively`` in ``curves.py`` runs the loop to its end; here it is one iteration at a time,
on a state of arrays that can be vmapped, scanned and checkpointed.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlprune_jax.checks import require_count
from rlprune_jax.models import ModelFunctions
from rlprune_jax.sparsity.masks import Prunable, apply_mask, make_mask, prunable_leaves
from rlprune_jax.sparsity.pqi import gini, pq_index, pq_index_grid
from rlprune_jax.sparsity.pruners import Pruner
from rlprune_jax.sparsity.scopes import count_live
from rlprune_jax.sparsity.updates import masked_updates
from rlprune_jax.training.loops import (
    TrainState,
    evaluate,
    has_collections,
    make_train_step,
    parameters_of,
    train,
    with_parameters,
)
from rlprune_jax.training.task import Batch, Objective
from rlprune_jax.types import Mask, PyTree, Variables

GRID_P = tuple(round(0.1 * step, 1) for step in range(1, 11))
"""Exponents p of the heat map."""
GRID_Q = tuple(round(1 + 0.1 * step, 1) for step in range(11))
"""Exponents q of the heat map."""


class IterativeData(NamedTuple):
    """Hold what is trained on and what is evaluated on.

    Attributes:
        train: examples as the task's objective takes them.
        test: those that the metric is read on.
    """

    train: Batch
    test: Batch


class IterativeState(NamedTuple):
    """Hold what goes from iteration to iteration, arrays only.

    Attributes:
        iteration: i32[], iterations done.
        variables: what the next training starts from, pruned weights 0.
        rewind: what is gone back to: the parameters, and where they go back too the statistics.
        trained: variables after the last training, pruned weights 0: a pruned network to use.
        trained_mask: bool pytree of what was alive in it.
        mask: bool pytree of what is alive now.
        pruner: state of the pruner.
        key: typed; iteration t trains with ``fold_in(key, t)``.
    """

    iteration: jax.Array
    variables: Variables
    rewind: Variables
    trained: Variables
    trained_mask: Mask
    mask: Mask
    pruner: PyTree
    key: jax.Array


class Iteration(NamedTuple):
    """Hold what one iteration measures after its last training step.

    Attributes:
        train_loss: f32[], of the last training batch.
        metric: f32[], of the retrained network under the mask it was trained with.
        metric_pruned: f32[], after this iteration's pruning, before any retraining.
        density: f32[], fraction of prunable weights alive while training.
        live: i32[], their number.
        pq_index: f32[], at (0.5, 1) over all live weights, whatever the pruner uses.
        pq_index_pruned: f32[], the same after this iteration's pruning.
        gini: f32[].
        layer_live: path -> i32[].
        layer_pq_index: path -> f32[].
        layer_gini: path -> f32[].
        pq_grid: f32[P, Q], PQ Index over ``GRID_P`` and ``GRID_Q``.
    """

    train_loss: jax.Array
    metric: jax.Array
    metric_pruned: jax.Array
    density: jax.Array
    live: jax.Array
    pq_index: jax.Array
    pq_index_pruned: jax.Array
    gini: jax.Array
    layer_live: dict[str, jax.Array]
    layer_pq_index: dict[str, jax.Array]
    layer_gini: dict[str, jax.Array]
    pq_grid: jax.Array


class IterativePruning(NamedTuple):
    """Hold the loop as two functions.

    Attributes:
        init: ``(data, key) -> state``: draws the weights and, where one rewinds to a later step,
            trains up to it.
        step: ``(state, data) -> (state, Iteration)``, one iteration.
    """

    init: Callable[[IterativeData, jax.Array], IterativeState]
    step: Callable[[IterativeState, IterativeData], tuple[IterativeState, Iteration]]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Hold how long and on how much an iteration trains.

    Attributes:
        batch_size: examples a step.
        num_steps: steps of a training from step 0; an iteration takes ``num_steps - rewind_step``.
        rewind_step: the step whose weights are gone back to, 0 for the initial ones.
        batch_statistics: whether running statistics of batch norm stay as trained ("keep"), as in
            the paper's released code, or go back with the weights ("rewind").
        evaluation_batch: examples a forward pass of an evaluation.

    Raises:
        ValueError: ``num_steps`` not above ``rewind_step``, ``rewind_step`` below 0, a batch below
            1, or an unknown ``batch_statistics``.

    Example:
        >>> Schedule(batch_size=250, num_steps=600, rewind_step=60).batch_statistics
        'keep'
    """

    batch_size: int
    num_steps: int
    rewind_step: int = 0
    batch_statistics: Literal["keep", "rewind"] = "keep"
    evaluation_batch: int = 500

    def __post_init__(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("evaluation_batch", self.evaluation_batch)
        require_count("num_steps", self.num_steps)
        require_count("rewind_step", self.rewind_step, 0)
        if self.num_steps <= self.rewind_step:
            raise ValueError(
                f"num_steps={self.num_steps} must be above rewind_step={self.rewind_step}"
            )
        if self.batch_statistics not in ("keep", "rewind"):
            raise ValueError(
                f"batch_statistics={self.batch_statistics!r} is unknown; choose from keep, rewind"
            )


def iterative_pruning(
    functions: ModelFunctions,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    pruner: Pruner,
    schedule: Schedule,
    prunable: Prunable | None = None,
) -> IterativePruning:
    """Make the loop of the lottery-ticket and PQ Index papers.

    Use it where ``prune_iteratively`` is too much: in a vmap over settings, or in a loop of your
    own.

    An iteration trains the masked network with a fresh optimizer, evaluates it, measures how sparse
    it is, prunes by its last weights (not by those of the best test accuracy, which would choose on
    test data), evaluates it again, and sets the weights that are left back. T + 1 iterations give
    T + 1 trained networks; of the last one the pruning is of no consequence. Only parameters are
    pruned, whatever other collections the variables have.

    Args:
        functions: of the network, whose variables are a mapping with ``"params"`` or a bare pytree
            of parameters.
        objective: of the task.
        optimizer: for the parameters; its schedule starts anew at every iteration, at
            ``schedule.rewind_step``.
        pruner: what goes; its numbers may be traced where this function is called under a trace.
        schedule: of one iteration.
        prunable: as in ``make_mask``.

    Returns:
        The loop; both functions are pure, jittable and vmappable over states and keys (see
        ``over_seeds``).

    Reference:
        Diao et al., ICLR 2023, Algorithm 1; Frankle et al. 2020, "Linear Mode Connectivity and the
        Lottery Ticket Hypothesis", for rewinding to a step.
    """

    def run(
        variables: Variables, mask: Mask, data: IterativeData, key: jax.Array, first: int, last: int
    ) -> tuple[Variables, jax.Array]:
        masked = optax.chain(optimizer, masked_updates(mask))
        step = make_train_step(functions.apply_train, masked, objective)
        opt_state = _start_schedules(masked.init(parameters_of(variables)), first)
        state, metrics = train(
            step,
            TrainState(
                variables=variables, opt_state=opt_state, step=jnp.asarray(first, jnp.int32)
            ),
            data.train,
            batch_size=schedule.batch_size,
            num_steps=last - first,
            key=key,
        )
        return state.variables, metrics["loss"][-1]

    def metric(variables: Variables, data: IterativeData) -> jax.Array:
        size = schedule.evaluation_batch
        return evaluate(functions.apply, variables, objective, data.test, batch_size=size).metric

    def init(data: IterativeData, key: jax.Array) -> IterativeState:
        init_key, train_key = jax.random.split(key)
        sample = objective.network_inputs(jax.tree.map(lambda leaf: leaf[:2], data.train))
        variables = jax.tree.map(jnp.asarray, functions.init(init_key, *sample))
        mask = make_mask(parameters_of(variables), prunable)
        if schedule.rewind_step:
            # Keys of iterations are folded from their number, which is never negative.
            before = jax.random.fold_in(train_key, 2**31 - 1)
            variables, _ = run(variables, mask, data, before, 0, schedule.rewind_step)
        everything = schedule.batch_statistics == "rewind" or not has_collections(variables)
        return IterativeState(
            iteration=jnp.zeros((), jnp.int32),
            variables=variables,
            rewind=variables if everything else {"params": variables["params"]},
            trained=variables,
            trained_mask=mask,
            mask=mask,
            pruner=pruner.init(parameters_of(variables), mask),
            key=train_key,
        )

    def step(state: IterativeState, data: IterativeData) -> tuple[IterativeState, Iteration]:
        key = jax.random.fold_in(state.key, state.iteration)
        first, last = schedule.rewind_step, schedule.num_steps
        trained, loss = run(state.variables, state.mask, data, key, first, last)
        params = parameters_of(trained)
        mask, pruner_state = pruner.update(params, state.mask, state.pruner)
        pruned = with_parameters(trained, apply_mask(params, mask))
        measured = Iteration(
            train_loss=loss,
            metric=metric(trained, data),
            metric_pruned=metric(pruned, data),
            pq_index_pruned=pq_index(params, mask),
            **measure_sparsity(params, state.mask),
        )
        back = {**trained, **state.rewind} if has_collections(trained) else state.rewind
        following = IterativeState(
            iteration=state.iteration + 1,
            variables=with_parameters(back, apply_mask(parameters_of(back), mask)),
            rewind=state.rewind,
            trained=trained,
            trained_mask=state.mask,
            mask=mask,
            pruner=pruner_state,
            key=state.key,
        )
        return following, measured

    return IterativePruning(init, step)


def measure_sparsity(params: PyTree, mask: Mask) -> dict[str, PyTree]:
    """Return what ``Iteration`` holds of how sparse weights are."""
    live = count_live(mask)
    total = sum(leaf.size for leaf in prunable_leaves(mask, mask).values())
    return {
        "density": live / total,
        "live": live,
        "pq_index": pq_index(params, mask),
        "gini": gini(params, mask),
        "layer_live": count_live(mask, "layer"),
        "layer_pq_index": pq_index(params, mask, scope="layer"),
        "layer_gini": gini(params, mask, scope="layer"),
        "pq_grid": pq_index_grid(params, mask, p=jnp.asarray(GRID_P), q=jnp.asarray(GRID_Q)),
    }


def over_seeds(loop: IterativePruning, how: Literal["vmap", "map"]) -> IterativePruning:
    """Make the loop for several seeds at once.

    ``init`` takes keys [S]; states and what is measured have S in front.

    Args:
        loop: of one seed.
        how: ``"vmap"`` for dense networks, whose matrices batch well; ``"map"``, one after the
            other in one program, for convolutional ones: weights that differ per seed make vmapped
            convolutions grouped, which are slow.

    Raises:
        ValueError: an unknown ``how``.
    """
    if how not in ("vmap", "map"):
        raise ValueError(f"how={how!r} is unknown; choose from vmap, map")
    if how == "vmap":
        return IterativePruning(
            jax.vmap(loop.init, in_axes=(None, 0)), jax.vmap(loop.step, in_axes=(0, None))
        )
    return IterativePruning(
        lambda data, keys: jax.lax.map(lambda key: loop.init(data, key), keys),
        lambda states, data: jax.lax.map(lambda state: loop.step(state, data), states),
    )


def _start_schedules(opt_state: PyTree, step: int) -> PyTree:
    """Return the state with every schedule of the learning rate at a step."""

    def moved(node: PyTree) -> PyTree:
        if isinstance(node, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(jnp.full_like(node.count, step))
        return node

    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(moved, opt_state, is_leaf=is_schedule)
