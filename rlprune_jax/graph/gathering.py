"""From nodes and contractions to groups of units, frozen axes and layers."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rlprune_jax.graph.branches import Branch
from rlprune_jax.graph.contractions import Contraction
from rlprune_jax.graph.groups import CONSUMER, FOLLOWER, PRODUCER, Frozen, Graph, Group, Layer, Slot
from rlprune_jax.graph.nodes import Nodes
from rlprune_jax.graph.program import Program
from rlprune_jax.graph.walk import Walk
from rlprune_jax.pytree import is_key

DEPTH = "depth"
"""Name of the group of residual branches."""

_UNREAD = "no convolution, dot or reduction reads it"
_UNMADE = "no convolution or dot makes it"
_LONE = "one unit alone, and a group keeps at least one"

Key = tuple[str, int]
"""Path and axis of a variable; for a factor of a contraction ``""`` and its number."""


class Traced(NamedTuple):
    """Hold what a graph is gathered from.

    Attributes:
        program: of the network.
        found: the walk over it.
        structure: path -> variable.
        branches: residual branches that are units.
        batch: number of examples that the network was traced with.
        leasts: axes of which a number must be kept, with the number.
    """

    program: Program
    found: Walk
    structure: dict[str, Any]
    branches: list[Branch]
    batch: int
    leasts: list[tuple[np.ndarray, int]]


def gather(traced: Traced) -> Graph:
    """Gather the units of a network into groups.

    Args:
        traced: once all reshapes are resolved and all is frozen that is to be.
    """
    program, found, structure, branches, batch, leasts = traced
    nodes = found.nodes
    axis_ids: dict[Key, np.ndarray] = {
        (path, axis): ids
        for path, slot in zip(structure, program.inputs, strict=False)
        for axis, ids in enumerate(found.axes[slot])
    }
    names = _names(structure)
    contractions = list(found.all_contractions())
    marks = _Marks(found, contractions, axis_ids, names)
    holders = {int(ids[0]): names[path] for (path, _), ids in axis_ids.items() if len(ids)}
    groups, unit_of = _groups(found, contractions, axis_ids, marks)
    first = sum(group.size for group in groups)
    if branches:
        paths = dict(zip(program.inputs, structure, strict=False))
        owned = tuple(tuple(paths[slot] for slot in each.variables) for each in branches)
        groups.append(Group(DEPTH, len(branches), first, (), owned))
    _add_layers(found, axis_ids, marks, (groups, unit_of))
    groups = [_with_least(group, unit_of, nodes, leasts) for group in groups]
    branch_of = {number: i for i, each in enumerate(branches) for number in each.body}

    def factors(number: int, each: Contraction) -> tuple[np.ndarray, ...]:
        own = tuple(map(owners, each.multiplied))
        branch = branch_of.get(number)
        return own if branch is None else (np.array([first + branch], np.int32), *own)

    def owners(ids: np.ndarray) -> np.ndarray:
        return unit_of[nodes.find(ids)]

    shapes = {
        path: jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf))
        for path, leaf in structure.items()
    }
    return Graph(
        groups=tuple(groups),
        frozen=tuple(_frozen(nodes, axis_ids, unit_of, marks)),
        layers=tuple(
            Layer(
                name=_layer_name(each, holders),
                kind=each.kind,
                factors=factors(number, each),
                reads=tuple(map(owners, each.consumed)),
                makes=tuple(map(owners, each.produced)),
                space=each.space,
                kernel=each.kernel,
                runs=each.times * (1 if _is_for_each(nodes, each) else batch),
            )
            for number, each in found.numbered_contractions()
            if each.multiplied and each.times
        ),
        variables=shapes,
        owners={
            path: tuple(owners(axis_ids[path, axis]) for axis in range(len(shape.shape)))
            for path, shape in shapes.items()
        },
        parameters=_parameters(shapes),
        batch=batch,
        remarks=tuple(dict.fromkeys(found.all_remarks())),
    )


def _is_for_each(nodes: Nodes, contraction: Contraction) -> bool:
    """Tell whether a contraction is computed for each example."""
    return contraction.depends or any(map(nodes.goes_with_batch, contraction.multiplied))


def _frozen(
    nodes: Nodes, axis_ids: dict[Key, np.ndarray], unit_of: np.ndarray, marks: "_Marks"
) -> Iterator[Frozen]:
    """Yield every longer axis that units do not own whole."""
    for (path, axis), ids in axis_ids.items():
        left = ids[unit_of[nodes.find(ids)] < 0]
        if len(ids) > 1 and len(left):
            yield Frozen(
                path=path,
                axis=axis,
                size=len(left),
                reason=nodes.reason(int(left[0])) or _why_unowned((path, axis), marks),
                role=marks.role((path, axis)),
            )


def _groups(
    found: Walk,
    contractions: list[Contraction],
    axis_ids: dict[Key, np.ndarray],
    marks: "_Marks",
) -> tuple[list[Group], np.ndarray]:
    """Return the groups, and int32[nodes], the unit of each class, -1 for none.

    A group of one unit, which nothing can prune, is frozen.
    """
    nodes = found.nodes
    groups: list[Group] = []
    unit_of = np.full(len(nodes), -1, np.int32)
    first = 0
    for roots, keys in _coupled(found, contractions, axis_ids):
        if len(roots) == 1:
            nodes.freeze(np.asarray(roots), _LONE)
            continue
        unit_of[roots] = first + np.arange(len(roots))
        slots = tuple(_slot(nodes, axis_ids[key], key, marks, unit_of, first) for key in keys)
        name = marks.name(keys)
        repeats = sum(each.name.split("#")[0] == name for each in groups)
        name += f"#{repeats + 1}" if repeats else ""
        groups.append(Group(name, len(roots), first, slots))
        first += len(roots)
    return groups, unit_of


def _add_layers(
    found: Walk,
    axis_ids: dict[Key, np.ndarray],
    marks: "_Marks",
    rest: tuple[list[Group], np.ndarray],
) -> None:
    """Add the groups whose units are the steps of loops over residual layers."""
    groups, unit_of = rest
    nodes = found.nodes
    for steps, _ in found.layers.values():
        roots = nodes.find(steps)
        if nodes.frozen(steps).any() or len(np.unique(roots)) != len(roots) or len(roots) < 2:
            nodes.freeze(steps, _LONE)
            continue
        if (unit_of[roots] >= 0).any():
            # Two loops over the same layers.
            continue
        first = sum(group.size for group in groups)
        unit_of[roots] = first + np.arange(len(roots))
        held = [key for key, ids in axis_ids.items() if np.isin(nodes.find(ids), roots).any()]
        slots = tuple(_slot(nodes, axis_ids[key], key, marks, unit_of, first) for key in held)
        repeats = sum(group.name.split("#")[0] == DEPTH for group in groups)
        name = f"{DEPTH}#{repeats + 1}" if repeats else DEPTH
        groups.append(Group(name, len(roots), first, slots, are_layers=True))


def _with_least(
    group: Group, unit_of: np.ndarray, nodes: Nodes, leasts: list[tuple[np.ndarray, int]]
) -> Group:
    """Say how many units a group must keep."""
    least = 1
    for ids, count in leasts:
        units = unit_of[nodes.find(ids)]
        inside = (units >= group.first) & (units < group.first + group.size)
        if inside.any():
            # What else is on the axis stays, or is pruned down to one at least.
            least = max(least, count - int((units < 0).sum()))
    return dataclasses.replace(group, least=min(least, group.size))


def _why_unowned(key: Key, marks: "_Marks") -> str:
    return _UNREAD if key in marks.produced else _UNMADE


def _parameters(shapes: dict[str, jax.ShapeDtypeStruct]) -> tuple[str, ...]:
    """Return the paths below ``"params"``, or else all but random keys and counters."""
    below = tuple(path for path in shapes if path.startswith("params/"))
    return below or tuple(
        path
        for path, shape in shapes.items()
        if not is_key(shape) and (shape.shape or not jax.dtypes.issubdtype(shape.dtype, np.integer))
    )


class _Marks:
    """Tell which axes of variables contractions produce and consume.

    Told by nodes, not classes: an axis keeps its own nodes through moves and casts.
    """

    def __init__(
        self,
        found: Walk,
        contractions: list[Contraction],
        axis_ids: dict[Key, np.ndarray],
        names: dict[str, str],
    ) -> None:
        self._names = names
        never = len(contractions)
        made, read = (np.full(len(found.nodes), never) for _ in range(2))
        for number in reversed(range(never)):
            for ids in contractions[number].produced:
                made[ids] = number
            for ids in contractions[number].consumed:
                read[ids] = number
        firsts = {key: int(made[ids].min(initial=never)) for key, ids in axis_ids.items()}
        self.produced = {key: first for key, first in firsts.items() if first < never}
        self.consumed = {key for key, ids in axis_ids.items() if (read[ids] < never).any()}
        self.weights = {path for path, _ in self.produced}

    def role(self, key: Key) -> str:
        if key in self.produced:
            return PRODUCER
        return CONSUMER if key in self.consumed or key[0] in self.weights else FOLLOWER

    def name(self, keys: list[Key]) -> str:
        """Name a group that owns ``keys`` by the first of its weights that the program uses."""
        makers = [key for key in keys if key in self.produced]
        path, _ = min(makers, key=self.produced.__getitem__) if makers else keys[0]
        return self._names[path]


def _coupled(
    found: Walk, contractions: list[Contraction], axis_ids: dict[Key, np.ndarray]
) -> list[tuple[list[int], list[Key]]]:
    """Group the prunable classes that hold the same axes; return their roots and those axes.

    Prunable is what is not frozen, produced by one contraction and consumed by another, or by a
    reduction. Factors of contractions are compared too, so that all units of a group count alike.
    """
    nodes = found.nodes
    produced = [ids for each in contractions for ids in each.produced]
    consumed = [ids for axes in found.reads() for ids in axes]
    factors = [ids for each in contractions for ids in each.multiplied]
    made = _roots(nodes, produced)
    prunable = np.zeros(len(nodes), bool)
    prunable[made] = True
    prunable &= _marked(nodes, consumed)
    prunable &= ~nodes.frozen(np.arange(len(nodes)))

    # Classes start with one label; each axis splits a label by how many indices a class has in it.
    label = np.zeros(len(nodes), np.int64)
    holders: list[tuple[Key, np.ndarray]] = []
    last = 0
    for key, ids in [*axis_ids.items(), *((("", i), ids) for i, ids in enumerate(factors))]:
        roots, counts = np.unique(nodes.find(ids), return_counts=True)
        roots, counts = roots[prunable[roots]], counts[prunable[roots]]
        if roots.size:
            _, split = np.unique((label[roots] << 32) + counts, return_inverse=True)
            label[roots] = last + 1 + split
            last = int(label[roots].max())
            if key[0]:
                holders.append((key, roots))
    keys: dict[int, list[Key]] = {}
    for key, roots in holders:
        for each in np.unique(label[roots]).tolist():
            keys.setdefault(each, []).append(key)
    members: dict[int, list[int]] = {}
    for root in made[prunable[made]].tolist():
        members.setdefault(int(label[root]), []).append(root)
    return [(roots, keys[each]) for each, roots in members.items() if each in keys]


def _marked(nodes: Nodes, arrays: list[np.ndarray]) -> np.ndarray:
    """Return bool[nodes]: which are roots of ``arrays``."""
    marked = np.zeros(len(nodes), bool)
    for ids in arrays:
        marked[nodes.find(ids)] = True
    return marked


def _roots(nodes: Nodes, arrays: list[np.ndarray]) -> np.ndarray:
    """Return the roots of ``arrays`` in the order in which they come up, int64."""
    roots = nodes.find(np.concatenate([np.zeros(0, np.int64), *arrays]))
    _, first = np.unique(roots, return_index=True)
    return roots[np.sort(first)]


def _slot(
    nodes: Nodes, ids: np.ndarray, key: Key, marks: _Marks, unit_of: np.ndarray, first: int
) -> Slot:
    units = unit_of[nodes.find(ids)]
    held = np.flatnonzero(units >= first)
    indices = held[np.argsort(units[held], kind="stable")]
    count = len(np.unique(units[held]))
    return Slot(*key, marks.role(key), indices.reshape(count, -1).astype(np.int32))


def _names(structure: dict[str, Any]) -> dict[str, str]:
    """Map the path of each variable to that of its layer.

    The last key is the variable's own, in Flax NNX the last but one: there all paths end in
    ``value``.
    """
    boxed = all(path.endswith("/value") for path in structure)

    def name(path: str) -> str:
        parts = path.removeprefix("params/").split("/")
        parts = parts[:-1] if boxed else parts
        return "/".join(parts[:-1]) or parts[0]

    return {path: name(path) for path in structure}


def _layer_name(contraction: Contraction, holders: dict[int, str]) -> str:
    """Name a contraction by the variable whose nodes its weights carry.

    Args:
        contraction: to name.
        holders: first node of each axis of each variable -> name of the variable's layer.
    """
    carried = sorted(int(ids[0]) for ids in contraction.carried if len(ids))
    shared = Counter(holders[node] for node in carried if node in holders)
    return shared.most_common(1)[0][0] if shared else contraction.kind
