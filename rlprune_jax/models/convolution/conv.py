"""One convolution, lowered for the platform and the shape.

`conv_general_dilated` takes the place of lax's, in Flax as
`nn.Conv(..., conv_general_dilated=conv_general_dilated)`. How: `_primitives` (derivatives, vmap),
`_cpu_convolution` (the forms that CPUs run).
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from rlprune_jax.models.convolution._primitives import (
    convolution_input_gradient_p,
    convolution_kernel_gradient_p,
    convolution_p,
)

__all__ = [
    "conv_general_dilated",
    "convolution_input_gradient_p",
    "convolution_kernel_gradient_p",
    "convolution_p",
]

_SPECIFICATION = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Convolve images with kernels, fast on CPUs too.

    Use it in the place of `jax.lax.conv_general_dilated`. Two-dimensional NHWC / HWIO convolutions
    of floating-point arrays go through the primitives of this module; anything else (other ranks
    and layouts, lhs_dilation, batch_group_count, another result type, symbolic image sizes, arrays
    whose types follow a mesh) is passed on to lax unchanged.

    Args:
      lhs: f[B,H,W,C], images.
      rhs: f[h,w,C/groups,O], kernels, of the same dtype.
      window_strides: two positive steps in pixels, (vertical, horizontal).
      padding: "SAME", "SAME_LOWER", "VALID" or ((top, bottom), (left, right)) in pixels.
      lhs_dilation: as in lax.
      rhs_dilation: two positive distances between kernel pixels; None for 1.
      dimension_numbers: as in lax; `("NHWC", "HWIO", "NHWC")` for the path of this module.
      feature_group_count: number of groups of channels that are convolved apart.
      batch_group_count: as in lax.
      precision: as in lax; ignored by CPUs.
      preferred_element_type: as in lax.

    Returns:
      f[B,H',W',O], of the dtype of lhs.

    Raises:
      ValueError: shapes, strides, dilations or groups that do not fit, or an empty output.
      TypeError: lhs and rhs of different dtypes.

    Example:
      >>> import flax.linen as nn
      >>> layer = nn.Conv(8, (3, 3), conv_general_dilated=conv_general_dilated)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 6, 6, 3)))
      >>> layer.apply(variables, jnp.ones((2, 6, 6, 3))).shape
      (2, 6, 6, 8)
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    result_type = preferred_element_type
    ours = (
        lhs.ndim == rhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _SPECIFICATION
        and (lhs_dilation is None or all(step == 1 for step in lhs_dilation))
        and batch_group_count == 1
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and (result_type is None or jnp.dtype(result_type) == lhs.dtype)
        and all(isinstance(size, int) for size in (*lhs.shape[1:], *rhs.shape))
        and not follows_mesh(jax.typeof(lhs))
        and not follows_mesh(jax.typeof(rhs))
    )
    if not ours:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    strides = _two_positive("window_strides", window_strides)
    dilation = _two_positive("rhs_dilation", (1, 1) if rhs_dilation is None else rhs_dilation)
    return convolution_p.bind(
        lhs,
        rhs,
        window_strides=strides,
        padding=_explicit_padding(padding, lhs.shape, rhs.shape, strides, dilation),
        rhs_dilation=dilation,
        feature_group_count=operator.index(feature_group_count),
        precision=tuple(precision) if isinstance(precision, list) else precision,
    )


def follows_mesh(kind: Any) -> bool:
    """Return whether an array's type tracks a mesh.

    `shard_map` does for arrays that vary over the mesh, and sums gradients by it; so do meshes with
    explicit axes for sharded arrays. A primitive from outside JAX cannot take part in that.

    Args:
      kind: of an array, as `jax.typeof` returns it.
    """
    manual = getattr(kind, "manual_axis_type", None)
    varies = bool(getattr(manual, "varying", None) or getattr(kind, "vma", None))
    return varies or any(
        axis is not None for axis in getattr(getattr(kind, "sharding", None), "spec", ())
    )


def _two_positive(name: str, values: Sequence[int]) -> tuple[int, int]:
    if len(values) != 2 or any(operator.index(value) < 1 for value in values):
        raise ValueError(f"{name}={tuple(values)} must be two positive integers (height, width)")
    return operator.index(values[0]), operator.index(values[1])


def _explicit_padding(
    padding: str | Sequence[tuple[int, int]],
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "SAME_LOWER", "VALID"):
            raise ValueError(
                f"padding={padding!r} must be 'SAME', 'SAME_LOWER', 'VALID' or "
                "((top, bottom), (left, right))"
            )
        reach = [step * (size - 1) + 1 for step, size in zip(dilation, rhs_shape[:2], strict=True)]
        pairs = lax.padtype_to_pads(lhs_shape[1:3], reach, strides, padding.upper())
    else:
        pairs = list(padding)
        if len(pairs) != 2 or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"padding={padding!r} must be two pairs ((top, bottom), (left, right))"
            )
    return tuple((operator.index(low), operator.index(high)) for low, high in pairs)
