"""Keep the best masks seen so far.

Arrays of fixed size, so that an archive goes through a scan.

Feasible masks can be delivered; infeasible ones are near misses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_count
from rlprune_jax.kept import is_kept
from rlprune_jax.search.environment import Environment, check_environment, feasible
from rlprune_jax.search.searcher import check_told, violation


class Entries(NamedTuple):
    """Hold M masks, best first.

    Attributes:
        masks: bool[M, G, Cmax].
        rewards: f32[M], -inf where not valid.
        costs: f32[M, K], inf where not valid.
        valid: bool[M], whether the place is taken.
        evaluations: i32[M], number of the evaluation that found it, counted from 0; -1 if none.
    """

    masks: jax.Array
    rewards: jax.Array
    costs: jax.Array
    valid: jax.Array
    evaluations: jax.Array


class Archive(NamedTuple):
    """Hold what a search has found.

    Attributes:
        feasible: masks within every budget, by falling reward.
        infeasible: masks over some budget, by rising violation: the fall-back for projection.
        seen: i32, evaluations so far.
        missing: i32, those of them whose reward was NaN or infinite.
    """

    feasible: Entries
    infeasible: Entries
    seen: jax.Array
    missing: jax.Array


class EmptyArchiveError(ValueError):
    """Raised where a search found nothing that could be used."""


def archive_init(env: Environment, capacity: int, num_budgets: int | None = None) -> Archive:
    """Make an empty archive.

    Raises:
        ValueError: capacity or number of budgets below 1.
    """
    check_environment(env)
    capacity = require_count("capacity", capacity)
    budgets = env.num_budgets if num_budgets is None else require_count("num_budgets", num_budgets)
    empty = Entries(
        masks=jnp.zeros((capacity, env.num_groups, env.num_units), bool),
        rewards=jnp.full(capacity, -jnp.inf, jnp.float32),
        costs=jnp.full((capacity, budgets), jnp.inf, jnp.float32),
        valid=jnp.zeros(capacity, bool),
        evaluations=jnp.full(capacity, -1, jnp.int32),
    )
    return Archive(feasible=empty, infeasible=empty, seen=jnp.int32(0), missing=jnp.int32(0))


def archive_update(
    archive: Archive, masks: jax.Array, rewards: jax.Array, costs: jax.Array, limits: jax.Array
) -> Archive:
    """Enter evaluated masks and keep the best.

    Each mask is kept once, with the reward that it first got.

    A reward or cost that is not finite never enters. The first reward of a mask stands, since
    the largest of several noisy ones would flatter it.

    Args:
        archive: as it was.
        masks: f32[N, G, Cmax] or bool.
        rewards: f32[N].
        costs: f32[N, K].
        limits: f32[K].

    Raises:
        ValueError: masks, rewards, costs or limits of another shape than the archive's.
    """
    known = archive.feasible.masks.shape[1:]
    if jnp.shape(masks)[1:] != known:
        raise ValueError(f"masks have shape {jnp.shape(masks)} and must have (N, {known})")
    rewards, costs = check_told(masks, rewards, costs, archive.feasible.costs.shape[-1])
    if jnp.shape(limits) != costs.shape[-1:]:
        raise ValueError(f"limits have shape {jnp.shape(limits)} and must have {costs.shape[-1:]}")
    usable = jnp.isfinite(rewards) & jnp.isfinite(costs).all(-1)
    good = feasible(costs, limits)
    numbers = archive.seen + jnp.arange(masks.shape[0], dtype=jnp.int32)
    new = Entries(
        masks=is_kept(masks),
        rewards=rewards,
        costs=costs,
        valid=usable & good,
        evaluations=numbers,
    )
    near = new._replace(valid=usable & ~good)
    missing = jnp.sum(~jnp.isfinite(rewards), dtype=jnp.int32)
    return Archive(
        feasible=_best(archive.feasible, new, _rewards),
        infeasible=_best(archive.infeasible, near, lambda found: -violation(found.costs, limits)),
        seen=archive.seen + masks.shape[0],
        missing=archive.missing + missing,
    )


def archive_with_rewards(archive: Archive, rewards: jax.Array) -> Archive:
    """Replace the rewards of all feasible masks and sort anew.

    Use it where what is rewarded has changed, so that rewards of two kinds are never compared. A
    mask whose reward is not finite leaves. Near misses stay as they are: they are ordered by how
    far they are over, whatever their rewards.

    Args:
        archive: as it was.
        rewards: f32[M] of ``archive.feasible.masks``; those of places not taken do not matter.

    Raises:
        ValueError: not one reward per place.
    """
    if jnp.shape(rewards) != archive.feasible.rewards.shape:
        raise ValueError(
            f"rewards have shape {jnp.shape(rewards)} and must have "
            f"{archive.feasible.rewards.shape}, one per place of the archive"
        )
    valid = archive.feasible.valid & jnp.isfinite(rewards)
    renewed = archive.feasible._replace(rewards=jnp.asarray(rewards, jnp.float32), valid=valid)
    nothing = jax.tree.map(jnp.zeros_like, renewed)
    return archive._replace(feasible=_best(renewed, nothing, _rewards))


def archive_best(archive: Archive) -> Entries:
    """Return the feasible mask of highest reward.

    Use it to read a finished search. The leading axis is dropped; check ``valid`` before using it.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> masks, costs = jnp.ones((2, 2, 3)), jnp.array([[0.9], [0.5]])
        >>> archive = archive_update(archive_init(env, capacity=4), masks, jnp.array([9.0, 1.0]),
        ...                          costs, env.limits)
        >>> best = archive_best(archive)
        >>> bool(best.valid), float(best.rewards)
        (True, 1.0)
    """
    return jax.tree.map(lambda leaf: leaf[0], archive.feasible)


def archive_is_empty(archive: Archive) -> jax.Array:
    """Return whether a search has found nothing at all.

    bool[], true where no mask, within budgets or over them, had a finite reward and finite costs.
    """
    return ~(archive.feasible.valid.any() | archive.infeasible.valid.any())


def check_archive(archive: Archive) -> None:
    """Refuse an archive in which nothing was found.

    Use it after a search and before delivering; it reads values, so not under ``jax.jit``.

    Raises:
        EmptyArchiveError: no mask is held; the message says whether rewards or costs are missing.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2], [[1.0, 2.0]], [[0.0]], limits=0.5)
        >>> archive = archive_init(env, capacity=4)
        >>> masks = jnp.ones((3, 1, 2))
        >>> archive = archive_update(archive, masks, jnp.full(3, jnp.nan), jnp.ones((3, 1)),
        ...                          env.limits)
        >>> check_archive(archive)
        Traceback (most recent call last):
        rlprune_jax.search.archive.EmptyArchiveError: every reward was NaN or infinite, of all 3 \
