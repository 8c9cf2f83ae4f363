"""A small Vision Transformer with a class token."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_at_least_one, check_images
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.initializers import variance_scaling
from rlprune_jax.models.layers import scaled

_INIT = variance_scaling(1.0, "fan_avg", "uniform")


class VisionTransformer(nn.Module):
    """Classify images by attention between patches.

    Use it to prune attention. Patches, a class token, learned positions, blocks of attention and
    MLP, norm and a linear head. The width of the embedding, heads, the width of queries and keys,
    that of values, and hidden units of the MLPs are what pruning can remove.

    Attributes:
        num_classes: outputs of the head.
        patch: height and width of a patch in pixels; images must be whole patches.
        depth: number of blocks.
        heads: of each attention.
        head_width: channels of a head; the embedding has ``heads * head_width``.
        mlp_ratio: hidden units of an MLP over the embedding's size.
        width: multiplier of ``head_width``, rounded, at least one channel.
        conv_general_dilated: the convolution of the patches, as ``jax.lax``'s.

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the defaults but
    ``patch`` are the tiny one of Touvron et al., "Training data-efficient image transformers",
    ICML 2021.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = VisionTransformer(num_classes=10, depth=2, width=1 / 16)
        >>> x = jnp.ones((2, 16, 16, 3))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (2, 10)
    """

    num_classes: int
    patch: int = 4
    depth: int = 12
    heads: int = 3
    head_width: int = 64
    mlp_ratio: int = 4
    width: float = 1.0
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: changes nothing here.

        Raises:
            ValueError: an option below 1, a bad ``width``, images of the wrong rank or not of whole
                patches.
            TypeError: ``x`` is not of a floating type.
        """
        del train
        check_at_least_one(self, "patch", "depth", "heads", "head_width", "mlp_ratio")
        check_images(x, rank=4)
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} are not whole patches of "
                f"{self.patch}x{self.patch}; choose another patch, or resize the images"
            )
        size = self.heads * scaled(self.head_width, self.width)
        small = nn.initializers.normal(0.02)
        patches = nn.Conv(
            size,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            kernel_init=_INIT,
            conv_general_dilated=self.conv_general_dilated,
            name="patches",
        )(x)
        x = patches.reshape((patches.shape[0], patches.shape[1] * patches.shape[2], size))
        token = self.param("token", small, (1, 1, size))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, size)), x], axis=1)
        x = x + self.param("positions", small, (1, x.shape[1], size))
        for number in range(1, self.depth + 1):
            x = _Block(self.heads, self.mlp_ratio * size, name=f"block{number}")(x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)[:, 0]
        return nn.Dense(self.num_classes, kernel_init=_INIT, name="head")(x)


class _Block(nn.Module):
    """Attention and an MLP, each on what a layer norm gives and beside a shortcut."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(self.heads, kernel_init=_INIT, name="attention")
        x = x + attention(y)
        y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
        y = nn.gelu(nn.Dense(self.hidden, kernel_init=_INIT, name="mlp1")(y), approximate=False)
        return x + nn.Dense(x.shape[-1], kernel_init=_INIT, name="mlp2")(y)
