"""Sum powers of the magnitudes of live weights, as the PQ Index needs them.

Magnitudes are divided by the greatest of their scope first. That takes one pass over the weights,
and all powers together another.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from rlprune_jax.sparsity.masks import make_mask, prunable_leaves
from rlprune_jax.sparsity.scopes import (
    PerScope,
    bundle,
    check_scope,
    count_dtype,
    map_scopes,
    spread,
    summed_axes,
)
from rlprune_jax.types import Mask, PyTree

BLOCK = 32_768
"""Weights a step of the blocked sums, so that all sums stay in a core's cache."""


class Weights(NamedTuple):
    """Hold a leaf and how it is summed.

    Attributes:
        leaf: the weights.
        live: bool of its shape, True where alive; None where all are.
        top: greatest magnitude of its scope, broadcast to the leaf.
        axes: that a sum runs over.
    """

    leaf: jax.Array
    live: jax.Array | None
    top: jax.Array
    axes: tuple[int, ...]


def default_mask(tree: PyTree) -> Mask:
    """Make the mask that stands where none is given.

    All that ``make_mask`` calls prunable is alive, and of a bare array everything.
    """
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)):
        return make_mask(tree, lambda path, leaf: True)
    return make_mask(tree)


def measure_leaves(
    tree: PyTree, mask: Mask | None, scope: str, unit_axis: int
) -> tuple[PerScope, dict[str, Weights]]:
    """Count live weights and find each scope's greatest magnitude.

    Args:
        tree: parameters.
        mask: of what is alive; None for all.
        scope: ``"global"``, ``"layer"`` or ``"neuron"``.
        unit_axis: axis of the output units of a leaf.

    Returns:
        Live weights per scope, and by path each prunable leaf with what its sums need; small ones
        of ``"global"`` together.

    Raises:
        ValueError: an unknown scope, a mask that is not congruent, or nothing prunable.
        TypeError: a prunable leaf of no floating type.
    """
    check_scope(scope, unit_axis)
    chosen = default_mask(tree) if mask is None else mask
    leaves = prunable_leaves(tree, chosen)
    if not leaves:
        raise ValueError("mask has no prunable leaf; make it by make_mask(params)")
    for path, leaf in leaves.items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"leaf {path!r} is {jnp.result_type(leaf)}; the PQ Index takes floats: convert it "
                "or leave it out of the mask"
            )
    dtype = jnp.result_type(jnp.float32, *leaves.values())
    bundles = bundle(leaves, scope)
    leaves = bundles.join({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
    # Without a mask nothing need be read to know what is alive.
    live: Mapping[str, jax.Array | None] = (
        dict.fromkeys(leaves) if mask is None else bundles.join(prunable_leaves(mask, mask))
    )
    axes = {path: summed_axes(path, leaf.ndim, scope, unit_axis) for path, leaf in leaves.items()}
    counting = count_dtype(leaves, scope)
    tops: PerScope = {}
    counts: PerScope = {}
    for path, leaf in leaves.items():
        tops[path], counts[path] = _greatest_and_count(
            _magnitudes(leaf, live[path], dtype), live[path], counting, axes[path]
        )
    if scope == "global":
        tops = jnp.stack(list(tops.values())).max()
        counts = sum(counts.values(), start=jnp.zeros((), counting))
    tops = map_scopes(lambda top: jnp.where(top == 0, 1, top), tops)
    wide = spread(tops, leaves, scope, unit_axis)
    return counts, {
        path: Weights(leaf, live[path], wide[path], axes[path]) for path, leaf in leaves.items()
    }


def _magnitudes(leaf: jax.Array, live: jax.Array | None, dtype: DTypeLike) -> jax.Array:
    magnitudes = jnp.abs(leaf).astype(dtype)
    return magnitudes if live is None else jnp.where(live, magnitudes, 0)


def scaled_magnitudes(leaf: jax.Array, live: jax.Array | None, top: jax.Array) -> jax.Array:
    """Divide magnitudes by the greatest of their scope.

    Pruned ones become 0. A product takes half the time of a division; what equals the greatest is 1
    exactly, so that a constant vector has index 0.
    """
    # The reciprocal of the very greatest would be subnormal, and so 0.
    factor = jnp.maximum(1 / top, jnp.finfo(top.dtype).tiny)
    one = jnp.where(jnp.isfinite(top), 1, jnp.nan).astype(top.dtype)
    magnitudes = _magnitudes(leaf, live, top.dtype)
    scaled = magnitudes * factor
    rounding = jnp.where(magnitudes == top, one - scaled, 0)
    return scaled + jax.lax.stop_gradient(rounding)


def _greatest_and_count(
    magnitudes: jax.Array, live: jax.Array | None, counting: DTypeLike, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return the greatest magnitude and the number of live weights, in one pass.

    The magnitude is NaN where one is. XLA's CPU takes a maximum beside a count at the speed of
    memory. No gradient: the index does not depend on the scale.
    """
    ones = jnp.ones(magnitudes.shape, counting)
    return jax.lax.reduce(
        (jax.lax.stop_gradient(magnitudes), ones if live is None else live.astype(counting)),
        (jnp.zeros((), magnitudes.dtype), jnp.zeros((), counting)),
        lambda a, b: (jnp.maximum(a[0], b[0]), a[1] + b[1]),
        axes,
    )


def _power(values: jax.Array, exponent: ArrayLike) -> jax.Array:
    """Raise numbers from 0 to about 1 to a power, with gradient 0 at 0."""
    if isinstance(exponent, int | float) and exponent in (1, 2):
        return values if exponent == 1 else jnp.square(values)
    positive = values != 0
    base = jnp.where(positive, values, 1)
    if isinstance(exponent, int | float) and exponent == 0.5:
        return jnp.where(positive, jnp.sqrt(base), 0)
    # XLA's CPU vectorises these two and not a power.
    power = jnp.exp(jnp.asarray(exponent, values.dtype) * jnp.log(base))
    return jnp.where(positive, power, 0)


def _power_sums(weights: Weights, exponents: Sequence[ArrayLike]) -> tuple[jax.Array, ...]:
    """Sum ``(magnitude / top)^exponent`` over live weights for each exponent.

    XLA's CPU adds floats one after the other in order, and reads the weights once a sum. Blocks
    that are added elementwise are vectorised, and all sums share one read.
    """
    known = [each if isinstance(each, int | float) else None for each in exponents]

    def powers(
        leaf: jax.Array, live: jax.Array | None, top: jax.Array, given: Sequence[jax.Array]
    ) -> list[jax.Array]:
        scaled = scaled_magnitudes(leaf, live, top)
        chosen = [b if a is None else a for a, b in zip(known, given, strict=True)]
        return [_power(scaled, exponent) for exponent in chosen]

    def plain(
        leaf: jax.Array, live: jax.Array | None, top: jax.Array, *given: jax.Array
    ) -> tuple[jax.Array, ...]:
        return tuple(jnp.sum(each, weights.axes) for each in powers(leaf, live, top, given))

    def blocked(
        leaf: jax.Array, live: jax.Array | None, top: jax.Array, *given: jax.Array
    ) -> tuple[jax.Array, ...]:
        flat, flags = jax.tree.map(jnp.ravel, (leaf, live))
        whole = flat.size // BLOCK

        def add(number: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            cut = lambda each: jax.lax.dynamic_slice(each, (number * BLOCK,), (BLOCK,))  # noqa: E731
            block, alive = jax.tree.map(cut, (flat, flags))
            found = powers(block, alive, top, given)
            return [a + b for a, b in zip(sums, found, strict=True)]

        sums = jax.lax.fori_loop(0, whole, add, [jnp.zeros(BLOCK, top.dtype) for _ in known])
        rest, alive = jax.tree.map(lambda each: each[whole * BLOCK :], (flat, flags))
        ends = powers(rest, alive, top, given)
        return tuple(jnp.sum(a) + jnp.sum(b) for a, b in zip(sums, ends, strict=True))

    leaf = weights.leaf
    # On several devices a leaf may be sharded, and blocks of it would be gathered.
    blocks = leaf.ndim == len(weights.axes) and 4 * BLOCK <= leaf.size < 2**31
    if not blocks or jax.device_count("cpu") > 1:
        return plain(*weights[:3], *map(jnp.asarray, exponents))
    sums = jax.custom_jvp(
        lambda *given: jax.lax.platform_dependent(*given, cpu=blocked, default=plain)
    )
    sums.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return sums(*weights[:3], *map(jnp.asarray, exponents))


def log_means(
    weights: dict[str, Weights], counts: PerScope, exponents: Sequence[ArrayLike], scope: str
) -> list[PerScope]:
    """Return the logarithm of each mean power of live weights.

    Args:
        weights: as ``measure_leaves`` returns.
        counts: likewise.
        exponents: numbers or traced scalars.
        scope: as there.

    Returns:
        One value per scope for each exponent; 0 where all weights are 0.
    """
    sums = {path: _power_sums(each, exponents) for path, each in weights.items()}

    def log_mean(total: jax.Array, count: jax.Array) -> jax.Array:
        degenerate = total == 0
        safe = jnp.where(degenerate, 1, total) / jnp.where(degenerate, 1, count).astype(total.dtype)
        return jnp.log(safe)

    means = []
    for place in range(len(exponents)):
        totals: PerScope = {path: each[place] for path, each in sums.items()}
        if scope == "global":
            totals = functools.reduce(jnp.add, totals.values())
        means.append(map_scopes(log_mean, totals, counts))
    return means
