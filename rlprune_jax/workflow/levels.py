"""Search the numbers of units that groups keep, each answer confirmed by the costs themselves.

One order of the units within every group makes a mask of a number per group. ``Levels`` holds that
order and the numbers that are allowed; ``grow`` and ``shrink`` move between them. Costs need not
rise with the numbers: what is returned has been found within the budgets, never inferred.

Costs are asked for a bounded number of masks. Where all combinations are as few, they are asked in
the order of falling worth, so that the first that fits is the best. Else a line of masks is looked
through from its large end, coarse and then fine, and single groups and pairs are tried from there.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlprune_jax.costs.constraints import Constraint
from rlprune_jax.kept import rank
from rlprune_jax.search.environment import Environment
from rlprune_jax.types import PyTree

CHEAP_ASKS = 2000
"""Masks that costs may be asked for where every cost is counted."""

HOST_ASKS = 128
"""Masks that a cost of the host may be asked for where it does not say."""

ALL_COUNTED = 256
"""Combinations of widths that are all counted, at most."""

FEW_ASKS = 24
"""Below so many asks left, a mask is shrunk along one line alone."""


class Asked:
    """Ask costs whether masks are within their limits.

    A bounded number of times.

    Attributes:
        constraints: counts first.
        limits: f64[K] of them.
        left: asks that are left; beyond them a mask that was not asked for counts as over.
        is_bounded: whether a cost of the host is among them, so that each ask is dear.
    """

    def __init__(self, env: Environment, constraints: Sequence[Constraint]) -> None:
        """Prepare without asking.

        Args:
            env: the problem.
            constraints: to respect, counts and costs of the host.
        """
        self._env, self._seen = env, dict[bytes, np.ndarray]()
        self.constraints = sorted(constraints, key=lambda each: each.is_measured)
        self.limits = np.array([each.budget.limit for each in self.constraints], np.float64)
        hosts = [each.cost.asks or HOST_ASKS for each in constraints if each.is_measured]
        self.is_bounded = bool(hosts)
        self.left = min(hosts, default=CHEAP_ASKS)

    @property
    def all_at_once(self) -> int:
        """How many combinations are all asked for, at most."""
        return self.left if self.is_bounded else min(self.left, ALL_COUNTED)

    def uppers(self, mask: np.ndarray, must: bool = False) -> np.ndarray:
        """Return the costs of a mask.

        f64[K], of measured ones the upper quartile. Counts come first, and the host is not asked
        for a mask that they refuse: NaN then, as where no ask is left.

        Args:
            mask: bool[G, Cmax].
            must: asks even where none is left.

        Raises:
            CostError: a cost fails on this mask.
        """
        mark = np.packbits(mask).tobytes()
        if mark in self._seen:
            return self._seen[mark]
        if not self.is_bounded and self.left <= 0 and not must:
            return np.full(len(self.limits), np.nan)
        found, gates = np.full(len(self.limits), np.nan), self.gates(mask)
        paid = not self.is_bounded
        for k, each in enumerate(self.constraints):
            if each.is_measured:
                if not (found[:k] <= self.limits[:k]).all():
                    break
                if self.left <= 0 and not must and not paid:
                    return found
                paid = True
            found[k] = each.measure(gates).upper
        self.left -= paid
        self._seen[mark] = found
        return found

    def within(self, mask: np.ndarray, must: bool = False) -> bool:
        """Return whether a mask is known to be within limits."""
        return bool((self.uppers(mask, must) <= self.limits).all())

    def gates(self, mask: np.ndarray) -> dict[str, PyTree]:
        """Return a mask bool[G, Cmax] as NumPy gates."""
        env = self._env
        return {
            name: mask[index, :size].astype(np.float32)
            for index, (name, size) in enumerate(zip(env.names, env.sizes, strict=True))
        }


class Levels(NamedTuple):
    """Hold the masks that one order of the units makes.

    A level is the place of a number of units among those that a group may keep.

    Attributes:
        places: i32[G, Cmax], the place of each unit in its group, 0 is kept longest.
        allowed: per group the numbers of units that may be kept, rising.
        worth: per group the worth of the units kept at each level.
    """

    places: np.ndarray
    allowed: tuple[np.ndarray, ...]
    worth: tuple[np.ndarray, ...]

    @property
    def top(self) -> np.ndarray:
        """Return the levels i64[G] at which all units are kept."""
        return np.array([len(each) - 1 for each in self.allowed])

    def mask(self, levels: np.ndarray) -> np.ndarray:
        """Return the mask bool[G, Cmax] at levels i64[G]."""
        counts = [each[level] for each, level in zip(self.allowed, levels, strict=True)]
        return self.places < np.array(counts)[:, None]

    def of(self, mask: np.ndarray) -> np.ndarray:
        """Return the levels i64[G] of a mask."""
        counts = mask.sum(-1)
        return np.array(
            [np.searchsorted(each, count) for each, count in zip(self.allowed, counts, strict=True)]
        )

    def worth_of(self, levels: np.ndarray) -> float:
        """Return the worth of what is kept at levels i64[G]."""
        return float(sum(each[level] for each, level in zip(self.worth, levels, strict=True)))


def unit_worth(env: Environment) -> np.ndarray:
    """Return what keeping each unit is worth.

    f64[G, Cmax], the score over the mean score of its group, so that groups whose scores have
    another scale count alike and a group is worth as much as it has units. Where scores do not
    tell units apart each is worth 1; padding is worth 0.
    """
    alive = np.asarray(env.alive)
    scores = np.where(alive, np.asarray(env.raw_scores, np.float64), 0.0)
    scores = np.where(alive, scores - np.minimum(scores.min(-1, keepdims=True), 0.0), 0.0)
    mean = scores.sum(-1, keepdims=True) / alive.sum(-1, keepdims=True)
    return np.where(alive, np.where(mean > 0, scores / np.where(mean > 0, mean, 1.0), 1.0), 0.0)


def make_levels(env: Environment, *first: np.ndarray) -> Levels:
    """Order the units of every group.

    Args:
        env: the problem.
        *first: masks bool[G, Cmax]; their units come before all others, those of the first mask
            before those of the second. Among equals the score decides.
    """
    alive = np.asarray(env.alive)
    standing = 1.0 - np.asarray(env.ranks, np.float64) / env.num_units
    for power, mask in enumerate(reversed(first), start=1):
        standing = standing + mask * 2.0**power
    places = rank(np.where(alive, standing, -np.inf))
    worth = unit_worth(env)
    allowed, sums = [], []
    for g, size in enumerate(env.sizes):
        multiple, least = env.multiples[g], env.min_keep[g]
        numbers = [n for n in range(least, size + 1) if n % multiple == 0 or n in (size, least)]
        in_order = worth[g, np.argsort(places[g])]
        allowed.append(np.array(numbers))
        sums.append(np.concatenate([[0.0], np.cumsum(in_order)])[numbers])
    return Levels(places=places, allowed=tuple(allowed), worth=tuple(sums))


def combinations(low: np.ndarray, high: np.ndarray) -> int:
    """Count the levels from low to high i64[G]."""
    return math.prod(int(number) + 1 for number in high - low)


def best_of_all(
    asked: Asked, levels: Levels, low: np.ndarray, high: np.ndarray
) -> np.ndarray | None:
    """Return the levels of greatest worth that fit.

    All are asked for by falling worth until one fits; None where nothing does. Use it where
    ``combinations(low, high)`` are few.
    """
    steps = itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))
    every = np.array(list(steps))
    worth = sum(each[every[:, g]] for g, each in enumerate(levels.worth))
    units = sum(each[every[:, g]] for g, each in enumerate(levels.allowed))
    for index in np.lexsort((-np.asarray(units), -np.round(worth, 9))):
        if asked.within(levels.mask(every[index])):
            return every[index]
    return None


def largest_number(fits: Callable[[int], bool], low: int, high: int, asks: int) -> int | None:
    """Find a large number that fits.

    Smaller ones need not fit. Numbers are tried from the largest down, evenly spread, and then
    those above the first that fits: all of them where asks allow it, else by bisection. Where what
    fits are all numbers up to one, it is that one.

    Args:
        fits: whether a number does.
        low: the least to try.
        high: the greatest to try.
        asks: about how many to try.

    Returns:
        A number for which ``fits`` was true, None where none was found.

    Example:
        >>> largest_number(lambda number: number <= 37, 0, 1000, asks=16)
        37
        >>> largest_number(lambda number: number < 5 or 15 <= number < 21, 0, 26, asks=12)
        20
    """
    if high < low:
        return None
    grid = np.unique(np.linspace(low, high, max(2, asks // 2)).round().astype(int))[::-1].tolist()
    number = next((each for each in grid if fits(each)), None)
    if number is None:
        return None
    tried = grid.index(number)
    above = grid[tried - 1] if tried else high + 1
    if above - number - 1 <= asks - tried - 1:
        return next((each for each in range(above - 1, number, -1) if fits(each)), number)
    while above - number > 1:
        middle = (above + number) // 2
        if fits(middle):
            number = middle
        else:
            above = middle
    return number


class Line(NamedTuple):
    """Hold masks on a line from few units to many.

    Attributes:
        start: levels i64[G] of the least.
        groups: i64[S], the group that each step raises by one level.
    """

    start: np.ndarray
    groups: np.ndarray

    def at(self, steps: int) -> np.ndarray:
        """Return the levels i64[G] after so many steps."""
        return self.start + np.bincount(self.groups[:steps], minlength=len(self.start))


def line(low: np.ndarray, high: np.ndarray, keys: Sequence[np.ndarray]) -> Line:
    """Return the line that takes steps of great keys first.

    Args:
        low: levels i64[G] of its start.
        high: levels i64[G] of its end.
        keys: per group the key of every step from ``low`` to ``high``; a step that comes later in
            its group is not taken earlier.
    """
    groups = np.repeat(np.arange(len(low)), high - low)
    falling = [np.minimum.accumulate(each) for each in keys if len(each)]
    order = np.argsort(-np.concatenate([np.zeros(0), *falling]), kind="stable")
    return Line(start=low, groups=groups[order])


def densities(levels: Levels, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """Return the worth of a unit in every step.

    Per group, from levels ``low`` to ``high`` i64[G].
    """
    return [
        np.diff(worth[a : b + 1]) / np.diff(allowed[a : b + 1])
        for worth, allowed, a, b in zip(levels.worth, levels.allowed, low, high, strict=True)
    ]


def together(low: np.ndarray, high: np.ndarray) -> Line:
    """Return the line on which all groups grow alike."""
    keys = [-np.arange(1, span + 1) / max(span, 1) for span in high - low]
    return line(low, high, keys)


def along(asked: Asked, levels: Levels, way: Line, asks: int, least: int = 0) -> np.ndarray | None:
    """Return the largest levels on a line that fit.

    i64[G], or None where none was found (``largest_number``).
    """
    found = largest_number(
        lambda steps: asked.within(levels.mask(way.at(steps))), least, len(way.groups), asks
    )
    return None if found is None else way.at(found)


def prices(asked: Asked, levels: Levels, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return what a unit of each group costs.

    f64[G], in limits, summed over the costs that are over at ``high``: the cost there less that
    with the group alone at ``low``. One ask a group.
    """
    whole = asked.uppers(levels.mask(high))
    over = ~(whole <= asked.limits)
    found = np.zeros(len(high))
    for g in np.flatnonzero(high > low):
        without = high.copy()
        without[g] = low[g]
        saved = (whole - asked.uppers(levels.mask(without))) / asked.limits
        units = levels.allowed[g][high[g]] - levels.allowed[g][low[g]]
        found[g] = np.nansum(saved[over]) / units
    return found


