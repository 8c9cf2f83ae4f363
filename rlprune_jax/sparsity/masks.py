"""Make weight masks, apply them and count what they keep.

A mask is a bool pytree congruent to the parameters, True where a weight is kept. A leaf that is
never pruned has the scalar ``True``.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.pytree import flatten_with_paths, leaf_paths
from rlprune_jax.types import Mask, PyTree

Prunable = str | re.Pattern | Callable[[str, PyTree], bool]
"""Which leaves are pruned: a regular expression searched in their paths, or ``(path, leaf)``."""


def make_mask(params: PyTree, prunable: Prunable | None = None) -> Mask:
    """Make a mask that keeps everything.

    Every pruner starts from it; ``prunable`` says which leaves it may touch.

    Args:
        params: any pytree of arrays (dict, FrozenDict, tuple, dataclass, NNX state, a bare array).
        prunable: a regular expression searched in the slash-joined path of each leaf, or a function
            ``(path, leaf) -> bool``; by default floating leaves of rank above 1: kernels and
            embeddings, no biases, no norms.

    Returns:
        The same pytree with ``bool[shape of the leaf]``, all True, where a leaf may be pruned and
        the scalar ``True`` where it never is.

    Raises:
        ValueError: nothing is prunable, or ``prunable`` is no regular expression.
        TypeError: ``prunable`` is neither text nor a function, or chooses a leaf of no floating
            type; a leaf of ``params`` is no array or number.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        >>> mask = make_mask(params)
        >>> mask["kernel"].shape, mask["bias"].shape
        ((2, 3), ())
    """
    prunable = _check_prunable(prunable)
    flat = flatten_with_paths(params)
    _check_arrays(flat)
    chosen = [path for path, leaf in flat.items() if _is_prunable(path, leaf, prunable)]
    if not chosen:
        how = (
            "no leaf is floating and of rank above 1; name leaves by prunable=, a regular "
            "expression on paths"
            if prunable is None
            else f"prunable={_named(prunable)} chooses no leaf of rank above 0"
        )
        known = ", ".join(map(repr, list(flat)[:8]))
        raise ValueError(f"nothing is prunable: {how}; the leaves are {known}")
    leaves = [
        jnp.ones(np.shape(leaf) if path in set(chosen) else (), bool) for path, leaf in flat.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def apply_mask(params: PyTree, mask: Mask) -> PyTree:
    """Set pruned weights to 0.

    Use it after every pruning and before evaluation. NaN and infinity under the mask become 0 too.

    Args:
        params: pytree of arrays.
        mask: congruent to it; False is pruned.

    Returns:
        The parameters, kept ones bit-equal; the gradient of pruned ones is 0.

    Raises:
        ValueError: ``mask`` is not congruent; the message names the first path that differs.
        TypeError: a leaf of ``mask`` is not bool.

    Example:
        >>> import jax.numpy as jnp
        >>> apply_mask(jnp.array([1.0, jnp.nan]), jnp.array([True, False])).tolist()
        [1.0, 0.0]
    """
    check_congruent(params, mask)
    leaves = [
        # Not pruned means not touched, so that a leaf of any type passes.
        leaf if np.ndim(keep) == 0 else jnp.where(keep, leaf, jnp.zeros_like(leaf))
        for leaf, keep in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def intersect_masks(first: Mask, *others: Mask) -> Mask:
    """Return the mask of what every mask keeps.

    Use it to prune by two rules at once. A leaf is prunable where it is in any of the masks.

    Args:
        first: a mask.
        *others: masks congruent to it.

    Raises:
        ValueError: the masks are not congruent to each other.

    Example:
        >>> import jax.numpy as jnp
        >>> intersect_masks({"w": jnp.array([True, False])}, {"w": jnp.array(True)})["w"].tolist()
        [True, False]
    """
    check_congruent(first, first, "mask 0")
    for number, other in enumerate(others, 1):
        check_congruent(first, other, f"mask {number}", either=True)
    flat = [jax.tree.leaves(mask) for mask in (first, *others)]
    leaves = [jnp.stack(jnp.broadcast_arrays(*each)).all(0) for each in zip(*flat, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(first), leaves)


def prunable_leaves(tree: PyTree, mask: Mask) -> dict[str, jax.Array]:
    """Return the leaves that a mask may prune, by path.

    They come in the order of ``jax.tree.leaves``.

    Raises:
        ValueError: ``mask`` is not congruent to ``tree``.
        TypeError: a leaf of ``mask`` is not bool.
    """
    check_congruent(tree, mask)
    kept = jax.tree.leaves(mask)
    flat = flatten_with_paths(tree)
    return {
        path: leaf
        for (path, leaf), keep in zip(flat.items(), kept, strict=True)
        if np.ndim(keep) > 0
    }


class Density(NamedTuple):
    """Hold how many weights of a leaf are left.

    Attributes:
        live: weights kept, an exact Python integer.
        total: weights of the leaf.
    """

    live: int
    total: int

    @property
    def density(self) -> float:
        """Fraction of weights left."""
        return self.live / self.total if self.total else 0.0


def density_report(mask: Mask) -> dict[str, Density]:
    """Count what each prunable leaf keeps, on the host.

    Returns:
        path -> `Density` in the order of the leaves; their sum is `total_density`.

    Example:
        >>> import jax.numpy as jnp
        >>> density_report({"w": jnp.array([True, False, True, True])})
        {'w': Density(live=3, total=4)}
    """
    return {
        path: Density(int(np.count_nonzero(np.asarray(leaf))), int(np.size(leaf)))
        for path, leaf in prunable_leaves(mask, mask).items()
    }


def total_density(mask: Mask) -> Density:
    """Count what all prunable leaves keep together, on the host."""
    report = density_report(mask).values()
    return Density(sum(each.live for each in report), sum(each.total for each in report))


def check_congruent(tree: PyTree, mask: Mask, name: str = "mask", *, either: bool = False) -> None:
    """Refuse a mask that is not congruent to a tree.

    It must have the same paths, and at each the leaf's shape or a scalar.

    Args:
        tree: of arrays.
        mask: to check.
        name: of it, in messages.
        either: whether a scalar in ``tree`` goes with any shape too.

    Raises:
        ValueError: naming the first path that differs.
        TypeError: a leaf of ``mask`` is not bool.
    """
    paths, mask_paths = leaf_paths(tree), leaf_paths(mask)
    if not mask_paths:
        raise ValueError(f"{name}={mask!r} holds no array; make it by make_mask(params)")
    for path, mask_path in zip(paths, mask_paths, strict=False):
        if path != mask_path:
            raise ValueError(
                f"{name} is not congruent to params: it has a leaf {mask_path!r} where params have "
                f"{path!r}; make it by make_mask(params)"
            )
    if len(paths) != len(mask_paths):
        longer, missing = (
            (paths, "lacks the leaf") if len(paths) > len(mask_paths) else (mask_paths, "also has")
        )
        raise ValueError(
            f"{name} is not congruent to params: it {missing} "
            f"{longer[min(len(paths), len(mask_paths))]!r}; make it by make_mask(params)"
        )
    for path, leaf, keep in zip(paths, jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True):
        shape, own = np.shape(leaf), np.shape(keep)
        if own not in (shape, ()) and not (either and shape == ()):
            raise ValueError(
                f"{name} is not congruent to params: at {path!r} it has shape {own} and params "
                f"{shape}; make it by make_mask(params)"
            )
        kind = type(keep).__name__ if isinstance(keep, str | bytes) else jnp.result_type(keep)
        if kind != jnp.bool_:
            raise TypeError(f"{name} at {path!r} is {kind}, not bool; True is kept")


def _is_prunable(path: str, leaf: jax.Array, prunable: Prunable | None) -> bool:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    if prunable is None:
        return floating and np.ndim(leaf) > 1
    if callable(prunable):
        answer = prunable(path, leaf)
        if not isinstance(answer, bool | np.bool_):
            raise TypeError(
                f"prunable({path!r}, leaf) gives {answer!r}; it must give True or False"
            )
        chosen = bool(answer)
    else:
        chosen = re.search(prunable, path) is not None
    # A scalar cannot be told from one that is never pruned.
    chosen = chosen and np.ndim(leaf) > 0
    if chosen and not floating:
        raise TypeError(
            f"prunable={_named(prunable)} chooses {path!r}, which is {jnp.result_type(leaf)}; only "
            "floating leaves are pruned"
        )
    return chosen


def _check_prunable(prunable: Prunable | None) -> Prunable | None:
    """Return the choice of leaves with its regular expression compiled."""
    if prunable is None or callable(prunable) or isinstance(prunable, re.Pattern):
        return prunable
    if not isinstance(prunable, str):
        raise TypeError(
            f"prunable={prunable!r} must be a regular expression or a function (path, leaf) -> bool"
        )
    try:
        return re.compile(prunable)
    except re.error as error:
        raise ValueError(
            f"prunable={prunable!r} is no regular expression: {error}; escape special characters "
            "by re.escape"
        ) from None


def _check_arrays(flat: dict[str, jax.Array]) -> None:
    for path, leaf in flat.items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(
                f"params hold a {type(leaf).__name__} at {path!r}; a mask is made for a pytree of "
                "arrays alone"
            )


def _named(prunable: Prunable) -> str:
    """Return what was given, as a message shows it."""
    return repr(prunable.pattern) if isinstance(prunable, re.Pattern) else repr(prunable)
