"""Training and evaluation of any network: jitted scans over data that lie on the device."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rlprune_jax.training.classification import (
    check_examples,
    check_labels_named,
    cross_entropy_and_hits,
)
from rlprune_jax.types import Apply, PyTree, Variables

Metrics = dict[str, jax.Array]
"""``"loss"`` and ``"accuracy"``, f32 each: scalars of one step or f32[steps]."""


class TrainState(NamedTuple):
    """What training carries from step to step; arrays only.

    Attributes:
        variables: of the network, with ``"params"``.
        opt_state: of the optimizer, for the params.
        step: i32[], steps done; it and the key decide every batch and every augmentation.
    """

    variables: Variables
    opt_state: PyTree
    step: jax.Array


StepFunction = Callable[
    [TrainState, tuple[jax.Array, jax.Array], jax.Array], tuple[TrainState, Metrics]
]
"""``(state, (images, labels), key) -> (state, metrics)``."""


def init_train_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step.

    Args:
        variables: a dictionary with ``"params"``.
        optimizer: whose state is made for the params.

    Raises:
        ValueError: ``variables`` without ``"params"``.
    """
    if not isinstance(variables, dict) or "params" not in variables:
        raise ValueError(
            "variables must be a dictionary with 'params', as a network's init gives; wrap bare "
            "parameters as {'params': parameters}"
        )
    return TrainState(variables, optimizer.init(variables["params"]), jnp.zeros((), jnp.int32))


def make_train_step(
    apply_train: Apply,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    label_smoothing: float | jax.Array = 0.0,
) -> StepFunction:
    """Make one step of softmax cross-entropy, with the gradient in ``variables["params"]`` only.

    Args:
        apply_train: ``(variables, x) -> (logits f32[B, classes], updates)``; ``updates`` replace
            collections of the variables (batch-norm statistics).
        optimizer: weight decay, clipping and schedule are its business.
        prepare: ``(images, key) -> f32[B, ...]``, normalisation and augmentation of a batch;
            ``None`` where the images are what the network reads.
        label_smoothing: share of each target spread evenly over the classes.

    Returns:
        ``step(state, (images, labels), key) -> (state, {"loss", "accuracy"})``, pure; the metrics
        are those of the batch before the update. A label that names no class makes the loss NaN.
        It is a new function at each call, and ``train`` compiles anew for each: make it once.

    Raises:
        ValueError: ``label_smoothing`` outside [0, 1).
    """
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and below 1")

    def step(
        state: TrainState, batch: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        images, labels = batch
        x = images if prepare is None else prepare(images, key)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, Variables]]:
            logits, updates = apply_train({**state.variables, "params": params}, x)
            losses, hits = cross_entropy_and_hits(logits, labels, label_smoothing)
            return jnp.mean(losses), (jnp.mean(hits, dtype=jnp.float32), updates)

        params = state.variables["params"]
        (loss, (accuracy, updates)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        changes, opt_state = optimizer.update(gradients, state.opt_state, params)
        variables = {**state.variables, **updates, "params": optax.apply_updates(params, changes)}
        return (
            TrainState(variables, opt_state, state.step + 1),
            {"loss": loss, "accuracy": accuracy},
        )

    return step


def train(
    step_fn: StepFunction,
    state: TrainState,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    batch_size: int,
    num_steps: int,
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Run ``num_steps`` steps in one scan, over random batches without replacement.

    Each epoch goes through a new permutation of the images but for its last ``n % batch_size``.
    A step's batch and randomness depend on ``key`` and ``state.step`` alone, so training in
    several calls with the same key is training in one: to resume is to call again. Jittable, and
    vmappable over states and keys.

    Args:
        step_fn: as ``make_train_step`` gives.
        state: to go on from.
        images: [n, ...], whatever ``step_fn`` takes batches of; best on the device already.
        labels: i32[n].
        batch_size: images per step, at most n.
        num_steps: how many steps to do; any number, epochs need not be whole.
        key: typed key.

    Returns:
        The state afterwards and the metrics of every step, f32[num_steps] each.

    Raises:
        ValueError: no images; ``labels`` not one per image or negative; ``batch_size`` below 1 or
            above n; ``num_steps`` negative.
        TypeError: ``labels`` not integers.
    """
    count = check_examples(images, labels, batch_size)
    if batch_size > count:
        raise ValueError(f"batch_size={batch_size} is above the {count} images; lower it")
    if num_steps < 0:
        raise ValueError(f"num_steps={num_steps} must be at least 0")
    return _train(
        step_fn,
        state,
        jnp.asarray(images),
        jnp.asarray(labels),
        key,
        batch_size=batch_size,
        num_steps=num_steps,
    )


def evaluate(
    apply: Apply,
    variables: Variables,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    batch_size: int,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and accuracy over all images, each counted once, for any number of them.

    Jittable, and vmappable over variables.

    Args:
        apply: ``(variables, x) -> logits f32[B, classes]``.
        variables: of the network.
        images: [n, ...], whatever ``prepare`` takes batches of.
        labels: i32[n].
        batch_size: images per forward pass; as many as there are where there are fewer.
        prepare: ``images -> f32[B, ...]``, normalisation; ``None`` where the images are what the
            network reads.

    Returns:
        ``(loss f32[], accuracy f32[])``. A NaN among an image's logits makes the loss NaN and the
        image a miss.

    Raises:
        ValueError: no images; ``labels`` not one per image, negative or too large (where they are
            no tracers); ``batch_size`` below 1.
        TypeError: ``labels`` not integers.
    """
    batch_size = min(batch_size, check_examples(images, labels, batch_size))
    images = jnp.asarray(images)
    batch = jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), images.dtype)
    x = batch if prepare is None else jax.eval_shape(prepare, batch)
    check_labels_named(labels, jax.eval_shape(apply, variables, x).shape[-1])
    return _evaluate(
        apply, variables, images, jnp.asarray(labels), batch_size=batch_size, prepare=prepare
    )


