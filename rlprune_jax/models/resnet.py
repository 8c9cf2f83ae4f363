"""ResNet18 to 152, and the thin ResNet20 to 110 for CIFAR."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_images
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.layers import batch_norm, check_choice, convolution, scaled
from rlprune_jax.models.mlp import DENSE_INIT

STAGE_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks per stage, by the number of layers in the network's name."""

THIN_DEPTHS = (20, 32, 44, 56, 110)
"""Depths of the published networks for CIFAR; any ``6 n + 2`` can be built."""

SHORTCUTS = ("pad", "projection")
STEMS = ("cifar", "imagenet")


class ResNet(nn.Module):
    """Classify images by four stages of residual blocks.

    Use it as the standard of the literature. A stem, the stages, mean over positions and a linear
    head. Basic blocks up to depth 34; bottlenecks with the stride in their 3x3 convolution from 50
    on. A shortcut that changes shape is a 1x1 convolution with a norm.

    Attributes:
        num_classes: outputs of the head.
        depth: 18, 34, 50, 101 or 152.
        stem: ``"cifar"`` for a 3x3 convolution, ``"imagenet"`` for 7x7 by steps of two and a
            max-pooling by two.
        width: multiplier of the standard widths (64 to 512), rounded, at least one channel.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = ResNet(num_classes=10, depth=18, width=1 / 16)
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    depth: int = 18
    stem: str = "cifar"
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
            ValueError: an unknown ``depth`` or ``stem``, a bad ``width``, images of the wrong rank.
            TypeError: ``x`` is not of a floating type.
        """
        check_choice("depth", self.depth, STAGE_BLOCKS)
        check_choice("stem", self.stem, STEMS)
        check_images(x, rank=4)
        convolve = self.conv_general_dilated
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = convolution(scaled(64, self.width), size, convolve, stride=stride, name="stem")(x)
        x = nn.relu(batch_norm(train, "stem_norm")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block = _BasicBlock if self.depth < 50 else _Bottleneck
        for stage, blocks in enumerate(STAGE_BLOCKS[self.depth]):
            channels = scaled(64 * 2**stage, self.width)
            for number in range(blocks):
                stride = 2 if stage and not number else 1
                name = f"stage{stage + 1}_block{number + 1}"
                x = block(channels, stride, convolve, name=name)(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)


class ThinResNet(nn.Module):
    """Classify small images by three stages of basic blocks.

    Use it for images of about 32x32. The stages have 16, 32 and 64 channels and ``n`` blocks each.

    Attributes:
        num_classes: outputs of the head.
        depth: ``6 n + 2``; 20, 32, 44, 56 and 110 are published.
        shortcut: ``"pad"`` for a shortcut without weights where the shape changes (every second
            position, channels padded with zeros; the paper's option A), ``"projection"`` for a 1x1
            convolution with a norm (option B).
        width: multiplier of the standard widths, rounded, at least one channel.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = ThinResNet(num_classes=10, depth=20, width=1 / 4)
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    depth: int = 20
    shortcut: str = "pad"
    width: float = 1.0
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: as in ``ResNet``.

        Raises:
            ValueError: a ``depth`` that is not ``6 n + 2``, an unknown ``shortcut``, a bad
                ``width``, or images of the wrong rank.
            TypeError: ``x`` is not of a floating type.
        """
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(
                f"depth={self.depth} must be 6 n + 2, three stages of n blocks of two convolutions "
                f"each; {', '.join(map(str, THIN_DEPTHS))} are published"
            )
        check_choice("shortcut", self.shortcut, SHORTCUTS)
        check_images(x, rank=4)
        convolve = self.conv_general_dilated
        x = convolution(scaled(16, self.width), 3, convolve, name="stem")(x)
        x = nn.relu(batch_norm(train, "stem_norm")(x))
        for stage in range(3):
            channels = scaled(16 * 2**stage, self.width)
            for number in range((self.depth - 2) // 6):
                stride = 2 if stage and not number else 1
                name = f"stage{stage + 1}_block{number + 1}"
                pad = self.shortcut == "pad"
                x = _BasicBlock(channels, stride, convolve, pad, name=name)(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    channels: int
    stride: int
    conv_general_dilated: ConvGeneralDilatedT
    pad: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolve, stride = self.conv_general_dilated, self.stride
        y = convolution(self.channels, 3, convolve, stride=stride, name="conv1")(x)
        y = nn.relu(batch_norm(train, "norm1")(y))
        y = convolution(self.channels, 3, convolve, name="conv2")(y)
        y = batch_norm(train, "norm2")(y)
        if self.pad:
            return nn.relu(_padded_shortcut(x, stride, self.channels) + y)
        return nn.relu(_shortcut(x, stride, self.channels, convolve, train) + y)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; four times as many channels come out."""

    channels: int
    stride: int
    conv_general_dilated: ConvGeneralDilatedT

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolve, outputs = self.conv_general_dilated, 4 * self.channels
        y = convolution(self.channels, 1, convolve, name="conv1")(x)
        y = nn.relu(batch_norm(train, "norm1")(y))
        y = convolution(self.channels, 3, convolve, stride=self.stride, name="conv2")(y)
        y = nn.relu(batch_norm(train, "norm2")(y))
        y = convolution(outputs, 1, convolve, name="conv3")(y)
        y = batch_norm(train, "norm3")(y)
        return nn.relu(_shortcut(x, self.stride, outputs, convolve, train) + y)


def _shortcut(
    x: jax.Array, stride: int, channels: int, convolve: ConvGeneralDilatedT, train: bool
) -> jax.Array:
    if stride == 1 and x.shape[-1] == channels:
        return x
    x = convolution(channels, 1, convolve, stride=stride, name="shortcut")(x)
    return batch_norm(train, "shortcut_norm")(x)


def _padded_shortcut(x: jax.Array, stride: int, channels: int) -> jax.Array:
    """Take every ``stride``-th position; zeros stand for the channels that are new."""
    # Not by indexing, which becomes a gather where the batch size is unknown, as in an export.
    for axis in (1, 2):
        x = jax.lax.slice_in_dim(x, 0, None, stride, axis)
    new = channels - x.shape[-1]
    if not new:
        return x
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
