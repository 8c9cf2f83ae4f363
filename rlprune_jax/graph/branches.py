"""Residual branches, each of which can be left out as a whole."""

from collections.abc import Iterable
from typing import NamedTuple

from rlprune_jax.graph.program import Atom, Literal, Program


class Branch(NamedTuple):
    """Describe what a residual sum adds to the stream.

    Attributes:
        equation: number of the sum.
        operand: which of its operands is the branch.
        body: numbers of the equations that nothing but the branch needs.
        variables: slots of the variables that only the branch reads.
    """

    equation: int
    operand: int
    body: frozenset[int]
    variables: tuple[int, ...]


def find_branches(
    program: Program,
    variable_count: int,
    contracting: Iterable[int],
    *,
    with_outputs: bool = False,
) -> list[Branch]:
    """Find the residual branches of a program.

    A sum of two values of one shape has one where a value goes into a branch with weights, and past
    it to the other side without any: left out, the stream flows on. A branch that is the only path
    is none. Of branches within one another the inner ones are taken.

    Args:
        program: of the network.
        variable_count: how many of its inputs are variables.
        contracting: numbers of the equations that multiply by weights, loops with such among them.
        with_outputs: whether what the program returns may be part of a branch, as statistics that
            training updates are.

    Returns:
        The branches, in the order of the program.
    """
    links = _Links(program, variable_count, frozenset(contracting), with_outputs)
    found = []
    for number, equation in enumerate(program.equations):
        if equation.name not in ("add", "add_any") or len(equation.inputs) != 2:
            continue
        for operand in (0, 1):
            branch = links.branch(number, operand)
            if branch is not None:
                found.append(branch)
                break
    return [
        each
        for each in found
        if not any(other is not each and other.equation in each.body for other in found)
    ]


Addition = tuple[int, int]
"""Number of a sum, and which of its operands is the branch."""


def residual_sums(body: Program, consts: int, carries: int) -> list[Addition] | None:
    """Return what a loop's body adds to its carry.

    Without it a step hands the carry on as it is, so that steps may be left out.

    Args:
        body: of a ``scan``, its inputs constants, carry and slices.
        consts: number of constants.
        carries: number of values carried.

    Returns:
        The sums, or None where the body does something else to the carry, or returns a value of
        every step.
    """
    if len(body.outputs) != carries:
        return None
    maker = {slot: n for n, each in enumerate(body.equations) for slot in each.outputs}

    def path(atom: Atom, end: int) -> list[Addition] | None:
        if atom == end:
            return []
        number = None if isinstance(atom, Literal) else maker.get(atom)
        if number is None:
            return None
        equation = body.equations[number]
        if equation.name == "identity":
            return path(equation.inputs[equation.outputs.index(atom)], end)
        if equation.name not in ("add", "add_any"):
            return None
        for operand in (0, 1):
            found = path(equation.inputs[1 - operand], end)
            if found is not None:
                return [*found, (number, operand)]
        return None

    sums: list[Addition] = []
    for output, start in zip(body.outputs, body.inputs[consts : consts + carries], strict=True):
        found = path(output, start)
        if found is None:
            return None
        sums += found
    return sums or None


class _Links:
    """Know who makes and who reads each value of a program."""

    def __init__(
        self,
        program: Program,
        variable_count: int,
        contracting: frozenset[int],
        with_outputs: bool,
    ) -> None:
        self._program = program
        self._contracting = contracting
        self._with_outputs = with_outputs
        self._variables = program.inputs[:variable_count]
        self._maker: dict[int, int] = {}
        self._readers: dict[int, set[int]] = {}
        self._depends = set(program.inputs[variable_count:])
        for number, equation in enumerate(program.equations):
            slots = _slots(equation.inputs)
            for slot in slots:
                self._readers.setdefault(slot, set()).add(number)
            for slot in equation.outputs:
                self._maker[slot] = number
            if self._depends.intersection(slots):
                self._depends.update(equation.outputs)

    def branch(self, number: int, operand: int) -> Branch | None:
        """Return the branch that is one operand of a sum, or None."""
        equation = self._program.equations[number]
        side, other = equation.inputs[operand], equation.inputs[1 - operand]
        if isinstance(side, Literal) or isinstance(other, Literal):
            return None
        avals = self._program.avals
        if avals[side].shape != avals[other].shape or not {side, other} <= self._depends:
            return None
        if self._readers[side] != {number} or side == other or side not in self._maker:
            return None
        body = self._body(number, side, other)
        if not body & self._contracting:
            return None
        entered = {
            slot
            for each in body
            for slot in _slots(self._program.equations[each].inputs)
            if slot in self._depends and self._maker.get(slot, -1) not in body
        }
        # Both sides come from one value, by no weights on the way past the branch.
        start = set().union(*map(self._past, entered)) & self._depends
        if not start & self._past(other):
            return None
        own = (slot for slot in self._variables if self._readers.get(slot) and avals[slot].shape)
        variables = tuple(slot for slot in own if self._readers[slot] <= body)
        return Branch(number, operand, body, variables) if variables else None

    def _body(self, number: int, side: int, other: int) -> frozenset[int]:
        """Return the equations that nothing but one side of a sum needs."""
        after = self._after(number)
        ends = _slots(self._program.outputs)
        if self._with_outputs:
            # What the sum does not reach is a statistic of some layer, not a prediction.
            ends = [slot for slot in ends if self._maker.get(slot) in after]
        needed = self._before([*ends, other], without=number)
        body = self._before([side], without=number) - needed
        if self._with_outputs:
            for each in sorted({n for n in body for n in self._after(n)}):
                if each not in needed and each not in after:
                    body.add(each)
        return frozenset(body)

    def _before(self, slots: Iterable[int], without: int) -> set[int]:
        """Return the equations that values rest on, not looking past one of them."""
        reached: set[int] = set()
        waiting = list(slots)
        while waiting:
            maker = self._maker.get(waiting.pop())
            if maker is not None and maker not in reached and maker != without:
                reached.add(maker)
                waiting.extend(_slots(self._program.equations[maker].inputs))
        return reached

    def _after(self, number: int) -> set[int]:
        """Return an equation and all that rest on it."""
        reached, waiting = {number}, [number]
        while waiting:
            for slot in self._program.equations[waiting.pop()].outputs:
                new = self._readers.get(slot, set()) - reached
                reached |= new
                waiting.extend(new)
        return reached

    def _past(self, slot: int) -> set[int]:
        """Return what reaches a value without passing weights, itself included."""
        reached, waiting = {slot}, [slot]
        while waiting:
            maker = self._maker.get(waiting.pop())
            if maker is None or maker in self._contracting:
                continue
            new = set(_slots(self._program.equations[maker].inputs)) - reached
            reached |= new
            waiting.extend(new)
        return reached


def _slots(atoms: Iterable[Atom]) -> list[int]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]
