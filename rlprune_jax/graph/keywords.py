"""Keyword arguments of a network, the arrays among them apart from what is static."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rlprune_jax.types import Apply


class _Array:
    """Stands where an array was taken out."""


_ARRAY = _Array()


class Keywords(NamedTuple):
    """Hold keyword arguments, split by what tracing may see.

    Attributes:
        arrays: those leaves that are traced as further inputs (arrays, typed keys, tracers).
        static: all leaves, each array replaced by a mark.
        structure: of the arguments.
    """

    arrays: tuple[Any, ...]
    static: tuple[object, ...]
    structure: jax.tree_util.PyTreeDef

    def given(self, arrays: tuple[Any, ...]) -> dict[str, Any]:
        """Return the arguments with other arrays in place of these."""
        left = iter(arrays)
        leaves = [next(left) if each is _ARRAY else each for each in self.static]
        return jax.tree.unflatten(self.structure, leaves)


def split_keywords(keywords: Mapping[str, Any]) -> Keywords:
    """Split keyword arguments into arrays and what is static.

    Booleans, numbers, texts, functions and scalars of NumPy are static: they may steer the
    function.

    Example:
        >>> import jax
        >>> split = split_keywords({"train": True, "rngs": {"dropout": jax.random.key(0)}})
        >>> len(split.arrays), split.given(("another key",))
        (1, {'rngs': {'dropout': 'another key'}, 'train': True})
    """
    leaves, structure = jax.tree.flatten(dict(keywords))
    traced = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    return Keywords(
        arrays=tuple(leaf for leaf in leaves if isinstance(leaf, traced)),
        static=tuple(_ARRAY if isinstance(leaf, traced) else leaf for leaf in leaves),
        structure=structure,
    )


def with_keywords(apply: Apply, keywords: Keywords) -> Apply:
    """Fix the static keyword arguments of a network.

    Returns:
        ``(variables, inputs, arrays) -> outputs``, with ``arrays`` as ``keywords.arrays``.
    """

    def call(variables: Any, inputs: tuple[Any, ...], arrays: tuple[Any, ...]) -> Any:
        return apply(variables, *inputs, **keywords.given(arrays))

    return call
