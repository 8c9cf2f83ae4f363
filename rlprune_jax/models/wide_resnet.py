"""Residual networks with the norm before the convolution."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_images
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.layers import batch_norm, convolution, scaled
from rlprune_jax.models.mlp import DENSE_INIT


class WideResNet(nn.Module):
    """Classify images by wide pre-activated blocks.

    Use it where a shallow, wide network is wanted. A thin stem, the stages, norm, ReLU, mean over
    positions and a linear head.

    Attributes:
        num_classes: outputs of the head.
        depth: number of layers; a stage has ``((depth - 1) // stages - 1) // 2`` blocks of two
            convolutions, so that 28 makes 4 of them in 3 stages.
        widen_factor: channels of the stages over those of the thin network (16, 32, 64, ...).
        stages: 3 for images of 32x32; the sparsity-informed pruning paper takes 4 for 64x64 (of 2
            blocks each at depth 28). Every stage but the first halves the map.
        width: multiplier of all widths, rounded, at least one channel.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, without dropout.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = WideResNet(num_classes=10, depth=10, widen_factor=2, width=1 / 8)
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    depth: int = 28
    widen_factor: int = 8
    stages: int = 3
    width: float = 1.0
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: normalise with the batch's statistics and update the running ones (apply with
                ``mutable=["batch_stats"]``) instead of using the running ones.

        Raises:
            ValueError: too small a ``depth``, a bad ``widen_factor``, ``stages`` or ``width``, or
                images of the wrong rank.
            TypeError: ``x`` is not of a floating type.
        """
        for name in ("widen_factor", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be an integer of at least 1")
        blocks = ((self.depth - 1) // self.stages - 1) // 2
        if blocks < 1:
            raise ValueError(
                f"depth={self.depth} leaves no block to {self.stages} stages; "
                f"give at least {3 * self.stages + 1}"
            )
        stem = scaled(16, self.width)
        widths = [
            scaled(16 * 2**stage * self.widen_factor, self.width) for stage in range(self.stages)
        ]
        x = _features(x, stem, widths, [blocks] * self.stages, self.conv_general_dilated, train)
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)


class PreActResNet18(nn.Module):
    """Classify images by the ResNet18 of the sparsity-informed pruning paper.

    Norm and ReLU stand before each convolution. Stem 3x3 without a norm, four stages of two blocks,
    1x1 shortcuts without a norm that read the activated input, then norm, ReLU, mean over positions
    and a linear head.

    Attributes:
        num_classes: outputs of the head.
        width: multiplier of the standard widths (64 to 512), rounded, at least one channel.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; Diao et al.,
    "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023 (their code's resnet18).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = PreActResNet18(num_classes=10, width=1 / 16)
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    width: float = 1.0
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: as in ``WideResNet``.

        Raises:
            ValueError: a bad ``width``, or images of the wrong rank.
            TypeError: ``x`` is not of a floating type.
        """
        widths = [scaled(64 * 2**stage, self.width) for stage in range(4)]
        x = _features(x, widths[0], widths, [2] * 4, self.conv_general_dilated, train)
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)


def _features(
    x: jax.Array,
    stem: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    convolve: ConvGeneralDilatedT,
    train: bool,
) -> jax.Array:
    """Map images to features f32[B, widths[-1]], by layers of the calling module."""
    check_images(x, rank=4)
    x = convolution(stem, 3, convolve, name="stem")(x)
    for stage, (channels, count) in enumerate(zip(widths, blocks, strict=True)):
        for number in range(count):
            stride = 2 if stage and not number else 1
            name = f"stage{stage + 1}_block{number + 1}"
            x = _PreActBlock(channels, stride, convolve, name=name)(x, train)
    x = nn.relu(batch_norm(train, "norm")(x))
    return jnp.mean(x, axis=(1, 2))


class _PreActBlock(nn.Module):
    """Norm, ReLU and a 3x3 convolution, twice, beside a shortcut."""

    channels: int
    stride: int
    conv_general_dilated: ConvGeneralDilatedT

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolve, stride = self.conv_general_dilated, self.stride
        y = nn.relu(batch_norm(train, "norm1")(x))
        if stride != 1 or x.shape[-1] != self.channels:
            x = convolution(self.channels, 1, convolve, stride=stride, name="shortcut")(y)
        y = convolution(self.channels, 3, convolve, stride=stride, name="conv1")(y)
        y = nn.relu(batch_norm(train, "norm2")(y))
        return x + convolution(self.channels, 3, convolve, name="conv2")(y)
