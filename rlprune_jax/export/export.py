"""What leaves the project: weights, the pruning plan, a network that runs wherever JAX does."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from rlprune_jax.files import to_json, write_atomically
from rlprune_jax.pytree import flatten_with_paths, nest_paths, tree_hash
from rlprune_jax.types import Apply, Gates, Variables

PLAN_FORMAT = "rlprune_jax.plan"
PLAN_VERSION = 2
PLATFORMS = ("cpu", "cuda", "tpu")

_TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}


class ExportError(ValueError):
    """A file is damaged, changed, of an unknown version, or cannot be exported."""


def save_weights(path: str | os.PathLike, variables: Variables) -> None:
    """Writes nested dictionaries of arrays as safetensors, named by slash-joined paths.

    Args:
        path: file to write, usually ``slim/weights.safetensors``.
        variables: nested dicts with arrays at the leaves, such as ``{"params": {"Dense_0": ...}}``.

    Raises:
        TypeError: there is another container than dict; its keys could not be told from names.
        UnwritableError: the file cannot be written.
    """
    if nest_paths(flat := flatten_with_paths(variables)) != jax.tree.map(lambda x: x, variables):
        raise TypeError("variables must be nested dicts with string keys")
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
    write_atomically(path, safetensors.numpy.save(arrays, {"format": "rlprune_jax.weights/1"}))


def load_weights(path: str | os.PathLike) -> Variables:
    """Reads what `save_weights` wrote: nested dicts of NumPy arrays, bit for bit.

    Raises:
        ExportError: the file is not safetensors, or is cut off.
    """
    try:
        # safetensors.numpy.load knows no bfloat16.
        stored = safetensors.deserialize(Path(path).read_bytes())
        return nest_paths({name: _to_numpy(**entry) for name, entry in stored})
    except (safetensors.SafetensorError, ValueError) as error:
        raise ExportError(f"{path} is no safetensors file of weights: {error}") from error


def make_plan(
    gates: Gates, variables: Variables, slim_variables: Variables | None = None, **details: Any
) -> dict[str, Any]:
    """What was pruned, as plain JSON: enough to cut the same network out of the dense weights.

    Args:
        gates: 1 for kept and 0 for pruned, ``f32[units]`` per group.
        variables: the dense variables that the gates belong to; only their hash is kept.
        slim_variables: those cut out of them, likewise; None where they are not stored with the
            plan.
        details: further entries with a JSON form, such as ``model="cnn"`` or ``budgets=[...]``.

    Returns:
        ``{"format", "version", "dense_sha256", "slim_sha256", "groups": {name: {"size", "width",
        "kept"}}, "details", "sha256"}``: ``kept`` lists the indices of kept units in increasing
        order, ``sha256`` is that of everything else, so that `read_plan` notices a change.

    Raises:
        ValueError: a gate is neither 0 nor 1.
    """
    groups = {}
    for name, gate in gates.items():
        values = np.asarray(gate)
        if values.ndim != 1 or not np.isin(values, (0, 1)).all():
            raise ValueError(f"gates[{name!r}] must be a vector of zeros and ones, got {values}")
        kept = np.flatnonzero(values).tolist()
        groups[name] = {"size": values.size, "width": len(kept), "kept": kept}
    plan = {
        "format": PLAN_FORMAT,
        "version": PLAN_VERSION,
        "dense_sha256": tree_hash(variables),
        "slim_sha256": None if slim_variables is None else tree_hash(slim_variables),
        "groups": groups,
        "details": to_json(details),
    }
    return {**plan, "sha256": _plan_hash(plan)}


def plan_gates(plan: Mapping[str, Any]) -> Gates:
    """The gates that a plan describes, ``f32[units]`` per group."""
    return {
        name: jnp.zeros(group["size"]).at[jnp.array(group["kept"], jnp.int32)].set(1.0)
        for name, group in plan["groups"].items()
    }


def write_plan(path: str | os.PathLike, plan: Mapping[str, Any]) -> None:
    """Writes what `make_plan` returned as JSON, one line per group.

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


