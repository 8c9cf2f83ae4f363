"""Train and evaluate any network, by jitted scans over data on the device."""

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlprune_jax.checks import require_count, require_key, require_type, shown
from rlprune_jax.training.task import (
    Batch,
    BatchSource,
    Data,
    Evaluation,
    Objective,
    check_data,
    count_examples,
)
from rlprune_jax.types import Apply, ApplyTrain, PyTree, Variables

Metrics = dict[str, jax.Array]
"""``"loss"`` and ``"metric"``, f32 each: scalars of one step or f32[steps]."""


class TrainState(NamedTuple):
    """Hold what training carries from step to step.

    Attributes:
        variables: of the network.
        opt_state: of the optimizer, for the parameters.
        step: i32[], steps done; it and the key decide every batch and every augmentation.
    """

    variables: Variables
    opt_state: PyTree
    step: jax.Array


class StepFunction(Protocol):
    """Take one step of training."""

    def __call__(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Return the next state and what to record of this step."""


class Arrange(Protocol):
    """Change a batch by where its examples stand."""

    def __call__(self, batch: Batch, places: jax.Array, epoch: jax.Array, /) -> Batch:
        """Return the batch for ``places`` i32[B] among all examples and an epoch i32[]."""


def parameters_of(variables: Variables) -> PyTree:
    """Return the part of the variables that is trained.

    It is ``variables["params"]``, or everything where there is no such collection.

    Example:
        >>> parameters_of({"params": {"w": 1.0}, "batch_stats": {}})
        {'w': 1.0}
    """
    return variables["params"] if has_collections(variables) else variables


def with_parameters(variables: Variables, params: PyTree) -> Variables:
    """Return the variables with other parameters."""
    return {**variables, "params": params} if has_collections(variables) else params


def has_collections(variables: Variables) -> bool:
    """Return whether ``"params"`` is a collection of the variables."""
    return isinstance(variables, Mapping) and "params" in variables


def init_train_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step.

    Args:
        variables: a dictionary with ``"params"``, or a pytree of parameters alone.
        optimizer: whose state is made for the parameters.
    """
    # A FrozenDict would come out of a step as another container than it went in.
    variables = dict(variables) if has_collections(variables) else variables
    if not hasattr(optimizer, "init"):
        raise TypeError(f"optimizer={shown(optimizer)} must be one of optax's or make_optimizer's")
    opt_state = optimizer.init(parameters_of(variables))
    return TrainState(variables=variables, opt_state=opt_state, step=jnp.zeros((), jnp.int32))


def make_train_step(
    apply_train: ApplyTrain, optimizer: optax.GradientTransformation, objective: Objective
) -> StepFunction:
    """Make one step of gradient descent on an objective.

    The gradient is taken in the parameters only. It is a new function at each call, and ``train``
    compiles anew for each: make it once.

    Args:
        apply_train: ``(variables, *inputs, key=key) -> (outputs, updates)``; ``updates`` replace
            collections of the variables (batch-norm statistics).
        optimizer: weight decay, clipping and schedule are its business.
        objective: loss, metric, preparation and augmentation.

    Returns:
        ``step(state, batch, key) -> (state, {"loss", "metric"})``, pure; both are those of the
        batch before the update.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        if objective.augment is not None:
            batch = objective.augment(batch, key)
        inputs = objective.network_inputs(batch)
        noise = jax.random.fold_in(key, 1)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, Variables]]:
            variables = with_parameters(state.variables, params)
            outputs, updates = apply_train(variables, *inputs, key=noise)
            found = objective.evaluate(outputs, batch)
            return found.loss, (found.metric, updates)

        params = parameters_of(state.variables)
        (loss, (metric, updates)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        changes, opt_state = optimizer.update(gradients, state.opt_state, params)
        moved = optax.apply_updates(params, changes)
        kept = {**state.variables, **updates} if has_collections(state.variables) else None
        following = TrainState(
            variables=with_parameters(kept, moved) if kept is not None else moved,
            opt_state=opt_state,
            step=state.step + 1,
        )
        return following, {"loss": loss, "metric": metric}

    return step


def train(
    step_fn: StepFunction,
    state: TrainState,
    data: Data,
    *,
    batch_size: int,
    num_steps: int,
    key: jax.Array,
    arrange: Arrange | None = None,
) -> tuple[TrainState, Metrics]:
    """Train for some steps on random batches without replacement.

    Arrays are gone through in one scan: each epoch is a new permutation of the examples but for its
    last ``n % batch_size``. A step's batch and randomness depend on ``key`` and ``state.step``
    alone, so training in several calls with the same key is training in one: to resume is to call
    again. Jittable, and vmappable over states and keys. A source of batches is stepped through from
    Python, pass after pass, in the order it has; ``batch_size`` is then its own.

    Args:
        step_fn: as ``make_train_step`` gives.
        state: to go on from.
        data: pytree of arrays [n, ...], best on the device already; or a source of batches.
        batch_size: examples a step, at most n.
        num_steps: how many steps to do; any number, epochs need not be whole.
        key: typed key.
        arrange: what becomes of each batch before the step, hashable, such as
            ``AlternatingFlip()``; not of a source's batches, whose examples have no places.

    Returns:
        The state afterwards and what every step recorded, [num_steps, ...] each.

    Raises:
        TaskError: data without examples or of unequal lengths.
        ValueError: ``batch_size`` below 1 or above n; ``num_steps`` negative; no typed key.
    """
    require_count("num_steps", num_steps, 0)
    require_count("batch_size", batch_size)
    require_key("key", key)
    check_data("data", data)
    if callable(data):
        return _train_from_source(step_fn, state, data, num_steps, key)
    count = count_examples(data)
    if batch_size > count:
        raise ValueError(f"batch_size={batch_size} is above the {count} examples; lower it")
    arrays = jax.tree.map(jnp.asarray, data)
    return _train(step_fn, state, arrays, key, arrange, batch_size=batch_size, num_steps=num_steps)


def evaluate(
    apply: Apply, variables: Variables, objective: Objective, data: Data, *, batch_size: int
) -> Evaluation:
    """Return loss and metric over all examples, each counted once.

    They are means over batches, weighted by the batches' sizes: exact for whatever is a mean over
    examples. Jittable for arrays, and vmappable over variables.

    Args:
        apply: ``(variables, *inputs) -> outputs``.
        variables: of the network.
        objective: loss, metric and preparation.
        data: pytree of arrays [n, ...] for any n, or a source of batches.
        batch_size: examples a forward pass; as many as there are where there are fewer.

    Raises:
        TaskError: data without examples or of unequal lengths.
        ValueError: ``batch_size`` below 1.
    """
    require_count("batch_size", batch_size)
    require_type("objective", objective, Objective, "take that of a task, task.objective")
    check_data("data", data)
    if callable(data):
        return _evaluate_source(apply, variables, objective, data)
    arrays = jax.tree.map(jnp.asarray, data)
    size = min(batch_size, count_examples(arrays))
    return _evaluate(apply, variables, objective, arrays, batch_size=size)


def passes(source: BatchSource) -> Iterator[Batch]:
    """Yield the batches of a source, pass after pass.

    Passes never end.

    Raises:
        ValueError: (on the way) a pass without a batch.
    """
    while True:
        empty = True
        for batch in source():
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "a pass over the data has no batch; return a new iterator at each call"
            )


@partial(jax.jit, static_argnames=("step_fn", "arrange", "batch_size", "num_steps"))
def _train(
    step_fn: StepFunction,
    state: TrainState,
    data: Batch,
    key: jax.Array,
    arrange: Arrange | None,
    *,
    batch_size: int,
    num_steps: int,
) -> tuple[TrainState, Metrics]:
    count = count_examples(data)
    order_key, step_key = jax.random.split(key)
    per_epoch = count // batch_size
    # All permutations first: inside the scan a new epoch would be a conditional, which under vmap
    # computes both branches at every step. One by one, since XLA is slow to compile a generator of
    # random numbers over two axes.
    num_epochs = 1 + -(-num_steps // per_epoch)
    orders = jax.lax.map(
        lambda epoch: jax.random.permutation(jax.random.fold_in(order_key, epoch), count),
        state.step // per_epoch + jnp.arange(num_epochs),
    )
    batches = orders[:, : per_epoch * batch_size].reshape((num_epochs * per_epoch, batch_size))
    batches = jax.lax.dynamic_slice_in_dim(batches, state.step % per_epoch, num_steps)

    def body(state: TrainState, places: jax.Array) -> tuple[TrainState, Metrics]:
        batch = jax.tree.map(lambda leaf: leaf[places], data)
        if arrange is not None:
            batch = arrange(batch, places, state.step // per_epoch)
        return step_fn(state, batch, jax.random.fold_in(step_key, state.step))

    return jax.lax.scan(body, state, batches)


def _train_from_source(
    step_fn: StepFunction, state: TrainState, source: BatchSource, num_steps: int, key: jax.Array
) -> tuple[TrainState, Metrics]:
    _, step_key = jax.random.split(key)
    done = int(state.step)
    rows: list[Metrics] = []
    batches = itertools.islice(passes(source), done, None)
    for number in range(done, done + num_steps):
        state, row = _one_step(step_fn, state, next(batches), jax.random.fold_in(step_key, number))
        rows.append(row)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows) if rows else {}


@partial(jax.jit, static_argnames="step_fn")
def _one_step(
    step_fn: StepFunction, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, Metrics]:
    return step_fn(state, batch, key)


@partial(jax.jit, static_argnames=("apply", "objective", "batch_size"))
def _evaluate(
    apply: Apply, variables: Variables, objective: Objective, data: Batch, *, batch_size: int
) -> Evaluation:
    count = count_examples(data)

    def of(batch: Batch) -> Evaluation:
        found = objective.evaluate(apply(variables, *objective.network_inputs(batch)), batch)
        return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), found)

    if batch_size == count:
        return of(data)

    def body(total: Evaluation, first: jax.Array) -> tuple[Evaluation, None]:
        batch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, batch_size), data
        )
        return jax.tree.map(lambda a, b: a + b * batch_size, total, of(batch)), None

    whole = count // batch_size * batch_size
    zero = Evaluation(loss=jnp.zeros(()), metric=jnp.zeros(()))
    total, _ = jax.lax.scan(body, zero, jnp.arange(0, whole, batch_size))
    if whole < count:
        rest = of(jax.tree.map(lambda leaf: leaf[whole:], data))
        total = jax.tree.map(lambda a, b: a + b * (count - whole), total, rest)
    return jax.tree.map(lambda value: value / count, total)


def _evaluate_source(
    apply: Apply, variables: Variables, objective: Objective, source: BatchSource
) -> Evaluation:
    total, count = np.zeros(2), 0
    for batch in source():
        size = count_examples(batch)
        found = evaluate(apply, variables, objective, batch, batch_size=size)
        total += size * np.asarray([float(found.loss), float(found.metric)])
        count += size
    if not count:
        raise ValueError("data yield no batch; return a new iterator at each call")
    return Evaluation(loss=jnp.float32(total[0] / count), metric=jnp.float32(total[1] / count))
