"""Losses and metrics of a network's outputs on a batch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require_range
from rlprune_jax.types import PyTree


class Loss(Protocol):
    """Measure what training makes small."""

    def __call__(self, outputs: PyTree, batch: PyTree) -> jax.Array:
        """Return f32[], the mean over the examples of a batch."""


class Metric(Protocol):
    """Measure what pruning is to keep.

    Higher is better.
    """

    def __call__(self, outputs: PyTree, batch: PyTree) -> jax.Array:
        """Return f32[], the mean over the examples of a batch."""


LABEL_KEYS = ("labels", "label", "y", "targets", "target")
"""Keys of a batch under which labels and targets are looked for."""


def labels_of(batch: PyTree) -> jax.Array:
    """Return the labels or targets of a batch.

    Args:
        batch: a tuple or list, whose second entry it is, or a dictionary with one of
            ``LABEL_KEYS``.

    Raises:
        ValueError: nothing of the kind in it.

    Example:
        >>> labels_of({"image": [0.5], "label": [3]})
        [3]
    """
    if isinstance(batch, Mapping):
        for key in LABEL_KEYS:
            if key in batch:
                return batch[key]
        raise ValueError(
            f"a batch with the keys {sorted(batch)} has no labels; call them one of "
            f"{', '.join(LABEL_KEYS)}, or give a loss and a metric of your own"
        )
    if isinstance(batch, Sequence) and len(batch) > 1:
        return batch[1]
    raise ValueError(
        f"a batch of type {type(batch).__name__} has no labels; give (inputs, labels), or a loss "
        "and a metric of your own"
    )


def cross_entropy_and_hits(
    logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Return each example's softmax cross-entropy and whether it is right.

    Args:
        logits: f32[B, classes].
        labels: i32[B].
        label_smoothing: fraction of each target spread evenly over the classes.

    Returns:
        ``(losses f32[B], hits bool[B])``. A NaN among an example's logits, or a label that names no
        class, makes its loss NaN and is never a hit.

    Example:
        >>> import jax.numpy as jnp
        >>> losses, hits = cross_entropy_and_hits(jnp.zeros((1, 4)), jnp.array([0]))
        >>> round(float(losses[0]), 4), bool(hits[0])
        (1.3863, True)
    """
    classes = jnp.arange(logits.shape[-1])
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label = jnp.sum(jnp.where(labels[:, None] == classes, log_probabilities, 0), axis=-1)
    named = (labels >= 0) & (labels < len(classes))
    of_label = jnp.where(named, of_label, jnp.nan)
    spread = jnp.mean(log_probabilities, axis=-1)
    losses = -((1 - label_smoothing) * of_label + label_smoothing * spread)
    # argmax takes the first NaN for the greatest, which would make class 0 look right; one NaN
    # makes the whole log-softmax and so the loss NaN.
    hits = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(losses)
    return losses, hits


@dataclasses.dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Take the mean softmax cross-entropy of logits, in nats.

    Use it as the loss of classification, on logits f32[B, classes].

    Attributes:
        label_smoothing: fraction of each target spread evenly over the classes.

    Raises:
        ValueError: ``label_smoothing`` outside [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_range("label_smoothing", self.label_smoothing)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} must be at least 0 and below 1"
            )

    def __call__(self, outputs: jax.Array, batch: PyTree) -> jax.Array:
        """Return f32[]; NaN where a label names no class."""
        labels = _class_labels("cross-entropy", outputs, batch)
        return jnp.mean(cross_entropy_and_hits(outputs, labels, self.label_smoothing)[0])


@dataclasses.dataclass(frozen=True)
class NegativeLoss:
    """Make a metric of a loss by its negative.

    Attributes:
        loss: ``(outputs, batch) -> f32[]``.
    """

    loss: Loss

    def __call__(self, outputs: PyTree, batch: PyTree) -> jax.Array:
        """Return f32[], higher is better."""
        return -self.loss(outputs, batch)


