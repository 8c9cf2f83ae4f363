"""Which units a slim network keeps, told by its gates or by its variables."""

import numpy as np

from rlprune_jax.graph.groups import Graph, Slot, check_gates, kept_mask
from rlprune_jax.graph.matching import check_paths
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Gates, Variables


def kept_units(graph: Graph, gates: Gates) -> np.ndarray:
    """Return which units gates of 0 and 1 keep.

    Returns:
        bool[units + 1], all groups in depth order, then True for indices without a unit.

    Raises:
        TypeError: the gates are traced.
        ValueError: the gates do not fit, are not 0 or 1, or prune a whole group or what a ``top_k``
            needs of it.
    """
    check_gates(graph, gates, binary=True)
    kept = kept_mask(graph, gates)
    for group in graph.groups:
        if not kept[group.first : group.first + group.size].any():
            raise ValueError(
                f"gates[{group.name!r}] prunes all {group.size} units and would cut the network "
                "in two; keep at least one"
            )
        count = int(kept[group.first : group.first + group.size].sum())
        if count < group.least:
            raise ValueError(
                f"gates[{group.name!r}] keeps {count} of {group.size} units, of which a top_k "
                f"takes {group.least}; keep at least {group.least} (min_keep={group.least})"
            )
    return kept


def widths_to_kept(graph: Graph, variables: Variables) -> np.ndarray:
    """Keep as many first units as variables have.

    Returns:
        bool[units + 1], as ``kept_units``.

    Raises:
        ValueError: a path is unknown or missing, a width is read off no axis, or a width is none
            of 1 to the group's size.
    """
    shapes = {path: np.shape(leaf) for path, leaf in flatten_with_paths(variables).items()}
    check_paths(graph, shapes)
    gone = {unit for path, unit in graph.branch_of.items() if 0 in shapes[path]}
    empty = {path for path, unit in graph.branch_of.items() if unit in gone}
    widths: dict[int, int] = {}
    for number, group in enumerate(graph.groups):
        # Of a branch that is gone no width is left to tell.
        if group.branches or all(slot.path in empty for slot in group.slots):
            widths[number] = group.size
    # An axis may hold several groups (a concatenation): it tells the last one not yet known.
    while len(widths) < len(graph.groups):
        known = len(widths)
        for number, group in enumerate(graph.groups):
            for slot in () if number in widths else group.slots:
                if slot.path in empty:
                    continue
                width = _width(graph, slot, number, shapes[slot.path], widths)
                if width is None:
                    continue
                if width != int(width) or not 1 <= width <= group.size:
                    raise ValueError(
                        f"variable {slot.path!r} has shape {shapes[slot.path]}, which leaves group "
                        f"{group.name!r} {width:g} of its {group.size} units"
                    )
                widths[number] = int(width)
                break
        if len(widths) == known:
            unknown = [group.name for i, group in enumerate(graph.groups) if i not in widths]
            raise ValueError(
                f"the widths of groups {', '.join(unknown)} cannot be told from the shapes alone; "
                "pass the gates: respecialise(apply, graph, gates)"
            )
    kept = np.ones(graph.units + 1, bool)
    for number, group in enumerate(graph.groups):
        kept[group.first + widths[number] : group.first + group.size] = False
    kept[list(gone)] = False
    return kept


def _width(
    graph: Graph, slot: Slot, number: int, shape: tuple[int, ...], widths: dict[int, int]
) -> float | None:
    owners = graph.owners[slot.path][slot.axis]
    if len(shape) != len(graph.owners[slot.path]):
        return None
    left = shape[slot.axis] - int((owners < 0).sum())
    held = np.bincount(graph.group_of_unit[owners[owners >= 0]], minlength=len(graph.groups))
    for other in np.flatnonzero(held):
        if other != number:
            if int(other) not in widths:
                return None
            left -= widths[int(other)] * int(held[other]) // graph.groups[other].size
    return left / slot.indices.shape[1]


def check_widths(graph: Graph, variables: Variables, kept: np.ndarray) -> None:
    """Check the shapes of slim variables.

    Raises:
        ValueError: naming the first path that is missing, unknown or of another shape.
    """
    flat = flatten_with_paths(variables)
    check_paths(graph, flat)
    for path, leaf in flat.items():
        wanted = tuple(int(axis.sum()) for axis in graph.alive(path, kept))
        if np.shape(leaf) != wanted:
            raise ValueError(
                f"slim variable {path!r} has shape {np.shape(leaf)}, the kept units give {wanted}"
            )
