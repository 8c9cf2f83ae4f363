"""Weights on disk as safetensors, for any pytree of arrays."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from rlprune_jax.export.errors import ExportError, read_stored
from rlprune_jax.files import write_atomically
from rlprune_jax.pytree import flatten_with_paths, host_array, is_key
from rlprune_jax.types import PyTree, Variables

WEIGHTS = "weights.safetensors"
"""Name of the file of weights in a folder of a slim network."""

_FORMAT = "rlprune_jax.weights/"
_VERSIONS = ("1", "2", "3")
_SEALED = "3"
_RESERVED = "__metadata__"

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
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}
_DTYPES = {np.dtype(each) for each in _TYPES.values()}
_NAMED_AT_MOST = 8


class Step(NamedTuple):
    """One step from a container to what it holds.

    Attributes:
        kind: of a dict a key, of a list or tuple an index, of another object an attribute.
        name: of the key or attribute, or the index.
    """

    kind: Literal["key", "index", "attribute"]
    name: str | int


class StoredLeaf(NamedTuple):
    """One leaf of a file of weights.

    Attributes:
        steps: from the root to the leaf, as in the tree that was saved.
        value: NumPy array, or an array of typed random keys.
    """

    steps: tuple[Step, ...]
    value: np.ndarray | jax.Array


def save_weights(path: str | os.PathLike, variables: Variables) -> None:
    """Write a pytree of arrays as safetensors.

    Use it for the variables of any framework: nested dicts (string and integer keys), FrozenDict,
    NNX State, Equinox modules split by ``equinox.partition``, tuples, lists, NamedTuples,
    dataclasses. Each array is stored under its path, keys joined by slashes; typed random keys as
    their words. The metadata name the random implementation, and the keys of a path that a path
    alone does not tell (indices, attributes, integers, names with a slash), and hold a checksum.

    Args:
        path: file to write, usually ``slim/weights.safetensors``.
        variables: pytree with arrays at the leaves.

    Raises:
        TypeError: a leaf is no array that safetensors can hold, or a dict's key is neither text
            nor an integer.
        ValueError: two leaves have the same path, as in ``{"a": {"b": 1}, "a/b": 2}``, or one is
            called ``"__metadata__"``.
        UnwritableError: the file cannot be written.

    Example:
        >>> import os, tempfile
        >>> import jax.numpy as jnp
        >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
        >>> save_weights(path, {"layers": [{"kernel": jnp.ones((2, 3))}]})
        >>> load_weights(path)["layers"][0]["kernel"].shape
        (2, 3)
    """
    entries, _ = jax.tree_util.tree_flatten_with_path(variables)
    flat = flatten_with_paths(variables)
    keys = {
        name: [_encode(name, key) for key in path]
        for name, (path, _) in zip(flat, entries, strict=True)
    }
    told_by_path = {name: name.split("/") for name in flat}
    metadata = {
        "format": _FORMAT + _VERSIONS[-1],
        "keys": json.dumps({k: v for k, v in keys.items() if v != told_by_path[k]}),
        "random": json.dumps({k: _implementation(k, v) for k, v in flat.items() if is_key(v)}),
    }
    if _RESERVED in flat:
        raise ValueError(f"variables have a leaf {_RESERVED!r}, which safetensors keeps; rename it")
    arrays = {name: _to_array(name, leaf) for name, leaf in flat.items()}
    metadata["sha256"] = _digest(arrays, metadata)
    write_atomically(path, safetensors.numpy.save(arrays, metadata))


def load_weights(path: str | os.PathLike, like: PyTree = None) -> Variables:
    """Read what `save_weights` wrote, bit for bit.

    Without ``like`` the result is made of dicts and lists, which suits networks whose variables
    are dicts. Pass ``like`` where the network wants its own containers (NNX State, Equinox
    modules, tuples), or to be sure of what the file holds.

    Args:
        path: file to read; any safetensors file, named by slash-joined paths, will do.
        like: pytree of arrays or of ``jax.ShapeDtypeStruct`` whose containers the result has.
            Paths and element types must be those of the file; shapes may differ, so that the dense
            network's variables can stand for those of the slim one.

    Returns:
        Pytree of NumPy arrays, and of typed random keys where such were saved. Without ``like``,
        attributes have become keys of dicts, tuples lists, a ``None`` between elements of a list
        is kept, and what held no array is gone.

    Raises:
        ExportError: there is no such file, it is not safetensors, is cut off, was changed or is of
            an unknown version, or paths or element types are not those of ``like``; the message
            names them.
    """
    stored = read_leaves(path)
    return nest_leaves(path, stored) if like is None else _arrange(os.fspath(path), stored, like)


def read_leaves(path: str | os.PathLike) -> dict[str, StoredLeaf]:
    """Return the leaves of a file of weights by path.

    Raises:
        ExportError: there is no such file, it is not safetensors, is cut off, was changed or is of
            an unknown version.
    """
    content = read_stored(path, "save_weights")
    try:
        # safetensors.numpy.load knows no bfloat16.
        arrays = {name: _to_numpy(**entry) for name, entry in safetensors.deserialize(content)}
        metadata = _metadata(content)
        _check_digest(arrays, metadata)
        known_keys = json.loads(metadata.get("keys", "{}"))
        random = json.loads(metadata.get("random", "{}"))
        return {
            name: StoredLeaf(
                steps=tuple(map(_decode, known_keys.get(name, name.split("/")))),
                value=_to_keys(array, random[name]) if name in random else array,
            )
            for name, array in sorted(arrays.items())
        }
    except (
        safetensors.SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ExportError(
            f"{os.fspath(path)} is no safetensors file of weights: {error}; "
            "name a file that save_weights has written"
        ) from error


def nest_leaves(path: str | os.PathLike, stored: Mapping[str, StoredLeaf]) -> Variables:
    """Nest the leaves of a file in dicts and lists.

    Raises:
        ExportError: the steps to the leaves form no tree; the message names ``path``.
    """
    try:
        return _nest([(leaf.steps, leaf.value) for leaf in stored.values()])
    except ValueError as error:
        raise ExportError(f"{os.fspath(path)} holds no tree of weights: {error}") from error


def _encode(path: str, key: object) -> object:
    """Return a key as JSON: names and integers of dicts bare, indices and attributes in a list."""
    match key:
        case DictKey(key=str(name)):
            return str(name)
        case DictKey(key=int() | np.integer() as number) if not isinstance(number, bool):
            return int(number)
        case SequenceKey(idx=index) | FlattenedIndexKey(key=index):
            return [index]
        case GetAttrKey(name=name):
            return [name]
    raise TypeError(
        f"variables have the key {key} on the path {path!r}; keys must be text or integers, rename "
        "it"
    )


def _decode(key: object) -> Step:
    match key:
        case str() | int():
            return Step("key", key)
        case [int(index)] if index >= 0:
            return Step("index", index)
        case [str(name)]:
            return Step("attribute", name)
    raise ValueError(f"its metadata hold the unknown key {key!r}")


def _implementation(path: str, leaf: jax.Array) -> str:
    name = jax.random.key_impl(leaf)
    if not isinstance(name, str):
        raise TypeError(
            f"variables hold random keys of an unregistered implementation at {path!r}; "
            "store their words (jax.random.key_data) instead"
        )
    return name


def _to_array(path: str, leaf: object) -> np.ndarray:
    array = np.asarray(host_array(leaf), order="C")
    if array.dtype.newbyteorder("=") not in _DTYPES:
        raise TypeError(
            f"variables hold a {type(leaf).__name__} of {array.dtype} at {path!r}, which "
            "safetensors cannot hold; cast it, or split it off (equinox.partition, flax.nnx.split)"
        )
    return array


def _to_numpy(dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    if dtype not in _TYPES:
        raise ValueError(f"element type {dtype} is not one of {', '.join(_TYPES)}")
    return np.frombuffer(bytearray(data), _TYPES[dtype]).reshape(shape)


def _to_keys(words: np.ndarray, implementation: str) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(words), impl=implementation)


def _metadata(content: bytes) -> Mapping[str, str]:
    """Return the metadata that are ours, from a header that safetensors has accepted."""
    end = 8 + int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8:end]).get(_RESERVED, {})
    name = metadata.get("format", "")
    if not name.startswith(_FORMAT):
        # A file of others, unless only the name of the format was changed.
        if {"keys", "random", "sha256"} & set(metadata):
            raise ValueError(f"its format is {name!r}, and its metadata are of {_FORMAT}")
        return {}
    if name.removeprefix(_FORMAT) not in _VERSIONS:
        raise ValueError(f"its format is {name}, this package reads {', '.join(_VERSIONS)}")
    return metadata


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of arrays and what is said of them."""
    said = {name: text for name, text in metadata.items() if name != "sha256"}
    types = {name: [str(each.dtype), list(each.shape)] for name, each in arrays.items()}
    digest = hashlib.sha256(json.dumps([said, types], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def _check_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != _FORMAT + _SEALED:
        return
    if metadata.get("sha256") != _digest(arrays, metadata):
        raise ValueError("it was changed after it was written: its sha256 differs")


def _nest(entries: list[tuple[tuple[Step, ...], np.ndarray | jax.Array]]) -> PyTree:
    """Return dicts and lists in which each value lies at the end of its steps."""
    if len(entries) == 1 and not entries[0][0]:
        return entries[0][1]
    below: dict[Step, list] = {}
    for steps, value in entries:
        if not steps:
            raise ValueError("one path is both a leaf and a branch")
        below.setdefault(steps[0], []).append((steps[1:], value))
    children = {step.name: _nest(rest) for step, rest in below.items()}
    if len(children) < len(below):
        raise ValueError(f"its metadata mix kinds of keys among {sorted(map(str, children))}")
    if not children or any(step.kind != "index" for step in below):
        return children
    # An index that is missing held no array: None keeps the place of the others.
    return [children.get(index) for index in range(max(map(int, children)) + 1)]


def _arrange(path: str, stored: Mapping[str, StoredLeaf], like: PyTree) -> PyTree:
    """Return the stored values in the containers of ``like``."""
    wanted = flatten_with_paths(like)
    lacking = [f"it lacks {name!r}" for name in wanted if name not in stored]
    unknown = [f"{name!r} is not in like" for name in stored if name not in wanted]
    others = [
        f"{name!r} is {stored[name].value.dtype}, in like {_dtype(leaf)}"
        for name, leaf in wanted.items()
        if name in stored and not _same_type(stored[name].value, _dtype(leaf))
    ]
    if faults := [*lacking, *unknown, *others]:
        named = "; ".join(faults[:_NAMED_AT_MOST])
        more = f"; and {len(faults) - _NAMED_AT_MOST} more" if len(faults) > _NAMED_AT_MOST else ""
        raise ExportError(
            f"{path} does not fit like: {named}{more}; pass the variables, or their shapes, of the "
            "network that was saved"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [stored[name].value for name in wanted])


def _dtype(leaf: object) -> np.dtype:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _same_type(stored: np.ndarray | jax.Array, wanted: np.dtype) -> bool:
    """Whether a type is the wanted one, or becomes it where JAX has 64 bits switched off."""
    return stored.dtype == wanted or jax.dtypes.result_type(stored) == wanted
