"""Optimizers and schedules by name, as optax has them."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rlprune_jax.checks import require_count, require_range
from rlprune_jax.types import PyTree

ScheduleName = Literal["constant", "cosine", "linear"]
"""How the learning rate falls: not at all, or to zero along a cosine or a line."""


def make_schedule(
    learning_rate: ArrayLike,
    num_steps: int | None = None,
    schedule: ScheduleName = "constant",
    warmup: int = 0,
) -> optax.Schedule:
    """Make the learning rate as a function of the step.

    It rises linearly over ``warmup`` steps and then follows the schedule.

    Args:
        learning_rate: the highest rate; a number or a traced scalar.
        num_steps: steps in all, warm-up included; after them a falling rate stays 0. Not needed
            for ``"constant"``.
        schedule: ``"constant"``, ``"cosine"`` or ``"linear"``.
        warmup: steps of the rise, from ``learning_rate / (warmup + 1)``.

    Returns:
        ``step -> rate``, both scalars.

    Raises:
        ValueError: an unknown ``schedule``, a negative number, or a falling schedule whose
            ``num_steps`` is missing or not above ``warmup``; numbers of steps that are no integers.

    Example:
        >>> float(make_schedule(0.5, num_steps=10, schedule="linear")(5))
        0.25
    """
    check_rate("learning_rate", learning_rate)
    if not isinstance(warmup, jax.core.Tracer):
        require_count("warmup", warmup, 0)
    if num_steps is not None and not isinstance(num_steps, jax.core.Tracer):
        require_count("num_steps", num_steps)
    if not isinstance(schedule, str) or schedule not in ("constant", "cosine", "linear"):
        raise ValueError(
            f"schedule={schedule!r} is unknown; choose from constant, cosine and linear"
        )
    body = optax.constant_schedule(1.0)
    if schedule != "constant":
        if num_steps is None or num_steps <= warmup:
            raise ValueError(
                f"num_steps={num_steps} must be given and above warmup={warmup} for "
                f"schedule={schedule!r}"
            )
        falling = num_steps - warmup
        if schedule == "cosine":
            body = optax.cosine_decay_schedule(1.0, falling)
        else:
            body = optax.linear_schedule(1.0, 0.0, falling)
    if warmup:
        rise = optax.linear_schedule(1.0 / (warmup + 1), 1.0, warmup)
        body = optax.join_schedules([rise, body], [warmup])
    return lambda step: jnp.asarray(learning_rate) * body(step)


def check_rate(argument: str, value: object, low: float = 0.0) -> None:
    """Refuse a number below another.

    Arrays and what is traced pass.

    Raises:
        ValueError: no number, not finite, or below.
    """
    if not hasattr(value, "dtype"):
        require_range(argument, value, low)


def make_optimizer(
    name: Literal["sgd", "adam"] = "sgd",
    *,
    learning_rate: ArrayLike,
    num_steps: int | None = None,
    schedule: ScheduleName = "constant",
    warmup: int = 0,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: ArrayLike = 0.0,
    decayed: Literal["kernels", "all"] = "kernels",
    decoupled: bool = False,
    clip_norm: ArrayLike | None = None,
) -> optax.GradientTransformation:
    """Make an optimizer by its name.

    It clips, decays weights, applies the rule and then the learning rate. For ``"sgd"`` weight
    decay is added to the gradient, so that momentum carries it, as is customary, unless it is
    ``decoupled``; for ``"adam"`` it always is (AdamW).

    Args:
        name: ``"sgd"`` or ``"adam"``.
        learning_rate: as in ``make_schedule``.
        num_steps: as in ``make_schedule``.
        schedule: as in ``make_schedule``.
        warmup: as in ``make_schedule``.
        momentum: of ``"sgd"``; 0 keeps no momentum.
        nesterov: whether the momentum of ``"sgd"`` looks ahead.
        weight_decay: coefficient; a number or a traced scalar.
        decayed: what weight decay touches: ``"kernels"``, the arrays of rank above 1 (no biases, no
            norms), or ``"all"`` parameters.
        decoupled: whether weight decay of ``"sgd"`` comes after the momentum. With momentum ``m``
            it then shrinks weights as much as one ``1 / (1 - m)`` times as large that is not.
        clip_norm: greatest norm of the whole gradient; ``None`` for no clipping.

    Returns:
        An optax transformation.

    Raises:
        ValueError: an unknown ``name`` or ``decayed``, a negative number, ``clip_norm`` not above
            0, or what ``make_schedule`` refuses.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer("sgd", learning_rate=0.1, momentum=0.0)
        >>> params = {"kernel": jnp.ones((2, 2))}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> float(updates["kernel"][0, 0]).__round__(3)
        -0.1
    """
    if not isinstance(name, str) or name not in ("sgd", "adam"):
        raise ValueError(f"optimizer {name!r} is unknown; choose from sgd and adam")
    check_rate("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be at least 0 and below 1")
    if decayed not in ("kernels", "all"):
        raise ValueError(f"decayed={decayed!r} is unknown; choose from kernels and all")
    check_rate("weight_decay", weight_decay)
    if clip_norm is not None:
        check_rate("clip_norm", clip_norm)
        if isinstance(clip_norm, int | float) and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm} must be above 0; None for no clipping")
    rate = make_schedule(learning_rate, num_steps, schedule, warmup)
    decays = not isinstance(weight_decay, int | float) or weight_decay > 0
    only = _kernels if decayed == "kernels" else None
    decay = [optax.add_decayed_weights(weight_decay, mask=only)] if decays else []
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    if name == "adam":
        rule = [optax.scale_by_adam(), *decay]
    else:
        carried = [optax.trace(momentum, nesterov)] if momentum else []
        rule = [*carried, *decay] if decoupled else [*decay, *carried]
    return optax.chain(*clip, *rule, optax.scale_by_learning_rate(rate))


def _kernels(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
