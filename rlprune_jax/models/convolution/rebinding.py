"""Put our convolution into networks that others wrote.

A network is traced to a jaxpr anyway; here every `conv_general_dilated` in it that our primitives
can express becomes one of them, in the bodies of loops, branches and checkpoints too.
"""

import dataclasses
import functools
import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex_core

from rlprune_jax.models.convolution.conv import conv_general_dilated, follows_mesh
from rlprune_jax.types import Apply, PyTree

_CALLS = frozenset(
    """jit pjit closed_call core_call call eval_jaxpr scan while cond remat remat2 checkpoint
    custom_vmap_call""".split()  # noqa: SIM905
)
"""Primitives that mean what the jaxprs among their parameters compute."""

_MOST_TAPS = 128
"""Kernel positions up to which the forms for CPUs, which unroll them, compile soon."""


def rebind_convolutions(apply: Apply) -> Apply:
    """Replace XLA's convolutions in a function by ours.

    Use it on a network from outside before it is trained or evaluated in a loop on a CPU, where
    XLA's convolution and its gradients are many times slower than ours. On other platforms ours
    become XLA's again.

    Convolutions over one or two dimensions are replaced, in any layout: channels first by
    transposes around the convolution, one dimension as two with a height of 1. Left as they are:
    three dimensions, transposed convolutions (`lhs_dilation`), `batch_group_count`, numbers that
    are not floating-point, another result type, image sizes that are symbolic, arrays that are
    sharded over or vary over a mesh, and kernels of more than 128 positions that do not tile the
    image. So are bodies of `custom_jvp` and `custom_vjp`, whose own derivatives count.

    The function is traced once a call, so call it under `jax.jit`.

    Args:
      apply: pure function `(variables, *inputs, **options) -> outputs`. Arrays among the leaves of
        its arguments are traced; all other leaves (flags, strings, functions) it sees as they are.

    Returns:
      The function of the same signature and outputs, with the same derivatives, for jit, vmap and
      export. Where there is nothing to replace, a call goes to `apply` itself.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> network, x = nn.Conv(8, (3, 3)), jnp.ones((1, 6, 6, 3))
      >>> variables = network.init(jax.random.key(0), x)
      >>> apply = rebind_convolutions(network.apply)
      >>> "rlprune_convolution" in str(jax.make_jaxpr(apply)(variables, x))
      True
    """
    return apply if isinstance(apply, _Rebound) else _Rebound(apply)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rebound:
    """Call a function with its convolutions replaced.

    A type of its own, so that a function that is rebound already is known.
    """

    apply: Apply

    def __call__(self, /, *args: PyTree, **options: PyTree) -> PyTree:
        arrays, taken = _take_arrays((args, options))
        returned: list[_Rest] = []

        def flat_apply(*arrays: jax.Array) -> list[jax.Array]:
            args, options = _put_arrays(arrays, taken)
            outputs, rest = _take_arrays(self.apply(*args, **options))
            returned.append(rest)
            return outputs

        traced = jax.make_jaxpr(flat_apply)(*arrays)
        rebound = _rewrite(traced)
        if rebound is None:
            return self.apply(*args, **options)
        outputs = jax.core.eval_jaxpr(rebound.jaxpr, rebound.consts, *arrays)
        return _put_arrays(outputs, returned[0])


class _Rest(NamedTuple):
    """A pytree without its arrays."""

    structure: jax.tree_util.PyTreeDef
    leaves: list[object]


_ARRAY = object()
"""Stands in a `_Rest` where an array was."""


def _take_arrays(tree: PyTree) -> tuple[list[jax.Array], _Rest]:
    leaves, structure = jax.tree.flatten(tree)
    is_array = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    arrays = [leaf for leaf, found in zip(leaves, is_array, strict=True) if found]
    others = [_ARRAY if found else leaf for leaf, found in zip(leaves, is_array, strict=True)]
    return arrays, _Rest(structure=structure, leaves=others)


def _put_arrays(arrays: Iterable[jax.Array], rest: _Rest) -> PyTree:
    following = iter(arrays)
    leaves = [next(following) if leaf is _ARRAY else leaf for leaf in rest.leaves]
    return jax.tree.unflatten(rest.structure, leaves)


_Jaxpr = jex_core.Jaxpr | jex_core.ClosedJaxpr

_REWRITTEN: weakref.WeakKeyDictionary[_Jaxpr, _Jaxpr | None] = weakref.WeakKeyDictionary()
"""What became of a jaxpr: a function under `jit` must get the same again, or it compiles again."""


def _rewrite(jaxpr: _Jaxpr) -> Any:
    """Return a jaxpr with our convolutions, None where none is replaced."""
    if jaxpr not in _REWRITTEN:
        _REWRITTEN[jaxpr] = _rewrite_anew(jaxpr)
    return _REWRITTEN[jaxpr]