def read_plan(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a plan and checks all of it.

    Raises:
        ExportError: the file is no plan, of another version, inconsistent, or was changed.
    """
    try:
        plan = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    check_plan(plan, str(path))
    return plan


def check_plan(plan: Any, where: str) -> None:
    """Refuses a plan that is not exactly what `make_plan` returns.

    Raises:
        ExportError: the message says where and what differs.
    """
    if not isinstance(plan, Mapping) or plan.get("format") != PLAN_FORMAT:
        raise ExportError(f"{where} is no pruning plan: it has no format {PLAN_FORMAT!r}")
    if plan.get("version") != PLAN_VERSION:
        raise ExportError(
            f"{where} has version {plan.get('version')!r}; this package reads {PLAN_VERSION}"
        )
    hashes = {"dense_sha256", "slim_sha256", "sha256"}
    expected = {"format", "version", "groups", "details", *hashes}
    if set(plan) != expected:
        raise ExportError(f"{where} lacks or adds {sorted(expected ^ set(plan))}")
    if not isinstance(plan["groups"], Mapping):
        raise ExportError(f"{where}: groups must map names to sizes and kept units")
    for name, group in plan["groups"].items():
        _check_group(f"{where}: group {name!r}", group)
    if plan["sha256"] != _plan_hash(plan):
        raise ExportError(f"{where} was changed after it was written: its sha256 differs")


def export_stablehlo(
    apply: Apply,
    variables: Variables,
    input_shape: Sequence[int],
    dtype: Any = jnp.float32,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """A network with its weights inside, for any batch size and platform.

    It runs where only jax and flatbuffers are installed:
    ``jax.export.deserialize(bytearray(content)).call(x)``.

    Args:
        apply: ``(variables, x) -> outputs``; it must not depend on the value of the batch size.
        variables: pytree of arrays, written into the artifact as constants.
        input_shape: shape of one input, without the batch, such as ``(28, 28, 1)``.
        dtype: element type of the input.
        platforms: where it has to run.

    Raises:
        ExportError: ``apply`` cannot be traced with an unknown batch size.
    """
    batch = jax.export.symbolic_shape(",".join(["batch", *map(str, input_shape)]))

    def network(x: jax.Array) -> Any:
        return apply(variables, x)

    def row_by_row(x: jax.Array) -> Any:
        def one(row: jax.Array) -> Any:
            return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), network(row[None]))

        return jax.vmap(one)(x)

    def export(function: Callable[[jax.Array], Any]) -> jax.export.Exported:
        shapes = jax.ShapeDtypeStruct(batch, dtype)
        return jax.export.export(jax.jit(function), platforms=tuple(platforms))(shapes)

    try:
        exported = export(network)
    except Exception as error:
        # Some functions trace otherwise for a batch of unknown size (strided indexing becomes a
        # gather); of a single row they do not.
        try:
            exported = export(row_by_row)
        except Exception:
            raise ExportError(
                f"the network cannot be exported for an input (batch, {tuple(input_shape)}): "
                f"{error}"
            ) from error
    return bytes(exported.serialize())


def load_stablehlo(content: bytes | str | os.PathLike) -> Apply:
    """The function of `export_stablehlo`, ``x -> outputs``, from its bytes or their file.

    Raises:
        ExportError: the content is no exported function, or is cut off.
    """
    where = "the content" if isinstance(content, bytes) else os.fspath(content)
    data = content if isinstance(content, bytes) else Path(content).read_bytes()
    try:
        return jax.export.deserialize(bytearray(data)).call
    except Exception as error:
        raise ExportError(f"{where} is no exported network, or cut off: {error}") from error


def _to_numpy(dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    if dtype not in _TYPES:
        raise ValueError(f"element type {dtype} is not one of {', '.join(_TYPES)}")
    return np.frombuffer(bytearray(data), _TYPES[dtype]).reshape(shape)


def _check_group(where: str, group: Any) -> None:
    if not isinstance(group, Mapping) or set(group) != {"size", "width", "kept"}:
        raise ExportError(f"{where} must hold size, width and kept")
    size, width, kept = group["size"], group["width"], group["kept"]
    if not isinstance(kept, list) or not all(type(unit) is int for unit in [size, width, *kept]):
        raise ExportError(f"{where} must hold integers")
    if width != len(kept):
        raise ExportError(f"{where} has width {width} but keeps {len(kept)} units")
    if kept != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < size):
        raise ExportError(f"{where} must keep increasing units below its size {size}")


def _plan_hash(plan: Mapping[str, Any]) -> str:
    content = {name: value for name, value in plan.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