@partial(jax.jit, static_argnames=("step_fn", "batch_size", "num_steps"))
def _train(
    step_fn: StepFunction,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    batch_size: int,
    num_steps: int,
) -> tuple[TrainState, Metrics]:
    order_key, step_key = jax.random.split(key)
    per_epoch = len(images) // batch_size
    # All permutations first: inside the scan a new epoch would be a conditional, which under vmap
    # computes both branches at every step. One by one, since XLA is slow to compile a generator of
    # random numbers over two axes.
    num_epochs = 1 + -(-num_steps // per_epoch)
    orders = jax.lax.map(
        lambda epoch: jax.random.permutation(jax.random.fold_in(order_key, epoch), len(images)),
        state.step // per_epoch + jnp.arange(num_epochs),
    )
    batches = orders[:, : per_epoch * batch_size].reshape((num_epochs * per_epoch, batch_size))
    batches = jax.lax.dynamic_slice_in_dim(batches, state.step % per_epoch, num_steps)

    def body(state: TrainState, batch: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(step_key, state.step)
        return step_fn(state, (images[batch], labels[batch]), key)

    return jax.lax.scan(body, state, batches)


@partial(jax.jit, static_argnames=("apply", "batch_size", "prepare"))
def _evaluate(
    apply: Apply,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int,
    prepare: Callable[[jax.Array], jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    count = len(images)

    def body(total: tuple[jax.Array, jax.Array], first: jax.Array):
        # The last batch reaches back to be full; what it repeats is not counted again.
        start = jnp.minimum(first, count - batch_size)
        x = jax.lax.dynamic_slice_in_dim(images, start, batch_size)
        y = jax.lax.dynamic_slice_in_dim(labels, start, batch_size)
        logits = apply(variables, x if prepare is None else prepare(x))
        losses, hits = cross_entropy_and_hits(logits, y)
        new = start + jnp.arange(batch_size) >= first
        losses = jnp.where(new, losses, 0)
        return (total[0] + jnp.sum(losses), total[1] + jnp.sum(hits & new)), None

    zero = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
    (loss, hits), _ = jax.lax.scan(body, zero, jnp.arange(0, count, batch_size))
    return loss / count, hits / count