def _rewrite_anew(jaxpr: _Jaxpr) -> _Jaxpr | None:
    inner: Any = getattr(jaxpr, "jaxpr", jaxpr)
    rewritten = [_rewrite_equation(equation) for equation in inner.eqns]
    if all(equations is None for equations in rewritten):
        return None
    equations = [
        equation
        for old, new in zip(inner.eqns, rewritten, strict=True)
        for equation in ([old] if new is None else new)
    ]
    # From JAX 0.12 on, a closed jaxpr and an open one are of the same type.
    changed = inner.replace(eqns=equations)
    return changed if inner is jaxpr else jaxpr.replace(jaxpr=changed)


def _rewrite_equation(equation: jex_core.JaxprEqn) -> list[jex_core.JaxprEqn] | None:
    """Return the equations in the place of one, None where it stays."""
    name = equation.primitive.name
    if name == "conv_general_dilated":
        return _our_equations(equation) if _is_expressible(equation) else None
    if name not in _CALLS:
        return None
    changed = {}
    for key, value in equation.params.items():
        bodies = value if isinstance(value, tuple) else (value,)
        rewritten = [_rewrite(body) if isinstance(body, _Jaxpr) else None for body in bodies]
        if any(body is not None for body in rewritten):
            kept = [old if new is None else new for old, new in zip(bodies, rewritten, strict=True)]
            changed[key] = tuple(kept) if isinstance(value, tuple) else kept[0]
    return [equation.replace(params={**equation.params, **changed})] if changed else None


def _is_expressible(equation: jex_core.JaxprEqn) -> bool:
    """Tell whether our primitives can express a convolution of lax."""
    params = equation.params
    image, kernel, result = map(_type_of, (*equation.invars, equation.outvars[0]))
    batch, *_ = params["dimension_numbers"].lhs_spec
    sizes = [size for axis, size in enumerate(image.shape) if axis != batch]
    sizes += [*kernel.shape, *(size for size in result.shape if isinstance(size, int))]
    return (
        image.ndim in (3, 4)
        and all(isinstance(size, int) and size > 0 for size in sizes)
        and all(step == 1 for step in params["lhs_dilation"])
        and params["batch_group_count"] == 1
        and jnp.issubdtype(image.dtype, jnp.floating)
        and image.dtype == kernel.dtype == result.dtype
        and not result.weak_type
        and not any(map(follows_mesh, (image, kernel, result)))
        and _is_small(params, kernel.shape)
    )


def _type_of(atom: Any) -> jax.core.ShapedArray:
    return atom.aval


def _is_small(params: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Tell whether a kernel has few positions or tiles the image."""
    kernel = tuple(shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:])
    tiles = (
        tuple(params["window_strides"]) == kernel
        and all(step == 1 for step in params["rhs_dilation"])
        and not any(low or high for low, high in params["padding"])
    )
    return tiles or math.prod(kernel) <= _MOST_TAPS


def _our_equations(equation: jex_core.JaxprEqn) -> list[jex_core.JaxprEqn]:
    """Return equations that compute the same with our convolution."""
    types = map(_type_of, equation.invars)
    operands = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in types]
    closed = jax.make_jaxpr(functools.partial(_convolve, equation.params))(*operands)
    inner = closed.jaxpr
    renamed = dict(zip(inner.invars, equation.invars, strict=True))
    renamed[inner.outvars[0]] = equation.outvars[0]
    return [
        each.replace(
            invars=[
                atom if isinstance(atom, jex_core.Literal) else renamed.get(atom, atom)
                for atom in each.invars
            ],
            outvars=[renamed.get(atom, atom) for atom in each.outvars],
            source_info=equation.source_info,
            ctx=equation.ctx,
        )
        for each in inner.eqns
    ]


def _convolve(params: Mapping[str, Any], image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve in the layout of our primitives, whatever the layout."""
    numbers = params["dimension_numbers"]
    (batch, channels, *space), (out, into, *taps) = numbers.lhs_spec, numbers.rhs_spec
    image = lax.transpose(image, (batch, *space, channels))
    kernel = lax.transpose(kernel, (*taps, into, out))
    strides, padding, dilation = (
        tuple(params[name]) for name in ("window_strides", "padding", "rhs_dilation")
    )
    flat = len(space) == 1
    if flat:
        image, kernel = lax.expand_dims(image, (1,)), lax.expand_dims(kernel, (0,))
        strides, padding, dilation = (1, *strides), ((0, 0), *padding), (1, *dilation)
    result = conv_general_dilated(
        image,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=params["feature_group_count"],
        precision=params["precision"],
    )
    if flat:
        result = lax.squeeze(result, (1,))
    batch, channels, *space = numbers.out_spec
    return lax.transpose(result, tuple(map(int, np.argsort((batch, *space, channels)))))
