"""Levels of groups, and what one group at a level costs in reward.

A level is a number of units that a group keeps. Solvers choose one level per group from a table of
them, by errors that are measured with a single group narrowed at a time, or guessed.
Shapes: S levels, N candidates of an iteration, T iterations that measure.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_count
from rlprune_jax.search.environment import (
    Environment,
    logit,
    masks_to_ratios,
    project_logits,
    ratios_to_masks,
)
from rlprune_jax.search.searcher import worst_for_missing


def group_levels(env: Environment, num_levels: int) -> np.ndarray:
    """Return numbers of units that each group may keep.

    The first is the whole group and the last its ``min_keep``; those between lie the closer
    together the fewer units are left, ``(1 - i / (S - 1))**2`` of what may go. All are allowed by
    ``round_to``, and a small group has some of them more than once.

    Args:
        env: the problem.
        num_levels: S, at least 2.

    Returns:
        i32[G, S], not rising.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 9], [[1., 2.], range(9)], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 11)
        >>> group_levels(env, 3).tolist()
        [[2, 1, 1], [9, 3, 1]]
    """
    require_count("num_levels", num_levels, 2)
    wanted = np.linspace(1.0, 0.0, num_levels) ** 2
    rows = []
    for size, least, multiple in zip(env.sizes, env.min_keep, env.multiples, strict=True):
        allowed = _allowed(size, least, multiple)
        counts = least + wanted * (size - least)
        rows.append(allowed[np.abs(allowed - counts[:, None]).argmin(1)])
    return np.array(rows, np.int32)


def fine_levels(env: Environment, most: int) -> np.ndarray:
    """Return levels in equal steps, all where there are few.

    Args:
        env: the problem.
        most: S at most, for the sake of memory and time; a group of more takes larger steps.

    Returns:
        i32[G, S], not rising; shorter rows repeat their last level.
    """
    require_count("most", most, 2)
    rows = []
    for size, least, multiple in zip(env.sizes, env.min_keep, env.multiples, strict=True):
        allowed = _allowed(size, least, multiple)[::-1]
        places = np.linspace(0, len(allowed) - 1, min(most, len(allowed)))
        rows.append(allowed[np.round(places).astype(int)])
    longest = max(2, *map(len, rows))
    return np.array([np.pad(row, (0, longest - len(row)), "edge") for row in rows], np.int32)


def _allowed(size: int, least: int, multiple: int) -> np.ndarray:
    """Numbers of units that a group may keep, rising."""
    counts = np.arange(least, size + 1)
    return counts[(counts % multiple == 0) | (counts == least) | (counts == size)]


def prior_errors(env: Environment, levels: np.ndarray) -> jax.Array:
    """Guess the errors of levels from their place alone.

    SPDY's prior, ``(i / (S - 1))**2`` for the ith of S levels, with i read off the number of units:
    0 of a whole group and 1 at ``min_keep``.

    Args:
        env: the problem.
        levels: i32[G, S].

    Returns:
        f32[G, S].
    """
    least = np.array(env.min_keep)[:, None]
    room = np.maximum(np.array(env.sizes)[:, None] - least, 1)
    return jnp.asarray((1.0 - np.sqrt((levels - least) / room)) ** 2 * (levels < room + least))


def counts_to_masks(env: Environment, counts: jax.Array) -> jax.Array:
    """Keep the best units of each group by number.

    Masks f32[..., G, Cmax] of allowed numbers i32[..., G].
    """
    return ratios_to_masks(env, counts / jnp.asarray(env.sizes, jnp.float32))


def put_on_budgets(env: Environment, counts: jax.Array) -> jax.Array:
    """Return masks of numbers of units, put on the budgets.

    All groups grow together while the budgets allow it, or shrink together until they do.

    Args:
        env: the problem, with traceable costs.
        counts: i32[..., G].

    Returns:
        Masks f32[..., G, Cmax] that meet every reachable budget.
    """
    ratios = counts / jnp.asarray(env.sizes, jnp.float32)
    return project_logits(env, logit(ratios))[0]


def kept_counts(env: Environment, masks: jax.Array) -> jax.Array:
    """Return how many units masks keep.

    i32[..., G] of masks f32[..., G, Cmax].
    """
    sizes = jnp.asarray(env.sizes, jnp.float32)
    return jnp.round(masks_to_ratios(env, masks) * sizes).astype(jnp.int32)


class MeasurementPlan(NamedTuple):
    """Hold which single groups are narrowed in which iteration.

    The first measurement is of the whole network.

    Attributes:
        levels: i32[G, S], the table that is measured.
        counts: i32[T, N, G], units kept; what is left of the last iteration repeats the dense.
        place: i32[G, S], number of the measurement of each level; -1 where it is left out.
    """

    levels: np.ndarray
    counts: np.ndarray
    place: np.ndarray

    @property
    def iterations(self) -> int:
        """Return T, the iterations that measure."""
        return len(self.counts)


def plan_measurements(
    env: Environment, num_candidates: int, num_levels: int, most_iterations: int
) -> MeasurementPlan:
    """Plan to measure every level of every group alone.

    Use it for searches that are told what single groups cost. Levels that do not fit into the
    iterations are left out, the narrowest first.

    Args:
        env: the problem.
        num_candidates: N.
        num_levels: S at most; as many as can be measured of all groups, and 3 at least.
        most_iterations: T at most.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 9], [[1., 2.], range(9)], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 11)
        >>> plan = plan_measurements(env, num_candidates=4, num_levels=3, most_iterations=8)
        >>> plan.counts.tolist()
        [[[2, 9], [1, 9], [2, 3], [2, 1]]]
    """
    require_count("num_candidates", num_candidates)
    room = num_candidates * most_iterations
    for many in range(max(num_levels, 3), 2, -1):
        levels = group_levels(env, many)
        pairs = _single_groups(env, levels)
        if len(pairs) < room:
            break
    pairs = pairs[: max(room - 1, 0)]
    numbers = {pair: index + 1 for index, pair in enumerate(pairs)}
    place = np.full(levels.shape, -1, np.int32)
    for group, size in enumerate(env.sizes):
        for level, count in enumerate(levels[group].tolist()):
            place[group, level] = 0 if count == size else numbers.get((group, count), -1)
    rows = -(-(len(pairs) + 1) // num_candidates) if room else 0
    counts = np.tile(np.array(env.sizes, np.int32), (rows * num_candidates, 1))
    for index, (group, count) in enumerate(pairs):
        counts[index + 1, group] = count
    counts = counts.reshape(rows, num_candidates, env.num_groups)
    return MeasurementPlan(levels=levels, counts=counts, place=place)


def _single_groups(env: Environment, levels: np.ndarray) -> list[tuple[int, int]]:
    """Distinct (group, units) below the whole group, wide levels first."""
    found: dict[tuple[int, int], None] = {}
    for column in levels.T.tolist():
        for group, count in enumerate(column):
            if count < env.sizes[group]:
                found[group, count] = None
    return list(found)


def measured_errors(env: Environment, plan: MeasurementPlan, rewards: jax.Array) -> jax.Array:
    """Return what each level loses by itself.

    ``reward(dense) - reward(one group narrowed)``, made to rise as units go, and not below 0. What
    was not measured is guessed by `prior_errors`, scaled to what was.

    Args:
        env: the problem.
        plan: of the measurements.
        rewards: f32[T, N] of its candidates; one that is not finite counts as the worst.

    Returns:
        f32[G, S], not falling along levels.

    Reference:
        ModelOpt's FastNAS measures and smooths alike.
    """
    prior = prior_errors(env, plan.levels)
    if rewards.size == 0:
        return prior
    flat = worst_for_missing(rewards.reshape(-1))
    known = jnp.asarray(plan.place >= 0)
    losses = jnp.where(known, flat[0] - flat[plan.place], 0.0)
    scale = losses.sum() / jnp.maximum(jnp.sum(prior * known), 1e-12)
    errors = jnp.where(known, losses, prior * jnp.maximum(scale, 0.0))
    return jnp.maximum(jax.lax.cummax(errors, axis=1), 0.0)
