"""The small convolutional network of the sparsity-informed pruning paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import ConvGeneralDilatedT

from rlprune_jax.models.checks import check_images, check_widths
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.initializers import variance_scaling
from rlprune_jax.models.mlp import DENSE_INIT

_CONV_INIT = variance_scaling(2.0, "fan_out", "normal")


class CNN(nn.Module):
    """Classify images by a few convolutions.

    Use it for small images and quick trials. Each width is a convolution 3x3, batch norm and ReLU.
    The map is max-pooled 2x2 after each of the first ``len(widths) - 1`` convolutions, then
    averaged over all positions and read by a linear head.

    Attributes:
        num_classes: outputs of the head.
        widths: channels of each convolution, in order.
        conv_general_dilated: the convolution, with the signature of ``jax.lax``'s.

    Reference: Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = CNN(num_classes=10, widths=(32, 64, 128, 256))
        >>> x = jnp.ones((4, 8, 8, 1))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (4, 10)
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512)
    conv_general_dilated: ConvGeneralDilatedT = conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, C] to logits f32[B, num_classes].

        Args:
            x: normalised images.
            train: normalise with the batch's statistics and update the running ones (apply with
                ``mutable=["batch_stats"]``) instead of using the running ones.

        Raises:
            ValueError: a width below 1, or images of the wrong rank or too small to be halved
                ``len(widths) - 1`` times.
            TypeError: ``x`` is not of a floating type.
        """
        check_widths("widths", self.widths)
        if not self.widths:
            raise ValueError("widths=() leaves no convolution; give at least one width")
        remedy = "; enlarge the images or give fewer widths"
        check_images(x, rank=4, least=2 ** (len(self.widths) - 1), remedy=remedy)
        for depth, width in enumerate(self.widths, start=1):
            x = nn.Conv(
                width,
                (3, 3),
                kernel_init=_CONV_INIT,
                conv_general_dilated=self.conv_general_dilated,
                name=f"conv{depth}",
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm{depth}")(x)
            x = nn.relu(x)
            if depth < len(self.widths):
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)
