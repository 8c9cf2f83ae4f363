"""Loops and choices whose bodies are evaluated in another way."""

from collections.abc import Callable, Sequence

import jax
from jax import lax

from rlprune_jax.graph.program import Equation, Value
from rlprune_jax.types import PyTree

Run = Callable[[Sequence[Value]], list[Value]]
"""``flat operands -> flat outputs`` of one body."""


def run_bodies(equation: Equation, runs: Sequence[Run], operands: Sequence[Value]) -> list[Value]:
    """Run a loop or a choice with other bodies.

    Args:
        equation: a ``scan``, ``while`` or ``cond``.
        runs: in place of its bodies.
        operands: of the equation; of a ``scan`` further arrays may follow, of which the body gets a
            slice a step.

    Returns:
        Its outputs.
    """
    return _RUNS[equation.name](equation, runs, operands)


def _scan(equation: Equation, runs: Sequence[Run], operands: Sequence[Value]) -> list[Value]:
    params = equation.params
    consts, carries = params["num_consts"], params["num_carry"]
    shared = list(operands[:consts])

    def step(carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        outputs = runs[0]([*shared, *carry, *xs])
        return tuple(outputs[:carries]), tuple(outputs[carries:])

    start: PyTree = tuple(map(jax.numpy.asarray, operands[consts : consts + carries]))
    end, stacked = lax.scan(
        step,
        start,
        tuple(operands[consts + carries :]),
        # A loop over layers has as many steps as there are layers left.
        length=None if len(operands) > consts + carries else params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*end, *stacked]


def _while(equation: Equation, runs: Sequence[Run], operands: Sequence[Value]) -> list[Value]:
    params = equation.params
    conditions = params["cond_nconsts"]
    consts = conditions + params["body_nconsts"]

    def goes_on(carry: PyTree) -> Value:
        return runs[0]([*operands[:conditions], *carry])[0]

    def step(carry: PyTree) -> PyTree:
        return tuple(runs[1]([*operands[conditions:consts], *carry]))

    return list(lax.while_loop(goes_on, step, tuple(operands[consts:])))


def _cond(equation: Equation, runs: Sequence[Run], operands: Sequence[Value]) -> list[Value]:
    index, *rest = operands
    return list(lax.switch(index, [lambda *given, run=run: run(given) for run in runs], *rest))


_RUNS = {"scan": _scan, "while": _while, "cond": _cond}
