"""A traced function as one flat list of equations, calls inlined."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from rlprune_jax.types import PyTree

_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",  # the two above, from JAX 0.12 on
    "composite": "jaxpr",
}
_KEPT = {
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Calls that mean more than their body: what is stored for the gradient, or what it is."""
_BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}
"""Where the bodies of loops and choices stand among the parameters."""


Value: TypeAlias = Any
"""An array, a tracer or a scalar: whatever JAX computes with."""

Atom: TypeAlias = Any
"""A slot's number, or a ``Literal``."""

Aval: TypeAlias = Any
"""Shape and dtype of a value, as JAX keeps them."""


_FRAMEWORKS = ("jax", "jaxlib", "flax", "equinox", "haiku", "keras", "jaxtyping", "numpy")
_OWN = ("graph", "workflow", "costs", "units", "cli")


@cache
def _passed_over(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the beginnings of files whose lines are not the user's.

    Those are of some libraries, of what traces here, and of what wraps functions.
    """
    libraries = [
        os.path.dirname(spec.origin)
        for name in names
        if (spec := importlib.util.find_spec(name)) is not None and spec.origin
    ]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    own = [os.path.join(package, room) for room in _OWN]
    standard = [contextlib.__file__, functools.__file__]
    return (*(each + os.sep for each in [*libraries, *own]), *standard, "<")


class Equation(NamedTuple):
    """Hold one application of a primitive.

    Attributes:
        source: equation of the jaxpr; None for the identity, which gives values new slots.
        inputs: slots of values, or literals carried in place.
        outputs: slots.
        bodies: programs with slots of their own: the body of a ``scan``, condition and body of a
            ``while``, the branches of a ``cond``.
        callers: equations of the calls around it, the innermost last.
    """

    source: Any
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    bodies: "tuple[Program, ...]" = ()
    callers: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the primitive."""
        return "identity" if self.source is None else self.source.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Return the static parameters of the primitive."""
        return {} if self.source is None else self.source.params

    @property
    def place(self) -> str:
        """Return file, line and function of the user's code.

        It is "" where JAX keeps none.
        """
        # What JAX' own functions are made of is told by where they are called, and a framework's
        # layer by the user's line that calls it, where there is one.
        sources = [source for source in (self.source, *reversed(self.callers)) if source]
        tracebacks = [source.source_info.traceback for source in sources]
        frames = [frame for each in tracebacks if each is not None for frame in each.frames]
        for passed_over in (_passed_over(_FRAMEWORKS), _passed_over(_FRAMEWORKS[:2])):
            for frame in frames:
                if not frame.file_name.startswith(passed_over):
                    file = os.path.basename(frame.file_name)
                    return f"{file}:{frame.line_num} ({frame.function_name})"
        return ""

    def bind(self, *operands: Value, **changed: object) -> list[Value]:
        """Apply the primitive, with some of its parameters changed."""
        if self.source is None:
            return list(operands)
        primitive = self.source.primitive
        bound = primitive.get_bind_params({**self.params, **changed})
        # JAX before 0.10 returns functions and parameters apart.
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        result = primitive.bind(*functions, *operands, **params)
        return list(result) if primitive.multiple_results else [result]


class Literal(NamedTuple):
    """Hold a scalar written into the program."""

    value: Value


class Call(NamedTuple):
    """Hold a call whose body is part of the program.

    The body computes the same outputs.

    Attributes:
        equation: the whole call.
        first: number of the first equation of the body.
        last: number after the body's last equation.
        body: numbers of equations, and calls.
    """

    equation: Equation
    first: int
    last: int
    body: "tuple[int | Call, ...]"

    @property
    def is_remat(self) -> bool:
        """Tell whether the call stands for ``jax.checkpoint``."""
        return not self.equation.name.startswith("custom")


class Program(NamedTuple):
    """Hold a straight-line program over numbered values, its slots.

    Attributes:
        inputs: slots of the arguments, in flattening order.
        constants: slot -> array that the function closed over.
        equations: all of them, those of calls included.
        outputs: slots or literals.
        avals: shape and dtype of each slot.
        body: numbers of equations in the order of evaluation, and calls in place of theirs.
    """

    inputs: tuple[int, ...]
    constants: dict[int, Value]
    equations: list[Equation]
    outputs: tuple[Atom, ...]
    avals: list[Aval]
    body: tuple[int | Call, ...]


def trace_program(function: Callable[..., PyTree], *args: PyTree) -> tuple[Program, PyTree]:
    """Trace a function and inline its calls.

    Args:
        function: a pure function of pytrees of arrays.
        *args: arrays, tracers or ``jax.ShapeDtypeStruct``; only shapes and dtypes are used.

    Returns:
        The program (inputs and outputs in flattening order) and the structure of the output,
        as a pytree of ``jax.ShapeDtypeStruct``.
    """
    try:
        closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*args)
    except Exception as error:
        shapes = ", ".join(
            f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"
            if hasattr(leaf, "dtype")
            else repr(leaf)
            for leaf in jax.tree.leaves(args[1:])
        )
        error.add_note(f"rlprune_jax traced the function with variables and inputs {shapes}")
        raise
    return _program(closed), out_shape


def _program(closed: jex_core.ClosedJaxpr, callers: tuple[Any, ...] = ()) -> Program:
    builder = _Builder(callers)
    inputs = [builder.new_slot(var.aval) for var in closed.jaxpr.invars]
    body: list[int | Call] = []
    outputs = builder.inline(closed.jaxpr, closed.consts, list(inputs), body)
    return Program(
        tuple(inputs),
        builder.constants,
        builder.equations,
        tuple(outputs),
        builder.avals,
        tuple(body),
    )


def _bodies(eqn: jex_core.JaxprEqn, callers: tuple[Any, ...]) -> tuple[Program, ...]:
    """Return the programs that a loop or a choice runs."""
    found = [eqn.params[each] for each in _BODIES.get(eqn.primitive.name, ())]
    closed = [each for part in found for each in (part if isinstance(part, tuple) else (part,))]
    return tuple(_program(each, (*callers, eqn)) for each in closed)


class _Builder:
    def __init__(self, callers: tuple[Any, ...]) -> None:
        self.callers = callers
        self.avals: list[Aval] = []
        self.constants: dict[int, Value] = {}
        self.equations: list[Equation] = []

    def new_slot(self, aval: Aval) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _add(self, equation: Equation, body: list[int | Call]) -> None:
        body.append(len(self.equations))
        self.equations.append(equation)

    def _constant(self, aval: Aval, value: Value) -> int:
        slot = self.new_slot(aval)
        self.constants[slot] = value
        return slot

    def inline(
        self,
        jaxpr: jex_core.Jaxpr,
        consts: Sequence[Value],
        operands: list[Atom],
        body: list[int | Call],
    ) -> list[Atom]:
        """Add the equations of ``jaxpr`` to ``body``; return slots or literals of its outputs."""
        env: dict[object, Atom] = dict(zip(jaxpr.invars, operands, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self._constant(var.aval, value)

        def read(atom: object) -> Atom:
            if not isinstance(atom, jex_core.Literal):
                return env[atom]
            return (
                Literal(atom.val) if not np.shape(atom.val) else self._constant(atom.aval, atom.val)
            )

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            name = eqn.primitive.name
            if name in _INLINED:
                with self._inside(eqn):
                    outputs = self.inline(*_opened(eqn.params[_INLINED[name]]), inputs, body)
            elif name in _KEPT:
                outputs = self._call(eqn, inputs, body)
            else:
                outputs = [self.new_slot(var.aval) for var in eqn.outvars]
                bodies = _bodies(eqn, self.callers)
                self._add(Equation(eqn, tuple(inputs), tuple(outputs), bodies, self.callers), body)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    @contextlib.contextmanager
    def _inside(self, eqn: jex_core.JaxprEqn) -> Iterator[None]:
        """Name a call as the caller of what is added meanwhile."""
        before, self.callers = self.callers, (*self.callers, eqn)
        yield
        self.callers = before

    def _call(
        self, eqn: jex_core.JaxprEqn, inputs: list[Atom], body: list[int | Call]
    ) -> list[Atom]:
        first = len(self.equations)
        inner: list[int | Call] = []
        with self._inside(eqn):
            results = self.inline(*_opened(eqn.params[_KEPT[eqn.primitive.name]]), inputs, inner)
        # Slots of its own, as a call may hand on an argument with another derivative.
        outputs = [self.new_slot(var.aval) for var in eqn.outvars]
        self._add(Equation(None, tuple(results), tuple(outputs)), inner)
        whole = Equation(eqn, tuple(inputs), tuple(outputs))
        body.append(Call(whole, first, len(self.equations), tuple(inner)))
        return outputs


def _opened(
    jaxpr: jex_core.ClosedJaxpr | jex_core.Jaxpr,
) -> tuple[jex_core.Jaxpr, Sequence[Value]]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, jex_core.ClosedJaxpr) else (jaxpr, ())


def evaluate(
    program: Program,
    arguments: Sequence[Value],
    constants: dict[int, Value],
    step: Callable[[int, list[Value]], list[Value]],
    call: Callable[[Call, list[Value]], list[Value] | None],
) -> list[Value]:
    """Run a program with other meanings for its equations.

    Args:
        program: to run.
        arguments: flat, one per input.
        constants: slot -> value.
        step: ``(number of the equation, operands) -> outputs``.
        call: ``(call, operands) -> outputs``, or None to run the call's body; the body of
            ``jax.checkpoint`` is run under ``jax.checkpoint`` again.

    Returns:
        The flat outputs.
    """

    def read(values: dict[int, Value], atom: Atom) -> Value:
        return atom.value if isinstance(atom, Literal) else values[atom]

    def run(body: tuple[int | Call, ...], values: dict[int, Value]) -> None:
        for item in body:
            equation = program.equations[item] if isinstance(item, int) else item.equation
            operands = [read(values, atom) for atom in equation.inputs]
            outputs = step(item, operands) if isinstance(item, int) else call(item, operands)
            if outputs is None:
                assert isinstance(item, Call)
                outputs = run_call(item, operands, values)
            values.update(zip(equation.outputs, outputs, strict=True))

    def run_call(item: Call, operands: list[Value], values: dict[int, Value]) -> list[Value]:
        def rematerialised(*operands: Value) -> list[Value]:
            own = dict(values)
            for atom, operand in zip(item.equation.inputs, operands, strict=True):
                if not isinstance(atom, Literal):
                    own[atom] = operand
            run(item.body, own)
            return [own[slot] for slot in item.equation.outputs]

        if item.is_remat:
            params = item.equation.params
            once = {"prevent_cse": params["prevent_cse"], "policy": params["policy"]}
            return jax.checkpoint(rematerialised, **once)(*operands)
        run(item.body, values)
        return [values[slot] for slot in item.equation.outputs]

    values: dict[int, Value] = dict(zip(program.inputs, arguments, strict=True))
    values.update(constants)
    run(program.body, values)
    return [read(values, atom) for atom in program.outputs]
