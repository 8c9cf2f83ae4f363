"""PQ Index: how sparse a weight vector is, and how many weights it says are enough.

``I(w) = 1 - d^(1/q - 1/p) |w|_p / |w|_q`` over the d live weights; 0 where all are equal in
magnitude, at most ``1 - d^(1/q - 1/p)``, reached where one weight is not zero. Only with
``p <= 1 <= q``, ``p < q`` has it all six properties of a sparsity measure; other ``0 < p < q``
break the Robin Hood property and warn.

Degenerate input: all weights zero, one weight and none have index 0; a live weight that is NaN or
infinite makes it NaN, a pruned one does not. Live zeros count. float16 and bfloat16 are computed in
float32, float64 in float64; magnitudes are divided by the greatest first, so scale does not matter
from the least normal number to the greatest (subnormal numbers are zero on most devices).

Reference: Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.masks import make_mask, prunable_leaves
from rlprune_jax.scopes import (
    PerScope,
    check_scope,
    count_dtype,
    count_live,
    map_scopes,
    spread,
    summed_axes,
)
from rlprune_jax.types import Mask, PyTree


def pq_index(
    tree: PyTree,
    mask: Mask | None = None,
    *,
    p: ArrayLike = 0.5,
    q: ArrayLike = 1.0,
    scope: str = "global",
    unit_axis: int = -1,
) -> PerScope:
    """PQ Index of the live weights of each scope; larger is sparser.

    Args:
        tree: parameters, any pytree of floating arrays.
        mask: congruent to it, True where alive; by default all that ``make_mask`` calls prunable,
            and of a bare array everything.
        p: exponent of the norm above; traced or a number, scalar. 0.5, 1 and 2 as Python numbers
            are cheapest.
        q: exponent of the norm below, above ``p``.
        scope: ``"global"``, ``"layer"`` or ``"neuron"``.
        unit_axis: axis of the output units of a leaf, for ``"neuron"``; Flax has them last.

    Returns:
        f32[] (f64[] where a leaf is float64); of ``"layer"`` a dict path -> f32[], of ``"neuron"``
        a dict path -> f32[units].

    Raises:
        ValueError: ``p <= 0`` or ``p >= q`` where they are known, an unknown scope, a mask that is
            not congruent (naming the first path that differs), or nothing prunable.
        TypeError: a prunable leaf of no floating type.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(pq_index(jnp.array([1.0, 2.0, 3.0, 4.0]))), 6)
        0.055586
        >>> params = {"dense": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
        >>> {path: float(i) for path, i in pq_index(params, scope="layer").items()}
        {'dense/kernel': 0.5}
    """
    logs = _log_ratio(tree, mask, p, q, scope, unit_axis)
    return map_scopes(lambda log: -jnp.expm1(log), logs)


def pq_bound(
    tree: PyTree,
    mask: Mask | None = None,
    *,
    p: ArrayLike = 0.5,
    q: ArrayLike = 1.0,
    eta_r: ArrayLike = 0.0,
    scope: str = "global",
    unit_axis: int = -1,
) -> PerScope:
    """Least number of weights whose p-norm leaves out a share ``eta_r``: r of Theorem 2.

    ``r = d (1 + eta_r)^(-q / (q - p)) (1 - I)^(p q / (q - p))``, a real number; with ``eta_r`` 0 it
    does not change when zeros are added to the weights.

    Args:
        tree, mask, p, q, scope, unit_axis: as in ``pq_index``.
        eta_r: at least 0; traced or a number.

    Returns:
        As ``pq_index``, from 0 to the number of live weights.

    Raises:
        ValueError: as ``pq_index``, or ``eta_r`` below 0.
        TypeError: as ``pq_index``.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(pq_bound(jnp.array([1.0, 2.0, 3.0, 4.0]), p=1.0, q=2.0)), 4)
        3.3333
    """
    live, logs = log_retained(tree, mask, p, q, eta_r, scope, unit_axis)
    return map_scopes(lambda d, log: d.astype(log.dtype) * jnp.exp(log), live, logs)


def pq_index_grid(
    tree: PyTree,
    mask: Mask | None = None,
    *,
    p: ArrayLike,
    q: ArrayLike,
    scope: str = "global",
    unit_axis: int = -1,
) -> PerScope:
    """PQ Index for every pair of exponents; each exponent costs one pass, not each pair.

    Args:
        tree, mask, scope, unit_axis: as in ``pq_index``.
        p: f32[P].
        q: f32[Q].

    Returns:
        f32[P, Q], with units behind where the scope has them; 0 where ``p = q``, NaN where
        ``p > q``.

    Raises:
        ValueError: an exponent known to be at most 0, or as in ``pq_index``.

    Example:
        >>> import jax.numpy as jnp
        >>> grid = pq_index_grid(jnp.array([1.0, 0.0]), p=jnp.array([0.5, 1.0]), q=jnp.array([1.0]))
        >>> grid.tolist()
        [[0.5], [0.0]]
    """
    for name, values in (("p", p), ("q", q)):
        if np.ndim(values) != 1:
            raise ValueError(f"{name} has shape {np.shape(values)}; give f32[{name.upper()}]")
        if not isinstance(values, jax.core.Tracer) and not (np.asarray(values) > 0).all():
            raise ValueError(f"{name}={np.asarray(values)} must be above 0")
    p, q = jnp.asarray(p, float), jnp.asarray(q, float)
    counts, weights = _measured(tree, mask, scope, unit_axis)
    exponents = jnp.concatenate([p, q])
    logs = jax.lax.map(lambda each: _log_means(weights, counts, (each,), scope)[0], exponents)

    def pairs(log: jax.Array) -> jax.Array:
        shape = (len(p) + len(q),) + (1,) * (log.ndim - 1)
        norms = log / exponents.astype(log.dtype).reshape(shape)
        index = -jnp.expm1(norms[: len(p), None] - norms[None, len(p) :])
        shape = (len(p), len(q)) + (1,) * (log.ndim - 1)
        above, same = p[:, None] > q[None, :], p[:, None] == q[None, :]
        index = jnp.where(same.reshape(shape), 0.0, index)
        return jnp.where(above.reshape(shape), jnp.nan, index)

    return map_scopes(pairs, logs)


def gini(
    tree: PyTree, mask: Mask | None = None, *, scope: str = "global", unit_axis: int = -1
) -> PerScope:
    """Gini Index of the live magnitudes of each scope, the other measure with all six properties.

    ``sum_i (2 i - d - 1) x_i / (d sum x)`` with ``x`` ascending. Unlike all else here it sorts the
    weights, for ``"global"`` put together in one array (sharded leaves are gathered): for
    measuring now and then, not for every step.

    Args:
        tree, mask, scope, unit_axis: as in ``pq_index``.

    Returns:
        As ``pq_index``; 0 where all weights are zero or there are none.

    Example:
        >>> import jax.numpy as jnp
        >>> float(gini(jnp.array([1.0, 2.0, 3.0, 4.0])))
        0.25
    """
    counts, weights = _measured(tree, mask, scope, unit_axis)
    scaled = {path: _scaled(*each[:3]) for path, each in weights.items()}
    if scope == "global":
        return _gini(jnp.concatenate([leaf.reshape(-1) for leaf in scaled.values()]), counts)
    if scope == "layer":
        return {path: _gini(leaf.reshape(-1), counts[path]) for path, leaf in scaled.items()}
    rows = {
        path: jnp.moveaxis(leaf, unit_axis, 0).reshape(leaf.shape[unit_axis], -1)
        for path, leaf in scaled.items()
    }
    return {path: jax.vmap(_gini)(row, counts[path]) for path, row in rows.items()}


def log_retained(
    tree: PyTree,
    mask: Mask | None,
    p: ArrayLike,
    q: ArrayLike,
    eta_r: ArrayLike,
    scope: str,
    unit_axis: int,
) -> tuple[PerScope, PerScope]:
    """Live counts d and ``log(r / d)`` at most 0, which loses nothing where r is close to d.

    Raises:
        ValueError: as ``pq_bound``.
    """
    check_number("eta_r", eta_r, low=0.0)
    logs = _log_ratio(tree, mask, p, q, scope, unit_axis)
    mask = _default_mask(tree) if mask is None else mask

    def retained(log: jax.Array) -> jax.Array:
        p_, q_, eta = (jnp.asarray(each, log.dtype) for each in (p, q, eta_r))
        return p_ * q_ / (q_ - p_) * log - q_ / (q_ - p_) * jnp.log1p(eta)

    return count_live(mask, scope, unit_axis), map_scopes(retained, logs)


def check_number(
    name: str, value: ArrayLike, *, low: float, high: float = math.inf, open_low: bool = False
) -> None:
    """Refuse a number, or an array of them, outside its range; tracers pass.

    Raises:
        ValueError: naming it, its value and the range.
    """
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(value)
    within = (known > low if open_low else known >= low) & (known <= high)
    if not within.all():
        least = f"{'above' if open_low else 'at least'} {low:g}"
        most = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name}={known.tolist()} must be {least}{most}")


def check_exponents(p: ArrayLike, q: ArrayLike) -> None:
    """Refuse ``p <= 0`` and ``p >= q``; warn outside ``p <= 1 <= q``; tracers pass.

    Raises:
        ValueError: naming the exponents.
    """
    check_number("p", p, low=0.0, open_low=True)
    if isinstance(p, jax.core.Tracer) or isinstance(q, jax.core.Tracer):
        return
    low, high = np.asarray(p), np.asarray(q)
    if not (low < high).all():
        raise ValueError(f"p={low.tolist()} must be below q={high.tolist()}")
    if not ((low <= 1) & (high >= 1)).all():
        warnings.warn(
            f"p={low.tolist()}, q={high.tolist()}: outside p <= 1 <= q the PQ Index breaks the "
            "Robin Hood property of a sparsity measure",
            stacklevel=3,
        )


def _default_mask(tree: PyTree) -> Mask:
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)):
        return make_mask(tree, lambda path, leaf: True)
    return make_mask(tree)


def _measured(
    tree: PyTree, mask: Mask | None, scope: str, unit_axis: int
) -> tuple[PerScope, dict[str, "_Weights"]]:
    """Live counts, and the weights with the greatest magnitude of their scope."""
    check_scope(scope)
    chosen = _default_mask(tree) if mask is None else mask
    leaves = prunable_leaves(tree, chosen)
    # Without a mask nothing need be read to know what is alive.
    live = dict.fromkeys(leaves) if mask is None else prunable_leaves(mask, mask)
    if not leaves:
        raise ValueError("mask has no prunable leaf; make it by make_mask(params)")
    for path, leaf in leaves.items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"leaf {path!r} is {jnp.result_type(leaf)}; the PQ Index takes floats: convert it "
                "or leave it out of the mask"
            )
    dtype = jnp.result_type(jnp.float32, *leaves.values())
    leaves = {path: jnp.asarray(leaf) for path, leaf in leaves.items()}
    axes = {path: summed_axes(path, leaf.ndim, scope, unit_axis) for path, leaf in leaves.items()}
    counting = count_dtype(leaves, scope)
    tops, counts = {}, {}
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
        path: _Weights(leaf, live[path], wide[path], axes[path]) for path, leaf in leaves.items()
    }


class _Weights(NamedTuple):
    """A leaf, its live flags or ``None``, the scope's greatest magnitude, the axes to sum over."""

    leaf: jax.Array
    live: jax.Array | None
    top: jax.Array
    axes: tuple[int, ...]


