"""From what a search found to gates that are delivered: within every budget, always.

A mask that is within every budget, by the costs themselves, is only ever added to. One that is over
is shrunk, in several ways, and the one that keeps most of it is taken. Estimates decide nothing.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.checks import require_count
from rlprune_jax.costs.constraints import Constraint, exact_costs
from rlprune_jax.kept import is_kept, rank
from rlprune_jax.search.archive import Archive
from rlprune_jax.search.environment import Environment, ratios_to_masks
from rlprune_jax.types import Gates, PyTree
from rlprune_jax.workflow.levels import (
    Asked,
    Levels,
    along,
    grow,
    make_levels,
    shrink,
    shrink_together,
    together,
    unit_worth,
)
from rlprune_jax.workflow.network import Network

Candidate = TypeVar("Candidate")

MUST_ASK = 2
"""Known masks that are asked for even where no asks are left."""


def fit_to_budgets(
    env: Environment,
    constraints: Sequence[Constraint],
    mask: ArrayLike,
    *,
    fill: bool = True,
    known: Sequence[np.ndarray] = (),
) -> Gates:
    """Turn any mask into gates within every budget.

    A mask within the budgets keeps all its units; what room is left goes to the pruned units of
    highest score, each addition confirmed by the costs themselves. A mask over them is shrunk along
    several lines (all groups together, by score, dear groups first), and what keeps most of it is
    filled up likewise. Worth is the score over the mean score of the group. Where there are few
    combinations of widths all of them are asked for, so that what keeps most is found; else the
    costs are asked a bounded number of times (``Cost.asks`` of those of the host), and what
    is returned has been found within the budgets, but may keep less than could be kept. Where the
    environment rounds, every group keeps a multiple.

    Args:
        env: the problem; its costs are not used.
        constraints: to respect, on the network whose groups are those of ``env``.
        mask: f32[G, Cmax] or bool; what is soft keeps from 0.5 (``is_kept``).
        fill: whether room that is left is filled. Without, a mask over the budgets shrinks in all
            groups alike, if that can be.
        known: other masks bool[G, Cmax] within the budgets, to go from where one keeps more of
            the mask than what it shrinks to.

    Returns:
        Gates of zeros and ones, group name -> f32[units].

    Raises:
        ValueError: no mask meets the budgets (``check_reachable`` says so before a search).
        CostError: a cost fails on a mask.
    """
    wanted, asked = allowed_mask(env, mask), Asked(env, constraints)
    if asked.within(wanted, must=True):
        found = wanted
    else:
        known = [allowed_mask(env, each) for each in known]
        found = _below(env, asked, wanted, known, fill)
    if fill:
        levels = make_levels(env, wanted & found, found, wanted)
        found = levels.mask(grow(asked, levels, levels.of(found), levels.top))
    return {name: jnp.asarray(gate) for name, gate in asked.gates(found).items()}


def allowed_mask(env: Environment, mask: ArrayLike) -> np.ndarray:
    """Change a mask to allowed numbers of units.

    Returns bool[G, Cmax]. Groups below their least get their best units, those that are rounded
    lose their worst.
    """
    alive, sizes = np.asarray(env.alive), np.asarray(env.sizes)
    multiples = np.asarray(env.multiples)
    kept = np.asarray(is_kept(jnp.asarray(mask))) & alive
    counts = kept.sum(-1)
    fewer = np.maximum(counts // multiples * multiples, np.asarray(env.min_keep))
    wanted = np.where(counts == sizes, counts, fewer)
    standing = 2 * kept - np.asarray(env.ranks, np.float64) / env.num_units
    return rank(np.where(alive, standing, -np.inf)) < wanted[:, None]


def _below(
    env: Environment, asked: Asked, wanted: np.ndarray, known: Sequence[np.ndarray], fill: bool
) -> np.ndarray:
    """Return a mask within the limits that keeps most of one that is over."""
    worth = unit_worth(env)

    def kept(mask: np.ndarray) -> tuple[float, float]:
        return round(float(worth[mask & wanted].sum()), 9), float(worth[mask].sum())

    levels = make_levels(env, wanted)
    high = levels.of(wanted)
    one = None if fill else shrink_together(asked, levels, high)
    if one is not None:
        return levels.mask(one)
    starts = sorted(shrink(asked, levels, high), key=levels.worth_of)[-2:]
    masks = [levels.mask(grow(asked, levels, each, high)) for each in starts]
    least = max(masks, key=kept, default=np.zeros_like(wanted))
    others = sorted((each for each in known if kept(each) > kept(least)), key=kept, reverse=True)
    # The first few whatever was asked before: the search has found them within.
    best = (each for n, each in enumerate(others) if asked.within(each, must=n < MUST_ASK))
    masks += list(itertools.islice(best, 1))
    return max(masks, key=kept) if masks else _last_resort(env, asked, levels, high)


def _last_resort(env: Environment, asked: Asked, levels: Levels, high: np.ndarray) -> np.ndarray:
    """Return the smallest mask, or one above what was wanted, whichever is within the limits."""
    smallest = levels.mask(np.zeros_like(high))
    if asked.within(smallest, must=True):
        return smallest
    above = along(asked, levels, together(high, levels.top), asked.left)
    if above is not None:
        return levels.mask(above)
    budgets = [str(each.budget) for each in asked.constraints]
    costs = exact_costs(asked.constraints, asked.gates(smallest))
    raise ValueError(
        f"no mask with min_keep={env.min_keep} was found that meets the budgets {budgets}; the "
        f"smallest has the costs {costs}"
    )


def deliverable(
    env: Environment,
    constraints: Sequence[Constraint],
    archive: Archive,
    count: int,
    *,
    fill: bool = True,
) -> list[Gates]:
    """Return different gates within every budget.

    Up to ``count``, the most promising first. They are the best feasible masks of the archive, then
    its near misses brought under the budgets, and the uniform keep ratio where the search left
    neither.

    Raises:
        ValueError: ``count`` below 1, or budgets that no mask meets.
        CostError: a cost fails on a mask.
    """
    require_count("count", count)
    found: dict[bytes, Gates] = {}
    feasible, near = jax.device_get((archive.feasible, archive.infeasible))
    known = list(feasible.masks[feasible.valid])

    def add(mask: ArrayLike) -> None:
        gates = fit_to_budgets(env, constraints, mask, fill=fill, known=known)
        found.setdefault(b"".join(np.asarray(gates[name]).tobytes() for name in env.names), gates)

    for mask in [*known, *near.masks[near.valid]]:
        if len(found) < count:
            add(mask)
    if not found:
        add(ratios_to_masks(env, jnp.full(env.num_groups, 0.5)))
    return list(found.values())


def best_of(
    candidates: Sequence[Candidate], evaluate: Callable[[Candidate], float]
) -> tuple[Candidate, list[float]]:
    """Return the candidate that is rated highest, and all ratings.

    Args:
        candidates: to choose from, the first of equals.
        evaluate: rates one; NaN is the lowest rating.

    Raises:
        ValueError: no candidates.
    """
    if not candidates:
        raise ValueError("candidates is empty; a search leaves at least one")
    ratings = [float(evaluate(candidate)) for candidate in candidates]
    ranked = [-np.inf if np.isnan(rating) else rating for rating in ratings]
    return candidates[int(np.argmax(ranked))], ratings


class Equivalence(NamedTuple):
    """Hold how near slim and masked outputs are.

    Attributes:
        max_abs_diff: the largest absolute difference, both computed in full float32.
        largest: the largest absolute output of the slim network, to compare with.
        default_max_abs_diff: the largest absolute difference as the device computes by default.
    """

    max_abs_diff: float
    largest: float
    default_max_abs_diff: float

    @property
    def holds(self) -> bool:
        """Tell whether the difference is one of rounding."""
        return bool(self.max_abs_diff <= TOLERANCE * max(1.0, self.largest))


TOLERANCE = 1e-3
"""Of slim against masked outputs, relative to the largest; rounding makes some 1e-6."""


def equivalence(
    dense: Network, slim: Network, gates: Gates, inputs: tuple[PyTree, ...]
) -> Equivalence:
    """Compare the outputs of slim and masked network.

    Both compute in full float32: accelerators round contractions unless told otherwise, which says
    nothing about the cut. What it amounts to is told beside.

    Args:
        dense: whose variables the slim network was cut from.
        slim: ``dense.slim(gates)``.
        gates: concrete.
        inputs: of the network.
    """

    def outputs() -> tuple[PyTree, PyTree]:
        masked = dense.definition.jitted_masked(dense.variables, gates, *inputs)
        return masked, slim.definition.jitted(slim.variables, *inputs)

    with jax.default_matmul_precision("highest"):
        difference, largest = _difference(*outputs())
    by_default = _difference(*outputs())[0] if rounds_contractions() else difference
    return Equivalence(max_abs_diff=difference, largest=largest, default_max_abs_diff=by_default)


def rounds_contractions() -> bool:
    """Return whether the device rounds float32 operands by default.

    CPUs do not; accelerators keep 10 bits of the mantissa (TF32) or 7 (bfloat16).
    """
    return jax.default_backend() != "cpu"


def _difference(masked: PyTree, cut: PyTree) -> tuple[float, float]:
    """Return the largest difference of outputs, and the largest output of the second."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(cut), strict=True)
    ]
    # Where both are NaN, or the same infinity, there is no difference.
    differences = [
        np.abs(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, a - b)) for a, b in pairs
    ]
    return (
        max(float(each.max(initial=0.0)) for each in differences),
        max(float(np.abs(b).max(initial=0.0)) for _, b in pairs),
    )
