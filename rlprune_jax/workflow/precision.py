"""Contractions in bfloat16, everything else in float32, of any function.

The operands of every convolution and matrix product are rounded to bfloat16 and so are its outputs;
what stands between them (norms, activations, sums, the loss) is computed in float32. Shapes and
dtypes of arguments and results stay what they are, so weights, running statistics and the state of
an optimizer are float32 throughout. Between two contractions a compiler can store bfloat16, since
only the rounding is read.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from rlprune_jax.graph.program import Aval, Value
from rlprune_jax.types import PyTree
from rlprune_jax.workflow.config import Precision

Function = TypeVar("Function", bound=Callable[..., PyTree])

CONTRACTIONS = (
    *("dot_general", "conv_general_dilated", "rlprune_convolution"),
    *("rlprune_convolution_input_gradient", "rlprune_convolution_kernel_gradient"),
)
"""Primitives whose operands are rounded."""

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
"""Calls that mean no more than their body, and where it stands."""

BODIES = ("scan", "while", "cond", "remat", "remat2", "checkpoint", "shard_map")
"""Primitives whose bodies are rewritten in place. Functions with a derivative of their own stay."""


def in_precision(function: Function, precision: Precision) -> Function:
    """Return the function with its contractions in a precision.

    Use it on a network in training or evaluation, inside of ``jit``, ``grad`` or ``vmap``. A
    contraction that asks for full float32 itself keeps it.

    Args:
        function: of pytrees of arrays, to pytrees of arrays.
        precision: ``"float32"`` returns the function as it is.

    Example:
        >>> import jax.numpy as jnp
        >>> rounded = in_precision(lambda x, y: x @ y, "bfloat16")
        >>> x = jnp.array([[1 + 2.0**-10]])
        >>> float(rounded(x, jnp.ones((1, 1)))[0, 0]), rounded(x, x).dtype
        (1.0, dtype('float32'))
    """
    if precision == "float32":
        return function

    def rounded(*args: PyTree, **keywords: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten((args, keywords))

        def flat(*leaves: Value) -> PyTree:
            args, keywords = jax.tree.unflatten(structure, leaves)
            return function(*args, **keywords)

        closed, out = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(out), _run(closed, leaves))

    return rounded  # type: ignore[return-value]


def check_precision(precision: Precision) -> None:
    """Refuse a precision that the device cannot compute.

    Raises:
        ValueError: naming the precision and the device.
    """
    if precision == "float32":
        return
    ones = jnp.ones((8, 8), precision)
    try:
        jax.block_until_ready(contract(ones, ones))
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"precision={precision!r} cannot be computed by {jax.devices()[0].device_kind!r} "
            f"({lines[0] if lines else type(error).__name__}); choose precision='float32'"
        ) from error


def contract(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the product of two matrices."""
    return jax.jit(jnp.matmul)(first, second)


def _run(closed: jex_core.ClosedJaxpr, operands: Sequence[Value]) -> list[Value]:
    """Evaluate a jaxpr, its contractions rounded."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Value) -> Value:
        return atom.val if isinstance(atom, jex_core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        values.update(zip(eqn.outvars, _apply(eqn, list(map(read, eqn.invars))), strict=True))
    return list(map(read, jaxpr.outvars))


def _apply(eqn: jex_core.JaxprEqn, operands: list[Value]) -> list[Value]:
    name, params = eqn.primitive.name, dict(eqn.params)
    if name in CALLS:
        return _run(params[CALLS[name]], operands)
    if name in BODIES:
        params = {key: _rewritten(value) for key, value in params.items()}
    is_rounded = name in CONTRACTIONS and _is_float32(eqn) and not _is_full(params["precision"])
    if is_rounded:
        operands = [operand.astype(jnp.bfloat16) for operand in map(jnp.asarray, operands)]
        if "preferred_element_type" in params:
            params["preferred_element_type"] = jnp.dtype(jnp.bfloat16)
    bound = eqn.primitive.get_bind_params(params)
    # JAX before 0.10 returns functions and parameters apart.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    found = eqn.primitive.bind(*functions, *operands, **params)
    outputs = list(found) if eqn.primitive.multiple_results else [found]
    return [each.astype(jnp.float32) for each in outputs] if is_rounded else outputs


def _is_float32(eqn: jex_core.JaxprEqn) -> bool:
    avals: list[Aval] = [each.aval for each in (*eqn.invars, *eqn.outvars)]
    return all(aval.dtype == jnp.float32 for aval in avals)


def _is_full(precision: object) -> bool:
    """Whether full float32 is asked for, by the user or by ``jax.default_matmul_precision``."""
    each = precision if isinstance(precision, tuple) else (precision,)
    return any(one == jax.lax.Precision.HIGHEST for one in each)


def _rewritten(value: Value) -> Value:
    """Return a body with its contractions rounded; what is no body as it is."""
    if isinstance(value, tuple):
        return tuple(map(_rewritten, value))
    if isinstance(value, jex_core.ClosedJaxpr):
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in value.in_avals]
        return jax.make_jaxpr(lambda *operands: _run(value, operands))(*shapes)
    if isinstance(value, jex_core.Jaxpr) and not value.constvars:
        found = _rewritten(jex_core.ClosedJaxpr(value, ()))
        return value if found.consts else found.jaxpr
    return value