def _magnitudes(leaf: jax.Array, live: jax.Array | None, dtype: Any) -> jax.Array:
    magnitudes = jnp.abs(leaf).astype(dtype)
    return magnitudes if live is None else jnp.where(live, magnitudes, 0)


def _scaled(leaf: jax.Array, live: jax.Array | None, top: jax.Array) -> jax.Array:
    """Magnitudes over the greatest of their scope, pruned ones 0.

    A product takes half the time of a division; what equals the greatest is 1 exactly, so that a
    constant vector has index 0.
    """
    # The reciprocal of the very greatest would be subnormal, and so 0.
    factor = jnp.maximum(1 / top, jnp.finfo(top.dtype).tiny)
    one = jnp.where(jnp.isfinite(top), 1, jnp.nan).astype(top.dtype)
    magnitudes = _magnitudes(leaf, live, top.dtype)
    scaled = magnitudes * factor
    rounding = jnp.where(magnitudes == top, one - scaled, 0)
    return scaled + jax.lax.stop_gradient(rounding)


def _greatest_and_count(
    magnitudes: jax.Array, live: jax.Array | None, counting: Any, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The greatest magnitude, NaN where one is, and the number of live weights, in one pass.

    XLA's CPU takes a maximum beside a count at the speed of memory. No gradient: the index does
    not depend on the scale.
    """
    ones = jnp.ones(magnitudes.shape, counting)
    return jax.lax.reduce(
        (jax.lax.stop_gradient(magnitudes), ones if live is None else live.astype(counting)),
        (jnp.zeros((), magnitudes.dtype), jnp.zeros((), counting)),
        lambda a, b: (jnp.maximum(a[0], b[0]), a[1] + b[1]),
        axes,
    )


def _power(values: jax.Array, exponent: ArrayLike) -> jax.Array:
    """``values^exponent`` of numbers from 0 to about 1, with gradient 0 at 0."""
    if isinstance(exponent, int | float) and exponent in (1, 2):
        return values if exponent == 1 else jnp.square(values)
    positive = values != 0
    base = jnp.where(positive, values, 1)
    if isinstance(exponent, int | float) and exponent == 0.5:
        return jnp.where(positive, jnp.sqrt(base), 0)
    # XLA's CPU vectorises these two and not a power.
    power = jnp.exp(jnp.asarray(exponent, values.dtype) * jnp.log(base))
    return jnp.where(positive, power, 0)


BLOCK = 16_384
"""Weights a step of the blocked sums: with a sum per exponent they stay in a core's cache."""


def _power_sums(weights: _Weights, exponents: Sequence[ArrayLike]) -> tuple[jax.Array, ...]:
    """Sums of ``(magnitude / top)^exponent`` over the live weights, one per exponent.

    XLA's CPU adds floats one after the other in order, and reads the weights once a sum. Blocks
    that are added elementwise are vectorised, and all sums share one read.
    """
    known = [each if isinstance(each, int | float) else None for each in exponents]

    def powers(leaf: Any, live: Any, top: Any, given: Sequence[jax.Array]) -> list[jax.Array]:
        scaled = _scaled(leaf, live, top)
        chosen = [b if a is None else a for a, b in zip(known, given, strict=True)]
        return [_power(scaled, exponent) for exponent in chosen]

    def plain(leaf: Any, live: Any, top: Any, *given: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.sum(each, weights.axes) for each in powers(leaf, live, top, given))

    def blocked(leaf: Any, live: Any, top: Any, *given: jax.Array) -> tuple[jax.Array, ...]:
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
    blocks = leaf.ndim == len(weights.axes) and 8 * BLOCK <= leaf.size < 2**31
    if not blocks or jax.device_count("cpu") > 1:
        return plain(*weights[:3], *exponents)
    sums = jax.custom_jvp(
        lambda *given: jax.lax.platform_dependent(*given, cpu=blocked, default=plain)
    )
    sums.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return sums(*weights[:3], *map(jnp.asarray, exponents))


def _log_means(
    weights: dict[str, _Weights], counts: PerScope, exponents: Sequence[ArrayLike], scope: str
) -> list[PerScope]:
    """Logarithms of the means of ``scaled^exponent`` over the live weights; 0 where all are 0."""
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


def _log_ratio(
    tree: PyTree, mask: Mask | None, p: ArrayLike, q: ArrayLike, scope: str, unit_axis: int
) -> PerScope:
    """``log(1 - I)``, at most 0."""
    check_exponents(p, q)
    counts, weights = _measured(tree, mask, scope, unit_axis)
    above, below = _log_means(weights, counts, (p, q), scope)
    return map_scopes(
        # Rounding may leave a constant vector a trifle above.
        lambda a, b: jnp.minimum(a / jnp.asarray(p, a.dtype) - b / jnp.asarray(q, b.dtype), 0),
        above,
        below,
    )


def _gini(values: jax.Array, count: jax.Array) -> jax.Array:
    """Gini Index of magnitudes [n], all but ``count`` of them zeros that do not count."""
    size = len(values)
    ranks = jnp.arange(1, size + 1) - (size - count)
    weights = (2 * ranks - count - 1).astype(values.dtype) / jnp.maximum(count, 1)
    total = jnp.sum(values)
    return jnp.sum(weights * jnp.sort(values)) / jnp.where(total == 0, 1, total)
