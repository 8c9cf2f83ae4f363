"""Iterative pruning: train, measure, prune, rewind, again; pure functions on a state of arrays."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlprune_jax.models import ModelFunctions
from rlprune_jax.sparsity.masks import apply_mask, make_mask, prunable_leaves
from rlprune_jax.sparsity.pqi import gini, pq_index, pq_index_grid
from rlprune_jax.sparsity.pruners import Pruner
from rlprune_jax.sparsity.scopes import count_live
from rlprune_jax.sparsity.updates import masked_updates
from rlprune_jax.training.loops import TrainState, evaluate, make_train_step, train
from rlprune_jax.types import Mask, PyTree, Variables

Prepare = Callable[..., jax.Array]
"""``(images, key=None) -> f32[B, ...]``: normalised, and with a key augmented."""

GRID_P = tuple(round(0.1 * step, 1) for step in range(1, 11))
"""Exponents p of the heat map."""
GRID_Q = tuple(round(1 + 0.1 * step, 1) for step in range(11))
"""Exponents q of the heat map."""


class IterativeData(NamedTuple):
    """Training images [n, ...] with labels i32[n], and those accuracy is read on."""

    images: jax.Array
    labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


class IterativeState(NamedTuple):
    """What goes from iteration to iteration; arrays only, so it can be checkpointed and vmapped.

    Attributes:
        iteration: i32[], iterations done.
        variables: what the next training starts from, pruned weights 0.
        rewind: parameters that kept weights go back to.
        mask: bool pytree of what is alive.
        pruner: state of the pruner.
        key: typed; iteration t trains with ``fold_in(key, t)``.
    """

    iteration: jax.Array
    variables: Variables
    rewind: PyTree
    mask: Mask
    pruner: PyTree
    key: jax.Array


class Iteration(NamedTuple):
    """What one iteration measures, on the weights after its last training step.

    Attributes:
        train_loss: f32[], of the last training batch.
        accuracy: f32[], of the retrained network under the mask it was trained with.
        accuracy_pruned: f32[], after this iteration's pruning, before any retraining.
        density: f32[], share of prunable weights alive while training.
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
    accuracy: jax.Array
    accuracy_pruned: jax.Array
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
    """The loop as two functions.

    Attributes:
        init: ``(data, key) -> state``: draws the weights and, where one rewinds to a later step,
            trains up to it.
        step: ``(state, data) -> (state, Iteration)``, one iteration.
    """

    init: Callable[[IterativeData, jax.Array], IterativeState]
    step: Callable[[IterativeState, IterativeData], tuple[IterativeState, Iteration]]