def accuracy(outputs: jax.Array, batch: PyTree) -> jax.Array:
    """Return the fraction of examples classified right.

    The greatest logit is that of the label; one with a NaN among its logits is wrong.

    Args:
        outputs: logits f32[B, classes].
        batch: with labels i32[B].
    """
    labels = _class_labels("accuracy", outputs, batch)
    return jnp.mean(cross_entropy_and_hits(outputs, labels)[1], dtype=jnp.float32)


def top5_accuracy(outputs: jax.Array, batch: PyTree) -> jax.Array:
    """Return the fraction with the label among five logits.

    They are the five greatest of an example.

    Args:
        outputs: logits f32[B, classes].
        batch: with labels i32[B].
    """
    labels = _class_labels("top5_accuracy", outputs, batch)
    _, best = jax.lax.top_k(outputs, min(5, outputs.shape[-1]))
    hits = (best == labels[:, None]).any(-1) & ~jnp.isnan(outputs).any(-1)
    return jnp.mean(hits, dtype=jnp.float32)


def squared_error(outputs: jax.Array, batch: PyTree) -> jax.Array:
    """Return the mean squared error of predictions.

    Args:
        outputs: f32[B, ...].
        batch: with targets of the same shape; one of 1 at the end may be left out of either.

    Raises:
        ValueError: other shapes.
    """
    targets = jnp.asarray(labels_of(batch))
    if outputs.shape == (*targets.shape, 1):
        outputs = outputs[..., 0]
    elif targets.shape == (*outputs.shape, 1):
        targets = targets[..., 0]
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs have shape {outputs.shape} and targets {targets.shape}; the mean squared "
            "error takes as many of each"
        )
    return jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets))


def next_token_loss(outputs: jax.Array, batch: jax.Array) -> jax.Array:
    """Return the cross-entropy of next tokens, in nats each.

    Args:
        outputs: logits f32[B, T - 1, vocabulary] for all tokens but the first.
        batch: tokens i32[B, T].

    Raises:
        ValueError: other shapes.
    """
    return _token_losses("the loss per token", outputs, batch)[0].mean()


def token_accuracy(outputs: jax.Array, batch: jax.Array) -> jax.Array:
    """Return the fraction of tokens that are predicted right.

    Args:
        outputs: logits f32[B, T - 1, vocabulary] for all tokens but the first.
        batch: tokens i32[B, T].

    Raises:
        ValueError: other shapes.
    """
    return _token_losses("token_accuracy", outputs, batch)[1].mean(dtype=jnp.float32)


def _token_losses(name: str, outputs: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    shape = tuple(getattr(tokens, "shape", ()))
    if len(shape) != 2 or outputs.ndim != 3 or outputs.shape[:2] != (shape[0], shape[1] - 1):
        raise ValueError(
            f"{name} takes logits [B, T - 1, vocabulary] for tokens [B, T]; outputs have shape "
            f"{outputs.shape} and tokens {shape}"
        )
    logits = outputs.reshape(-1, outputs.shape[-1])
    return cross_entropy_and_hits(logits, tokens[:, 1:].reshape(-1))


def _class_labels(name: str, outputs: jax.Array, batch: PyTree) -> jax.Array:
    """Return the labels of a batch, or say why ``name`` cannot be asked of these outputs."""
    labels = jnp.asarray(labels_of(batch))
    if not hasattr(outputs, "ndim") or outputs.ndim != 2:
        raise ValueError(
            f"{name} takes logits [B, classes]; the outputs have shape "
            f"{jax.tree.map(jnp.shape, outputs)}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != outputs.shape[:1]:
        raise ValueError(
            f"{name} takes one integer label per example; labels are {labels.dtype}"
            f"{list(labels.shape)} for outputs {list(outputs.shape)}"
        )
    return labels


METRICS: dict[str, Metric | None] = {
    "accuracy": accuracy,
    "top5_accuracy": top5_accuracy,
    "token_accuracy": token_accuracy,
    "negative_loss": None,
}
"""Metrics by name; ``negative_loss`` is made of the task's own loss."""
