"""Prune exactly the k smallest live scores of a pytree, k traced.

There is no sort and no gather, and no large leaf is put together with others. Order: by value; -0
equals 0; -inf comes first, +inf after every number, NaN last of all, so that it is dropped only
when nothing else is left. Among equals the lower index goes first, counted in row-major order
through the leaves as ``jax.tree.leaves`` lists them. Every step is a reduction, so sharded leaves
exchange counts and never weights.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.sparsity.masks import prunable_leaves
from rlprune_jax.sparsity.scopes import (
    PerScope,
    bundle,
    check_scope,
    count_dtype,
    count_flags,
    count_live,
    map_scopes,
    spread,
)
from rlprune_jax.types import Mask, PyTree

Keys = dict[str, jax.Array]

_DIGIT_BITS = {"cpu": 2}
"""Bits found in a pass, by backend: a pass costs its comparisons on CPU, its read elsewhere."""
_DIGIT_BITS_ELSEWHERE = 4


def drop_smallest(
    scores: PyTree,
    mask: Mask,
    count: PerScope,
    *,
    scope: str = "global",
    unit_axis: int = -1,
    ties: Literal["index", "keep"] = "index",
    magnitudes: bool = False,
) -> Mask:
    """Prune exactly the smallest live scores of each scope.

    Use it to write a pruner of your own. Jittable and vmappable; it reads the scores a few times,
    whatever ``count`` is. Scores that are NaN come last and are pruned only where nothing else is
    left: a weight without a score is not known to be dispensable.

    Args:
        scores: floating, congruent to ``mask``; leaves that are not prunable are not looked at.
        mask: bool pytree of what is alive.
        count: how many go, by scope: an integer, a dict path -> integer, or a dict path ->
            int[units]. Traced counts are clipped to what is alive.
        scope: ``"global"``, ``"layer"`` or ``"neuron"``.
        unit_axis: axis of the output units of a leaf, for ``"neuron"``; Flax has them last.
        ties: ``"index"`` drops exactly ``count``; ``"keep"`` spares all that equal the smallest
            score to stay, as a strict comparison with a threshold does.
        magnitudes: whether the absolute values of ``scores`` are the scores; of many leaves that
            compiles faster than taking them before.

    Returns:
        The mask with those False too.

    Raises:
        ValueError: an unknown scope, ``mask`` not congruent to ``scores`` (naming the first path),
            nothing prunable, a ``count`` that has not the form of its scope, or a concrete one
            below 0 or beyond the live weights.
        TypeError: scores that are no floats, or a count that is no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> scores = jnp.array([3.0, 1.0, 2.0, 1.0])
        >>> drop_smallest(scores, jnp.ones(4, bool), 2).tolist()
        [True, False, True, False]
    """
    check_scope(scope, unit_axis)
    if ties not in ("index", "keep"):
        raise ValueError(f"ties={ties!r} is unknown; choose from index, keep")
    leaves = prunable_leaves(scores, mask)
    alive = prunable_leaves(mask, mask)
    live = count_live(mask, scope, unit_axis)
    wanted = _check_count(count, live, scope)
    wanted = map_scopes(lambda k, all_: jnp.clip(k, 0, all_).astype(all_.dtype), wanted, live)
    bundles = bundle(leaves, scope)
    alive = bundles.join(alive)
    joined = bundles.join(leaves)
    keys = _sort_keys(jax.tree.map(jnp.abs, joined) if magnitudes else joined, alive)
    if scope == "neuron":
        # Rows are summed ten times faster than columns.
        keys = {path: jnp.moveaxis(key, unit_axis, 0) for path, key in keys.items()}
    threshold, below = _by_digits(lambda: keys, wanted, scope)
    limits = spread(threshold, keys, scope, 0)
    dropped = {path: key < limits[path] for path, key in keys.items()}
    if ties == "index":
        needed = map_scopes(jnp.subtract, wanted, below)
        first = _first_ties(keys, limits, needed, scope)
        dropped = {path: dropped[path] | first[path] for path in keys}
    if scope == "neuron":
        dropped = {path: jnp.moveaxis(gone, 0, unit_axis) for path, gone in dropped.items()}
    masks = {path: alive[path] & ~gone for path, gone in dropped.items()}
    kept = iter(bundles.part(masks).values())
    flat = [next(kept) if np.ndim(leaf) else leaf for leaf in jax.tree.leaves(mask)]
    return jax.tree.unflatten(jax.tree.structure(mask), flat)


def _check_count(count: PerScope, live: PerScope, scope: str) -> PerScope:
    """Return the count in the form of its scope, refused where it cannot be."""
    if isinstance(live, dict):
        if not isinstance(count, dict) or set(count) != set(live):
            raise ValueError(
                f"count must be a dict with the paths {list(live)} for scope={scope!r}"
            )
        # As the leaves lie, whatever order the caller's dict or a passage through jit has.
        return {path: _check_one(count[path], live[path], f" at {path!r}") for path in live}
    if isinstance(count, dict):
        raise ValueError(
            f"count={count} must be an integer for scope='global'; a dict of counts goes with "
            "scope='layer' or 'neuron'"
        )
    return _check_one(count, live, "")


def _check_one(count: ArrayLike, live: jax.Array, where: str) -> jax.Array:
    if not hasattr(count, "dtype") and not isinstance(count, int | float):
        raise TypeError(f"count{where} is {count!r}; give an integer or an array of integers")
    if not jnp.issubdtype(jnp.result_type(count), jnp.integer):
        raise TypeError(f"count{where} is {jnp.result_type(count)}; give integers")
    if np.shape(count) not in ((), live.shape):
        raise ValueError(f"count{where} has shape {np.shape(count)}, not {live.shape}")
    if not isinstance(count, jax.core.Tracer) and not isinstance(live, jax.core.Tracer):
        known, most = np.asarray(count), np.asarray(live)
        if (known < 0).any() or (known > most).any():
            bad = np.argmax(((known < 0) | (known > most)).reshape(-1))
            worst = np.broadcast_to(known, most.shape).reshape(-1)[bad]
            raise ValueError(
                f"count={worst}{where} must be from 0 to the {most.reshape(-1)[bad]} live weights"
            )
    # Beyond int32, where nothing is known, the clip that follows must still see a large number.
    return jnp.minimum(count, jnp.iinfo(live.dtype).max).astype(live.dtype) + jnp.zeros_like(live)


def _sort_keys(leaves: dict[str, jax.Array], alive: dict[str, jax.Array]) -> Keys:
    """Return unsigned integers in the order of the scores, the greatest where pruned."""
    for path, leaf in leaves.items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"scores at {path!r} are {jnp.result_type(leaf)}; give floats")
    wide = any(jnp.result_type(leaf) == jnp.float64 for leaf in leaves.values())
    to, unsigned = (jnp.float64, np.uint64) if wide else (jnp.float32, np.uint32)
    sign = unsigned(1 << (63 if wide else 31))
    greatest = unsigned(np.iinfo(unsigned).max)

    def key_of(leaf: jax.Array, live: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        is_nan = jnp.isnan(leaf)
        if leaf.dtype == jnp.bfloat16 and not wide:
            # By bits, as a conversion may flush subnormal numbers.
            half = jax.lax.bitcast_convert_type(leaf, jnp.uint16)
            bits = half.astype(jnp.uint32) << 16
        else:
            bits = jax.lax.bitcast_convert_type(leaf.astype(to), unsigned)
        bits = jnp.where(bits == sign, unsigned(0), bits)
        key = jnp.where(bits >= sign, ~bits, bits | sign)
        key = jnp.where(is_nan, greatest - unsigned(1), key)
        return jnp.where(live, key, greatest)

    return {path: key_of(leaf, alive[path]) for path, leaf in leaves.items()}


def _by_digits(
    keys_of: Callable[[], Keys], wanted: PerScope, scope: str
) -> tuple[PerScope, PerScope]:
    """Find a threshold for each scope, and how many keys lie below it.

    That is ``wanted``, or as near as can be. Where equal keys cross the rank, the threshold is
    their value. Digit by digit from the top, each by counting the keys below every value it could
    have: reductions that fuse with their comparisons, where a histogram by scatter is slow on most
    devices.

    Args:
        keys_of: gives the keys; called inside the loop, so that it costs nothing where the loop
            does not run.
        wanted: rank, from 0.
        scope: units of ``"neuron"`` lie first.
    """
    shapes = jax.eval_shape(keys_of)
    unsigned = next(iter(shapes.values())).dtype
    digit_bits = _DIGIT_BITS.get(jax.default_backend(), _DIGIT_BITS_ELSEWHERE)
    dtype = count_dtype(shapes, scope)
    digits = range(1, 2**digit_bits)

    def counts(probes: list[PerScope]) -> list[PerScope]:
        keys = keys_of()
        limits = [spread(probe, keys, scope, 0) for probe in probes]
        flags = {path: [key < limit[path] for limit in limits] for path, key in keys.items()}
        return count_flags(flags, scope, 0, dtype)

    def narrow(
        state: tuple[jax.Array, PerScope, PerScope],
    ) -> tuple[jax.Array, PerScope, PerScope]:
        shift, low, below = state
        probes = [
            map_scopes(lambda low, d=digit: low + (unsigned.type(d) << shift), low)
            for digit in digits
        ]
        for probe, counted in zip(probes, counts(probes), strict=True):
            fits = map_scopes(jnp.less_equal, counted, wanted)
            low = map_scopes(jnp.where, fits, probe, low)
            below = map_scopes(jnp.where, fits, counted, below)
        return shift - unsigned.type(digit_bits), low, below

    def unfinished(state: tuple[jax.Array, PerScope, PerScope]) -> jax.Array:
        shift, _, below = state
        # The shift passes below zero around the end of its range.
        return (shift < bits) & _any(map_scopes(jnp.not_equal, below, wanted))

    bits = np.iinfo(unsigned).bits
    start = (
        jnp.asarray(bits - digit_bits, unsigned),
        map_scopes(lambda k: jnp.zeros(k.shape, unsigned), wanted),
        map_scopes(jnp.zeros_like, wanted),
    )
    _, low, below = jax.lax.while_loop(unfinished, narrow, start)
    return low, below


def _first_ties(
    keys: Keys, limits: dict[str, jax.Array], needed: PerScope, scope: str
) -> dict[str, jax.Array]:
    """Return the first ``needed`` keys at each scope's threshold, by index.

    The same search with indices for keys. No pass is made where none is needed, as is the rule with
    weights all different.
    """

    def places() -> Keys:
        found = _indices(keys, scope)
        return {
            path: jnp.where(key == limits[path], found[path], ~jnp.zeros((), found[path].dtype))
            for path, key in keys.items()
        }

    bounds, _ = _by_digits(places, needed, scope)
    bounds = spread(bounds, keys, scope, 0)
    return {path: place < bounds[path] for path, place in places().items()}


def _indices(leaves: dict[str, jax.Array], scope: str) -> Keys:
    """Return every entry's place in the row-major order of its scope.

    Units lie first in ``"neuron"``.
    """
    dtype = jnp.uint32 if count_dtype(leaves, scope) == jnp.int32 else jnp.uint64
    start, places = 0, {}
    for path, leaf in leaves.items():
        place = jnp.full((), start, dtype)
        stride = 1
        for axis in reversed(range(1 if scope == "neuron" else 0, leaf.ndim)):
            place = place + jnp.asarray(stride, dtype) * jax.lax.broadcasted_iota(
                dtype, leaf.shape, axis
            )
            stride *= leaf.shape[axis]
        places[path] = jnp.broadcast_to(place, leaf.shape)
        start += leaf.size if scope == "global" else 0
    return places


def _any(flags: PerScope) -> jax.Array:
    parts = [jnp.any(flag) for flag in jax.tree.leaves(flags)]
    return jnp.stack(parts).any()
