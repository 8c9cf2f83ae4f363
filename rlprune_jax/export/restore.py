"""A slim network back from its files, without the dense weights: whole and unchanged, or not."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.export.export import ExportError, load_weights, plan_gates, read_plan
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.slim import respecialise
from rlprune_jax.graph.widths import check_widths, kept_units
from rlprune_jax.pytree import flatten_with_paths, tree_hash
from rlprune_jax.types import Apply, Gates, Variables

WEIGHTS = "weights.safetensors"
PLAN = "plan.json"


class Slim(NamedTuple):
    """A slim network.

    Attributes:
        apply: ``(variables, x) -> outputs`` on slim variables.
        variables: slim.
        gates: that it was cut with.
        plan: see ``make_plan``.
    """

    apply: Apply
    variables: Variables
    gates: Gates
    plan: dict[str, Any]


def restore_slim(folder: str | os.PathLike, apply: Apply, graph: Graph) -> Slim:
    """Read ``plan.json`` and ``weights.safetensors`` and check that they belong together.

    The dense weights are not needed: the graph can be traced on their ``jax.ShapeDtypeStruct``.

    Args:
        folder: usually ``RUN_DIR/slim``.
        apply: ``(variables, x) -> outputs`` of the dense network.
        graph: of it.

    Raises:
        ExportError: a file is missing, damaged or changed, of an unknown version, or the plan is
            that of another network; the weights have other paths, shapes or element types than the
            plan leaves, or are not those that were stored with it. Nothing is restored in part.
    """
    folder = Path(folder)
    try:
        plan = read_plan(folder / PLAN)
        variables = load_weights(folder / WEIGHTS)
    except OSError as error:
        raise ExportError(f"{folder} holds no slim network: {error}") from error
    sizes = {name: group["size"] for name, group in plan["groups"].items()}
    if sizes != dict(zip(graph.names, graph.sizes, strict=True)):
        raise ExportError(
            f"{folder / PLAN} is of another network: it has groups {sizes}, this network "
            f"{dict(zip(graph.names, graph.sizes, strict=True))}"
        )
    gates = plan_gates(plan)
    where = folder / WEIGHTS
    try:
        check_widths(graph, variables, kept_units(graph, gates))
    except ValueError as error:
        raise ExportError(f"{where} does not fit its plan: {error}") from error
    for path, leaf in flatten_with_paths(variables).items():
        if np.dtype(leaf.dtype) != np.dtype(graph.variables[path].dtype):
            raise ExportError(
                f"{where}: {path!r} is {leaf.dtype}, the network has {graph.variables[path].dtype}"
            )
    if plan["slim_sha256"] != tree_hash(variables):
        raise ExportError(
            f"{where} does not hold the weights that were stored with {PLAN}: their sha256 differs"
        )
    return Slim(
        respecialise(apply, graph, gates), jax.tree.map(jnp.asarray, variables), gates, plan
    )
