"""MobileNetV2, depthwise-separable convolutions inside narrow residual blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_images
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.layers import batch_norm, check_choice, convolution, scaled
from rlprune_jax.models.mlp import DENSE_INIT
from rlprune_jax.models.resnet import STEMS

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride of the first block, stage by stage."""


class MobileNet(nn.Module):
    """Classify images by inverted residual blocks.

    Use it where few MACs matter more than accuracy. A stem, seven stages of blocks, a 1x1
    convolution, mean over positions and a linear head.

    Attributes:
        num_classes: outputs of the head.
        stem: ``"imagenet"`` for the published strides (32 in all), ``"cifar"`` without those of the
            stem and of the second stage (8 in all).
        width: multiplier of the standard widths, rounded, at least one channel.
        blocks: most blocks of a stage; ``None`` for as many as published, up to 4.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    without dropout.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = MobileNet(num_classes=10, width=1 / 8)
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    stem: str = "cifar"
    width: float = 1.0
    blocks: int | None = None
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: normalise with the batch's statistics and update the running ones (apply with
                ``mutable=["batch_stats"]``) instead of using the running ones.

        Raises:
            ValueError: an unknown ``stem``, a bad ``width`` or ``blocks``, or images of the wrong
                rank.
            TypeError: ``x`` is not of a floating type.
        """
        check_choice("stem", self.stem, STEMS)
        if self.blocks is not None and self.blocks < 1:
            raise ValueError(f"blocks={self.blocks} must be an integer of at least 1, or None")
        check_images(x, rank=4)
        convolve, coarse = self.conv_general_dilated, self.stem == "imagenet"
        x = convolution(
            scaled(32, self.width), 3, convolve, stride=2 if coarse else 1, name="stem"
        )(x)
        x = nn.relu6(batch_norm(train, "stem_norm")(x))
        for stage, (expansion, channels, blocks, first_stride) in enumerate(STAGES, start=1):
            for number in range(min(blocks, self.blocks or blocks)):
                stride = first_stride if number == 0 and (coarse or stage != 2) else 1
                block = _InvertedResidual(
                    channels=scaled(channels, self.width),
                    expansion=expansion,
                    stride=stride,
                    conv_general_dilated=convolve,
                    name=f"stage{stage}_block{number + 1}",
                )
                x = block(x, train)
        x = convolution(scaled(1280, self.width), 1, convolve, name="last")(x)
        x = nn.relu6(batch_norm(train, "last_norm")(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)


class _InvertedResidual(nn.Module):
    """Widen 1x1, convolve each channel 3x3, narrow 1x1; add where the shape is kept."""

    channels: int
    expansion: int
    stride: int
    conv_general_dilated: ConvGeneralDilatedT

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolve, y = self.conv_general_dilated, x
        wide = self.expansion * x.shape[-1]
        if self.expansion != 1:
            y = convolution(wide, 1, convolve, name="expand")(y)
            y = nn.relu6(batch_norm(train, "expand_norm")(y))
        y = convolution(wide, 3, convolve, stride=self.stride, groups=wide, name="depthwise")(y)
        y = nn.relu6(batch_norm(train, "depthwise_norm")(y))
        y = convolution(self.channels, 1, convolve, name="project")(y)
        y = batch_norm(train, "project_norm")(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.channels else y