def shrink_together(asked: Asked, levels: Levels, high: np.ndarray) -> np.ndarray | None:
    """Take units from all groups alike until a mask fits.

    Args:
        asked: of the costs.
        levels: whose order has the units of the mask first.
        high: levels i64[G] of the mask.

    Returns:
        Levels i64[G], found within the limits; None where none was found.
    """
    asks = min(asked.left // 2, 64)
    return along(asked, levels, together(np.zeros_like(high), high), asks)


def shrink(asked: Asked, levels: Levels, high: np.ndarray) -> list[np.ndarray]:
    """Return masks below one that is over.

    Each was found within the limits. All groups shrink together on one line, by score on another,
    and dear groups first on a third; single groups at their least are tried on the way.

    Args:
        asked: of the costs.
        levels: whose order has the units of the mask first.
        high: levels i64[G] of the mask.

    Returns:
        Levels i64[G] of each; [] where none was found.
    """
    low = np.zeros_like(high)
    if combinations(low, high) <= asked.all_at_once:
        best = best_of_all(asked, levels, low, high)
        return [] if best is None else [best]
    if asked.left < FEW_ASKS:
        found = shrink_together(asked, levels, high)
        return [] if found is None else [found]
    asks = min(asked.left // 4, 48)
    worth = densities(levels, low, high)
    found_all = [
        along(asked, levels, together(low, high), asks),
        along(asked, levels, line(low, high, worth), asks),
    ]
    if len(high) <= asks:
        price = np.maximum(prices(asked, levels, low, high), 1e-9)
        keys = [each / price[g] for g, each in enumerate(worth)]
        found_all.append(along(asked, levels, line(low, high, keys), asks))
        singles = [np.where(np.arange(len(high)) == g, low, high) for g in range(len(high))]
        found_all += [each for each in singles if asked.within(levels.mask(each))]
    return [each for each in found_all if each is not None]


def grow(asked: Asked, levels: Levels, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Add units to a mask within the limits.

    Nothing is ever taken away. Units come by score; a group whose next does not fit leaves room to
    others, and at last two more of one group or one of two are tried.

    Args:
        asked: of the costs.
        levels: whose order has the units of the mask first.
        low: levels i64[G] of the mask, within the limits.
        high: levels i64[G] that are not passed.

    Returns:
        Levels i64[G], found within the limits.
    """
    if combinations(low, high) <= asked.all_at_once:
        best = best_of_all(asked, levels, low, high)
        return low if best is None else best
    way = line(low, high, densities(levels, low, high))
    found = along(asked, levels, way, min(max(4, asked.left // 3), 48), least=1)
    at = low if found is None else found
    while True:
        at = _add_singly(asked, levels, at, high)
        more = _add_pair(asked, levels, at, high) if asked.is_bounded else None
        if more is None:
            return at
        at = more


def _add_singly(asked: Asked, levels: Levels, at: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Add to one group after the other, the best units first, until none takes more.

    Where asks are dear, a group that took some is offered twice as many next.
    """
    at, steps, full = at.copy(), np.ones_like(at), at >= high
    while not full.all() and asked.left > 0:
        next_one = np.minimum(at + 1, high)
        gain = [
            (worth[b] - worth[a]) / max(numbers[b] - numbers[a], 1)
            for worth, numbers, a, b in zip(levels.worth, levels.allowed, at, next_one, strict=True)
        ]
        g = int(np.argmax(np.where(full, -np.inf, gain)))
        tried = at.copy()
        tried[g] = min(at[g] + steps[g], high[g])
        if asked.within(levels.mask(tried)):
            at = tried
            steps[g] *= 2 if asked.is_bounded else 1
            full[g] = at[g] >= high[g]
        elif steps[g] > 1:
            steps[g] = 1
        else:
            full[g] = True
    return at


def _add_pair(asked: Asked, levels: Levels, at: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """Return levels with two steps more, of one group or of two; None where none fits."""
    one = np.eye(len(at), dtype=int)
    pairs = itertools.combinations_with_replacement(range(len(at)), 2)
    tries = [at + one[g] + one[h] for g, h in pairs]
    tries = sorted(filter(lambda each: (each <= high).all(), tries), key=levels.worth_of)
    for each in reversed(tries):
        if asked.left <= 0:
            return None
        if asked.within(levels.mask(each)):
            return each
    return None
