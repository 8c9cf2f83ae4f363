"""Measure how sparse weights are, by the PQ Index and the Gini Index.

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

import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.sparsity.moments import default_mask, log_means, measure_leaves, scaled_magnitudes
from rlprune_jax.sparsity.scopes import PerScope, count_live, map_scopes
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
    """Return the PQ Index of each scope's live weights.

    Use it to see how much of a network could go: larger is sparser. It is 0 for a vector of equal
    magnitudes, of one weight or of none (an empty array is no error), and NaN where a live weight
    is NaN or infinite.

    Args:
        tree: parameters, any pytree of floating arrays.
        mask: congruent to it, True where alive; by default all that ``make_mask`` calls prunable,
            and of a bare array everything.
        p: exponent of the norm above, finite; a number or a traced scalar. 0.5, 1 and 2 as Python
            numbers are cheapest. Several: ``pq_index_grid``, or ``jax.vmap``.
        q: exponent of the norm below, finite and above ``p``.
        scope: ``"global"``, ``"layer"`` or ``"neuron"``.
        unit_axis: axis of the output units of a leaf, for ``"neuron"``; Flax has them last.

    Returns:
        f32[] (f64[] where a leaf is float64); of ``"layer"`` a dict path -> f32[], of ``"neuron"``
        a dict path -> f32[units].

    Raises:
        ValueError: ``p <= 0``, ``p >= q`` or an infinite exponent where they are known, exponents
            that are no scalars, an unknown scope, a mask that is not congruent (naming the first
            path that differs), or nothing prunable.
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
    """Return how many weights the PQ Index says are enough.

    Use it to prune: of d live weights ``d - r`` can go. It is the bound of Theorem 2, the least
    number of weights whose p-norm leaves out a fraction ``eta_r`` of the whole:
    ``r = d (1 + eta_r)^(-q / (q - p)) (1 - I)^(p q / (q - p))``, a real number. With
    ``eta_r`` 0 it does not change when zeros are added to the weights.

    Args:
        tree, mask, p, q, scope, unit_axis: as in ``pq_index``.
        eta_r: at least 0 and finite; a number or a traced scalar.

    Returns:
        As ``pq_index``, from 0 to the number of live weights.

    Raises:
        ValueError: as ``pq_index``, or ``eta_r`` below 0 or infinite.
        TypeError: as ``pq_index``.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(pq_bound(jnp.array([1.0, 2.0, 3.0, 4.0]), p=1.0, q=2.0)), 4)
        3.3333
    """
    live, logs = log_retained(tree, mask, BoundNumbers(p, q, eta_r), scope, unit_axis)
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
    """Return the PQ Index for every pair of exponents.

    Use it for a heat map: each exponent costs one pass over the weights, not each pair.

    Args:
        tree, mask, scope, unit_axis: as in ``pq_index``.
        p: f32[P], finite and above 0, at least one.
        q: f32[Q], likewise.

    Returns:
        f32[P, Q], with units behind where the scope has them; 0 where ``p = q``, NaN where
        ``p > q``.

    Raises:
        ValueError: no exponent, one known to be at most 0 or infinite, or as in ``pq_index``.

    Example:
        >>> import jax.numpy as jnp
        >>> grid = pq_index_grid(jnp.array([1.0, 0.0]), p=jnp.array([0.5, 1.0]), q=jnp.array([1.0]))
        >>> grid.tolist()
        [[0.5], [0.0]]
    """
    for name, values in (("p", p), ("q", q)):
        if np.ndim(values) != 1 or not np.size(values):
            raise ValueError(
                f"{name} has shape {np.shape(values)}; give f32[{name.upper()}] of one or more"
            )
        check_number(name, values, low=0.0, open_low=True, several=True)
    p, q = jnp.asarray(p, float), jnp.asarray(q, float)
    counts, weights = measure_leaves(tree, mask, scope, unit_axis)
    exponents = jnp.concatenate([p, q])
    logs = jax.lax.map(lambda each: log_means(weights, counts, (each,), scope)[0], exponents)

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
    """Return the Gini Index of each scope's live magnitudes.

    Use it to compare: it is the other measure with all six properties of sparsity.
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
    counts, weights = measure_leaves(tree, mask, scope, unit_axis)
    scaled = {path: scaled_magnitudes(*each[:3]) for path, each in weights.items()}
    if scope == "global":
        return _gini(jnp.concatenate([leaf.reshape(-1) for leaf in scaled.values()]), counts)
    if scope == "layer":
        return {path: _gini(leaf.reshape(-1), counts[path]) for path, leaf in scaled.items()}
    rows = {
        path: jnp.moveaxis(leaf, unit_axis, 0).reshape(leaf.shape[unit_axis], -1)
        for path, leaf in scaled.items()
    }
    return {path: jax.vmap(_gini)(row, counts[path]) for path, row in rows.items()}


class BoundNumbers(NamedTuple):
    """Hold the numbers of ``pq_bound``."""

    p: ArrayLike
    q: ArrayLike
    eta_r: ArrayLike


def log_retained(
    tree: PyTree, mask: Mask | None, numbers: BoundNumbers, scope: str, unit_axis: int
) -> tuple[PerScope, PerScope]:
    """Return live counts d and ``log(r / d)`` per scope.

    r is as in ``pq_bound``. The logarithm is at most 0 and loses no digits where r is close to d.

    Raises:
        ValueError: as ``pq_bound``.
    """
    p, q, eta_r = numbers
    check_number("eta_r", eta_r, low=0.0)
    logs = _log_ratio(tree, mask, p, q, scope, unit_axis)
    mask = default_mask(tree) if mask is None else mask

    def retained(log: jax.Array) -> jax.Array:
        p_, q_, eta = (jnp.asarray(each, log.dtype) for each in (p, q, eta_r))
        return p_ * q_ / (q_ - p_) * log - q_ / (q_ - p_) * jnp.log1p(eta)

    return count_live(mask, scope, unit_axis), map_scopes(retained, logs)


def check_number(
    name: str,
    value: ArrayLike,
    *,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    several: bool = False,
) -> None:
    """Refuse a number outside its range.

    What is traced passes.

    Args:
        name: of it, for the message.
        value: the number.
        low: least value.
        high: greatest value.
        open_low: whether ``low`` itself is refused.
        several: whether an array is taken, of which every number is looked at.

    Raises:
        ValueError: naming it, its value and the range; it is NaN, infinite or no number.

    Example:
        >>> check_number("gamma", 1.0, low=0.0, open_low=True)
        >>> check_number("gamma", math.inf, low=0.0, open_low=True)
        Traceback (most recent call last):
        ValueError: gamma=inf must be above 0 and finite
    """
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(value)
    # "V" are bfloat16 and its like, which NumPy compares all the same.
    if known.dtype.kind not in "iufV":
        raise ValueError(f"{name}={value!r} must be a number")
    if known.ndim and not several:
        raise ValueError(f"{name} has shape {known.shape}; give one number, or several by jax.vmap")
    within = (known > low if open_low else known >= low) & (known <= high) & np.isfinite(known)
    if not within.all():
        least = f"{'above' if open_low else 'at least'} {low:g}"
        most = " and finite" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name}={known.tolist()} must be {least}{most}")


def check_exponents(p: ArrayLike, q: ArrayLike) -> None:
    """Refuse exponents that the PQ Index is not defined for.

    It must be ``0 < p < q < infinity``; outside ``p <= 1 <= q`` there is a warning. What is traced
    passes.

    Raises:
        ValueError: naming the exponents.
    """
    for name, value in (("p", p), ("q", q)):
        if np.ndim(value):
            raise ValueError(
                f"{name} has shape {np.shape(value)}; give one number, or several by "
                "pq_index_grid or jax.vmap"
            )
        check_number(name, value, low=0.0, open_low=True)
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


def _log_ratio(
    tree: PyTree, mask: Mask | None, p: ArrayLike, q: ArrayLike, scope: str, unit_axis: int
) -> PerScope:
    """Return ``log(1 - I)``, at most 0."""
    check_exponents(p, q)
    counts, weights = measure_leaves(tree, mask, scope, unit_axis)
    above, below = log_means(weights, counts, (p, q), scope)
    return map_scopes(
        # Rounding may leave a constant vector a trifle above.
        lambda a, b: jnp.minimum(a / jnp.asarray(p, a.dtype) - b / jnp.asarray(q, b.dtype), 0),
        above,
        below,
    )


def _gini(values: jax.Array, count: jax.Array) -> jax.Array:
    """Return the Gini Index of magnitudes [n], of which only ``count`` are live."""
    size = len(values)
    ranks = jnp.arange(1, size + 1) - (size - count)
    weights = (2 * ranks - count - 1).astype(values.dtype) / jnp.maximum(count, 1)
    total = jnp.sum(values)
    return jnp.sum(weights * jnp.sort(values)) / jnp.where(total == 0, 1, total)
