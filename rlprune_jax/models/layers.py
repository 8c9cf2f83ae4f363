"""Layers and widths that several networks of the zoo use."""

from collections.abc import Collection

import flax.linen as nn
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.initializers import variance_scaling

_CONV_INIT = variance_scaling(2.0, "fan_out", "normal")


def convolution(
    features: int,
    size: int,
    conv_general_dilated: ConvGeneralDilatedT,
    *,
    stride: int = 1,
    groups: int = 1,
    name: str,
) -> nn.Conv:
    """Make a square convolution without bias, padded on all sides.

    The padding is ``size // 2``, as in the published networks; "SAME" pads a strided one by less.

    Args:
        features: output channels.
        size: of the kernel in pixels, odd.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.
        stride: in pixels.
        groups: of channels that are convolved apart.
        name: of the layer.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=[(size // 2, size // 2)] * 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=_CONV_INIT,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def batch_norm(train: bool, name: str) -> nn.BatchNorm:
    """Make a batch norm with a momentum of 0.9.

    Args:
        train: whether it normalises with the batch's statistics and moves the running ones.
        name: of the layer.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


def scaled(channels: int, width: float) -> int:
    """Scale a number of channels, rounded, at least one.

    Raises:
        ValueError: ``width`` is not above 0.

    Example:
        >>> scaled(64, 0.3)
        19
    """
    if not width > 0:
        raise ValueError(f"width={width} must be above 0")
    return max(1, round(channels * width))


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse an option that is none of ``choices``.

    Raises:
        ValueError: naming the option, its value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose from {list(choices)}")
