"""From a function to its graph: trace it once, walk it, and gather coupled indices into groups."""

from typing import Any

import jax
import numpy as np

from rlprune_jax.graph.groups import CONSUMER, FOLLOWER, PRODUCER, Frozen, Graph, Group, Layer, Slot
from rlprune_jax.graph.program import Literal, Program, trace_program
from rlprune_jax.graph.walk import Walk, walk
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, Variables


def trace_graph(apply: Apply, variables: Variables, *inputs: Any) -> Graph:
    """Find which units of a network can be removed, and what each of them owns.

    The function is traced to a jaxpr and walked once; nothing is computed. Units are indices of
    axes of variables that the program ties together: those that a unit's removal takes along.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode: every axis of
            an output is frozen, so it must return the predictions alone.
        variables: pytree of arrays, or of their ``jax.ShapeDtypeStruct``. With a top-level
            ``"params"``, what is below counts as parameters; otherwise everything does.
        *inputs: arrays or ``jax.ShapeDtypeStruct``; the first axis of the first is the batch. Any
            batch size does: the graph holds for others.

    Returns:
        The graph; ``print`` shows groups, what they own, and what is frozen and why.

    Raises:
        ValueError: nothing can be pruned; the message says why each axis is frozen.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> print(trace_graph(apply, variables, jnp.ones((1, 3))))
        1 groups with 5 units; 25 parameters, 25 MACs per example
          a     5 units  made by a[1]; read by b[0]
        frozen:
          b[1] 2 units: an output of the function
    """
    program, _ = trace_program(apply, variables, *inputs)
    structure = flatten_with_paths(variables)
    found = walk(program, len(structure))
    for atom in program.outputs:
        if not isinstance(atom, Literal):
            for ids in found.axes[atom] or ():
                found.nodes.freeze(ids, "an output of the function")
    graph = _gather(program, found, structure, _batch_size(inputs))
    if not graph.groups:
        raise ValueError(
            "nothing in this network can be pruned: every axis is frozen\n" + str(graph)
        )
    return graph


def _batch_size(inputs: tuple[Any, ...]) -> int:
    leaves = jax.tree.leaves(inputs)
    if not leaves or not np.shape(leaves[0]) or np.shape(leaves[0])[0] == 0:
        raise ValueError(
            "inputs must start with an array whose first axis is a batch of at least one, got "
            f"shapes {[np.shape(leaf) for leaf in leaves]}"
        )
    return np.shape(leaves[0])[0]


def _gather(program: Program, found: Walk, structure: dict[str, Any], batch: int) -> Graph:
    nodes = found.nodes
    # Slots are (path, axis); contracted axes without a variable take part in what tells units apart.
    axis_ids: dict[tuple[str, int], np.ndarray] = {}
    for path, slot in zip(structure, program.inputs, strict=False):
        for axis, ids in enumerate(found.axes[slot] or ()):
            axis_ids[path, axis] = ids
    inner = {
        ("", number): np.concatenate(each.multiplied)
        for number, each in enumerate(found.contractions)
    }
    produced = _mark(nodes, [ids for each in found.contractions for ids in each.produced])
    consumed_roots = _roots(nodes, [ids for each in found.contractions for ids in each.consumed])
    produced_roots = _roots(nodes, [ids for each in found.contractions for ids in each.produced])
    consumed = _mark(nodes, [ids for each in found.contractions for ids in each.consumed])

    holdings: dict[int, list[tuple[tuple[str, int], int]]] = {}
    for key, ids in [*axis_ids.items(), *inner.items()]:
        roots, counts = np.unique(nodes.find(ids), return_counts=True)
        live = ~nodes.frozen(roots)
        for root, count in zip(roots[live].tolist(), counts[live].tolist(), strict=True):
            holdings.setdefault(root, []).append((key, count))

    prunable = produced_roots & consumed_roots
    members: dict[tuple, list[int]] = {}
    for root, held in holdings.items():
        if root in prunable:
            members.setdefault(tuple(held), []).append(root)

    order = _first_seen(nodes, found)
    groups: list[Group] = []
    unit_of_root: dict[int, int] = {}
    first = 0
    for roots in sorted(members.values(), key=lambda roots: min(order[root] for root in roots)):
        roots.sort(key=order.__getitem__)
        keys = [key for key, _ in holdings[roots[0]] if key[0]]
        group = _make_group(nodes, roots, keys, axis_ids, produced, consumed, first)
        name = group.name
        repeats = sum(each.name.split("#")[0] == name for each in groups)
        if repeats:
            group = Group(f"{name}#{repeats + 1}", group.size, group.first, group.slots)
        groups.append(group)
        unit_of_root.update({root: first + i for i, root in enumerate(roots)})
        first += len(roots)

    def owners(ids: np.ndarray) -> np.ndarray:
        return np.asarray(
            [unit_of_root.get(root, -1) for root in nodes.find(ids).tolist()], np.int32
        )

    shapes = {
        path: jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf))
        for path, leaf in structure.items()
    }
    layers = tuple(
        Layer(
            _layer_name(program, each, structure, found),
            "dot" if program.equations[each.equation].name == "dot_general" else "convolution",
            *(tuple(map(owners, ids)) for ids in (each.multiplied, each.consumed, each.produced)),
            each.space,
            each.kernel,
        )
        for each in found.contractions
    )
    frozen = tuple(
        Frozen(path, axis, len(ids), nodes.reason(int(ids[nodes.frozen(ids)][0])))
        for (path, axis), ids in axis_ids.items()
        if produced[ids].any() and nodes.frozen(ids).any()
    )
    parameters = tuple(path for path in shapes if path.startswith("params/")) or tuple(shapes)
    return Graph(
        tuple(groups),
        frozen,
        layers,
        shapes,
        {
            path: tuple(owners(axis_ids[path, axis]) for axis in range(len(shape.shape)))
            for path, shape in shapes.items()
        },
        parameters,
        batch,
    )


