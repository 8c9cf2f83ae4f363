"""ConvNeXt: depthwise convolutions in blocks built like those of a transformer."""

import flax.linen as nn
import jax
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_images, check_widths
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.initializers import variance_scaling
from rlprune_jax.models.layers import scaled

_INIT = variance_scaling(1.0, "fan_avg", "uniform")

PATCHES = (4, 2, 1)
"""Sizes of a patch that are tried, the published one first."""


class ConvNeXt(nn.Module):
    """Classify images by 7x7 depthwise convolutions and MLPs.

    Use it to prune a convolutional network that has layer norms and layer scale. Patches, stages of
    blocks with a strided convolution between them, the mean over pixels, norm and a linear head.
    The channels of each stage and the hidden units of each block are what pruning can remove.

    Attributes:
        num_classes: outputs of the head.
        depths: blocks of each stage.
        widths: channels of each stage.
        patch: height and width of a patch in pixels; None takes 4, or 2 or 1 where the image would
            leave no pixel to the last stage.
        mlp_ratio: hidden units of a block over the stage's channels.
        layer_scale: that every block starts with.
        width: multiplier of all channels, rounded, at least one.
        conv_general_dilated: the convolution, as ``jax.lax``'s.

    Reference: Liu et al., "A ConvNet for the 2020s", CVPR 2022; the defaults are the tiny one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = ConvNeXt(num_classes=10, depths=(1, 1), widths=(8, 16))
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    patch: int | None = None
    mlp_ratio: int = 4
    layer_scale: float = 1e-6
    width: float = 1.0
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: changes nothing here.

        Raises:
            ValueError: an option below 1, a bad ``width``, unequal numbers of depths and widths, or
                images of the wrong rank or too small.
            TypeError: ``x`` is not of a floating type.
        """
        del train
        check_widths("depths", self.depths)
        check_widths("widths", self.widths, count=len(self.depths))
        for name in ("patch", "mlp_ratio"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be an integer of at least 1")
        shrink = 2 ** (len(self.depths) - 1)
        least = (1 if self.patch is None else self.patch) * shrink
        remedy = "; enlarge the images, lower patch or give fewer depths and widths"
        check_images(x, rank=4, least=least, remedy=remedy)
        side = min(x.shape[1], x.shape[2])
        fitting = [patch for patch in PATCHES if side >= patch * shrink]
        patch = fitting[0] if self.patch is None else self.patch
        for stage, (depth, channels) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            channels = scaled(channels, self.width)
            if stage == 1:
                x = _norm("stem_norm")(self._convolve(channels, patch, "stem")(x))
            else:
                x = self._convolve(channels, 2, f"down{stage}")(_norm(f"down{stage}_norm")(x))
            for number in range(1, depth + 1):
                name = f"stage{stage}_block{number}"
                hidden = self.mlp_ratio * channels
                block = _Block(hidden, self.layer_scale, self.conv_general_dilated, name=name)
                x = block(x)
        x = _norm("norm")(x.mean((1, 2)))
        return nn.Dense(self.num_classes, kernel_init=_INIT, name="head")(x)

    def _convolve(self, channels: int, size: int, name: str) -> nn.Conv:
        return nn.Conv(
            channels,
            (size, size),
            strides=size,
            padding="VALID",
            kernel_init=_INIT,
            conv_general_dilated=self.conv_general_dilated,
            name=name,
        )


class _Block(nn.Module):
    """A depthwise convolution, a norm and an MLP, scaled by channel, beside a shortcut."""

    hidden: int
    layer_scale: float
    conv_general_dilated: ConvGeneralDilatedT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = nn.Conv(
            channels,
            (7, 7),
            padding=[(3, 3), (3, 3)],
            feature_group_count=channels,
            kernel_init=_INIT,
            conv_general_dilated=self.conv_general_dilated,
            name="depthwise",
        )(x)
        y = nn.Dense(self.hidden, kernel_init=_INIT, name="mlp1")(_norm("norm")(y))
        y = nn.Dense(channels, kernel_init=_INIT, name="mlp2")(nn.gelu(y, approximate=False))
        scale = self.param("scale", nn.initializers.constant(self.layer_scale), (channels,))
        return x + scale * y


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, name=name)
