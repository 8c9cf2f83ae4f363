"""The masked network: every consumer reads its operand multiplied by the gates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.groups import Graph, check_gates
from rlprune_jax.graph.matching import Matched, match
from rlprune_jax.graph.program import Literal
from rlprune_jax.types import Apply, Gates, Variables


def gated(apply: Apply, graph: Graph) -> Apply:
    """Mask a network by gates on what its consumers read, without touching its code.

    Each convolution or dot that sums over units reads its operand times their gates. Whatever
    stands between a unit's producer and its consumers (bias, norm, activation, pooling, residual
    sum) cannot leak, so the masked network equals the slim one exactly. Under ``vmap`` over the
    gates the weights stay shared, and all before the first gate is computed once.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``; batch size, train mode and what
            is returned may differ from what the graph was traced with.
        graph: of the network.

    Returns:
        ``(variables, gates, *inputs) -> outputs``, with gates ``group name -> f32[units]``.

    Raises:
        ValueError: (on call) gates or variables do not fit the graph; concrete gates that are NaN
            or outside [0, 1].

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

    def masked(variables: Variables, gates: Gates, *inputs: Any) -> Any:
        check_gates(graph, gates)
        matched = match(apply, graph, variables, inputs)
        leaves = jax.tree.leaves((variables, *inputs))
        outputs = _evaluate(matched, leaves, flat_gates(graph, gates))
        return jax.tree.unflatten(jax.tree.structure(matched.out_shape), outputs)

    return masked


def flat_gates(graph: Graph, gates: Gates) -> jax.Array:
    """Return f32[units + 1]: all gates in depth order, then a 1 for indices without a unit."""
    parts = [jnp.asarray(gates[name], jnp.float32) for name in graph.names]
    return jnp.concatenate([*parts, jnp.ones(1, jnp.float32)])


def _evaluate(matched: Matched, leaves: list[Any], gates: jax.Array) -> list[Any]:
    program = matched.program
    values: dict[int, Any] = dict(zip(program.inputs, leaves, strict=True))
    values.update(program.constants)
    contractions = {each.equation: each for each in matched.contractions}
    made: dict[bytes, jax.Array] = {}

    def read(atom: Any) -> Any:
        return atom.value if isinstance(atom, Literal) else values[atom]

    def gate_of(units: np.ndarray) -> jax.Array:
        key = units.tobytes()
        if key not in made:
            run = units[0] + np.arange(len(units))
            made[key] = (
                gates[units[0] : units[0] + len(units)]
                if units[0] >= 0 and np.array_equal(units, run)
                else gates[units]
            )
        return made[key]

    for number, equation in enumerate(program.equations):
        operands = [read(atom) for atom in equation.inputs]
        each = contractions.get(number)
        atom = None if each is None else equation.inputs[each.operand]
        if each is not None and not isinstance(atom, Literal):
            operand = operands[each.operand]
            for axis in each.axis:
                units = matched.units[atom][axis]  # type: ignore[index]
                if (units >= 0).any():
                    shape = [1] * operand.ndim
                    shape[axis] = len(units)
                    operand = operand * gate_of(units).reshape(shape).astype(operand.dtype)
            operands[each.operand] = operand
        values.update(zip(equation.outputs, equation.bind(*operands), strict=True))
    return [read(atom) for atom in program.outputs]
