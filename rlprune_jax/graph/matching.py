"""Finding a graph's units again in any function of the same variables."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.program import Program, trace_program
from rlprune_jax.graph.walk import Contraction, walk
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, Variables


class Matched(NamedTuple):
    """A program in which every axis knows its units.

    Attributes:
        program: of the function, traced on the dense variables.
        out_shape: pytree of ``jax.ShapeDtypeStruct`` that the function returns.
        units: for each slot and axis int32[size], the unit of each index, -1 for none.
        contractions: where units are summed over.
    """

    program: Program
    out_shape: Any
    units: list[tuple[np.ndarray, ...]]
    contractions: list[Contraction]


def match(apply: Apply, graph: Graph, variables: Variables, inputs: tuple[Any, ...]) -> Matched:
    """Trace ``apply(variables, *inputs)`` and find the units of ``graph`` by the variables' paths.

    Batch size, train mode and what is returned may differ from the function that was traced.

    Raises:
        ValueError: the variables are not those of the graph, or the function couples or reads units
            otherwise than the function that the graph was traced with.
    """
    check_variables(graph, variables)
    program, out_shape = trace_program(apply, variables, *inputs)
    paths = list(flatten_with_paths(variables))
    found = walk(_with_sizes(program, apply, variables, inputs), len(paths))
    unit_of = np.full(len(found.nodes), -1, np.int32)
    held = [
        (path, ids, found.nodes.find(ids), owners)
        for path, slot in zip(paths, program.inputs, strict=False)
        for ids, owners in zip(found.axes[slot], graph.owners[path], strict=True)
    ]
    for _, _, roots, owners in held:
        unit_of[roots[owners >= 0]] = owners[owners >= 0]
    single = np.asarray(graph.sizes, np.int32)[graph.group_of_unit] == 1
    for path, ids, roots, owners in held:
        if not np.array_equal(unit_of[roots], owners):
            raise ValueError(
                f"apply couples units of {path!r} that the graph holds for separate; "
                "trace the graph with this function"
            )
        odd = (owners >= 0) & ~single[owners] & found.nodes.frozen(ids)
        if odd.any():
            raise ValueError(
                f"apply does with units of {path!r} what the function that the graph was traced "
                f"with does not: {found.nodes.reason(int(ids[odd][0]))}; trace the graph with this "
                "function, or do this outside of it"
            )
    unit_of = unit_of[found.nodes.find(np.arange(len(found.nodes)))]
    units = [tuple(unit_of[ids] for ids in axes) for axes in found.axes]
    return Matched(program, out_shape, units, found.contractions)


def _with_sizes(
    program: Program, apply: Apply, variables: Variables, inputs: tuple[Any, ...]
) -> Program:
    """Return ``program``, or where an input's size is symbolic (``jax.export``) one traced with 2.

    Units do not depend on the batch, but a walk needs sizes.
    """

    def sized(leaf: Any) -> Any:
        if all(isinstance(size, int) for size in np.shape(leaf)):
            return leaf
        shape = tuple(size if isinstance(size, int) else 2 for size in np.shape(leaf))
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    concrete = jax.tree.map(sized, inputs)
    if all(a is b for a, b in zip(jax.tree.leaves(inputs), jax.tree.leaves(concrete), strict=True)):
        return program
    traced, _ = trace_program(apply, variables, *concrete)
    if [each.name for each in traced.equations] != [each.name for each in program.equations]:
        raise ValueError(
            "apply does something else for a batch of unknown size than for one of 2; "
            "export it with a batch size of its own"
        )
    return traced


def check_variables(graph: Graph, variables: Variables) -> None:
    """Check that ``variables`` have the dense shapes that ``graph`` was traced with.

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
    """Return ``variables`` (of any widths) as a pytree of their dense ``jax.ShapeDtypeStruct``.

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
    """Check that ``paths`` are those of the graph's variables.

    Raises:
        ValueError: naming the first that is missing or unknown.
    """
    given = dict.fromkeys(paths)
    for path in [*graph.variables, *given]:
        if path not in given or path not in graph.variables:
            where = "variables" if path not in given else "the graph"
            raise ValueError(f"{path!r} is not in {where}; trace the graph with these variables")
