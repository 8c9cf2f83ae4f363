"""Finding a graph's units again in any function of the same variables."""

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
    units: list[tuple[np.ndarray, ...] | None]
    contractions: list[Contraction]


def match(apply: Apply, graph: Graph, variables: Variables, inputs: tuple[Any, ...]) -> Matched:
    """Trace ``apply(variables, *inputs)`` and find the units of ``graph`` by the variables' paths.

    Batch size, train mode and what is returned may differ from the function that was traced.

    Raises:
        ValueError: the variables are not those of the graph, or the function ties together units
            that the graph holds for separate.
    """
    check_variables(graph, variables)
    program, out_shape = trace_program(apply, variables, *inputs)
    paths = list(flatten_with_paths(variables))
    found = walk(program, len(paths))
    unit_of = np.full(len(found.nodes), -1, np.int32)
    for path, slot in zip(paths, program.inputs, strict=False):
        for ids, owners in zip(found.axes[slot] or (), graph.owners[path], strict=True):
            roots = found.nodes.find(ids)
            clash = (unit_of[roots] >= 0) & (owners >= 0) & (unit_of[roots] != owners)
            if clash.any():
                raise ValueError(
                    f"apply ties units of {path!r} that the graph holds for separate; "
                    "trace the graph with this function"
                )
            unit_of[roots[owners >= 0]] = owners[owners >= 0]
    every = np.arange(len(found.nodes))
    unit_of = unit_of[found.nodes.find(every)]
    units = [None if axes is None else tuple(unit_of[ids] for ids in axes) for axes in found.axes]
    return Matched(program, out_shape, units, found.contractions)


def check_variables(graph: Graph, variables: Variables) -> None:
    """Check that ``variables`` have the dense shapes that ``graph`` was traced with.

    Raises:
        ValueError: naming the first path that is missing, unknown or of another shape.
    """
    flat = flatten_with_paths(variables)
    for path in [*graph.variables, *flat]:
        if path not in flat or path not in graph.variables:
            where = "variables" if path not in flat else "the graph"
            raise ValueError(f"{path!r} is not in {where}; trace the graph with these variables")
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
    if set(flat) != set(graph.variables):
        odd = sorted(set(flat) ^ set(graph.variables))
        raise ValueError(f"variables and graph differ in the path {odd[0]!r}")
    leaves = [
        jax.ShapeDtypeStruct(graph.variables[path].shape, jax.numpy.asarray(leaf).dtype)
        for path, leaf in flat.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)