candidates; look at what evaluates them, such as the metric, its data or the learning rate
    """
    if not bool(archive_is_empty(archive)):
        return
    seen, missing = int(np.asarray(archive.seen)), int(np.asarray(archive.missing))
    if seen == 0:
        raise EmptyArchiveError("no candidate was evaluated; run the search first")
    if missing == seen:
        raise EmptyArchiveError(
            f"every reward was NaN or infinite, of all {seen} candidates; look at what evaluates "
            "them, such as the metric, its data or the learning rate"
        )
    raise EmptyArchiveError(
        f"no candidate of {seen} has both a finite reward and finite costs ({missing} rewards are "
        "missing); look at what measures the costs"
    )


def _rewards(entries: Entries) -> jax.Array:
    return entries.rewards


def _best(old: Entries, new: Entries, merit: Callable[[Entries], jax.Array]) -> Entries:
    """The first M of both by falling merit, duplicates and invalid ones last."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, new)
    marks = fingerprint(both.masks)
    same = (marks[:, None, :] == marks[None, :, :]).all(-1) & both.valid[None, :]
    first = jnp.argmax(same, axis=1)
    valid = both.valid & (first == jnp.arange(first.size))
    order = jnp.argsort(-jnp.where(valid, merit(both), -jnp.inf), stable=True)
    # A valid entry with the merit of an empty place cannot exist: its reward is finite.
    top = order[: old.valid.size]
    kept = jax.tree.map(lambda leaf: leaf[top], both._replace(valid=valid))
    return Entries(
        masks=kept.masks & kept.valid[:, None, None],
        rewards=jnp.where(kept.valid, kept.rewards, -jnp.inf),
        costs=jnp.where(kept.valid[:, None], kept.costs, jnp.inf),
        valid=kept.valid,
        evaluations=jnp.where(kept.valid, kept.evaluations, -1),
    )


def fingerprint(masks: jax.Array) -> jax.Array:
    """Hash masks to tell them apart.

    Two independent 32-bit hashes, u32[M, 2], of masks bool[M, G, Cmax].
    """
    flat = masks.reshape(masks.shape[0], -1).astype(jnp.uint32)
    words = jax.random.bits(jax.random.key(0), (flat.shape[1], 2), jnp.uint32)
    return jnp.sum(flat[:, :, None] * words[None], axis=1, dtype=jnp.uint32)
