"""The masked network, whose consumers read their operands times the gates."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_function
from rlprune_jax.graph.bodies import run_bodies
from rlprune_jax.graph.branches import Addition
from rlprune_jax.graph.groups import Graph, check_gates, check_graph
from rlprune_jax.graph.matching import Matched, flat_arguments, match
from rlprune_jax.graph.primitives import READERS
from rlprune_jax.graph.program import Call, Literal, Value, evaluate
from rlprune_jax.graph.reductions import Length
from rlprune_jax.kept import is_kept
from rlprune_jax.types import Apply, Gates, PyTree, Variables


def gated(apply: Apply, graph: Graph) -> Apply:
    """Mask a network by gates, without touching its code.

    Each convolution or dot that sums over units reads its operand times their gates; a sum, mean or
    maximum over units (a norm, a softmax) is taken over those that are kept. Whatever
    stands between a unit's producer and its consumers (bias, norm, activation, pooling, residual
    sum) cannot leak, so the masked network equals the slim one exactly. Under ``vmap`` over the
    gates the weights stay shared, and all before the first gate is computed once. Activations must
    be finite: 0 times infinity is no 0. A soft gate scales what is read; counts and costs take its
    unit for kept from 0.5 (``units.is_kept``).

    ``jax.checkpoint`` and derivatives of one's own (``custom_jvp``, ``custom_vjp``) are kept, but
    for those of a function in whose body gated units are summed: it is differentiated as written.

    Args:
        apply: pure function ``(variables, *inputs, **keywords) -> outputs``; batch size, train mode
            and what is returned may differ from what the graph was traced with.
        graph: of the network.

    Returns:
        ``(variables, gates, *inputs, **keywords) -> outputs``, with gates ``group name ->
        f32[units]``. Arrays among the keyword arguments (``rngs={"dropout": key}``) are traced,
        everything else (``train=True``, ``mutable=["batch_stats"]``) is static.

    Raises:
        TypeError: ``apply`` is no function or ``graph`` no graph; (on call) gates are no dictionary
            of arrays.
        ValueError: (on call) gates or variables do not fit the graph, or concrete gates are NaN or
            outside [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import ones_gates, trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"] + 1) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> gates = {"a": jnp.array([1.0, 0.0, 0.0, 0.0, 1.0])}
        >>> gated(apply, graph)(variables, gates, jnp.ones((1, 3))).tolist()
        [[8.0, 8.0]]
    """
    check_graph(graph)
    require_function("apply", apply, "a function (variables, *inputs) -> outputs")

    def masked(variables: Variables, gates: Gates, *inputs: PyTree, **keywords: Any) -> PyTree:
        check_gates(graph, gates)
        matched = match(apply, graph, variables, inputs, keywords)
        arguments = flat_arguments(variables, inputs, keywords)
        outputs = evaluate_masked(matched, arguments, flat_gates(graph, gates))
        return jax.tree.unflatten(jax.tree.structure(matched.out_shape), outputs)

    return masked


def flat_gates(graph: Graph, gates: Gates) -> jax.Array:
    """Return all gates in one row.

    Returns:
        f32[units + 1], the groups in depth order, then a 1 for indices without a unit.
    """
    parts = [jnp.asarray(gates[name], jnp.float32) for name in graph.names]
    return jnp.concatenate([*parts, jnp.ones(1, jnp.float32)])


Change = Callable[[list[Value]], None]
"""Change the operands of an equation in place."""


class Made(NamedTuple):
    """Hold the gates of all axes that are read.

    Attributes:
        of: bytes of an axis' units -> f32[size], the gate of each index.
        may_overflow: whether what is pruned may be infinite, since a maximum over units has left it
            out (a softmax).
    """

    of: Mapping[bytes, jax.Array]
    may_overflow: bool


def evaluate_masked(matched: Matched, leaves: list[Value], gates: jax.Array) -> list[Value]:
    """Evaluate a matched program with gates.

    Args:
        matched: program of the network.
        leaves: its flat arguments, as ``flat_arguments`` gives them.
        gates: f32[units + 1], as ``flat_gates`` gives them.

    Returns:
        The flat outputs.
    """
    return _masked(masked_steps(matched, gates), leaves)


def masked_steps(matched: Matched, gates: jax.Array) -> "MaskedSteps":
    """Return the steps of the masked network.

    Args:
        matched: program of the network.
        gates: f32[units + 1], as ``flat_gates`` gives them.
    """
    # Made here, not where they are read, so that none belongs to the body of a loop or checkpoint.
    axes = {units.tobytes(): units for units in _read_units(matched)}
    made = {key: _gate_of(units, gates) for key, units in axes.items()}
    return MaskedSteps(matched, Made(made, _has_extremes(matched)))


def _has_extremes(matched: Matched) -> bool:
    """Tell whether a maximum or minimum is taken over units."""
    own = any(
        matched.program.equations[each.equation].name in ("reduce_max", "reduce_min")
        and isinstance(atom := matched.program.equations[each.equation].inputs[0], int)
        and any((matched.units[atom][axis] >= 0).any() for axis in each.axes)
        for each in matched.reductions
    )
    return own or any(_has_extremes(body) for bodies in matched.bodies.values() for body in bodies)


def _read_units(matched: Matched) -> Iterator[np.ndarray]:
    """Yield the units of every axis that is read or counted, in bodies too."""
    for number, operand, axes in _reads(matched):
        atom = matched.program.equations[number].inputs[operand]
        if not isinstance(atom, Literal):
            yield from (matched.units[atom][axis] for axis in axes)
    for _, units in matched.lengths:
        yield from units
    for _, unit in matched.branches:
        yield np.array([unit], np.int32)
    yield from (layers for layers, _ in matched.layers.values())
    for bodies in matched.bodies.values():
        for body in bodies:
            yield from _read_units(body)


class MaskedSteps:
    """Evaluate equations one by one, leaving pruned units out."""

    def __init__(
        self, matched: Matched, gates: Made, layer: "tuple[list[Addition], jax.Array] | None" = None
    ) -> None:
        self.program = matched.program
        self._layers = matched.layers
        self._gates = gates
        self._changes: dict[int, list[Change]] = {}
        for number, change in _changes(matched, gates):
            self._changes.setdefault(number, []).append(change)
        if layer is not None:
            for number, operand in layer[0]:
                self._changes.setdefault(number, []).append(partial(_weaken, operand, layer[1]))
        self._inside = {
            number: bodies
            for number, bodies in matched.bodies.items()
            if number in matched.layers or any(map(_is_changed, bodies))
        }

    def is_changed(self, number: int) -> bool:
        """Tell whether an equation reads units, or its bodies do."""
        return number in self._changes or number in self._inside

    def read(self, number: int, operands: list[Value]) -> list[Value]:
        """Return the operands as the masked network reads them."""
        operands = list(operands)
        for change in self._changes.get(number, ()):
            change(operands)
        return operands

    def bind(self, number: int, operands: list[Value]) -> list[Value]:
        """Evaluate an equation on operands that ``read`` gave."""
        equation = self.program.equations[number]
        if number not in self._inside:
            return equation.bind(*operands)
        if number in self._layers:
            return self._bind_layers(number, operands)
        steps = [MaskedSteps(body, self._gates) for body in self._inside[number]]
        return run_bodies(equation, [partial(_masked, each) for each in steps], operands)

    def _bind_layers(self, number: int, operands: list[Value]) -> list[Value]:
        """Evaluate a loop over layers, each of which has a gate."""
        units, sums = self._layers[number]
        (body,) = self._inside[number]

        def run(inputs: Sequence[Value]) -> list[Value]:
            steps = MaskedSteps(body, self._gates, (sums, inputs[-1]))
            return _masked(steps, inputs[:-1])

        gates = self._gates.of[units.tobytes()]
        return run_bodies(self.program.equations[number], [run], [*operands, gates])


def _masked(steps: MaskedSteps, leaves: Sequence[Value]) -> list[Value]:
    """Evaluate a program whose readers leave pruned units out."""
    program = steps.program

    def step(number: int, operands: list[Value]) -> list[Value]:
        return steps.bind(number, steps.read(number, operands))

    def call(item: Call, operands: list[Value]) -> list[Value] | None:
        if any(map(steps.is_changed, range(item.first, item.last))):
            return None
        return item.equation.bind(*operands)

    return evaluate(program, leaves, program.constants, step, call)


def _is_changed(matched: Matched) -> bool:
    """Tell whether a program reads any unit."""
    return any((units >= 0).any() for units in _read_units(matched))


def _reads(matched: Matched) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield equation, operand and axes of what is summed over."""
    for each in matched.contractions:
        yield each.equation, each.operand, each.axis
    for reduction in matched.reductions:
        yield reduction.equation, 0, reduction.axes


def _changes(matched: Matched, gates: Made) -> Iterator[tuple[int, Change]]:
    program = matched.program
    for number, operand, axes in _reads(matched):
        atom = program.equations[number].inputs[operand]
        if isinstance(atom, Literal):
            continue
        units = {axis: matched.units[atom][axis] for axis in axes}
        held = [
            (axis, gates.of[each.tobytes()]) for axis, each in units.items() if (each >= 0).any()
        ]
        if held:
            name = program.equations[number].name
            read = (name, operand, gates.may_overflow)
            yield number, partial(_leave_out, read, held)
    if gates.may_overflow:
        yield from _cleanings(matched, gates)
    for branch, unit in matched.branches:
        gate = gates.of[np.array([unit], np.int32).tobytes()]
        yield branch.equation, partial(_weaken, branch.operand, gate)
    for length, units_of in matched.lengths:
        counts = [gates.of[units.tobytes()] for units in units_of]
        yield length.equation, partial(_count, length, counts)


def _cleanings(matched: Matched, gates: Made) -> Iterator[tuple[int, Change]]:
    """Yield what keeps the other operand of a dot of activations finite."""
    program = matched.program
    for each in matched.contractions:
        equation = program.equations[each.equation]
        if equation.name != "dot_general" or each.weight is not None:
            continue
        other = 1 - each.operand
        axes, ours = equation.params["dimension_numbers"][0][other], each.axis
        atom = equation.inputs[each.operand]
        if isinstance(atom, Literal):
            continue
        pairs = [(axis, matched.units[atom][own]) for axis, own in zip(axes, ours, strict=True)]
        held = [(axis, gates.of[units.tobytes()]) for axis, units in pairs if (units >= 0).any()]
        if held:
            yield each.equation, partial(_clean, other, held)


def _clean(position: int, held: list[tuple[int, jax.Array]], operands: list[Value]) -> None:
    """Set what is pruned and not finite to 0."""
    for axis, gate in held:
        operand = operands[position]
        operands[position] = _without_overflow(operand, _along(gate, axis, operand))


def _along(gate: jax.Array, axis: int, operand: jax.Array) -> jax.Array:
    """Return gates shaped to be multiplied with one axis of an operand."""
    return jnp.expand_dims(gate, [each for each in range(operand.ndim) if each != axis])


def _leave_out(
    read: tuple[str, int, bool], held: list[tuple[int, jax.Array]], operands: list[Value]
) -> None:
    """Multiply by the gates, or fill with what does not matter to a reduction."""
    name, position, may_overflow = read
    operand = operands[position]
    for axis, gate in held:
        gate = _along(gate, axis, operand)
        if name in READERS:
            operand = _fill(name, operand, gate)
        else:
            operand = _without_overflow(operand, gate) if may_overflow else operand
            operand = operand * gate.astype(operand.dtype)
    operands[position] = operand


def _weaken(position: int, gate: jax.Array, operands: list[Value]) -> None:
    """Multiply a residual branch by its gate."""
    operands[position] = operands[position] * gate.reshape(()).astype(operands[position].dtype)


def _fill(name: str, operand: jax.Array, gate: jax.Array) -> jax.Array:
    # Where all are gone, nothing is: there is no maximum and no mean of no units.
    if name == "reduce_sum" and jnp.issubdtype(operand.dtype, jnp.inexact):
        gate = jnp.where((gate != 0).any(), gate, 1.0)
        # What is pruned may have overflowed (an exponential), as nothing has bounded it.
        return _without_overflow(operand, gate) * gate.astype(operand.dtype)
    kept = is_kept(gate)
    return jnp.where(kept | ~kept.any(), operand, _neutral(name, operand.dtype))


def _without_overflow(operand: jax.Array, gate: jax.Array) -> jax.Array:
    """Return an operand that is 0 where it is pruned and not finite."""
    gone = (gate == 0) & ~jnp.isfinite(operand)
    return jnp.where(gone, jnp.zeros_like(operand), operand)


def _neutral(name: str, dtype: jnp.dtype) -> jax.Array:
    """Return what a reduction takes for nothing."""
    if name in ("reduce_max", "reduce_min", "top_k"):
        if jnp.issubdtype(dtype, jnp.inexact):
            value: object = jnp.inf if name == "reduce_min" else -jnp.inf
        elif dtype == jnp.bool_:
            value = name == "reduce_min"
        else:
            bounds = jnp.iinfo(dtype)
            value = bounds.max if name == "reduce_min" else bounds.min
    elif name == "reduce_prod":
        value = 1
    elif name == "reduce_and":
        value = True if dtype == jnp.bool_ else -1
    else:
        value = 0
    return jnp.asarray(value).astype(dtype)


def _count(length: Length, counts: list[jax.Array], operands: list[Value]) -> None:
    """Let a constant count the units that are kept."""
    operand = jnp.asarray(operands[length.operand])
    whole = math.prod(len(gate) for gate in counts)
    precise = jnp.promote_types(operand.dtype, jnp.float32)
    kept = jnp.ones((), precise)
    for gate in counts:
        kept = kept * jnp.sum(gate.astype(precise))
    # Of none there is no mean.
    kept = jnp.where(kept > 0, kept, whole)
    value = operand.astype(precise)
    if length.exponent == 1:
        # In this order whole numbers stay exact.
        value = value * kept / whole
    else:
        # Gates of one give the constant itself.
        value = value * jnp.where(kept == whole, 1.0, (kept / whole) ** length.exponent)
    operands[length.operand] = value.astype(operand.dtype)


def _gate_of(units: np.ndarray, gates: jax.Array) -> jax.Array:
    if units[0] >= 0 and np.array_equal(units, units[0] + np.arange(len(units))):
        return jax.lax.slice_in_dim(gates, int(units[0]), int(units[0]) + len(units))
    places = np.where(units < 0, len(gates) - 1, units)
    return gates.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)
