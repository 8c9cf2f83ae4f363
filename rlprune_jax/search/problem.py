"""Make an environment from groups, and check it."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.checks import require, require_count, require_function, shown
from rlprune_jax.kept import is_kept, rank
from rlprune_jax.per_group import PerGroup, per_group
from rlprune_jax.search.environment import (
    CostFunction,
    Environment,
    check_environment,
    project_ratios,
)


def make_environment(
    sizes: Mapping[str, int] | Sequence[int],
    scores: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    descriptors: ArrayLike,
    limits: ArrayLike,
    min_keep: PerGroup = 1,
    cost_fn: CostFunction | None = None,
    initial_keep: ArrayLike | None = None,
    measured: Sequence[bool] | None = None,
    round_to: PerGroup = 1,
) -> Environment:
    """Check a problem and pad it to rectangular arrays.

    Args:
        sizes: units per group in depth order, by name or as a sequence (named ``group0``, ...).
        scores: importance of each unit, f32[size] per group, higher is kept longer; equal scores
            are ranked by index.
        descriptors: f32[G, F], what a policy sees of each group.
        limits: f32[K], or a scalar for one budget.
        min_keep: least number of units kept, for all groups or per group (``per_group``); a smaller
            group keeps all. 0 is for problems without a network, where a group may go whole; to cut
            a network takes at least 1.
        cost_fn: traceable ``masks f32[G, Cmax] -> f32[K]``, never falling when a unit is added.
        initial_keep: f32[G] or scalar in (0, 1]; by default the largest uniform ratio that meets
            every budget, or the square root of the tightest limit where costs are the host's.
        measured: per budget, whether ``cost_fn`` is but an estimate of a cost that the host is
            asked for; by default none is.
        round_to: every candidate keeps a multiple of so many units, or all of a group; for all
            groups or per group (``per_group``). ``min_keep`` is raised to a multiple.

    Returns:
        The environment. Budgets below ``minimum_costs`` are not refused here: see ``reachable``.

    Raises:
        TypeError: ``min_keep`` or ``round_to`` is none of the kinds that ``per_group`` reads.
        ValueError: a wrong shape, a size below 1, a ``min_keep`` below 0, a ``round_to`` below 1, a
            number per group that is no integer or for a group that is not there, a limit that is
            not above 0, a score or descriptor that is not finite, ``measured`` not one per budget.

    Example:
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.5,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> env.ranks.tolist()
        [[1, 0, 3], [0, 2, 1]]
    """
    require(_is_listed(sizes), "sizes", sizes, "units per group, a mapping or a sequence")
    require(_is_listed(scores), "scores", scores, "one array per group, a mapping or a sequence")
    if isinstance(sizes, Mapping):
        names, given = tuple(sizes), tuple(sizes.values())
    else:
        names, given = tuple(f"group{i}" for i in range(len(sizes))), tuple(sizes)
    require(bool(given), "sizes", sizes, "of at least one group")
    counts = tuple(
        require_count(f"sizes[{name!r}]", size) for name, size in zip(names, given, strict=True)
    )
    least = tuple(per_group(names, "min_keep", min_keep, least=0).values())
    multiples = tuple(per_group(names, "round_to", round_to).values())
    kept = tuple(
        min(-(-number // multiple) * multiple, size)
        for number, multiple, size in zip(least, multiples, counts, strict=True)
    )
    groups, width = len(counts), max(counts)
    ranks = np.full((groups, width), width, np.int32)
    padded = np.zeros((groups, width), np.float32)
    for index, values in enumerate(_scores_per_group(scores, names, counts)):
        ranks[index, : counts[index]] = rank(values)
        padded[index, : counts[index]] = values
    shifted = padded - np.minimum(padded.min(1, keepdims=True), 0.0)
    shifted = np.where(ranks < width, shifted, 0.0)
    features = _numbers("descriptors", descriptors)
    if features.ndim != 2 or features.shape[0] != groups:
        raise ValueError(
            f"descriptors has shape {features.shape}: needs [{groups} groups, features]"
        )
    if not np.isfinite(features).all():
        raise ValueError("descriptors holds NaN or infinity: normalise the features first")
    budget = np.atleast_1d(_numbers("limits", limits))
    if (
        budget.ndim != 1
        or budget.size == 0
        or not (np.isfinite(budget).all() and (budget > 0).all())
    ):
        raise ValueError(f"limits={budget.tolist()}: needs one finite number above 0 per budget")
    require(measured is None or _is_listed(measured), "measured", measured, "one bool per budget")
    asked = (False,) * budget.size if measured is None else tuple(map(bool, measured))
    if len(asked) != budget.size:
        raise ValueError(f"measured={asked}: needs {budget.size} entries, one per budget")
    env = Environment(
        descriptors=jnp.asarray(features),
        ranks=jnp.asarray(ranks),
        scores=jnp.asarray(shifted / np.maximum(shifted.max(1, keepdims=True), 1e-12)),
        raw_scores=jnp.asarray(padded),
        initial_keep=jnp.full(groups, np.sqrt(min(1.0, budget.min())), jnp.float32),
        limits=jnp.asarray(budget),
        names=names,
        sizes=counts,
        min_keep=kept,
        cost_fn=cost_fn,
        measured=asked,
        round_to=multiples,
    )
    if cost_fn is not None:
        _check_costs(env, cost_fn)
    if initial_keep is not None:
        start = _numbers("initial_keep", initial_keep)
        if start.shape not in ((), (groups,)):
            raise ValueError(
                f"initial_keep has shape {start.shape} and must have ({groups},), or be one number"
            )
        start = np.broadcast_to(start, (groups,))
        if not ((start > 0) & (start <= 1)).all():
            raise ValueError(f"initial_keep={start.tolist()}: needs ratios in (0, 1]")
        return dataclasses.replace(env, initial_keep=jnp.asarray(start))
    if cost_fn is not None:
        start = jax.jit(project_ratios)(env, jnp.full(groups, 0.5))
        return dataclasses.replace(env, initial_keep=start)
    return env


def start_from(env: Environment, mask: ArrayLike) -> Environment:
    """Return the problem with a mask as the policy's start.

    Use it to go on from what another search has found. Keep ratios start at the mask's, and the
    units that it keeps rank before the others of their group; among both the old order stays, and
    scores go with the ranks.

    Args:
        env: the problem.
        mask: bool or f32[G, Cmax]; NaN keeps nothing (``is_kept``).

    Raises:
        ValueError: a mask of another shape, or of no numbers.

    Example:
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> begun = start_from(env, [[1, 0, 0], [0, 1, 1]])
        >>> begun.ranks.tolist(), float(begun.initial_keep[0])
        ([[0, 1, 3], [2, 1, 0]], 0.5)
    """
    check_environment(env)
    shape = (env.num_groups, env.num_units)
    given = _numbers("mask", mask) if not isinstance(mask, jax.Array) else mask
    if given.shape != shape:
        raise ValueError(f"mask has shape {given.shape} and must have {shape}")
    kept = is_kept(jnp.asarray(given)) & env.alive
    padding = env.num_units
    # Two keys a unit: whether it is kept, and its old rank.
    order = jnp.where(env.alive, jnp.where(kept, 0, padding) + env.ranks, 3 * padding)
    ranks = jnp.argsort(jnp.argsort(order, axis=1), axis=1).astype(jnp.int32)

    def reordered(scores: jax.Array) -> jax.Array:
        falling = -jnp.sort(jnp.where(env.alive, -scores, jnp.inf), axis=1)
        return jnp.where(env.alive, jnp.take_along_axis(falling, ranks, axis=1), 0.0)

    return dataclasses.replace(
        env,
        ranks=jnp.where(env.alive, ranks, padding),
        scores=reordered(env.scores),
        raw_scores=reordered(env.raw_scores),
        initial_keep=kept.sum(1) / jnp.asarray(env.sizes, jnp.float32),
    )


def _is_listed(value: object) -> bool:
    if isinstance(value, str | bytes):
        return False
    return isinstance(value, Mapping | Sequence) or np.ndim(value) > 0  # type: ignore[arg-type]


def _numbers(argument: str, value: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument}={shown(value)} must be numbers: {error}") from None


def _check_costs(env: Environment, cost_fn: CostFunction) -> None:
    """Refuse costs that cannot be traced, or are no costs of the whole network."""
    require_function("cost_fn", cost_fn, "a traceable function masks -> f32[K], or None")
    masks = env.alive.astype(jnp.float32)
    try:
        found = jax.eval_shape(cost_fn, masks)
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            "cost_fn must be traceable; leave it out and measure costs on the host, with "
            f"run_search_host(..., host_costs=...): {type(error).__name__}"
        ) from error
    except TypeError as error:
        raise ValueError(f"cost_fn must return an array of costs: {error}") from error
    shape = getattr(found, "shape", None)
    if shape != env.limits.shape:
        raise ValueError(
            f"cost_fn returns shape {shape} and must return {env.limits.shape}, one per limit"
        )
    whole = np.asarray(jax.jit(cost_fn)(masks))
    if not (np.isfinite(whole).all() and (whole >= 0).all()):
        raise ValueError(
            f"cost_fn gives {whole.tolist()} for the whole network and must give finite costs of "
            "at least 0"
        )


def _scores_per_group(
    scores: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    names: tuple[str, ...],
    counts: tuple[int, ...],
) -> list[np.ndarray]:
    """The scores of each group as f32[size], checked."""
    if isinstance(scores, Mapping):
        if set(scores) != set(names):
            raise ValueError(f"scores names groups {sorted(scores)}: needs {sorted(names)}")
        scores = [scores[name] for name in names]
    if len(scores) != len(names):
        raise ValueError(f"scores has {len(scores)} entries: needs {len(names)}, one per group")
    arrays = [
        _numbers(f"scores of group {name!r}", values)
        for name, values in zip(names, scores, strict=True)
    ]
    for name, count, values in zip(names, counts, arrays, strict=True):
        if values.shape != (count,):
            raise ValueError(
                f"scores of group {name!r} have shape {values.shape}: needs ({count},)"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"scores of group {name!r} hold NaN or infinity")
    return arrays
