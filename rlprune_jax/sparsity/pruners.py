"""Prune single weights by sparsity, lottery ticket, one-shot, gradually or at random.

Each is a pair of pure functions like an optax transformation, on parameters and their mask::

    pruner = sap(p=0.5, q=1.0)
    state = pruner.init(params, mask)
    mask, state = pruner.update(params, mask, state)  # again after every training

Every number may be traced, so a grid of settings is one ``vmap`` of a function that makes the
pruner and calls it. Counts are exact integers; a mask only ever loses weights. Between updates one
trains with ``masked_updates``, or rewinds and trains again, as ``prune_iteratively`` does.

A score that is NaN ranks its weight last: it is pruned only where nothing else is left.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.checks import require_count, require_function, require_key
from rlprune_jax.sparsity.exact_counts import floor_near, floor_product
from rlprune_jax.sparsity.masks import check_congruent
from rlprune_jax.sparsity.pqi import (
    BoundNumbers,
    check_exponents,
    check_number,
    log_retained,
)
from rlprune_jax.sparsity.scopes import PerScope, check_scope, count_live, map_scopes
from rlprune_jax.sparsity.selection import drop_smallest
from rlprune_jax.types import Mask, PyTree

Score = Callable[[PyTree], PyTree]
"""``params -> scores`` congruent to them; larger is kept, NaN too."""

SparsitySchedule = Callable[[jax.Array], ArrayLike]
"""``i32[] number of the update, from 0 -> sparsity``, the fraction of weights gone after it."""


class Pruner(NamedTuple):
    """Hold a pruning rule as two pure functions.

    Attributes:
        init: ``(params, mask) -> state``, arrays only.
        update: ``(params, mask, state, scores=None) -> (mask, state)``; ``scores``, congruent to
            the parameters, take the place of the pruner's own.
    """

    init: Callable[[PyTree, Mask], PyTree]
    update: Callable[..., tuple[Mask, PyTree]]


class PrunerState(NamedTuple):
    """Hold the state of most pruners.

    Attributes:
        step: i32[], updates done.
    """

    step: jax.Array


class OneShotState(NamedTuple):
    """Hold the state of ``one_shot``.

    Attributes:
        step: i32[], updates done.
        scores: of the first update, zeros before it.
    """

    step: jax.Array
    scores: PyTree


class GradualState(NamedTuple):
    """Hold the state of ``gradual``.

    Attributes:
        step: i32[], updates done.
        total: live weights per scope before the first update.
    """

    step: jax.Array
    total: PerScope


class RandomState(NamedTuple):
    """Hold the state of ``random_pruning``.

    Attributes:
        step: i32[], updates done.
        key: typed, from which every update's scores are folded.
    """

    step: jax.Array
    key: jax.Array


def magnitude(params: PyTree) -> PyTree:
    """Score weights by their absolute values.

    Every pruner does so unless it is given another score. Integers stay as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> magnitude({"w": jnp.array([-2.0, 1.0])})["w"].tolist()
        [2.0, 1.0]
    """
    return jax.tree.map(
        lambda leaf: jnp.abs(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        jax.tree.map(jnp.asarray, params),
    )


def sap(
    p: ArrayLike = 0.5,
    q: ArrayLike = 1.0,
    eta_r: ArrayLike = 0.0,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.9,
    scope: str = "global",
    *,
    score: Score = magnitude,
    unit_axis: int = -1,
    float32: bool = False,
) -> Pruner:
    """Prune as many weights as their PQ Index allows.

    Sparsity-informed adaptive pruning. Use it where nobody knows how much a network can lose: an
    update prunes much of sparse weights and little of dense ones.
    ``c = floor(d min(gamma (1 - r / d), beta))`` of d live weights with ``r`` of ``pq_bound``. A
    scope whose index is NaN (a live weight is NaN or infinite) loses nothing.

    Args:
        p: exponent, above 0.
        q: exponent, finite and above ``p``.
        eta_r: at least 0 and finite; the larger, the more goes.
        gamma: scaling factor, above 0 and finite.
        beta: greatest fraction that one update prunes, above 0 and at most 1.
        scope: ``"global"``, ``"layer"`` or ``"neuron"``.
        score: what ranks the weights; those whose score is NaN go last.
        unit_axis: axis of the output units of a leaf.
        float32: count and compare as the authors' released code: r rounded up, the ratio in
            float32, which is one too few for a fifth of all counts, and ties with the smallest
            weight to stay are spared.

    Raises:
        ValueError: a number out of its range, where it is known, or an unknown scope.
        TypeError: ``score`` is no function. What it raises passes as it is.

    Example:
        >>> import jax.numpy as jnp
        >>> params, mask = jnp.array([1.0, -5.0, 0.1, 0.2]), jnp.ones(4, bool)
        >>> pruner = sap(p=0.5, q=1.0)
        >>> mask, state = pruner.update(params, mask, pruner.init(params, mask))
        >>> mask.tolist()
        [True, True, False, True]

    Reference:
        Diao et al., ICLR 2023, Algorithm 1.
    """
    check_exponents(p, q)
    check_number("eta_r", eta_r, low=0.0)
    check_number("gamma", gamma, low=0.0, open_low=True)
    check_number("beta", beta, low=0.0, high=1.0, open_low=True)
    require_function("score", score, "a function params -> scores")
    check_scope(scope, unit_axis)

    def count(params: PyTree, mask: Mask) -> PerScope:
        numbers = BoundNumbers(p, q, eta_r)
        live, logs = log_retained(params, mask, numbers, scope, unit_axis)
        if float32:
            return map_scopes(lambda d, log: _released_count(d, log, gamma, beta), live, logs)

        def one(d: jax.Array, log: jax.Array) -> jax.Array:
            wanted = d.astype(log.dtype) * -jnp.expm1(log) * jnp.asarray(gamma, log.dtype)
            by_index = jnp.minimum(floor_near(jnp.maximum(jnp.nan_to_num(wanted), 0)), d)
            return jnp.minimum(by_index.astype(d.dtype), floor_product(d, beta))

        return map_scopes(one, live, logs)

    def update(
        params: PyTree, mask: Mask, state: PrunerState, scores: PyTree = None
    ) -> tuple[Mask, PrunerState]:
        found, by_magnitude = _scores(score, params, scores)
        mask = drop_smallest(
            found,
            mask,
            count(params, mask),
            scope=scope,
            unit_axis=unit_axis,
            ties="keep" if float32 else "index",
            magnitudes=by_magnitude,
        )
        return mask, PrunerState(state.step + 1)

    return Pruner(_init_step, update)


def lottery_ticket(
    rate: ArrayLike = 0.2,
    scope: str = "global",
    *,
    score: Score = magnitude,
    unit_axis: int = -1,
) -> Pruner:
    """Prune a fraction of what is left at each update.

    Iterative magnitude pruning, by the scores of the weights as they are. The usual way to very
    sparse networks, with training between the updates.

    Args:
        rate: fraction of the live weights that goes, from 0 to 1; ``floor(rate d)`` of d.
        scope, score, unit_axis: as in ``sap``.

    Raises:
        ValueError: ``rate`` out of range, where it is known, or an unknown scope.

    Reference:
        Frankle and Carbin 2019, "The Lottery Ticket Hypothesis".

    Example:
        >>> import jax.numpy as jnp
        >>> params, mask = jnp.array([1.0, -5.0, 0.1, 0.2]), jnp.ones(4, bool)
        >>> pruner = lottery_ticket(0.5)
        >>> pruner.update(params, mask, pruner.init(params, mask))[0].tolist()
        [True, True, False, False]
    """
    check_number("rate", rate, low=0.0, high=1.0)
    require_function("score", score, "a function params -> scores")
    check_scope(scope, unit_axis)

    def update(
        params: PyTree, mask: Mask, state: PrunerState, scores: PyTree = None
    ) -> tuple[Mask, PrunerState]:
        found, by_magnitude = _scores(score, params, scores)
        mask = _prune_share(found, mask, rate, scope, unit_axis, by_magnitude)
        return mask, PrunerState(state.step + 1)

    return Pruner(_init_step, update)


def one_shot(
    rate: ArrayLike = 0.2,
    scope: str = "global",
    *,
    score: Score = magnitude,
    unit_axis: int = -1,
) -> Pruner:
    """Prune by the ranking of the first update.

    Use it to compare: every update prunes the next fraction of what is left. One update is pruning
    in one go. Several give the paper's curve of one-shot pruning: at every sparsity the ranking is
    that of the dense trained network.

    Args:
        rate, scope, score, unit_axis: as in ``lottery_ticket``.

    Raises:
        ValueError: as ``lottery_ticket``.

    Example:
        >>> import jax.numpy as jnp
        >>> params, mask = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.ones(4, bool)
        >>> pruner = one_shot(0.25)
        >>> mask, state = pruner.update(params, mask, pruner.init(params, mask))
        >>> pruner.update(-params, mask, state)[0].tolist()
        [False, True, True, True]
    """
    check_number("rate", rate, low=0.0, high=1.0)
    require_function("score", score, "a function params -> scores")
    check_scope(scope, unit_axis)

    def init(params: PyTree, mask: Mask) -> OneShotState:
        check_congruent(params, mask)
        shapes = jax.eval_shape(score, params)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return OneShotState(jnp.zeros((), jnp.int32), zeros)

    def update(
        params: PyTree, mask: Mask, state: OneShotState, scores: PyTree = None
    ) -> tuple[Mask, OneShotState]:
        current = score(params) if scores is None else scores
        first = jax.tree.map(
            lambda new, old: jnp.where(state.step == 0, new, old), current, state.scores
        )
        mask = _prune_share(first, mask, rate, scope, unit_axis)
        return mask, OneShotState(state.step + 1, first)

    return Pruner(init, update)


def gradual(
    schedule: SparsitySchedule,
    scope: str = "global",
    *,
    score: Score = magnitude,
    unit_axis: int = -1,
) -> Pruner:
    """Prune to the sparsity that a schedule sets.

    Use it inside training, with ``masked_updates`` and ``every``.

    Args:
        schedule: as ``cubic_schedule``, or any optax schedule, from 0 to 1. Where it falls nothing
            comes back; under a trace, where it cannot be checked, above 1 counts as 1.
        scope, score, unit_axis: as in ``lottery_ticket``.

    Raises:
        ValueError: an unknown scope, or on update a sparsity known to be below 0 or above 1.

    Reference:
        Zhu and Gupta 2017, "To prune, or not to prune".

    Example:
        >>> import jax.numpy as jnp
        >>> params, mask = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.ones(4, bool)
        >>> pruner = gradual(cubic_schedule(0.5, updates=2))
        >>> pruner.update(params, mask, pruner.init(params, mask))[0].tolist()
        [False, True, True, True]
    """
    require_function("schedule", schedule, "a function step -> sparsity, as cubic_schedule gives")
    require_function("score", score, "a function params -> scores")
    check_scope(scope, unit_axis)

    def init(params: PyTree, mask: Mask) -> GradualState:
        check_congruent(params, mask)
        return GradualState(jnp.zeros((), jnp.int32), count_live(mask, scope, unit_axis))

    def update(
        params: PyTree, mask: Mask, state: GradualState, scores: PyTree = None
    ) -> tuple[Mask, GradualState]:
        sparsity = schedule(state.step)
        check_number("schedule(step)", sparsity, low=0.0, high=1.0)

        def missing(total: jax.Array, live: jax.Array) -> jax.Array:
            return jnp.clip(floor_product(total, sparsity) - (total - live), 0, live)

        live = count_live(mask, scope, unit_axis)
        found, by_magnitude = _scores(score, params, scores)
        mask = drop_smallest(
            found,
            mask,
            map_scopes(missing, state.total, live),
            scope=scope,
            unit_axis=unit_axis,
            magnitudes=by_magnitude,
        )
        return mask, GradualState(state.step + 1, state.total)

    return Pruner(init, update)


def cubic_schedule(
    final_sparsity: ArrayLike, updates: int, initial: ArrayLike = 0.0
) -> SparsitySchedule:
    """Make a sparsity that rises fast and then slowly.

    Args:
        final_sparsity: from 0 to 1, reached at the last update.
        updates: number of updates, at least 1.
        initial: sparsity before the first, at most the final one.

    Raises:
        ValueError: a number out of its range, where it is known.

    Example:
        >>> [round(float(cubic_schedule(0.8, 2)(step)), 3) for step in range(3)]
        [0.7, 0.8, 0.8]
    """
    check_number("final_sparsity", final_sparsity, low=0.0, high=1.0)
    check_number("initial", initial, low=0.0, high=1.0)
    if not isinstance(updates, jax.core.Tracer):
        require_count("updates", updates)
    known = not any(isinstance(each, jax.core.Tracer) for each in (initial, final_sparsity))
    if known and not np.all(np.asarray(initial) <= np.asarray(final_sparsity)):
        raise ValueError(
            f"initial={initial} must be at most final_sparsity={final_sparsity}: pruned weights do "
            "not come back"
        )

    def sparsity(step: ArrayLike) -> jax.Array:
        left = 1 - jnp.minimum((jnp.asarray(step) + 1) / updates, 1.0)
        final = jnp.asarray(final_sparsity)
        return final + (jnp.asarray(initial) - final) * left**3

    return sparsity


def random_pruning(
    rate: ArrayLike = 0.2, scope: str = "global", *, unit_axis: int = -1, key: jax.Array
) -> Pruner:
    """Prune a fraction of the live weights at random.

    The control of every other rule.

    Args:
        rate, scope, unit_axis: as in ``lottery_ticket``.
        key: typed; update t draws from ``fold_in(key, t)``.

    Raises:
        ValueError: as ``lottery_ticket``, or ``key`` is no typed key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params, mask = jnp.ones(4), jnp.ones(4, bool)
        >>> pruner = random_pruning(0.5, key=jax.random.key(0))
        >>> int(pruner.update(params, mask, pruner.init(params, mask))[0].sum())
        2
    """
    check_number("rate", rate, low=0.0, high=1.0)
    check_scope(scope, unit_axis)
    require_key("key", key)

    def init(params: PyTree, mask: Mask) -> RandomState:
        check_congruent(params, mask)
        return RandomState(jnp.zeros((), jnp.int32), key)

    def update(
        params: PyTree, mask: Mask, state: RandomState, scores: PyTree = None
    ) -> tuple[Mask, RandomState]:
        if scores is None:
            leaves, structure = jax.tree.flatten(params)
            keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(leaves))
            drawn = [jax.random.uniform(k, jnp.shape(leaf)) for k, leaf in zip(keys, leaves)]  # noqa: B905
            scores = jax.tree.unflatten(structure, drawn)
        mask = _prune_share(scores, mask, rate, scope, unit_axis)
        return mask, RandomState(state.step + 1, state.key)

    return Pruner(init, update)


def _init_step(params: PyTree, mask: Mask) -> PrunerState:
    check_congruent(params, mask)
    return PrunerState(jnp.zeros((), jnp.int32))


def _scores(score: Score, params: PyTree, given: PyTree) -> tuple[PyTree, bool]:
    """Return what ranks the weights, and whether by its absolute values."""
    if given is not None:
        return given, False
    # Taken where leaves are together already, and not leaf by leaf.
    return (params, True) if score is magnitude else (score(params), False)


def _prune_share(
    scores: PyTree,
    mask: Mask,
    rate: ArrayLike,
    scope: str,
    unit_axis: int,
    magnitudes: bool = False,
) -> Mask:
    live = count_live(mask, scope, unit_axis)
    count = map_scopes(lambda d: floor_product(d, rate), live)
    return drop_smallest(
        scores, mask, count, scope=scope, unit_axis=unit_axis, magnitudes=magnitudes
    )


def _released_count(
    live: jax.Array, log: jax.Array, gamma: ArrayLike, beta: ArrayLike
) -> jax.Array:
    """Return ``floor(d clip(gamma (1 - ceil(r) / d), 0, beta))`` in float32, as released."""
    count = live.astype(jnp.float32)
    retained = jnp.ceil((count * jnp.exp(log)).astype(jnp.float32))
    ratio = jnp.asarray(gamma, jnp.float32) * (1 - retained / jnp.maximum(count, 1))
    ratio = jnp.clip(jnp.nan_to_num(ratio), 0.0, jnp.asarray(beta, jnp.float32))
    return jnp.floor(count * ratio).astype(live.dtype)
