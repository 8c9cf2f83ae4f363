"""DenseNet-BC, whose layers read all maps before them, concatenated."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_images
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.layers import batch_norm, convolution, scaled
from rlprune_jax.models.mlp import DENSE_INIT


class DenseNet(nn.Module):
    """Classify images by layers that read all maps before them.

    Use it to prune units that many layers read. A stem, three concatenating blocks with a halving
    between two, norm, ReLU, mean over positions and a linear head.

    Attributes:
        num_classes: outputs of the head.
        depth: ``6 n + 4`` for ``n`` layers (of a 1x1 and a 3x3 convolution) in each block; 100 and
            40 are known.
        growth: maps that a layer adds.
        width: multiplier of ``growth``, rounded, at least one map.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017: bottlenecks of
    ``4 * growth`` and a compression of one half, without dropout.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = DenseNet(num_classes=10, depth=10, growth=4)
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    depth: int = 40
    growth: int = 12
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
            ValueError: a ``depth`` that is not ``6 n + 4``, a bad ``growth`` or ``width``, or
                images of the wrong rank or below 4x4.
            TypeError: ``x`` is not of a floating type.
        """
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(
                f"depth={self.depth} must be 6 n + 4, three blocks of n layers of two convolutions "
                "each: 10, 16, ..., 40, ..., 100"
            )
        if self.growth < 1:
            raise ValueError(f"growth={self.growth} must be an integer of at least 1")
        check_images(x, rank=4, least=4, remedy="; enlarge the images")
        convolve, growth = self.conv_general_dilated, scaled(self.growth, self.width)
        x = convolution(2 * growth, 3, convolve, name="stem")(x)
        for block in range(1, 4):
            for layer in range(1, (self.depth - 4) // 6 + 1):
                name = f"block{block}_layer{layer}"
                x = _DenseLayer(growth, convolve, name=name)(x, train)
            if block < 3:
                x = nn.relu(batch_norm(train, f"halving{block}_norm")(x))
                x = convolution(x.shape[-1] // 2, 1, convolve, name=f"halving{block}")(x)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(batch_norm(train, "norm")(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)


class _DenseLayer(nn.Module):
    """Lay the maps of a bottleneck beside those that it reads."""

    growth: int
    conv_general_dilated: ConvGeneralDilatedT

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolve = self.conv_general_dilated
        y = nn.relu(batch_norm(train, "norm1")(x))
        y = convolution(4 * self.growth, 1, convolve, name="conv1")(y)
        y = nn.relu(batch_norm(train, "norm2")(y))
        y = convolution(self.growth, 3, convolve, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)
