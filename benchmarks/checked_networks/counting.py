"""An own count of parameters and MACs, which shares no code with the package."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import core

from rlprune_jax.types import Apply, PyTree, Variables


class Counted(NamedTuple):
    """Hold a count of MACs.

    Attributes:
        macs: of the whole program.
        whole: whether that is all; not so where a ``while`` of unknown length contracts, whose body
            counts once.
    """

    macs: int
    whole: bool


def own_params(variables: Variables) -> int:
    """Count the entries below ``"params"``, or of all floating arrays where there is none."""
    below = variables["params"] if isinstance(variables, dict) and "params" in variables else None
    leaves = jax.tree.leaves(variables if below is None else below)
    if below is None:
        leaves = [each for each in leaves if np.ndim(each) or not _is_integer(each)]
        leaves = [
            each for each in leaves if not jax.dtypes.issubdtype(each.dtype, jax.dtypes.extended)
        ]
    return sum(math.prod(np.shape(leaf)) for leaf in leaves)


def _is_integer(leaf: jax.Array) -> bool:
    return bool(np.issubdtype(leaf.dtype, np.integer))


def own_macs(
    apply: Apply, variables: Variables, inputs: tuple[PyTree, ...], examples: int
) -> Counted:
    """Count the MACs of some examples over the jaxpr.

    With one example, work that none causes (a low-rank update merged into its kernel) counts as
    often as it is done.

    Args:
        apply: ``(variables, *inputs) -> outputs``.
        variables: dense or slim, with a function of the same.
        inputs: with a batch in front.
        examples: of the batch to trace with.
    """
    batch = jax.tree.leaves(inputs)[0].shape[0]

    def first(leaf: PyTree) -> PyTree:
        return leaf[:examples] if np.ndim(leaf) and np.shape(leaf)[0] == batch else leaf

    jaxpr = jax.make_jaxpr(apply)(variables, *jax.tree.map(first, inputs))
    return _count(jaxpr.jaxpr)


def _count(jaxpr: core.Jaxpr) -> Counted:
    found = [_count_equation(equation) for equation in jaxpr.eqns]
    return Counted(macs=sum(each.macs for each in found), whole=all(each.whole for each in found))


def _count_equation(equation: core.JaxprEqn) -> Counted:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Counted(_dot(equation), True)
    if name == "conv_general_dilated":
        return Counted(_convolution(equation), True)
    if name.startswith("ragged_dot"):
        # Each row meets the matrix of its own group alone.
        rows, summed = _shape(equation.invars[0])
        return Counted(rows * summed * _shape(equation.invars[1])[-1], True)
    inner = [_count(each) for each in _bodies(params)]
    if name == "scan":
        return Counted(params["length"] * sum(each.macs for each in inner), _all_whole(inner))
    if name == "cond":
        return Counted(max(each.macs for each in inner), _all_whole(inner))
    macs = sum(each.macs for each in inner)
    if name == "while":
        return Counted(macs, macs == 0)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        first = inner[:1]
        return Counted(sum(each.macs for each in first), _all_whole(first))
    return Counted(macs, _all_whole(inner))


def _all_whole(counts: list[Counted]) -> bool:
    return all(each.whole for each in counts)


def _bodies(value: object) -> Iterator[core.Jaxpr]:
    """Yield the programs that an equation's parameters hold."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _bodies(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _bodies(each)
    elif isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value


def _dot(equation: core.JaxprEqn) -> int:
    left = _shape(equation.invars[0])
    (summed, _), _ = equation.params["dimension_numbers"]
    return math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in summed)


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(size for axis, size in enumerate(kernel) if axis != outputs)
    return math.prod(_shape(equation.outvars[0])) * per_output


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
    return variable.aval.shape  # type: ignore[attr-defined]
