"""A convolution that is fast on CPUs too.

Networks of others can be made to use it.

`conv_general_dilated` takes the place of lax's in a layer; `rebind_convolutions` puts it into a
whole function that is written already.
"""

from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.models.convolution.rebinding import rebind_convolutions

__all__ = ["conv_general_dilated", "rebind_convolutions"]
