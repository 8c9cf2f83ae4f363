"""Peak memory of activations of a network as a function of its gates.

The model: equations run in the order of the program; a value lives from the equation that makes it
to the last that reads it; an elementwise equation or a reshape writes over an operand that dies
there; broadcasts, and values that depend on weights alone, are fused into their reader and take
nothing. What a compiler does may differ (order, scratch memory of a convolution; inside of loops is
not looked at), so this is a cost to compare networks by, not a promise of bytes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.cost import Cost, NetworkLike, without_noise
from rlprune_jax.costs.extents import Axes, exact_extents, traced_extents
from rlprune_jax.costs.options import CostOptions
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.matching import Matched, match
from rlprune_jax.graph.primitives import ELEMENTWISE
from rlprune_jax.graph.program import Literal
from rlprune_jax.types import Apply, Gates, PyTree, Variables

_IN_PLACE = ELEMENTWISE | {"identity", "reshape", "squeeze", "expand_dims"}


class ActivationMemory(NamedTuple):
    """Hold the bytes alive at possible peaks.

    Attributes:
        graph: of the network.
        weights: int64[M, S], bytes per entry of each kind of array at each moment.
        kinds: for each of S kinds of array, the axes that hold units.
    """

    graph: Graph
    weights: np.ndarray
    kinds: tuple[Axes, ...]

    def count(self, gates: Gates | None = None) -> int:
        """Count the peak in bytes for the traced batch.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps
                all.

        Raises:
            ValueError: the gates do not fit the graph.
        """
        sizes = [math.prod(extents) for extents in exact_extents(self.graph, self.kinds, gates)]
        return int((self.weights @ np.array(sizes, np.int64)).max())

    def ratio(self) -> Callable[[Gates], jax.Array]:
        """Return the traceable fraction of the peak, gates -> f32[]."""
        dense = np.array([math.prod(map(len, axes)) for axes in self.kinds], np.float64)
        extents = traced_extents(self.graph, self.kinds)
        fractions = jnp.asarray(self.weights * dense / self.count(), jnp.float32)
        dense32 = jnp.asarray(dense, jnp.float32)

        def ratio(gates: Gates) -> jax.Array:
            kept = jnp.prod(extents(gates), axis=-1) / dense32
            return jnp.max(jnp.sum(fractions * kept, axis=-1))

        return ratio


def activation_memory(
    apply: Apply, graph: Graph, variables: Variables, *inputs: PyTree
) -> ActivationMemory:
    """Find what is alive at each moment of one evaluation.

    Args:
        apply: ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense arrays or their ``jax.ShapeDtypeStruct``.
        *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``; their batch is the one counted.

    Raises:
        ValueError: the variables are not those of the graph.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> memory = activation_memory(apply, graph, variables, jnp.ones((1, 3)))
        >>> memory.count(), memory.count({"a": jnp.array([1.0, 0, 0, 0, 1])})
        (32, 20)
    """
    matched = match(apply, graph, variables, inputs)
    moments = _moments(matched, len(jax.tree.leaves(variables)))
    kinds: dict[tuple[bytes, ...], Axes] = {}
    rows = []
    for slots in moments:
        row: dict[tuple[bytes, ...], int] = {}
        for slot in slots:
            axes = matched.units[slot]
            held = tuple(owners for owners in axes if (owners >= 0).any())
            fixed = math.prod(len(owners) for owners in axes if not (owners >= 0).any())
            kind = tuple(sorted(owners.tobytes() for owners in held))
            kinds.setdefault(kind, held)
            size = fixed * matched.program.avals[slot].dtype.itemsize
            row[kind] = row.get(kind, 0) + size
        rows.append(row)
    weights = np.array([[row.get(kind, 0) for kind in kinds] for row in rows], np.int64)
    return ActivationMemory(graph, _undominated(weights), tuple(kinds.values()))


def activation_memory_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of activations of one example."""
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *np.shape(leaf)[1:]), jax.dtypes.result_type(leaf)),
        network.example,
    )
    memory = activation_memory(network.apply, network.graph, network.variables, *one)
    return Cost(
        unit="bytes",
        dense=memory.count(),
        estimate=memory.ratio(),
        exact=lambda gates: without_noise(memory.count(gates)),
    )


def _moments(matched: Matched, variable_count: int) -> list[set[int]]:
    """Return the buffers alive at each equation."""
    program = matched.program
    last = {
        atom: number
        for number, equation in enumerate(program.equations)
        for atom in equation.inputs
        if not isinstance(atom, Literal)
    }
    last |= {
        atom: len(program.equations) for atom in program.outputs if not isinstance(atom, Literal)
    }
    # The value that a slot's memory was made for: overwritten in place, it passes on.
    buffer: dict[int, int] = {slot: slot for slot in program.inputs[variable_count:]}
    ends = {slot: last.get(slot, -1) for slot in buffer}
    moments = [set(buffer)]

    def bytes_of(slot: int) -> int:
        aval = program.avals[slot]
        return math.prod(aval.shape) * aval.dtype.itemsize

    for number, equation in enumerate(program.equations):
        operands = [
            atom for atom in equation.inputs if not isinstance(atom, Literal) and atom in buffer
        ]
        if not operands:
            continue
        if equation.name == "broadcast_in_dim":
            # Its readers read the operand itself, which lives until then.
            (slot,), own = equation.outputs, buffer[operands[0]]
            buffer[slot] = own
            ends[own] = max(ends[own], last.get(slot, number))
            continue
        for slot in equation.outputs:
            own = slot
            if equation.name in _IN_PLACE:
                dying = [
                    buffer[atom]
                    for atom in operands
                    if ends[buffer[atom]] <= number and bytes_of(buffer[atom]) == bytes_of(slot)
                ]
                own = dying[0] if dying else slot
            buffer[slot] = own
            ends[own] = max(ends.get(own, -1), last.get(slot, number))
        alive = {own for own in buffer.values() if ends[own] >= number}
        moments.append(alive)
        buffer = {slot: own for slot, own in buffer.items() if ends[own] > number}
    return moments


def _undominated(weights: np.ndarray) -> np.ndarray:
    """Drop rows that are never the peak.

    They are nowhere above some other row.
    """
    rows = np.unique(weights, axis=0)
    kept = [
        row
        for number, row in enumerate(rows)
        if not (np.delete(rows, number, axis=0) >= row).all(-1).any()
    ]
    return np.array(kept, np.int64)
