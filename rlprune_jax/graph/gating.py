"""The masked network, whose consumers read their operands times the gates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.groups import Graph, check_gates
from rlprune_jax.graph.matching import Matched, flat_arguments, match
from rlprune_jax.graph.program import Call, Literal, Value, evaluate
from rlprune_jax.types import Apply, Gates, PyTree, Variables


def gated(apply: Apply, graph: Graph) -> Apply:
    """Mask a network by gates, without touching its code.

    Each convolution or dot that sums over units reads its operand times their gates. Whatever
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
        TypeError: (on call) gates are no dictionary of arrays.
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

    def masked(variables: Variables, gates: Gates, *inputs: PyTree, **keywords: Any) -> PyTree:
        check_gates(graph, gates)
        matched = match(apply, graph, variables, inputs, keywords)
        arguments = flat_arguments(variables, inputs, keywords)
        outputs = _evaluate(matched, arguments, flat_gates(graph, gates))
        return jax.tree.unflatten(jax.tree.structure(matched.out_shape), outputs)

    return masked


def flat_gates(graph: Graph, gates: Gates) -> jax.Array:
    """Return all gates in one row.

    Returns:
        f32[units + 1], the groups in depth order, then a 1 for indices without a unit.
    """
    parts = [jnp.asarray(gates[name], jnp.float32) for name in graph.names]
    return jnp.concatenate([*parts, jnp.ones(1, jnp.float32)])


def _evaluate(matched: Matched, leaves: list[Value], gates: jax.Array) -> list[Value]:
    program = matched.program
    # Made here, not where they are read, so that none belongs to the body of a checkpoint.
    made: dict[bytes, jax.Array] = {}
    reads: dict[int, tuple[int, list[tuple[int, jax.Array]]]] = {}
    for each in matched.contractions:
        atom = program.equations[each.equation].inputs[each.operand]
        if isinstance(atom, Literal):
            continue
        axes = []
        for axis in each.axis:
            units = matched.units[atom][axis]
            if (units >= 0).any():
                if units.tobytes() not in made:
                    made[units.tobytes()] = _gate_of(units, gates)
                axes.append((axis, made[units.tobytes()]))
        if axes:
            reads[each.equation] = (each.operand, axes)

    def step(number: int, operands: list[Value]) -> list[Value]:
        if number in reads:
            position, axes = reads[number]
            for axis, gate in axes:
                operands[position] = _multiply(operands[position], axis, gate)
        return program.equations[number].bind(*operands)

    def call(item: Call, operands: list[Value]) -> list[Value] | None:
        if any(number in reads for number in range(item.first, item.last)):
            return None
        return item.equation.bind(*operands)

    return evaluate(program, leaves, program.constants, step, call)


def _gate_of(units: np.ndarray, gates: jax.Array) -> jax.Array:
    if units[0] >= 0 and np.array_equal(units, units[0] + np.arange(len(units))):
        return jax.lax.slice_in_dim(gates, int(units[0]), int(units[0]) + len(units))
    places = np.where(units < 0, len(gates) - 1, units)
    return gates.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _multiply(operand: jax.Array, axis: int, gate: jax.Array) -> jax.Array:
    shape = [1] * operand.ndim
    shape[axis] = len(gate)
    return operand * gate.reshape(shape).astype(operand.dtype)
