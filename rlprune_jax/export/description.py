"""What a stored network takes, does with it first, and returns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlprune_jax.export.errors import ExportError
from rlprune_jax.files import to_json
from rlprune_jax.types import PyTree

Json = Mapping[str, object]
"""A JSON object."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a network's inputs or outputs.

    Attributes:
        shape: without the batch; of an output a size may be an expression in ``batch``.
        dtype: name of the element type, such as ``"uint8"``.
        batched: whether a batch axis stands before ``shape``.
    """

    shape: tuple[int | str, ...]
    dtype: str
    batched: bool = True


class Description(NamedTuple):
    """What the exported network takes and returns.

    Made by `export_stablehlo`; add what only the caller knows with ``_replace(prepare=...,
    class_names=...)`` and hand it to `make_plan` and `loading_text`.

    Attributes:
        inputs: for each argument an `ArraySpec`, or dicts, lists and tuples of them.
        outputs: the same for what is returned.
        batch: the one number of examples it takes; None for any number.
        prepare: what it does to raw inputs first, with an entry ``"kind"`` and others that have a
            JSON form (see `standardisation`); None where it takes inputs that are prepared.
        class_names: of a classifier, in the order of its outputs; else None.
    """

    inputs: tuple[PyTree, ...]
    outputs: PyTree
    batch: int | None = None
    prepare: Json | None = None
    class_names: tuple[str, ...] | None = None


def standardisation(mean: ArrayLike, std: ArrayLike, scale: float = 255.0) -> Json:
    """Describe the preparation ``(x / scale - mean) / std``.

    Use it for ``Description.prepare`` of a network that takes raw images.

    Args:
        mean: f32[C] or a number, of the scaled values.
        std: likewise; above 0.
        scale: what raw values are divided by; above 0.

    Raises:
        ExportError: a number is not finite, ``std`` or ``scale`` is not above 0, or ``mean`` and
            ``std`` have different lengths.

    Example:
        >>> standardisation([0.5], [0.25])
        {'kind': 'standardise', 'scale': 255.0, 'mean': [0.5], 'std': [0.25]}
    """
    described = {
        "kind": "standardise",
        "scale": float(scale),
        "mean": np.atleast_1d(np.asarray(mean, float)).tolist(),
        "std": np.atleast_1d(np.asarray(std, float)).tolist(),
    }
    _check_prepare("standardisation", described)
    return described


def description_to_json(description: Description) -> Json:
    """Return a description as plain JSON.

    Raises:
        ExportError: an entry is none that `description_from_json` reads.
    """
    content: dict[str, object] = {
        "inputs": [_specs_to_json(each) for each in description.inputs],
        "outputs": _specs_to_json(description.outputs),
        "batch": description.batch,
        "prepare": to_json(description.prepare),
        "class_names": to_json(description.class_names),
    }
    description_from_json("description", content)
    return content


def description_from_json(where: str, content: object) -> Description:
    """Return the description that `description_to_json` made into JSON.

    Args:
        where: file or argument, for the message.
        content: to check and read.

    Raises:
        ExportError: the message says where and what is wrong.
    """
    if not isinstance(content, Mapping) or set(content) != set(Description._fields):
        raise ExportError(f"{where} must hold {', '.join(Description._fields)}")
    inputs, batch, names = content["inputs"], content["batch"], content["class_names"]
    if not isinstance(inputs, list) or not inputs:
        raise ExportError(f"{where}: inputs must list at least one array, got {inputs!r}")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ExportError(f"{where}: batch={batch!r} must be null or a number of at least 1")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ExportError(f"{where}: class_names={names!r} must be null or list texts")
    if content["prepare"] is not None:
        _check_prepare(where, content["prepare"])
    return Description(
        inputs=tuple(_specs_from_json(f"{where}: inputs", each) for each in inputs),
        outputs=_specs_from_json(f"{where}: outputs", content["outputs"]),
        batch=batch,
        prepare=content["prepare"],
        class_names=None if names is None else tuple(names),
    )


def _check_prepare(where: str, prepare: object) -> None:
    if not isinstance(prepare, Mapping) or not isinstance(prepare.get("kind"), str):
        raise ExportError(
            f"{where}: prepare={prepare!r} must be null or have a kind, as standardisation(mean, "
            "std) has"
        )
    if prepare["kind"] != "standardise":
        return
    if set(prepare) != {"kind", "scale", "mean", "std"}:
        raise ExportError(f"{where}: prepare must hold kind, scale, mean and std, got {prepare!r}")
    scale, mean, std = prepare["scale"], prepare["mean"], prepare["std"]
    if not all(isinstance(each, list) and all(map(_is_finite, each)) for each in (mean, std)):
        raise ExportError(f"{where}: prepare must list finite numbers, got {mean=} and {std=}")
    if not mean or len(mean) != len(std):
        raise ExportError(f"{where}: prepare must have one std per mean, got {mean=} and {std=}")
    if not _is_finite(scale) or not all(each > 0 for each in (scale, *std)):
        raise ExportError(f"{where}: prepare must divide by more than 0, got {scale=} and {std=}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _specs_to_json(specs: PyTree) -> object:
    """Return a spec as an object with ``shape``, containers tagged ``dict`` and ``tuple``."""
    match specs:
        case ArraySpec():
            return to_json(specs)
        case dict():
            return {"dict": {name: _specs_to_json(each) for name, each in specs.items()}}
        case tuple():
            return {"tuple": [_specs_to_json(each) for each in specs]}
        case list():
            return [_specs_to_json(each) for each in specs]
        case None:
            return None
    raise ExportError(f"a description holds ArraySpec in dicts, lists and tuples, got {specs!r}")


def _specs_from_json(where: str, content: object) -> PyTree:
    match content:
        case {"shape": list(shape), "dtype": str(dtype), "batched": bool(batched), **more} if (
            not more
        ):
            _check_array(where, shape, dtype)
            return ArraySpec(tuple(shape), dtype, batched)
        case {"dict": dict(named), **more} if not more:
            return {name: _specs_from_json(where, each) for name, each in named.items()}
        case {"tuple": list(several), **more} if not more:
            return tuple(_specs_from_json(where, each) for each in several)
        case list(several):
            return [_specs_from_json(where, each) for each in several]
        case None:
            return None
    raise ExportError(f"{where} must have shape, dtype and batched, got {content!r}")


def _check_array(where: str, shape: Sequence[object], dtype: str) -> None:
    for size in shape:
        if not isinstance(size, str) and (type(size) is not int or size < 0):
            raise ExportError(f"{where}: shape={shape} must hold sizes of at least 0")
    try:
        np.dtype(dtype)
    except TypeError as error:
        raise ExportError(f"{where}: dtype={dtype!r} is no element type") from error
