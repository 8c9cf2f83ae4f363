"""Say which weights are compared with each other, and reduce over them.

The scope ``"global"`` is all prunable weights, ``"layer"`` each leaf by itself, ``"neuron"`` each
output unit of each leaf by itself: of a convolution a filter with all its inputs and positions. A
quantity per scope is a scalar, a dict path -> scalar, or a dict path -> [units].
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rlprune_jax.checks import require, require_count
from rlprune_jax.sparsity.masks import prunable_leaves
from rlprune_jax.types import Mask, PyTree

Scope = Literal["global", "layer", "neuron"]
SCOPES: tuple[str, ...] = get_args(Scope)
MOST_AXES = 64
"""No array has more axes, and an axis may count from behind."""

PerScope = PyTree
"""Scalar, dict path -> scalar, or dict path -> [units of the leaf], by scope."""


BUNDLED = {"cpu": 2**17}
"""Most weights of a leaf that is reduced together with its neighbours, by backend.

Putting large ones together costs a CPU time: of 20 leaves of 400,000, half as much again in SAP's
update.
"""
BUNDLED_ELSEWHERE = 2**20


class Bundles(NamedTuple):
    """Hold which leaves are reduced as one vector.

    Every reduction over a leaf is a program of its own, so many leaves compile for long. Small ones
    that follow one another are put together, which copies little; large ones are left alone, and
    there cannot be many.

    Attributes:
        paths: of each bundle, by the path of its first leaf.
        shapes: of each leaf, by its path.
    """

    paths: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]

    def join(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return an array for each bundle, single leaves unchanged.

        Args:
            values: of each leaf's shape.
        """
        return {
            first: jnp.concatenate([jnp.ravel(values[path]) for path in paths])
            if len(paths) > 1
            else values[first]
            for first, paths in self.paths.items()
        }

    def part(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each leaf's part of the bundles' arrays."""
        found = {}
        for first, paths in self.paths.items():
            if len(paths) == 1:
                found[first] = values[first]
                continue
            start = 0
            # Behind a barrier, or what is parted may be computed anew for each part.
            whole = jax.lax.optimization_barrier(values[first])
            for path in paths:
                size = math.prod(self.shapes[path])
                piece = jax.lax.slice(whole, (start,), (start + size,))
                found[path] = piece.reshape(self.shapes[path])
                start += size
        return found


def bundle(leaves: Mapping[str, jax.Array], scope: str) -> Bundles:
    """Return which leaves a scope reduces together.

    All alone but in ``"global"``; and on several devices, where a leaf may be sharded and putting
    it together with others would gather it.

    Args:
        leaves: by path, in order.
        scope: as in ``count_live``.

    Example:
        >>> import jax.numpy as jnp
        >>> leaves = {"a": jnp.ones(2), "b": jnp.ones((2, 2)), "c": jnp.ones(3, bool)}
        >>> bundle(leaves, "global").paths
        {'a': ('a', 'b'), 'c': ('c',)}
    """
    paths: dict[str, tuple[str, ...]] = {}
    alone = scope != "global" or jax.device_count() > 1
    most = BUNDLED.get(jax.default_backend(), BUNDLED_ELSEWHERE)
    kind = last = None
    for path, leaf in leaves.items():
        following = None if alone or np.size(leaf) > most else jnp.result_type(leaf)
        if last is not None and following is not None and following == kind:
            paths[last] += (path,)
        else:
            paths[path], last = (path,), path
        kind = following
    return Bundles(paths, {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()})


def check_scope(scope: str, unit_axis: int = -1) -> None:
    """Refuse an unknown scope or an impossible axis.

    Raises:
        ValueError: naming what is wrong and what there is.
    """
    axis = require_count("unit_axis", unit_axis, least=-MOST_AXES)
    require(axis < MOST_AXES, "unit_axis", unit_axis, "an axis of the leaves; Flax has units last")
    if not isinstance(scope, str) or scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is unknown; choose from {', '.join(SCOPES)}")


def spread(
    values: PerScope, leaves: dict[str, jax.Array], scope: str, unit_axis: int = -1
) -> dict[str, jax.Array]:
    """Reshape each scope's value to broadcast over its leaves.

    Returns:
        path -> array.

    Example:
        >>> import jax.numpy as jnp
        >>> leaves = {"w": jnp.ones((2, 3))}
        >>> spread({"w": jnp.arange(3)}, leaves, "neuron")["w"].shape
        (1, 3)
    """
    spread_out = {}
    for path, leaf in leaves.items():
        value = values if scope == "global" else values[path]
        if scope == "neuron":
            shape = [1] * np.ndim(leaf)
            shape[unit_axis] = -1
            value = jnp.reshape(value, shape)
        spread_out[path] = value
    return spread_out


def map_scopes(function: Callable[..., PyTree], *values: PerScope) -> PerScope:
    """Apply a function to the value of each scope."""
    if isinstance(values[0], dict):
        return {path: function(*(value[path] for value in values)) for path in values[0]}
    return function(*values)


def count_live(mask: Mask, scope: str = "global", unit_axis: int = -1) -> PerScope:
    """Count the live weights of each scope.

    Use it beside ``drop_smallest``, which takes counts of the same form.

    Args:
        mask: bool pytree; scalar leaves are not prunable and do not count.
        scope: ``"global"``, ``"layer"`` or ``"neuron"``.
        unit_axis: axis of the output units, for ``"neuron"``.

    Returns:
        int32, of more than 2^31 - 1 weights int64.

    Raises:
        ValueError: nothing is prunable, an unknown ``scope``, or too many weights for int32 where
            ``jax_enable_x64`` is off.

    Example:
        >>> import jax.numpy as jnp
        >>> mask = {"w": jnp.array([True, False, True]), "b": jnp.array(True)}
        >>> int(count_live(mask)), int(count_live(mask, "layer")["w"])
        (2, 2)
    """
    leaves = prunable_leaves(mask, mask)
    if not leaves:
        raise ValueError("mask has no prunable leaf; make it by make_mask(params)")
    dtype = count_dtype(leaves, scope)
    leaves = bundle(leaves, scope).join(leaves)
    flags = {path: [leaf, ~leaf] for path, leaf in leaves.items()}
    return count_flags(flags, scope, unit_axis, dtype)[0]


def count_flags(
    flags: dict[str, list[jax.Array]], scope: str, unit_axis: int, dtype: DTypeLike
) -> list[PerScope]:
    """Count several sets of flags in one pass.

    XLA's CPU sum of integers takes ten times as long alone as several in one reduction (25 and 2 ms
    for 11 M), so two or more is the way to ask.

    Args:
        flags: path -> M arrays bool of one shape.
        scope: as in ``count_live``.
        unit_axis: axis of the output units.
        dtype: of the counts, as ``count_dtype`` gives.

    Returns:
        M counts per scope.
    """
    check_scope(scope, unit_axis)

    def counted(path: str, each: list[jax.Array]) -> tuple[jax.Array, ...]:
        zero = jnp.zeros((), dtype)
        return jax.lax.reduce(
            tuple(jnp.asarray(flag).astype(dtype) for flag in each),
            (zero,) * len(each),
            lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
            summed_axes(path, np.ndim(each[0]), scope, unit_axis),
        )

    parts = {path: counted(path, each) for path, each in flags.items()}
    number = len(next(iter(parts.values())))
    by_flag = [{path: part[place] for path, part in parts.items()} for place in range(number)]
    if scope != "global":
        return list(by_flag)
    return [sum(counts.values(), start=jnp.zeros((), dtype)) for counts in by_flag]


def count_dtype(leaves: dict[str, jax.Array], scope: str) -> DTypeLike:
    """Return the integer type that counts a scope without overflow.

    Raises:
        ValueError: there is none, since ``jax_enable_x64`` is off.
    """
    sizes = [int(np.size(leaf)) for leaf in leaves.values()]
    largest = sum(sizes) if scope == "global" else max(sizes)
    if largest < 2**31:
        return jnp.int32
    if jnp.zeros((), int).dtype != jnp.int64:
        raise ValueError(
            f"scope={scope!r} holds {largest:,} weights, more than int32 counts; enable "
            "jax_enable_x64 or choose a narrower scope"
        )
    return jnp.int64


def summed_axes(path: str, rank: int, scope: str, unit_axis: int) -> tuple[int, ...]:
    """Return the axes that a scope reduces over.

    Raises:
        ValueError: ``unit_axis`` is none of the leaf's.
    """
    if scope != "neuron":
        return tuple(range(rank))
    if not -rank <= unit_axis < rank:
        raise ValueError(f"unit_axis={unit_axis} is no axis of {path!r}, which has rank {rank}")
    return tuple(axis for axis in range(rank) if axis != unit_axis % rank)