def _mark(nodes: Any, arrays: list[np.ndarray]) -> np.ndarray:
    """Mark nodes by their own ids: a variable's axis keeps its ids through moves and casts."""
    marked = np.zeros(len(nodes), bool)
    for ids in arrays:
        marked[ids] = True
    return marked


def _roots(nodes: Any, arrays: list[np.ndarray]) -> set[int]:
    return {root for ids in arrays for root in np.unique(nodes.find(ids)).tolist()}


def _first_seen(nodes: Any, found: Walk) -> dict[int, int]:
    """Order roots by the first contraction that produces them, then by index."""
    order: dict[int, int] = {}
    for each in found.contractions:
        for ids in each.produced:
            for root in nodes.find(ids).tolist():
                order.setdefault(root, len(order))
    return order


def _make_group(
    nodes: Any,
    roots: list[int],
    keys: list[tuple[str, int]],
    axis_ids: dict[tuple[str, int], np.ndarray],
    produced: np.ndarray,
    consumed: np.ndarray,
    first: int,
) -> Group:
    slots = []
    position = np.full(len(nodes), -1, np.int64)
    position[roots] = np.arange(len(roots))
    for path, axis in keys:
        ids = axis_ids[path, axis]
        units = position[nodes.find(ids)]
        held = np.flatnonzero(units >= 0)
        indices = held[np.argsort(units[held], kind="stable")].reshape(len(roots), -1)
        own = ids[held]
        makes_others = any(
            produced[ids].any()
            for key, ids in axis_ids.items()
            if key[0] == path and key[1] != axis
        )
        if produced[own].any():
            role = PRODUCER
        else:
            role = CONSUMER if consumed[own].any() or makes_others else FOLLOWER
        slots.append(Slot(path, axis, role, indices.astype(np.int32)))
    makers = [slot for slot in slots if slot.role == PRODUCER] or slots
    name = _without_leaf(makers[0].path)
    if len(makers) > 1:
        earliest = min(makers, key=lambda slot: axis_ids[slot.path, slot.axis][slot.indices[0, 0]])
        name = _without_leaf(earliest.path)
    return Group(name, len(roots), first, tuple(slots))


def _without_leaf(path: str) -> str:
    parts = path.removeprefix("params/").split("/")
    return "/".join(parts[:-1]) or parts[0]


def _layer_name(program: Program, contraction: Any, structure: dict[str, Any], found: Walk) -> str:
    """Name a contraction by the variable whose nodes its weights carry."""
    if contraction.weight is not None:
        equation = program.equations[contraction.equation]
        atom = equation.inputs[contraction.weight]
        if not isinstance(atom, Literal):
            carried = {int(ids[0]) for ids in found.axes[atom] or () if len(ids)}
            best, most = "", 0
            for path, slot in zip(structure, program.inputs, strict=False):
                own = {int(i) for ids in found.axes[slot] or () for i in ids[:1]}
                if len(own & carried) > most:
                    best, most = path, len(own & carried)
            if best:
                return _without_leaf(best)
    return "dot_general"
