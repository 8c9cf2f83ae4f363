"""A traced function as one flat list of equations, calls inlined."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex_core

from rlprune_jax.graph.primitives import ELEMENTWISE

_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


class Equation(NamedTuple):
    """One primitive application; operands are value slots, or literals carried in place."""

    source: Any
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.source.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Static parameters of the primitive."""
        return self.source.params

    def bind(self, *operands: Any, **changed: Any) -> list[Any]:
        """Apply the primitive to ``operands``, with some of its parameters changed."""
        return bind(self.source.primitive, {**self.params, **changed}, operands)


def bind(primitive: Any, params: dict[str, Any], operands: Sequence[Any]) -> list[Any]:
    """Apply a primitive, as read off an equation, to ``operands``."""
    bound = primitive.get_bind_params(params)
    # JAX before 0.10 returns functions and parameters apart.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    result = primitive.bind(*functions, *operands, **params)
    return list(result) if primitive.multiple_results else [result]


class Literal(NamedTuple):
    """A constant written into the program."""

    value: Any


class Program(NamedTuple):
    """Straight-line program: slots are numbered values, ``avals[slot]`` their shape and dtype."""

    inputs: tuple[int, ...]
    constants: dict[int, Any]
    equations: list[Equation]
    outputs: tuple[Any, ...]
    avals: list[Any]


def trace_program(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """Trace ``function(*args)`` and inline its calls.

    Args:
        function: a pure function of pytrees of arrays.
        *args: arrays, tracers or ``jax.ShapeDtypeStruct``; only shapes and dtypes are used.

    Returns:
        The program (inputs and outputs in flattening order) and the structure of the output,
        as a pytree of ``jax.ShapeDtypeStruct``.
    """
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*args)
    avals: list[Any] = []
    constants: dict[int, Any] = {}
    equations: list[Equation] = []

    def new_slot(aval: Any) -> int:
        avals.append(aval)
        return len(avals) - 1

    def inline(jaxpr: Any, consts: Any, operands: list[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = new_slot(var.aval)
            constants[env[var]] = value

        def read(atom: Any) -> Any:
            return Literal(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            inner = eqn.params.get(_INLINED.get(eqn.primitive.name, ""))
            if inner is not None and not _is_elementwise_custom_jvp(eqn):
                body, body_consts = (
                    (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
                )
                outputs = inline(body, body_consts, inputs)
            else:
                outputs = [new_slot(var.aval) for var in eqn.outvars]
                equations.append(Equation(eqn, tuple(inputs), tuple(outputs)))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    inputs = [new_slot(var.aval) for var in closed.jaxpr.invars]
    outputs = inline(closed.jaxpr, closed.consts, list(inputs))
    return Program(tuple(inputs), constants, equations, tuple(outputs), avals), out_shape


def _is_elementwise_custom_jvp(eqn: Any) -> bool:
    # Kept whole, such a function keeps its derivative (relu's is 0 at 0, that of max is 1/2).
    if eqn.primitive.name != "custom_jvp_call":
        return False
    shapes = {var.aval.shape for var in [*eqn.invars, *eqn.outvars]}

    def elementwise(jaxpr: Any) -> bool:
        for inner in jaxpr.eqns:
            body = inner.params.get(_INLINED.get(inner.primitive.name, ""))
            if body is not None:
                if not elementwise(getattr(body, "jaxpr", body)):
                    return False
            elif inner.primitive.name not in ELEMENTWISE:
                return False
        return True

    return len(shapes) == 1 and elementwise(eqn.params["call_jaxpr"].jaxpr)
