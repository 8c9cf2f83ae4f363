"""Finding a graph's units again in any function of the same variables."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rlprune_jax.checks import require_type
from rlprune_jax.graph.branches import Addition, Branch, find_branches
from rlprune_jax.graph.contractions import Contraction
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.keywords import Keywords, split_keywords, with_keywords
from rlprune_jax.graph.memo import call_key
from rlprune_jax.graph.moving import Permutation
from rlprune_jax.graph.program import Literal, Program, trace_program
from rlprune_jax.graph.reductions import Length, Reduction
from rlprune_jax.graph.rules import Axes, Context
from rlprune_jax.graph.walk import Walk, resolve, variable_axes, walk_with
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, PyTree, Variables

Inputs = tuple[PyTree, ...]
"""The positional arguments of a network after its variables."""


class Matched(NamedTuple):
    """Hold a program in which every axis knows its units.

    Attributes:
        program: of the function, traced on the dense variables.
        out_shape: pytree of ``jax.ShapeDtypeStruct`` that the function returns.
        units: for each slot and axis int32[size], the unit of each index, -1 for none.
        contractions: where units are summed over.
        reductions: where units are read by a sum, a maximum and the like.
        lengths: constants that count units, with the units of each axis that they count.
        known: slot -> value, of indices that constants tell.
        bodies: number of an equation -> its bodies; their structure of outputs is None.
        permutations: number of a reshape -> how it permutes an axis split before.
        branches: residual branches that are units, each with its unit.
        layers: number of a loop over layers that are units -> the units, and the sums of its body.
        between: number of an equation whose value lies between such a split and the reshape, and is
            no array once units are gone -> slot and axis that were split. Nothing else reads it.
    """

    program: Program
    out_shape: PyTree
    units: list[tuple[np.ndarray, ...]]
    contractions: list[Contraction]
    reductions: list[Reduction]
    lengths: list[tuple[Length, tuple[np.ndarray, ...]]]
    known: dict[int, np.ndarray]
    bodies: "dict[int, tuple[Matched, ...]]"
    permutations: dict[int, Permutation]
    between: dict[int, tuple[int, int]]
    layers: dict[int, tuple[np.ndarray, list[Addition]]]
    branches: tuple[tuple[Branch, int], ...] = ()


def match(
    apply: Apply,
    graph: Graph,
    variables: Variables,
    inputs: Inputs,
    keywords: Mapping[str, Any] | None = None,
) -> Matched:
    """Trace a function and find a graph's units in it.

    Units are found by the variables' paths. Batch size, train mode and what is returned may differ
    from the function that the graph was traced with. The graph remembers what it has matched
    (``graph.programs``): a second call of the same function with the same shapes and static
    arguments traces nothing. What closes over a tracer is not remembered.

    Args:
        apply: ``(variables, *inputs, **keywords) -> outputs``.
        graph: of the network.
        variables: dense, arrays or their ``jax.ShapeDtypeStruct``.
        inputs: positional arguments, all traced.
        keywords: keyword arguments; arrays among them are traced, everything else is static.

    Raises:
        ValueError: the variables are not those of the graph, or the function couples or reads units
            otherwise than the function that the graph was traced with.
    """
    require_type("inputs", inputs, tuple, "put the network's inputs into one, (x,)")
    check_variables(graph, variables)
    split = split_keywords(keywords or {})
    key = _key(variables, inputs, split)
    found = None if key is None else graph.programs.get(apply, key)
    if found is None:
        found = _match(with_keywords(apply, split), graph, variables, inputs, split)
        _remember(apply, graph, key, found)
    return found


def remember(
    apply: Apply,
    graph: Graph,
    arguments: tuple[Variables, Inputs],
    traced: tuple[Program, PyTree, Walk, Context],
) -> None:
    """Let a graph remember its own function.

    Args:
        apply: ``(variables, *inputs) -> outputs``.
        graph: of the network.
        arguments: variables and inputs.
        traced: the program, what it returns, the walk over it and what that wrote to.
    """
    program, out_shape, found, context = traced
    slots = dict(zip(flatten_with_paths(arguments[0]), program.inputs, strict=False))
    matched = _matched(program, out_shape, found, (_unit_of(graph, found, slots), context))
    matched = matched._replace(branches=_branches(graph, program, found, slots))
    _remember(apply, graph, _key(*arguments, split_keywords({})), matched)


def _key(variables: Variables, inputs: Inputs, keywords: Keywords) -> Hashable | None:
    return call_key((variables, inputs, keywords.arrays), (*keywords.static, keywords.structure))


def _remember(apply: Apply, graph: Graph, key: Hashable | None, matched: Matched) -> None:
    # A tracer that the function closed over must not outlive the transformation it belongs to.
    if key is not None and not _holds_tracers(matched.program):
        graph.programs.put(apply, key, matched)


def flat_arguments(
    variables: Variables, inputs: Inputs, keywords: Mapping[str, Any] | None = None
) -> list[Any]:
    """Return the arguments of a matched program in order."""
    return jax.tree.leaves((variables, inputs, split_keywords(keywords or {}).arrays))


def _match(
    function: Apply, graph: Graph, variables: Variables, inputs: Inputs, keywords: Keywords
) -> Matched:
    program, out_shape = trace_program(function, variables, inputs, keywords.arrays)
    paths = list(flatten_with_paths(variables))
    sized = _with_sizes(program, function, variables, (inputs, keywords.arrays))
    context = Context(layers=graph.layers_are_units)
    axes = variable_axes(context, sized, len(paths))
    _tie_units(context, graph, dict(zip(paths, axes, strict=True)))
    found = walk_with(context, sized, axes)
    context.equation = None
    resolve(context, [found])
    slots = dict(zip(paths, program.inputs, strict=False))
    matched = _matched(program, out_shape, found, (_unit_of(graph, found, slots), context))
    return matched._replace(branches=_branches(graph, program, found, slots))


def _branches(
    graph: Graph, program: Program, found: Walk, slots: dict[str, int]
) -> tuple[tuple[Branch, int], ...]:
    """Find the residual branches of a graph in a program, by their variables."""
    if not graph.branch_of:
        return ()
    path_of = {slot: path for path, slot in slots.items()}
    branches: list[tuple[Branch, int]] = []
    for with_outputs in (False, True):
        held = {unit for _, unit in branches}
        if held == set(graph.branch_of.values()):
            break
        for each in find_branches(
            program, len(slots), found.contracting(), with_outputs=with_outputs
        ):
            units = {graph.branch_of.get(path_of[slot], -1) for slot in each.variables}
            (unit,) = units if len(units) == 1 else (-1,)
            if unit >= 0 and unit not in held:
                branches.append((each, unit))
    read = {atom for each in program.equations for atom in each.inputs if isinstance(atom, int)}
    for path, unit in graph.branch_of.items():
        if slots[path] in read and unit not in {unit for _, unit in branches}:
            raise ValueError(
                f"apply has no residual branch of the variable {path!r}, as the function has that "
                f"the graph was traced with; {_WAY_OUT}"
            )
    return tuple(branches)


def _tie_units(context: Context, graph: Graph, axes: Mapping[str, Axes]) -> None:
    """Tie what each unit owns, and freeze the rest."""
    nodes = context.nodes
    firsts = np.full(graph.units, -1)
    for path, arrays in axes.items():
        for axis, (ids, owners) in enumerate(zip(arrays, graph.owners[path], strict=True)):
            owned = owners >= 0
            units, held = owners[owned], ids[owned]
            new = firsts[units] < 0
            firsts[units[new][::-1]] = held[new][::-1]
            nodes.tie(held, firsts[units])
            reason = f"they go with axis {axis} of {path!r}, which the graph does not prune"
            nodes.freeze(ids[~owned], reason)


def _matched(
    program: Program, out_shape: PyTree, found: Walk, result: tuple[np.ndarray, Context]
) -> Matched:
    unit_of, context = result
    unsettled = [id(tie.flat) for tie in context.reshapes.unsettled]
    return Matched(
        program=program,
        out_shape=out_shape,
        units=[tuple(unit_of[ids] for ids in axes) for axes in found.axes],
        contractions=found.contractions,
        reductions=found.reductions,
        lengths=[
            (each, tuple(unit_of[ids] for ids in each.counted))
            for each in found.lengths
            if any((unit_of[ids] >= 0).any() for ids in each.counted)
        ],
        known=found.known,
        bodies={
            number: tuple(
                _matched(body, None, inner, result)
                for body, inner in zip(program.equations[number].bodies, bodies, strict=True)
            )
            for number, bodies in found.bodies.items()
        },
        permutations=found.moves.permutations,
        layers={
            number: (unit_of[steps], sums)
            for number, (steps, sums) in found.layers.items()
            if (unit_of[steps] >= 0).any()
        },
        between={
            number: (each.source, each.axis)
            for number, each in found.moves.between.items()
            if id(each.tie.flat) in unsettled
        },
    )


def _unit_of(graph: Graph, found: Walk, slots: dict[str, int]) -> np.ndarray:
    """Return the unit of every node, -1 for none.

    Args:
        graph: of the network.
        found: a walk over a program of its variables.
        slots: path of each variable -> its slot in the program.
    """
    unit_of = np.full(len(found.nodes), -1, np.int32)
    held = [
        (path, ids, found.nodes.find(ids), owners)
        for path, slot in slots.items()
        for ids, owners in zip(found.axes[slot], graph.owners[path], strict=True)
    ]
    for _, _, roots, owners in held:
        unit_of[roots[owners >= 0]] = owners[owners >= 0]
    for path, ids, roots, owners in held:
        odd = (owners >= 0) & found.nodes.frozen(ids)
        if odd.any():
            raise ValueError(
                f"apply does with units of {path!r} what the function that the graph was traced "
                f"with does not: {found.nodes.reason(int(ids[odd][0]))}; {_WAY_OUT}"
            )
        if not np.array_equal(unit_of[roots], owners):
            raise ValueError(
                f"apply couples units of {path!r} that the graph holds for separate; {_WAY_OUT}"
            )
    return unit_of[found.nodes.find(np.arange(len(found.nodes)))]


_WAY_OUT = (
    "trace one graph for both functions, trace_graph(apply, variables, x, apply_train=this one), "
    "or do this outside of the network"
)


def _holds_tracers(program: Program) -> bool:
    if any(_holds_tracers(body) for equation in program.equations for body in equation.bodies):
        return True
    values = list(program.constants.values())
    values += [
        atom.value
        for equation in program.equations
        for atom in equation.inputs
        if isinstance(atom, Literal)
    ]
    return any(isinstance(value, jax.core.Tracer) for value in values)


def _with_sizes(
    program: Program, function: Apply, variables: Variables, arguments: tuple[PyTree, PyTree]
) -> Program:
    """Return ``program``, or where an input's size is symbolic one traced with 2.

    Units do not depend on the batch, but a walk needs sizes (``jax.export`` gives none).
    """

    def sized(leaf: Any) -> Any:
        if all(isinstance(size, int) for size in np.shape(leaf)):
            return leaf
        shape = tuple(size if isinstance(size, int) else 2 for size in np.shape(leaf))
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    concrete = jax.tree.map(sized, arguments)
    pairs = zip(jax.tree.leaves(arguments), jax.tree.leaves(concrete), strict=True)
    if all(a is b for a, b in pairs):
        return program
    traced, _ = trace_program(function, variables, *concrete)
    if _names(traced) != _names(program):
        raise ValueError(
            "apply does something else for a batch of unknown size than for one of 2; "
            "export it with a batch size of its own"
        )
    return traced


def _names(program: Program) -> list[object]:
    return [(each.name, *map(_names, each.bodies)) for each in program.equations]


def check_variables(graph: Graph, variables: Variables) -> None:
    """Check that variables have the shapes of the graph.

    Raises:
        ValueError: naming the first path that is missing, unknown or of another shape.
    """
    flat = flatten_with_paths(variables)
    check_paths(graph, flat)
    for path in flat:
        if np.shape(flat[path]) != graph.variables[path].shape:
            raise ValueError(
                f"variable {path!r} has shape {np.shape(flat[path])}, the graph was traced with "
                f"{graph.variables[path].shape}"
            )


def dense_variables(graph: Graph, variables: Variables) -> Variables:
    """Return the dense shapes of variables of any widths.

    Returns:
        ``variables`` with a ``jax.ShapeDtypeStruct`` in place of each leaf.

    Raises:
        ValueError: a path is missing or unknown.
    """
    flat = flatten_with_paths(variables)
    check_paths(graph, flat)
    leaves = [
        jax.ShapeDtypeStruct(graph.variables[path].shape, jax.dtypes.result_type(leaf))
        for path, leaf in flat.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def check_paths(graph: Graph, paths: Iterable[str]) -> None:
    """Check that paths are those of the graph's variables.

    Raises:
        ValueError: naming the first that is missing or unknown.
    """
    given = dict.fromkeys(paths)
    for path in [*graph.variables, *given]:
        if path not in given or path not in graph.variables:
            where = "variables" if path not in given else "the graph"
            raise ValueError(f"{path!r} is not in {where}; trace the graph with these variables")
