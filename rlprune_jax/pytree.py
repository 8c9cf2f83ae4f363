"""Paths, sizes and fingerprints of pytrees."""

import hashlib

import jax
import numpy as np

from rlprune_jax.types import PyTree


def leaf_paths(tree: PyTree) -> list[str]:
    """Return the paths of the leaves, keys joined by slashes.

    Their order is that of ``jax.tree.leaves``. A NamedTuple or dataclass contributes field names, a
    list or tuple its indices, and a tree that is itself one leaf has the path ``""``.

    Example:
        >>> leaf_paths({"params": {"Conv_0": {"kernel": 1.0, "bias": 2.0}}})
        ['params/Conv_0/bias', 'params/Conv_0/kernel']
    """
    entries, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in entries]


def flatten_with_paths(tree: PyTree) -> dict[str, PyTree]:
    """Map paths to leaves, in the order of ``jax.tree.leaves``.

    Raises:
        ValueError: two leaves have the same path, as in ``{"a": {"b": 1}, "a/b": 2}``.
    """
    flat: dict[str, PyTree] = {}
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if path in flat:
            raise ValueError(f"two leaves share the path {path!r}; rename the key with a slash")
        flat[path] = leaf
    return flat


def tree_size(tree: PyTree) -> int:
    """Count the elements of all leaves exactly."""
    return sum(_array(leaf).size for leaf in jax.tree.leaves(tree))


def tree_bytes(tree: PyTree) -> int:
    """Count the bytes of all leaves in memory.

    A `jax.ShapeDtypeStruct` counts as the array that it stands for.
    """
    arrays = (_array(leaf) for leaf in jax.tree.leaves(tree))
    return sum(array.size * array.dtype.itemsize for array in arrays)


def tree_hash(tree: PyTree) -> str:
    """Return the SHA-256 of a tree as 64 hexadecimal digits.

    It goes over path, dtype, shape and bytes of every leaf. Two trees have the same hash exactly
    when they hold bit-equal leaves under the same paths; the kind of container does not enter, so a
    NamedTuple and a dict of its fields agree.
    """
    digest = hashlib.sha256()
    flat = flatten_with_paths(tree)
    for path in sorted(flat):
        array = _array(flat[path])
        header = f"{path}\0{array.dtype}\0{tuple(array.shape)}\0"
        digest.update(header.encode())
        digest.update(np.ascontiguousarray(host_array(array)).tobytes())
    return digest.hexdigest()


def is_key(leaf: object) -> bool:
    """Return whether a leaf is a typed random key.

    A `jax.ShapeDtypeStruct` of one counts too.
    """
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def host_array(leaf: PyTree) -> np.ndarray:
    """Copy a leaf to the host.

    Of a typed random key the result holds its words u32[..., words].
    """
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _array(leaf: PyTree) -> PyTree:
    return leaf if hasattr(leaf, "dtype") and hasattr(leaf, "size") else np.asarray(leaf)
