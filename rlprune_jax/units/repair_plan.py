"""Which contractions of a network can be refitted, and where their weights come from."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.matching import Matched
from rlprune_jax.graph.program import Atom, Equation, Literal, Program, Value
from rlprune_jax.units.least_squares import MatrixForm, matrix_form

_MOVING = frozenset(
    "convert_element_type copy copy_p expand_dims reshape rev squeeze transpose".split()  # noqa: SIM905
)
"""What may stand between a variable and its contraction."""


class Origin(NamedTuple):
    """Hold how a value is made of one variable.

    Attributes:
        variable: number of the variable among the program's inputs.
        equations: numbers of those that only move or cast it, in order.
    """

    variable: int
    equations: tuple[int, ...]


class Bias(NamedTuple):
    """Hold what is added to outputs, one number a column.

    Attributes:
        origin: the variable that is added (a bias) or subtracted (a running mean).
        sign: 1 or -1.
        order: int[size], the column of each entry of the variable.
    """

    origin: Origin
    sign: int
    order: np.ndarray


class Refit(NamedTuple):
    """Hold a contraction whose weights can be refitted.

    Attributes:
        equation: its number in the program.
        operand: which operand depends on the input.
        weight: which operand holds the weights.
        form: the contraction as matrices.
        origin: of the weights.
        bias: what is added to its output, if anything.
    """

    equation: int
    operand: int
    weight: int
    form: MatrixForm
    origin: Origin
    bias: Bias | None


class RepairPlan(NamedTuple):
    """Hold what can be refitted.

    Attributes:
        refits: number of the equation -> how.
        skipped: number of the equation -> why not.
    """

    refits: dict[int, Refit]
    skipped: dict[int, str]


class RepairSchedule(NamedTuple):
    """Hold what a repair evaluates, in program order.

    Attributes:
        refits: those behind a gate.
        of_variables: numbers of equations of variables alone, which are evaluated first.
        touched: numbers of equations that gates or corrections change, which are evaluated next.
        outside: slots that these read and that only the dense network computes.
    """

    refits: dict[int, Refit]
    of_variables: tuple[int, ...]
    touched: tuple[int, ...]
    outside: tuple[int, ...]


def schedule_repair(
    matched: Matched, refits: dict[int, Refit], is_changed: Callable[[int], bool], count: int
) -> RepairSchedule:
    """Find what a repair has to evaluate.

    Args:
        matched: program of the network.
        refits: all that can be refitted.
        is_changed: tells whether gates change an equation, by its number.
        count: how many of the program's inputs are variables.
    """
    program = matched.program
    known = {*program.inputs[:count], *program.constants}
    of_variables, touched, behind = list[int](), list[int](), dict[int, Refit]()
    changed, outside = set[int](), list[int]()
    for number, equation in enumerate(program.equations):
        slots = [atom for atom in equation.inputs if not isinstance(atom, Literal)]
        if not (is_changed(number) or changed.intersection(slots)):
            if known.issuperset(slots):
                of_variables.append(number)
                known.update(equation.outputs)
            continue
        touched.append(number)
        outside += [slot for slot in slots if slot not in known and slot not in changed]
        changed.update(equation.outputs)
        if number in refits:
            behind[number] = refits[number]
            changed.update(_corrected(program, number, refits[number]))
    return RepairSchedule(
        refits=behind,
        of_variables=tuple(of_variables),
        touched=tuple(touched),
        outside=tuple(dict.fromkeys(outside)),
    )


def _corrected(program: Program, number: int, refit: Refit) -> Iterator[int]:
    """Yield the slots that change where a contraction is refitted."""
    for origin in (refit.origin, *((refit.bias.origin,) if refit.bias else ())):
        yield program.inputs[origin.variable]
        for each in origin.equations:
            if each < number:
                yield from program.equations[each].outputs


def plan_repair(matched: Matched, variable_count: int) -> RepairPlan:
    """Find the contractions whose weights can be refitted.

    These are dots and convolutions of the input with weights that are a variable, at most moved
    or cast, which nothing else reads.

    Args:
        matched: program of the network.
        variable_count: how many of its inputs are variables.
    """
    search = _Search(matched.program, variable_count)
    refits: dict[int, Refit] = {}
    skipped: dict[int, str] = {}
    for each in matched.contractions:
        equation = matched.program.equations[each.equation]
        if each.weight is None or equation.name == "gather":
            continue
        origin = search.origin(equation.inputs[each.weight], _MOVING)
        avals = [search.aval(atom) for atom in (*equation.inputs, *equation.outputs)]
        if isinstance(origin, str):
            skipped[each.equation] = origin
        elif not all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals):
            skipped[each.equation] = "it computes with other numbers than real ones"
        else:
            try:
                form = matrix_form(equation, each.weight, tuple(aval.shape for aval in avals))
            except ValueError as error:
                skipped[each.equation] = str(error)
                continue
            refits[each.equation] = Refit(
                equation=each.equation,
                operand=each.operand,
                weight=each.weight,
                form=form,
                origin=origin,
                bias=search.bias(equation, form),
            )
    return RepairPlan(refits, skipped)


class _Search:
    """Find where values of a program come from."""

    def __init__(self, program: Program, variable_count: int) -> None:
        self._program = program
        self._variables = {
            slot: number for number, slot in enumerate(program.inputs[:variable_count])
        }
        self._makers: dict[int, int] = {}
        self._readers: dict[int, int] = {}
        self._uses: Counter[int] = Counter()
        for number, equation in enumerate(program.equations):
            self._makers.update(dict.fromkeys(equation.outputs, number))
            for atom in equation.inputs:
                if not isinstance(atom, Literal):
                    self._uses[atom] += 1
                    self._readers[atom] = number
        self._uses.update(atom for atom in program.outputs if not isinstance(atom, Literal))

    def aval(self, atom: Atom) -> jax.ShapeDtypeStruct:
        if isinstance(atom, Literal):
            return jax.ShapeDtypeStruct(np.shape(atom.value), jax.dtypes.result_type(atom.value))
        return self._program.avals[atom]

    def origin(self, atom: Atom, passing: frozenset[str]) -> Origin | str:
        """Follow a value back to its variable, or return why there is none."""
        equations: list[int] = []
        while not isinstance(atom, Literal):
            if self._uses[atom] > 1:
                return f"its weights are read {self._uses[atom]} times"
            if atom in self._variables:
                return Origin(self._variables[atom], tuple(reversed(equations)))
            if atom not in self._makers:
                break
            equation = self._program.equations[self._makers[atom]]
            if equation.name not in passing:
                return f"its weights are computed by {equation.name!r}"
            equations.append(self._makers[atom])
            atom = equation.inputs[0]
        return "its weights are no variable"

    def bias(self, equation: Equation, form: MatrixForm) -> Bias | None:
        """Find what is added to the output of a contraction, one number a column."""
        (slot,) = equation.outputs
        shape = self.aval(slot).shape
        sizes = [shape[axis] for axis in form.columns]
        numbers = np.arange(int(np.prod(sizes, dtype=int))).reshape(sizes)
        columns = np.moveaxis(
            np.broadcast_to(numbers, (*np.delete(shape, form.columns), *sizes)),
            range(len(shape) - len(sizes), len(shape)),
            form.columns,
        )
        while self._uses[slot] == 1 and slot in self._readers:
            reader = self._program.equations[self._readers[slot]]
            if reader.name in _MOVING:
                columns = _move(reader, columns)
                (slot,) = reader.outputs
                continue
            place = reader.inputs.index(slot)
            sign = {("sub", 0): -1, ("add", 0): 1, ("add", 1): 1}.get((reader.name, place))
            if sign is None:
                return None
            origin = self.origin(reader.inputs[1 - place], _MOVING | {"broadcast_in_dim"})
            if isinstance(origin, str):
                return None
            order = self._order(origin, columns)
            return None if order is None else Bias(origin=origin, sign=sign, order=order)
        return None

    def _order(self, origin: Origin, columns: np.ndarray) -> np.ndarray | None:
        """Return the column of each entry of a variable, if they go one to one."""
        variable = self._program.avals[self._program.inputs[origin.variable]]
        size = int(np.prod(variable.shape, dtype=int))
        entries = np.arange(size).reshape(variable.shape)
        for number in origin.equations:
            entries = _move(self._program.equations[number], entries)
        if np.broadcast_shapes(entries.shape, columns.shape) != columns.shape:
            return None
        entries = np.broadcast_to(entries, columns.shape)
        # What is broadcast takes no step in memory, so that its first index stands for all.
        whole = tuple(
            slice(None) if entries.strides[axis] or columns.strides[axis] else slice(1)
            for axis in range(columns.ndim)
        )
        pairs = np.unique(np.stack([entries[whole].ravel(), columns[whole].ravel()]), axis=1)
        numbers = np.arange(size)
        if not (np.array_equal(pairs[0], numbers) and np.array_equal(np.sort(pairs[1]), numbers)):
            return None
        return pairs[1]


def _move(equation: Equation, array: np.ndarray) -> np.ndarray:
    """Move the entries of an array as an equation does."""
    params = equation.params
    if equation.name == "broadcast_in_dim":
        places = params["broadcast_dimensions"]
        shape = np.ones(len(params["shape"]), int)
        shape[list(places)] = array.shape
        return np.broadcast_to(array.reshape(shape), params["shape"])
    if equation.name == "transpose":
        return array.transpose(params["permutation"])
    if equation.name == "rev":
        return np.flip(array, params["dimensions"])
    shape = equation.source.outvars[0].aval.shape
    return array.reshape(shape)


def to_variable(program: Program, origin: Origin, value: Value) -> Value:
    """Take a change of moved weights back to their variable.

    Args:
        program: of the network.
        origin: of the weights.
        value: array of their shape.

    Returns:
        An array of the variable's shape.
    """
    for number in reversed(origin.equations):
        equation = program.equations[number]
        if equation.name == "transpose":
            value = value.transpose(np.argsort(equation.params["permutation"]))
        elif equation.name == "rev":
            value = jnp.flip(value, equation.params["dimensions"])
        else:
            value = value.reshape(program.avals[equation.inputs[0]].shape)
    return value
