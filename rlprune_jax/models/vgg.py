"""VGG with batch norm for small images, in 11 to 19 layers."""

import math

import flax.linen as nn
import jax
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_images, check_widths
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.initializers import variance_scaling

STAGE_WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages at ``width=1.0``."""

STAGE_DEPTHS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions per stage, by the number of layers in the network's name."""

_XAVIER = variance_scaling(1.0, "fan_avg", "normal")


class VGG(nn.Module):
    """Classify images by five stages of convolutions.

    Use it where pruning has much to remove. A stage is convolutions 3x3, each with batch norm and
    ReLU, and a max-pooling 2x2; the last map is flattened and read by a linear head.

    Attributes:
        num_classes: outputs of the head.
        depth: 11, 13, 16 or 19.
        width: multiplier of the standard widths (64 to 512), rounded, at least one channel.
        widths: channels of each convolution instead, one per convolution, in order.
        pools: how many stages, from the first, end in a max-pooling. The usual 5 need images of
            32x32; 4 take 16x16 (28x28 too), 3 take 8x8.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", ICLR 2015, in the form common for CIFAR-10.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = VGG(num_classes=10, depth=16, width=0.125)
        >>> x = jnp.ones((4, 32, 32, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (4, 10)
    """

    num_classes: int
    depth: int = 16
    width: float = 1.0
    widths: tuple[int, ...] | None = None
    pools: int = 5
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: normalise with the batch's statistics and update the running ones (apply with
                ``mutable=["batch_stats"]``) instead of using the running ones.

        Raises:
            ValueError: an unknown ``depth``, bad ``width``, ``widths`` or ``pools``, or images of
                the wrong rank or smaller than ``2**pools``.
            TypeError: ``x`` is not of a floating type.
        """
        stage_widths = self._stage_widths()
        remedy = f" with pools={self.pools}; enlarge the images or lower pools"
        check_images(x, rank=4, least=2**self.pools, remedy=remedy)
        depth = 0
        for stage, widths in enumerate(stage_widths):
            for width in widths:
                depth += 1
                x = nn.Conv(
                    width,
                    (3, 3),
                    kernel_init=_XAVIER,
                    conv_general_dilated=self.conv_general_dilated,
                    name=f"conv{depth}",
                )(x)
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm{depth}")(
                    x
                )
                x = nn.relu(x)
            if stage < self.pools:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], math.prod(x.shape[1:])))
        return nn.Dense(self.num_classes, kernel_init=_XAVIER, name="head")(x)

    def _stage_widths(self) -> list[tuple[int, ...]]:
        """Channels of each convolution, stage by stage, after checking every option."""
        if self.depth not in STAGE_DEPTHS:
            raise ValueError(f"depth={self.depth} is unknown; choose from {list(STAGE_DEPTHS)}")
        if self.pools not in range(6):
            raise ValueError(f"pools={self.pools} must be an integer from 0 to 5")
        if not self.width > 0:
            raise ValueError(f"width={self.width} must be above 0")
        depths = STAGE_DEPTHS[self.depth]
        if self.widths is None:
            scaled = [max(1, round(width * self.width)) for width in STAGE_WIDTHS]
            return [(width,) * count for width, count in zip(scaled, depths, strict=True)]
        if self.width != 1.0:
            raise ValueError(f"give either width={self.width} or widths={self.widths}, not both")
        check_widths("widths", self.widths, count=sum(depths))
        remaining = iter(self.widths)
        return [tuple(next(remaining) for _ in range(count)) for count in depths]
