"""The convolution's three primitives, each bilinear, together closed under transposition.

- `rlprune_convolution`: (lhs, rhs) -> out
- `rlprune_convolution_input_gradient`: (cotangent, rhs) -> gradient for lhs
- `rlprune_convolution_kernel_gradient`: (lhs, cotangent) -> gradient for rhs

So derivatives of any order, forward and reverse, `jit`, `scan`, `remat` and `jax.export` need no
further rules. Layouts are always NHWC and HWIO. On CPU they become matmuls (`_cpu_convolution`),
elsewhere XLA's convolution and its transposes; that is decided when a program is lowered.

`vmap` over images alone (candidates that share weights) joins the batch, over kernels alone the
channels. Over both it makes a population of independent convolutions, for which every operand
carries one more leading axis (5 axes; all other equations have 4).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from rlprune_jax.models.convolution import _cpu_convolution
from rlprune_jax.models.convolution._geometry import Geometry


def _geometry(input_size: Any, kernel_size: Any, parameters: dict[str, Any]) -> Geometry:
    return Geometry(
        tuple(input_size),
        tuple(kernel_size),
        parameters["window_strides"],
        parameters["padding"],
        parameters["rhs_dilation"],
        parameters["feature_group_count"],
    )


def _check_pair(names: tuple[str, str], first: Any, second: Any) -> None:
    if first.ndim != second.ndim or first.ndim not in (4, 5):
        raise ValueError(
            f"{names[0]} of shape {first.shape} and {names[1]} of shape {second.shape} must both "
            "have 4 axes (or both 5, the first a population)"
        )
    if first.ndim == 5 and first.shape[0] != second.shape[0]:
        raise ValueError(
            f"{names[0]} has a population of {first.shape[0]} but {names[1]} one of "
            f"{second.shape[0]}"
        )
    if first.dtype != second.dtype:
        raise TypeError(
            f"{names[0]} is {first.dtype} but {names[1]} is {second.dtype}; cast one of them"
        )


def _check_groups(channels: int, groups: int, name: str) -> None:
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{name} has {channels} channels, which feature_group_count={groups} does not divide"
        )


def _convolution_type(lhs: Any, rhs: Any, **parameters: Any) -> jax.core.ShapedArray:
    _check_pair(("lhs", "rhs"), lhs, rhs)
    groups = parameters["feature_group_count"]
    _check_groups(lhs.shape[-1], groups, "lhs")
    _check_groups(rhs.shape[-1], groups, "rhs")
    if lhs.shape[-1] != rhs.shape[-2] * groups:
        raise ValueError(
            f"lhs of shape {lhs.shape} has {lhs.shape[-1]} channels but rhs of shape {rhs.shape} "
            f"reads {rhs.shape[-2]} in each of feature_group_count={groups} groups"
        )
    geometry = _geometry(lhs.shape[-3:-1], rhs.shape[-4:-2], parameters)
    if min(geometry.output_size) < 1:
        raise ValueError(
            f"lhs of shape {lhs.shape} is too small for rhs of shape {rhs.shape} with padding="
            f"{geometry.padding} and rhs_dilation={geometry.dilation}: the output would be empty; "
            "use larger images or fewer strided layers"
        )
    shape = (*lhs.shape[:-3], *geometry.output_size, rhs.shape[-1])
    return jax.core.ShapedArray(shape, lhs.dtype)


def _input_gradient_type(
    cotangent: Any, rhs: Any, *, input_size: tuple[int, int], **parameters: Any
) -> jax.core.ShapedArray:
    _check_pair(("cotangent", "rhs"), cotangent, rhs)
    groups = parameters["feature_group_count"]
    expected = _geometry(input_size, rhs.shape[-4:-2], parameters).output_size
    _check_cotangent(cotangent, (*expected, rhs.shape[-1]))
    shape = (*cotangent.shape[:-3], *input_size, rhs.shape[-2] * groups)
    return jax.core.ShapedArray(shape, cotangent.dtype)


def _kernel_gradient_type(
    lhs: Any, cotangent: Any, *, kernel_size: tuple[int, int], **parameters: Any
) -> jax.core.ShapedArray:
    _check_pair(("lhs", "cotangent"), lhs, cotangent)
    groups = parameters["feature_group_count"]
    _check_groups(lhs.shape[-1], groups, "lhs")
    _check_groups(cotangent.shape[-1], groups, "cotangent")
    expected = _geometry(lhs.shape[-3:-1], kernel_size, parameters).output_size
    _check_cotangent(cotangent, (*expected, cotangent.shape[-1]))
    channels = (lhs.shape[-1] // groups, cotangent.shape[-1])
    return jax.core.ShapedArray((*lhs.shape[:-4], *kernel_size, *channels), lhs.dtype)


def _check_cotangent(cotangent: Any, expected: tuple[int, ...]) -> None:
    if tuple(cotangent.shape[-3:]) != expected:
        raise ValueError(f"cotangent of shape {cotangent.shape} must end in {expected}")


def _primitive(name: str, type_rule: Callable[..., Any]) -> Primitive:
    primitive = Primitive(name)
    primitive.def_abstract_eval(type_rule)

    @functools.cache
    def compiled(parameters: tuple[tuple[str, Any], ...]) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(primitive.bind, **dict(parameters)))

    def evaluate(first: jax.Array, second: jax.Array, **parameters: Any) -> jax.Array:
        with jax.disable_jit(False):  # or, with jit disabled, this would call itself for ever
            return compiled(tuple(sorted(parameters.items())))(first, second)

    primitive.def_impl(evaluate)
    return primitive


convolution_p = _primitive("rlprune_convolution", _convolution_type)
convolution_input_gradient_p = _primitive(
    "rlprune_convolution_input_gradient", _input_gradient_type
)
convolution_kernel_gradient_p = _primitive(
    "rlprune_convolution_kernel_gradient", _kernel_gradient_type
)


# In the rules below the operand to be found carries nothing but its type, `aval`.


def _to_input(cotangent: Any, lhs: Any, rhs: Any, **parameters: Any) -> jax.Array:
    size = tuple(lhs.aval.shape[-3:-1])
    return convolution_input_gradient_p.bind(cotangent, rhs, input_size=size, **parameters)


def _to_kernel(cotangent: Any, lhs: Any, rhs: Any, **parameters: Any) -> jax.Array:
    size = tuple(rhs.aval.shape[-4:-2])
    return convolution_kernel_gradient_p.bind(lhs, cotangent, kernel_size=size, **parameters)


def _input_gradient_to_output(
    tangent: Any, cotangent: Any, rhs: Any, *, input_size: Any, **parameters: Any
) -> jax.Array:
    return convolution_p.bind(tangent, rhs, **parameters)


def _input_gradient_to_kernel(
    tangent: Any, cotangent: Any, rhs: Any, *, input_size: Any, **parameters: Any
) -> jax.Array:
    return _to_kernel(cotangent, tangent, rhs, **parameters)


def _kernel_gradient_to_input(
    tangent: Any, lhs: Any, cotangent: Any, *, kernel_size: Any, **parameters: Any
) -> jax.Array:
    return _to_input(cotangent, lhs, tangent, **parameters)


def _kernel_gradient_to_output(
    tangent: Any, lhs: Any, cotangent: Any, *, kernel_size: Any, **parameters: Any
) -> jax.Array:
    return convolution_p.bind(lhs, tangent, **parameters)


ad.defbilinear(convolution_p, _to_input, _to_kernel)
ad.defbilinear(convolution_input_gradient_p, _input_gradient_to_output, _input_gradient_to_kernel)
ad.defbilinear(convolution_kernel_gradient_p, _kernel_gradient_to_input, _kernel_gradient_to_output)


def _merge(operand: Any, mapped: int, axis: int, groups: int) -> jax.Array:
    """Move the mapped axis of size N into `axis` (counted from the end), inside its groups."""
    operand = jnp.moveaxis(operand, mapped, 0)
    count, *shape = operand.shape
    position = len(shape) + axis
    size = shape[position]
    before, after = shape[:position], shape[position + 1 :]
    split = operand.reshape(count, *before, groups, size // groups, *after)
    moved = jnp.moveaxis(split, 0, position + 1)
    return moved.reshape(*before, count * size, *after)


def _split(result: Any, count: int, axis: int, groups: int) -> jax.Array:
    """Undo `_merge`, the mapped axis first."""
    shape = result.shape
    position = len(shape) + axis
    size = shape[position] // count
    split = result.reshape(*shape[:position], groups, count, size // groups, *shape[position + 1 :])
    moved = jnp.moveaxis(split, position + 1, 0)
    return moved.reshape(count, *shape[:position], size, *shape[position + 1 :])


class _Route(NamedTuple):
    """Where a mapped axis of one operand alone is merged, and where it comes out again."""

    operand_axis: int
    operand_grouped: bool
    result_axis: int
    result_grouped: bool


_BATCH = _Route(-4, False, -4, False)
_OUT_CHANNELS = _Route(-1, True, -1, True)


def _batch(primitive: Primitive, routes: tuple[_Route, _Route]) -> None:
    """Give a primitive its batching rule, with one route for either operand mapped alone."""

    def rule(operands: Any, mapped: Any, **parameters: Any) -> tuple[jax.Array, int]:
        if None not in mapped:
            pair = [jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, mapped, strict=True)]
            leading = pair[0].shape[: pair[0].ndim - 4]
            joined = [a.reshape(math.prod(leading), *a.shape[-4:]) for a in pair]
            result = primitive.bind(*joined, **parameters)
            return result.reshape(*leading, *result.shape[1:]), 0
        which = 0 if mapped[0] is not None else 1
        route, groups = routes[which], parameters["feature_group_count"]
        merged = list(operands)
        merged[which] = _merge(
            operands[which],
            mapped[which],
            route.operand_axis,
            groups if route.operand_grouped else 1,
        )
        result = primitive.bind(*merged, **parameters)
        count = operands[which].shape[mapped[which]]
        return _split(result, count, route.result_axis, groups if route.result_grouped else 1), 0

    batching.primitive_batchers[primitive] = rule


# A kernel's in-axis counts the channels of one group, an image's those of all groups.
_batch(convolution_p, (_BATCH, _OUT_CHANNELS))
_batch(convolution_input_gradient_p, (_BATCH, _Route(-2, False, -1, True)))
_batch(convolution_kernel_gradient_p, (_Route(-1, True, -2, False), _OUT_CHANNELS))


_Form = Callable[..., jax.Array]  # of two operands, a geometry and a precision


def _xla_convolution(
    lhs: Any, rhs: Any, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    return lax.conv_general_dilated(
        lhs,
        rhs,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
        precision=precision,
    )


def _xla_input_gradient(
    cotangent: Any, rhs: Any, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    shape = (cotangent.shape[0], *geometry.input_size, rhs.shape[2] * geometry.groups)
    lhs = jax.ShapeDtypeStruct(shape, cotangent.dtype)
    transpose = jax.linear_transpose(lambda x: _xla_convolution(x, rhs, geometry, precision), lhs)
    return transpose(cotangent)[0]


def _xla_kernel_gradient(
    lhs: Any, cotangent: Any, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    channels = (lhs.shape[-1] // geometry.groups, cotangent.shape[-1])
    rhs = jax.ShapeDtypeStruct((*geometry.kernel_size, *channels), lhs.dtype)
    transpose = jax.linear_transpose(lambda k: _xla_convolution(lhs, k, geometry, precision), rhs)
    return transpose(cotangent)[0]


def _on_xla(form: _Form) -> _Form:
    def lowered(
        first: Any, second: Any, geometry: Geometry, precision: lax.PrecisionLike
    ) -> jax.Array:
        function = functools.partial(form, geometry=geometry, precision=precision)
        return (jax.vmap(function) if first.ndim == 5 else function)(first, second)

    return lowered


def _on_cpu(form: _Form) -> _Form:
    def lowered(
        first: Any, second: Any, geometry: Geometry, precision: lax.PrecisionLike
    ) -> jax.Array:
        dtype = first.dtype
        if jnp.finfo(dtype).bits < 32:
            # CPUs emulate half precision anyway, and sums over taps would round at every step.
            first, second = first.astype(jnp.float32), second.astype(jnp.float32)
        function = functools.partial(form, geometry=geometry, precision=precision)
        if first.ndim == 5:
            # One after the other is 2 to 4 times faster than vmapped matmuls or groups.
            return lax.map(lambda pair: function(*pair), (first, second)).astype(dtype)
        return function(first, second).astype(dtype)

    return lowered


def _lower(
    primitive: Primitive, sizes: Callable[..., tuple[Any, Any]], cpu: _Form, other: _Form
) -> None:
    def rule(form: _Form) -> Any:
        def function(first: Any, second: Any, **parameters: Any) -> jax.Array:
            geometry = _geometry(*sizes(first, second, **parameters), parameters)
            return form(first, second, geometry, parameters["precision"])

        return mlir.lower_fun(function, multiple_results=False)

    mlir.register_lowering(primitive, rule(_on_xla(other)))
    mlir.register_lowering(primitive, rule(_on_cpu(cpu)), platform="cpu")


_lower(
    convolution_p,
    lambda lhs, rhs, **_: (lhs.shape[-3:-1], rhs.shape[-4:-2]),
    _cpu_convolution.convolution,
    _xla_convolution,
)
_lower(
    convolution_input_gradient_p,
    lambda cotangent, rhs, *, input_size, **_: (input_size, rhs.shape[-4:-2]),
    _cpu_convolution.input_gradient,
    _xla_input_gradient,
)
_lower(
    convolution_kernel_gradient_p,
    lambda lhs, cotangent, *, kernel_size, **_: (lhs.shape[-3:-1], kernel_size),
    _cpu_convolution.kernel_gradient,
    _xla_kernel_gradient,
)
