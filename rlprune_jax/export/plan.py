"""The pruning plan, which says what was cut and what the result takes."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import shown
from rlprune_jax.export.description import (
    Description,
    description_from_json,
    description_to_json,
)
from rlprune_jax.export.errors import ExportError, read_stored
from rlprune_jax.files import to_json, write_atomically
from rlprune_jax.pytree import tree_hash
from rlprune_jax.types import Gates, Variables

PLAN = "plan.json"
"""Name of the plan in a folder of a slim network."""

PLAN_FORMAT = "rlprune_jax.plan"
PLAN_VERSION = 3

Plan = dict[str, Any]
"""A pruning plan as plain JSON, see `make_plan`."""


def make_plan(
    gates: Gates,
    variables: Variables,
    slim_variables: Variables | None = None,
    *,
    description: Description | None = None,
    **details: object,
) -> Plan:
    """Return what was pruned as plain JSON.

    It is enough to cut the same network out of the dense weights.

    Args:
        gates: 1 for kept and 0 for pruned, ``f32[units]`` per group.
        variables: the dense variables that the gates belong to; only their hash is kept.
        slim_variables: those cut out of them, likewise; None where they are not stored with the
            plan.
        description: inputs, outputs, preparation and class names of the network, as
            `export_stablehlo` returns them; None where nothing is known of them.
        **details: further entries with a JSON form, such as ``model="cnn"`` or ``budgets=[...]``.

    Returns:
        ``{"format", "version", "dense_sha256", "slim_sha256", "groups": {name: {"size", "width",
        "kept"}}, "description": {"inputs", "outputs", "batch", "prepare", "class_names"},
        "details", "sha256"}``. ``kept`` lists the indices of kept units in increasing order,
        ``sha256`` is that of everything else, so that `read_plan` notices a change.

    Raises:
        TypeError: gates are no dictionary.
        ValueError: a gate is neither 0 nor 1, or the description is not consistent.

    Example:
        >>> import jax.numpy as jnp
        >>> plan = make_plan({"conv": jnp.array([1.0, 0.0, 1.0])}, {"w": jnp.ones(3)}, model="cnn")
        >>> plan["groups"]
        {'conv': {'size': 3, 'width': 2, 'kept': [0, 2]}}
        >>> plan["details"]
        {'model': 'cnn'}
    """
    if not isinstance(gates, Mapping):
        raise TypeError(f"gates={shown(gates)} must be a dictionary, group name -> f32[units]")
    plan = {
        "format": PLAN_FORMAT,
        "version": PLAN_VERSION,
        "dense_sha256": tree_hash(variables),
        "slim_sha256": None if slim_variables is None else tree_hash(slim_variables),
        "groups": {name: _group(name, np.asarray(gate)) for name, gate in gates.items()},
        "description": None if description is None else description_to_json(description),
        "details": to_json(details),
    }
    return {**plan, "sha256": _plan_hash(plan)}


def plan_gates(plan: Plan) -> Gates:
    """Return the gates that a plan describes, ``f32[units]`` per group.

    Example:
        >>> import jax.numpy as jnp
        >>> plan = make_plan({"conv": jnp.array([1.0, 0.0, 1.0])}, {"w": jnp.ones(3)})
        >>> plan_gates(plan)["conv"].tolist()
        [1.0, 0.0, 1.0]
    """
    return {
        name: jnp.zeros(group["size"]).at[jnp.array(group["kept"], jnp.int32)].set(1.0)
        for name, group in plan["groups"].items()
    }


def plan_description(plan: Plan) -> Description | None:
    """Return the description in a plan, or None without one."""
    content = plan["description"]
    return None if content is None else description_from_json("description", content)


def write_plan(path: str | os.PathLike, plan: Plan) -> None:
    """Write a plan as JSON, one line per group.

    Raises:
        ExportError: the plan is not consistent.
        UnwritableError: the file cannot be written.
    """
    check_plan(plan, "plan")
    lines = [
        f"    {json.dumps(name)}: {json.dumps(group)}" for name, group in plan["groups"].items()
    ]
    groups = "{\n" + ",\n".join(lines) + "\n  }" if lines else "{}"
    entries = [
        f"  {json.dumps(name)}: {groups if name == 'groups' else json.dumps(value)}"
        for name, value in plan.items()
    ]
    write_atomically(path, "{\n" + ",\n".join(entries) + "\n}\n")


def read_plan(path: str | os.PathLike) -> Plan:
    """Read a plan and check all of it.

    Plans of version 2, which had no description, are read as well.

    Raises:
        ExportError: there is no such file, or it is no plan, of an unknown version, inconsistent,
            or was changed.
    """
    content = read_stored(path, "write_plan")
    try:
        plan = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ExportError(
            f"{os.fspath(path)} is not JSON: {error}; name a file that write_plan has written"
        ) from error
    if isinstance(plan, Mapping) and plan.get("version") == 2 and "description" not in plan:
        plan = _from_version_2(os.fspath(path), plan)
    check_plan(plan, os.fspath(path))
    return plan


def check_plan(plan: object, where: str) -> None:
    """Refuse a plan that is not what `make_plan` returns.

    Raises:
        ExportError: the message says where and what differs.
    """
    if not isinstance(plan, Mapping) or plan.get("format") != PLAN_FORMAT:
        raise ExportError(f"{where} is no pruning plan: it has no format {PLAN_FORMAT!r}")
    if plan.get("version") != PLAN_VERSION:
        raise ExportError(
            f"{where} has version {plan.get('version')!r}, this package reads 2 and "
            f"{PLAN_VERSION}; deliver the network again, or install the version that wrote it"
        )
    hashes = {"dense_sha256", "slim_sha256", "sha256"}
    expected = {"format", "version", "groups", "description", "details", *hashes}
    if set(plan) != expected:
        raise ExportError(f"{where} lacks or adds {sorted(expected ^ set(plan))}")
    if not isinstance(plan["groups"], Mapping):
        raise ExportError(f"{where}: groups must map names to sizes and kept units")
    for name, group in plan["groups"].items():
        _check_group(f"{where}: group {name!r}", group)
    if plan["description"] is not None:
        description_from_json(f"{where}: description", plan["description"])
    _check_hash(where, plan)


def _group(name: str, gate: np.ndarray) -> dict[str, object]:
    if gate.ndim != 1 or not np.isin(gate, (0, 1)).all():
        raise ValueError(f"gates[{name!r}] must be a vector of zeros and ones, got {gate}")
    kept = np.flatnonzero(gate).tolist()
    return {"size": gate.size, "width": len(kept), "kept": kept}


def _from_version_2(where: str, plan: Mapping[str, Any]) -> Plan:
    """Return a plan of version 2 as one of today, provided that it was not changed."""
    _check_hash(where, plan)
    newer = {**plan, "version": PLAN_VERSION, "description": None}
    return {**newer, "sha256": _plan_hash(newer)}


def _check_group(where: str, group: object) -> None:
    if not isinstance(group, Mapping) or set(group) != {"size", "width", "kept"}:
        raise ExportError(f"{where} must hold size, width and kept")
    size, width, kept = group["size"], group["width"], group["kept"]
    if not isinstance(kept, list) or not all(type(unit) is int for unit in [size, width, *kept]):
        raise ExportError(f"{where} must hold integers")
    if width != len(kept):
        raise ExportError(f"{where} has width {width} but keeps {len(kept)} units")
    if kept != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < size):
        raise ExportError(f"{where} must keep increasing units below its size {size}")


def _check_hash(where: str, plan: Mapping[str, Any]) -> None:
    if plan.get("sha256") != _plan_hash(plan):
        raise ExportError(f"{where} was changed after it was written: its sha256 differs")


def _plan_hash(plan: Mapping[str, Any]) -> str:
    content = {name: value for name, value in plan.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
