"""The slim network: variables cut to the kept units, and any function of them on the cut arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.gating import flat_gates
from rlprune_jax.graph.groups import Graph, check_gates
from rlprune_jax.graph.matching import check_variables, dense_variables, match
from rlprune_jax.graph.specialise import specialise
from rlprune_jax.graph.program import Literal
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, Gates, PyTree, Variables


def kept_units(graph: Graph, gates: Gates) -> np.ndarray:
    """Return bool[units + 1]: which units gates of 0 and 1 keep; the last entry is True.

    Raises:
        ValueError: the gates do not fit, are not 0 or 1, or prune a whole group.
    """
    check_gates(graph, gates, binary=True)
    kept = np.asarray(flat_gates(graph, gates)) > 0
    for group in graph.groups:
        if not kept[group.first : group.first + group.size].any():
            raise ValueError(
                f"gates[{group.name!r}] prunes all {group.size} units and would cut the network "
                "in two; keep at least one"
            )
    return kept


def compact(graph: Graph, variables: Variables, gates: Gates, *, opt_state: PyTree = None) -> Any:
    """Cut every variable to the units that ``gates`` keep.

    Args:
        graph: of the network.
        variables: dense, as traced.
        gates: group name -> f32[units], concrete, every gate 0 or 1.
        opt_state: optionally a pytree in which subtrees have the structure of ``variables["params"]``
            or of ``variables``, such as the moments of an optimizer: cut along.

    Returns:
        The slim variables, dense arrays of smaller shapes; with ``opt_state`` the pair
        ``(slim variables, slim opt_state)``.

    Raises:
        ValueError: gates or variables do not fit the graph, a gate is neither 0 nor 1, or a group
            would lose all its units.
    """
    kept = kept_units(graph, gates)
    check_variables(graph, variables)
    flat = flatten_with_paths(variables)
    slim = [_cut(leaf, graph.owners[path], kept) for path, leaf in flat.items()]
    variables_out = jax.tree.unflatten(jax.tree.structure(variables), slim)
    if opt_state is None:
        return variables_out
    return variables_out, _cut_like(graph, variables, opt_state, kept)


def _cut(leaf: Any, owners: tuple[np.ndarray, ...], kept: np.ndarray) -> Any:
    for axis, units in enumerate(owners):
        alive = kept[units]
        if not alive.all():
            leaf = jnp.take(leaf, np.flatnonzero(alive), axis=axis)
    return leaf


def _cut_like(graph: Graph, variables: Variables, like: PyTree, kept: np.ndarray) -> PyTree:
    parts: list[tuple[Any, dict[str, Any]]] = [
        (jax.tree.structure(variables), flatten_with_paths(variables))
    ]
    if isinstance(variables, dict) and "params" in variables:
        below = variables["params"]
        paths = {f"params/{path}": leaf for path, leaf in flatten_with_paths(below).items()}
        parts.append((jax.tree.structure(below), paths))

    def matches(subtree: Any) -> dict[str, Any] | None:
        for structure, paths in parts:
            if jax.tree.structure(subtree) == structure and all(
                np.shape(a) == np.shape(b)
                for a, b in zip(jax.tree.leaves(subtree), paths.values(), strict=True)
            ):
                return paths
        return None

    def cut(subtree: Any) -> Any:
        paths = matches(subtree)
        if paths is None:
            return subtree
        leaves = zip(paths, jax.tree.leaves(subtree), strict=True)
        return jax.tree.unflatten(
            jax.tree.structure(subtree),
            [_cut(leaf, graph.owners[path], kept) for path, leaf in leaves],
        )

    return jax.tree.map(cut, like, is_leaf=lambda subtree: matches(subtree) is not None)


def respecialise(apply: Apply, graph: Graph, gates: Gates | None = None) -> Apply:
    """Run any function of the dense variables on slim ones.

    The function is traced with dense shapes and its program evaluated on the slim arrays: shapes
    written into the program follow the units that are kept.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation or train mode.
        graph: of the network.
        gates: the gates the variables were cut with; only needed where a kept unit's place matters,
            that is for constants written into the function and random draws of the dense shape.
            Without them each group's width is read off the variables and its first units stand for
            those kept.

    Returns:
        ``(slim variables, *inputs) -> outputs``, differentiable, for jit, vmap and export.

    Raises:
        ValueError: (on call) the variables have paths or widths that fit no choice of units.
    """

    def slim_apply(variables: Variables, *inputs: Any) -> Any:
        kept = widths_to_kept(graph, variables) if gates is None else kept_units(graph, gates)
        _check_widths(graph, variables, kept)
        matched = match(apply, graph, dense_variables(graph, variables), inputs)
        program = matched.program
        alive: list[Any] = [
            None if units is None else tuple(kept[each] for each in units)
            for units in matched.units
        ]
        leaves = jax.tree.leaves((variables, *inputs))
        values: dict[int, Any] = dict(zip(program.inputs, leaves, strict=True))
        for slot, value in program.constants.items():
            if gates is None and _varies_over_cut(value, alive[slot]):
                raise ValueError(
                    "apply holds a constant whose entries belong to single units; pass the gates: "
                    "respecialise(apply, graph, gates)"
                )
            values[slot] = _cut_alive(value, alive[slot])

        def read(atom: Any) -> Any:
            return atom.value if isinstance(atom, Literal) else values[atom]

        for equation in program.equations:
            outputs = specialise(
                equation,
                [read(atom) for atom in equation.inputs],
                [None if isinstance(atom, Literal) else alive[atom] for atom in equation.inputs],
                [alive[slot] for slot in equation.outputs],
            )
            values.update(zip(equation.outputs, outputs, strict=True))
        results = [read(atom) for atom in program.outputs]
        return jax.tree.unflatten(jax.tree.structure(matched.out_shape), results)

    return slim_apply


def widths_to_kept(graph: Graph, variables: Variables) -> np.ndarray:
    """Return bool[units + 1] that keeps the first units of each group, as many as variables have.

    Raises:
        ValueError: a width is read off no axis, or is none of 1 to the group's size.
    """
    flat = flatten_with_paths(variables)
    kept = np.ones(graph.units + 1, bool)
    for group in graph.groups:
        last = group.first + group.size
        for slot in group.slots:
            owners = graph.owners[slot.path][slot.axis]
            times = slot.indices.shape[1]
            others = len(owners) - group.size * times
            if slot.path in flat and not ((owners >= 0) & (group_mask(owners, group))).sum() < len(
                owners[owners >= 0]
            ):
                width = (np.shape(flat[slot.path])[slot.axis] - others) / times
                break
        else:
            raise ValueError(f"the width of group {group.name!r} cannot be told; pass the gates")
        if width != int(width) or not 1 <= width <= group.size:
            raise ValueError(
                f"variable {slot.path!r} has shape {np.shape(flat[slot.path])}, which leaves group "
                f"{group.name!r} {width:g} of its {group.size} units"
            )
        kept[group.first + int(width) : last] = False
    return kept


def group_mask(owners: np.ndarray, group: Any) -> np.ndarray:
    """Return bool array: which of ``owners`` are units of ``group``."""
    return (owners >= group.first) & (owners < group.first + group.size)


def _check_widths(graph: Graph, variables: Variables, kept: np.ndarray) -> None:
    for path, leaf in flatten_with_paths(variables).items():
        if path not in graph.owners:
            raise ValueError(f"variable {path!r} is not in the graph")
        wanted = tuple(int(kept[units].sum()) for units in graph.owners[path])
        if np.shape(leaf) != wanted:
            raise ValueError(
                f"slim variable {path!r} has shape {np.shape(leaf)}, the kept units give {wanted}"
            )


def _cut_alive(value: Any, alive: tuple[np.ndarray, ...]) -> Any:
    for axis, each in enumerate(alive):
        if not each.all():
            value = jnp.take(value, np.flatnonzero(each), axis=axis)
    return value


def _varies_over_cut(value: Any, alive: tuple[np.ndarray, ...]) -> bool:
    if all(each.all() for each in alive):
        return False
    if isinstance(value, jax.core.Tracer):
        return True
    array = np.asarray(value)
    return any(
        not each.all()
        and not np.array_equal(array, np.broadcast_to(array.take([0], axis), array.shape))
        for axis, each in enumerate(alive)
    )
