"""The multilayer perceptron of the sparsity-informed pruning paper."""

import math

import flax.linen as nn
import jax

from rlprune_jax.models.checks import check_images, check_widths
from rlprune_jax.models.initializers import variance_scaling

DENSE_INIT = variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for a linear layer, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the paper."""


class MLP(nn.Module):
    """Classify images or vectors by dense layers.

    Use it where the input has no space to convolve over. The input is flattened; each width is a
    ``Dense`` and ReLU, and a linear head follows.

    Attributes:
        num_classes: outputs of the head.
        widths: units of each hidden layer, in order.

    Reference: Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = MLP(num_classes=10)
        >>> x = jnp.ones((4, 28, 28, 1))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> jax.eval_shape(network.apply, variables, x).shape
        (4, 10)
    """

    num_classes: int
    widths: tuple[int, ...] = (128, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map f32[B, ...] to logits f32[B, num_classes].

        Args:
            x: inputs.
            train: changes nothing here.

        Raises:
            ValueError: a width below 1, or ``x`` without a batch axis.
            TypeError: ``x`` is not of a floating type.
        """
        del train
        check_widths("widths", self.widths)
        check_images(x, rank=None)
        x = x.reshape((x.shape[0], math.prod(x.shape[1:])))
        for depth, width in enumerate(self.widths, start=1):
            x = nn.relu(nn.Dense(width, kernel_init=DENSE_INIT, name=f"dense{depth}")(x))
        return nn.Dense(self.num_classes, kernel_init=DENSE_INIT, name="head")(x)
