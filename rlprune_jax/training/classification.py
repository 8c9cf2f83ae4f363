"""Labels and logits: what goes together, the cross-entropy and the hits."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def cross_entropy_and_hits(
    logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of each example, and whether its greatest logit is the label's.

    Args:
        logits: f32[B, classes].
        labels: i32[B].
        label_smoothing: share of each target spread evenly over the classes.

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


def check_examples(images: ArrayLike, labels: ArrayLike, batch_size: int) -> int:
    """Refuse images, labels and a batch size that do not go together.

    Args:
        images: [n, ...].
        labels: integers [n]; their values are checked unless they are tracers.
        batch_size: images at once.

    Returns:
        n.

    Raises:
        ValueError: no images; not one label per image, or a negative one; ``batch_size`` below 1.
        TypeError: ``labels`` not integers.
    """
    if np.ndim(images) < 2 or np.shape(images)[0] == 0:
        raise ValueError(f"images have shape {np.shape(images)}; give [n, ...] with n above 0")
    count = np.shape(images)[0]
    if np.shape(labels) != (count,):
        raise ValueError(
            f"labels have shape {np.shape(labels)}; {count} images take labels of shape ({count},)"
        )
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"labels are {jnp.result_type(labels)}; give class numbers, integers")
    _, smallest = _range(labels)
    if smallest < 0:
        raise ValueError(f"labels hold {smallest}; classes count from 0")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    return count


def check_labels_named(labels: ArrayLike, num_classes: int) -> None:
    """Refuse a label that is ``num_classes`` or more; tracers pass.

    Raises:
        ValueError: naming the label.
    """
    largest, _ = _range(labels)
    if largest >= num_classes:
        raise ValueError(
            f"labels hold {largest}; the network tells {num_classes} classes apart, 0 to "
            f"{num_classes - 1}"
        )


def _range(labels: ArrayLike) -> tuple[int, int]:
    """Largest and smallest label; ``(-1, 0)``, which nothing refuses, for tracers."""
    if isinstance(labels, jax.core.Tracer):
        return -1, 0
    # The explicit transfer passes a transfer guard around a training loop.
    values = np.asarray(jax.device_get(labels))
    return int(values.max()), int(values.min())
