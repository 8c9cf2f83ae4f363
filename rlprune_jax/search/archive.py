"""The best masks seen so far, in arrays of fixed size: what can be delivered, and near misses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.kept import is_kept
from rlprune_jax.search.environment import Environment, feasible
from rlprune_jax.search.searcher import check_positive, check_told, violation


class Entries(NamedTuple):
    """M masks, best first.

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
    """What a search has found.

    Attributes:
        feasible: masks within every budget, by falling reward.
        infeasible: masks over some budget, by rising violation: the fall-back for projection.
        seen: i32, evaluations so far.
    """

    feasible: Entries
    infeasible: Entries
    seen: jax.Array


def archive_init(env: Environment, capacity: int, num_budgets: int | None = None) -> Archive:
    """An empty archive for M = ``capacity`` feasible and as many infeasible masks.

    Raises:
        ValueError: capacity below 1.
    """
    check_positive("capacity", capacity)
    budgets = env.num_budgets if num_budgets is None else num_budgets
    empty = Entries(
        masks=jnp.zeros((capacity, env.num_groups, env.num_units), bool),
        rewards=jnp.full(capacity, -jnp.inf),
        costs=jnp.full((capacity, budgets), jnp.inf),
        valid=jnp.zeros(capacity, bool),
        evaluations=jnp.full(capacity, -1, jnp.int32),
    )
    return Archive(empty, empty, jnp.int32(0))


def archive_update(
    archive: Archive, masks: jax.Array, rewards: jax.Array, costs: jax.Array, limits: jax.Array
) -> Archive:
    """Enter N evaluated masks; keep the best M, each mask once, with the reward it first got.

    A reward or cost that is not finite never enters. The first reward of a mask stands, since
    the largest of several noisy ones would flatter it.

    Args:
        archive: as it was.
        masks: f32[N, G, Cmax] or bool.
        rewards: f32[N].
        costs: f32[N, K].
        limits: f32[K].
    """
    rewards, costs = check_told(masks, rewards, costs, limits.shape[-1])
    usable = jnp.isfinite(rewards) & jnp.isfinite(costs).all(-1)
    good = feasible(costs, limits)
    numbers = archive.seen + jnp.arange(masks.shape[0], dtype=jnp.int32)
    new = Entries(is_kept(masks), rewards, costs, usable & good, numbers)
    near = new._replace(valid=usable & ~good)
    return Archive(
        _best(archive.feasible, new, lambda entries: entries.rewards),
        _best(archive.infeasible, near, lambda entries: -violation(entries.costs, limits)),
        archive.seen + masks.shape[0],
    )


def archive_best(archive: Archive) -> Entries:
    """The feasible mask of highest reward, without the leading axis; check its ``valid``."""
    return jax.tree.map(lambda leaf: leaf[0], archive.feasible)


def _best(old: Entries, new: Entries, merit) -> Entries:
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
    """Two independent 32-bit hashes u32[M, 2] of masks bool[M, G, Cmax], to tell them apart."""
    flat = masks.reshape(masks.shape[0], -1).astype(jnp.uint32)
    words = jax.random.bits(jax.random.key(0), (flat.shape[1], 2), jnp.uint32)
    return jnp.sum(flat[:, :, None] * words[None], axis=1, dtype=jnp.uint32)
