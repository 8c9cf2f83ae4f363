"""Batch-norm recalibration: running statistics replaced with those of given images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlprune_jax.types import Variables


def recalibrate(
    apply_train: Callable[[Variables, jax.Array], tuple[jax.Array, Variables]],
    variables: Variables,
    images: jax.Array,
) -> Variables:
    """Replace batch-norm running statistics with the plain statistics of a batch.

    In training mode batch norm reads the batch's statistics b and moves the running ones from s to
    m s + (1 - m) b, whatever its momentum m. One forward pass therefore gives b: the update at
    s = 0 is (1 - m) b and its derivative in s is m. So no momentum needs to be known, nothing of
    the old statistics stays, and any network whose ``batch_stats`` move so will do.
    The relative error in float32 is about 1e-7 / (1 - m).

    Args:
        apply_train: ``(variables, x) -> (logits, updates)``, as ``model_functions`` gives.
        variables: of the network; without ``"batch_stats"`` they come back as they are.
        images: f32[B, ...] normalised, one batch, of rank 2 or 4; or f32[M, B, ...], of rank 3 or
            5, M batches whose statistics are averaged.

    Returns:
        The variables with new ``"batch_stats"``; statistics that training never moves (frozen batch
        norm) are kept.

    Raises:
        TypeError: ``images`` are not of a floating type, or ``variables`` are no dictionary.
        ValueError: ``images`` of another rank, or none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax.models import create_model, model_functions
        >>> init, _, apply_train = model_functions(create_model("cnn", 10, widths=(4,)))
        >>> images = 3 + jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
        >>> variables = init(jax.random.key(1), images)
        >>> bool(jnp.all(variables["batch_stats"]["norm1"]["mean"] == 0))
        True
        >>> variables = recalibrate(apply_train, variables, images)
        >>> bool(jnp.any(variables["batch_stats"]["norm1"]["mean"] == 0))
        False
    """
    if not isinstance(variables, dict):
        raise TypeError(f"variables are a {type(variables).__name__}, not a dictionary")
    if not jax.tree.leaves(variables.get("batch_stats", {})):
        return variables
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images are {images.dtype}; recalibration takes normalised floats")
    if images.ndim not in (2, 3, 4, 5):
        raise ValueError(
            f"images have shape {images.shape}; give one batch [B, H, W, C] or [B, features], or "
            "M batches with one axis more in front"
        )
    if images.size == 0:
        raise ValueError(f"images have shape {images.shape}: nothing to take statistics of")
    batches = images if images.ndim in (3, 5) else images[None]
    old = variables["batch_stats"]

    def moved(statistics: Variables, x: jax.Array) -> Variables:
        return apply_train({**variables, "batch_stats": statistics}, x)[1]["batch_stats"]

    def statistics_of(x: jax.Array) -> Variables:
        # The forward pass does not read the running statistics, so its derivative is no work.
        shares, momenta = jax.jvp(
            lambda statistics: moved(statistics, x),
            (jax.tree.map(jnp.zeros_like, old),),
            (jax.tree.map(jnp.ones_like, old),),
        )
        return jax.tree.map(_solve, shares, momenta, old)

    if len(batches) == 1:
        return {**variables, "batch_stats": statistics_of(batches[0])}

    def add(total: Variables, x: jax.Array) -> tuple[Variables, None]:
        return jax.tree.map(jnp.add, total, statistics_of(x)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, old), batches)
    return {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf / len(batches), total)}


def _solve(share: jax.Array, momentum: jax.Array, old: jax.Array) -> jax.Array:
    """The b of ``share = (1 - momentum) b``; the old value where nothing moves."""
    moves = momentum != 1
    return jnp.where(moves, share / jnp.where(moves, 1 - momentum, 1), old)