def iterative_pruning(
    functions: ModelFunctions,
    optimizer: optax.GradientTransformation,
    pruner: Pruner,
    *,
    batch_size: int,
    num_steps: int,
    rewind_step: int = 0,
    prepare: Prepare | None = None,
    batch_statistics: Literal["keep", "rewind"] = "keep",
    prunable: Any = None,
    evaluation_batch: int = 500,
) -> IterativePruning:
    """Make the loop of the lottery-ticket and PQ Index papers, for any pruner.

    An iteration trains the masked network with a fresh optimizer, reads its accuracy, measures how
    sparse it is, prunes by its last weights (not by those of the best test accuracy, which would
    choose on test data), reads the accuracy again, and sets the weights that are left back. T + 1
    iterations give T + 1 trained networks; of the last one the pruning is of no consequence.

    Args:
        functions: of the network.
        optimizer: for the parameters; its schedule starts anew at every iteration, at
            ``rewind_step``.
        pruner: what goes; its numbers may be traced where this function is called under a trace.
        batch_size: images a step.
        num_steps: steps of a training from step 0; an iteration takes ``num_steps - rewind_step``.
        rewind_step: the step whose weights are gone back to, 0 for the initial ones.
        prepare: of images; with a key in training, without one in evaluation.
        batch_statistics: whether running statistics of batch norm stay as trained, as in the
            paper's released code, or go back with the weights.
        prunable: as in ``make_mask``.
        evaluation_batch: images a forward pass of evaluation.

    Returns:
        The loop; both functions are pure, jittable and vmappable over states and keys (see
        ``over_seeds``).

    Raises:
        ValueError: ``num_steps`` not above ``rewind_step``, ``rewind_step`` below 0, or an unknown
            ``batch_statistics``.

    Reference:
        Diao et al., ICLR 2023, Algorithm 1; Frankle et al. 2020, "Linear Mode Connectivity and the
        Lottery Ticket Hypothesis", for rewinding to a step.
    """
    if rewind_step < 0 or num_steps <= rewind_step:
        raise ValueError(
            f"num_steps={num_steps} must be above rewind_step={rewind_step}, and that at least 0"
        )
    if batch_statistics not in ("keep", "rewind"):
        raise ValueError(
            f"batch_statistics={batch_statistics!r} is unknown; choose from keep, rewind"
        )

    def run(
        variables: Variables, mask: Mask, data: IterativeData, key: jax.Array, first: int, last: int
    ) -> tuple[Variables, jax.Array]:
        masked = optax.chain(optimizer, masked_updates(mask))
        step = make_train_step(functions.apply_train, masked, prepare)
        opt_state = _start_schedules(masked.init(variables["params"]), first)
        state = TrainState(variables, opt_state, jnp.asarray(first, jnp.int32))
        state, metrics = train(
            step,
            state,
            data.images,
            data.labels,
            batch_size=batch_size,
            num_steps=last - first,
            key=key,
        )
        return state.variables, metrics["loss"][-1]

    def accuracy(variables: Variables, data: IterativeData) -> jax.Array:
        return evaluate(
            functions.apply,
            variables,
            data.test_images,
            data.test_labels,
            batch_size=evaluation_batch,
            prepare=prepare,
        )[1]

    def init(data: IterativeData, key: jax.Array) -> IterativeState:
        init_key, train_key = jax.random.split(key)
        sample = data.images[:2] if prepare is None else prepare(data.images[:2])
        variables = functions.init(init_key, sample)
        mask = make_mask(variables["params"], prunable)
        if rewind_step:
            # Keys of iterations are folded from their number, which is never negative.
            before = jax.random.fold_in(train_key, 2**31 - 1)
            variables, _ = run(variables, mask, data, before, 0, rewind_step)
        return IterativeState(
            jnp.zeros((), jnp.int32),
            variables,
            dict(variables) if batch_statistics == "rewind" else {"params": variables["params"]},
            mask,
            pruner.init(variables["params"], mask),
            train_key,
        )

    def step(state: IterativeState, data: IterativeData) -> tuple[IterativeState, Iteration]:
        key = jax.random.fold_in(state.key, state.iteration)
        trained, loss = run(state.variables, state.mask, data, key, rewind_step, num_steps)
        params = trained["params"]
        mask, pruner_state = pruner.update(params, state.mask, state.pruner)
        pruned = {**trained, "params": apply_mask(params, mask)}
        live = count_live(state.mask)
        total = sum(leaf.size for leaf in prunable_leaves(state.mask, state.mask).values())
        measured = Iteration(
            train_loss=loss,
            accuracy=accuracy(trained, data),
            accuracy_pruned=accuracy(pruned, data),
            density=live / total,
            live=live,
            pq_index=pq_index(params, state.mask),
            pq_index_pruned=pq_index(params, mask),
            gini=gini(params, state.mask),
            layer_live=count_live(state.mask, "layer"),
            layer_pq_index=pq_index(params, state.mask, scope="layer"),
            layer_gini=gini(params, state.mask, scope="layer"),
            pq_grid=pq_index_grid(params, state.mask, p=jnp.asarray(GRID_P), q=jnp.asarray(GRID_Q)),
        )
        variables = {**trained, **state.rewind}
        variables["params"] = apply_mask(state.rewind["params"], mask)
        following = IterativeState(
            state.iteration + 1, variables, state.rewind, mask, pruner_state, state.key
        )
        return following, measured

    return IterativePruning(init, step)


def over_seeds(loop: IterativePruning, how: Literal["vmap", "map"]) -> IterativePruning:
    """The loop for S seeds at once: ``init`` takes keys [S], states have S in front.

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
    """The state with every schedule of the learning rate at ``step``."""

    def moved(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(jnp.full_like(node.count, step))
        return node

    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(moved, opt_state, is_leaf=is_schedule)
