"""A slim network back from its files, whole and unchanged or not at all."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require_path
from rlprune_jax.export.errors import ExportError
from rlprune_jax.export.plan import PLAN, Plan, plan_gates, read_plan
from rlprune_jax.export.weights import WEIGHTS, load_weights, nest_leaves, read_leaves
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.slim import respecialise
from rlprune_jax.graph.widths import check_widths, kept_units
from rlprune_jax.pytree import flatten_with_paths, tree_hash
from rlprune_jax.types import Apply, Gates, Variables


class Slim(NamedTuple):
    """A slim network.

    Attributes:
        apply: ``(variables, *inputs) -> outputs`` on slim variables; inputs are prepared ones.
        variables: slim.
        gates: that it was cut with.
        plan: see `make_plan`.
    """

    apply: Apply
    variables: Variables
    gates: Gates
    plan: Plan


def restore_slim(
    folder: str | os.PathLike, apply: Apply, graph: Graph, variables: Variables | None = None
) -> Slim:
    """Read a slim network back, strictly.

    All of its files must be there, unchanged, and belong together.
    The dense weights are not needed. The graph can be traced on their ``jax.ShapeDtypeStruct``,
    and these can be passed as ``variables`` too.

    Args:
        folder: that holds ``plan.json`` and ``weights.safetensors``, usually ``RUN_DIR/slim``.
        apply: ``(variables, *inputs) -> outputs`` of the dense network.
        graph: of it.
        variables: dense variables or their shapes, of which only the containers are used. Needed
            where these are not dicts and lists alone (NNX State, Equinox modules, NamedTuples).

    Raises:
        ExportError: a file is missing, damaged or changed, of an unknown version, or the plan is
            that of another network; the weights have other paths, shapes or element types than the
            plan leaves, or are not those that were stored with it. Nothing is restored in part.
    """
    require_path("folder", folder)
    folder = Path(folder)
    where = folder / WEIGHTS
    plan = read_plan(folder / PLAN)
    slim = _load(where, variables)
    _check_network(folder / PLAN, plan, graph)
    gates = plan_gates(plan)
    try:
        check_widths(graph, slim, kept_units(graph, gates))
    except ValueError as error:
        raise ExportError(f"{where} does not fit its plan: {error}") from error
    for path, leaf in flatten_with_paths(slim).items():
        if jax.dtypes.result_type(leaf) != graph.variables[path].dtype:
            raise ExportError(
                f"{where}: {path!r} is {leaf.dtype}, the network has "
                f"{graph.variables[path].dtype}; restore it with the network that was saved"
            )
    if plan["slim_sha256"] != tree_hash(slim):
        raise ExportError(
            f"{where} does not hold the weights that were stored with {PLAN}: their sha256 differs"
        )
    return Slim(
        apply=respecialise(apply, graph, gates),
        variables=jax.tree.map(jnp.asarray, slim),
        gates=gates,
        plan=plan,
    )


def _load(where: Path, variables: Variables | None) -> Variables:
    if variables is not None:
        return load_weights(where, like=variables)
    stored = read_leaves(where)
    for path, leaf in stored.items():
        if any(step.kind == "attribute" for step in leaf.steps):
            raise ExportError(
                f"{where} holds {path!r}, an attribute of an object that is not stored; pass the "
                "dense variables or their shapes: restore_slim(folder, apply, graph, variables)"
            )
    return nest_leaves(where, stored)


def _check_network(where: Path, plan: Plan, graph: Graph) -> None:
    stored = {name: group["size"] for name, group in plan["groups"].items()}
    own = dict(zip(graph.names, graph.sizes, strict=True))
    if stored != own:
        raise ExportError(
            f"{where} is of another network: it has groups {stored}, this network has {own}; "
            "restore it with the network that was pruned"
        )
