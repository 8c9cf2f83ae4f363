"""From what a search found to gates that are delivered: within every budget, always.

Searches count costs in float32 and explore; what is delivered is counted in exact integers,
brought under every budget if it is over, and filled up to it if it is under.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.checks import require_count
from rlprune_jax.costs.constraints import Constraint, exact_costs, satisfies
from rlprune_jax.kept import is_kept, rank
from rlprune_jax.search.archive import Archive
from rlprune_jax.search.environment import (
    Environment,
    masks_to_gates,
    masks_to_ratios,
    project_priorities,
    project_ratios,
    ratios_to_masks,
    round_masks,
)
from rlprune_jax.types import Gates, PyTree
from rlprune_jax.workflow.network import Network

Candidate = TypeVar("Candidate")


def fit_to_budgets(
    env: Environment,
    constraints: Sequence[Constraint],
    mask: jax.Array,
    *,
    fill: bool = True,
) -> Gates:
    """Turn any mask into gates within every budget.

    Over budget, the keep ratios of all groups are shifted down together; what room is left goes to
    the pruned units of highest score. The last word is an exact integer count. Where a budget is
    measured, or a user's function, a mask that turns out over it is shrunk, all groups together,
    until the cost itself is within. Where the environment rounds, every group keeps a multiple.

    Args:
        env: the problem, with traceable costs.
        constraints: to respect, on the network whose groups are those of ``env``.
        mask: f32[G, Cmax] or bool; what is soft keeps from 0.5 (``is_kept``).
        fill: whether room that is left is filled.

    Returns:
        Gates of zeros and ones, group name -> f32[units].

    Raises:
        ValueError: no mask meets the budgets (``check_reachable`` says so before a search).
    """
    mask = round_masks(env, _keep_least(env, is_kept(jnp.asarray(mask))), env.raw_scores)
    counted = tuple(each for each in constraints if not each.is_measured)
    if not satisfies(counted, _gates(env, mask)):
        mask = ratios_to_masks(env, _project_ratios(env, masks_to_ratios(env, mask)))
    # Kept units come first, then the pruned ones, each by score.
    standing = 1 - rank(env.raw_scores.reshape(-1)).reshape(mask.shape) / mask.size
    priorities = np.asarray(mask + standing)
    filled = _project_priorities(env, jnp.asarray(priorities)) if fill else mask
    kept = _drop_until_exact(env, counted, np.array(filled), priorities)
    if fill and max(env.multiples) > 1:
        kept = _fill(env, counted, kept, priorities)
    if satisfies(constraints, gates := _gates(env, kept)):
        return gates
    if len(counted) < len(constraints):
        starts = [kept, np.asarray(mask)] if fill else [kept]
        found = _shrink(env, constraints, starts, priorities)
        if found is not None:
            return found
        gates = _gates(env, ratios_to_masks(env, jnp.zeros(env.num_groups)))
    raise ValueError(
        f"no mask with min_keep={env.min_keep} meets the budgets "
        f"{[str(constraint.budget) for constraint in constraints]}; "
        f"the least reachable is {exact_costs(constraints, gates)}"
    )


def _keep_least(env: Environment, mask: jax.Array) -> jax.Array:
    """Return f32[G, Cmax] with the best units added where a group keeps fewer than it must."""
    kept = np.asarray(mask) & np.asarray(env.alive)
    priorities = np.where(kept, np.inf, -np.asarray(env.ranks, np.float64))
    counts = np.maximum(kept.sum(-1), np.asarray(env.min_keep))
    return jnp.asarray(rank(priorities) < counts[:, None], jnp.float32)


def _gates(env: Environment, mask: ArrayLike) -> Gates:
    """Return a mask f32[G, Cmax] as concrete gates."""
    gates = masks_to_gates(env, jnp.asarray(np.asarray(mask), jnp.float32))
    return {name: jnp.asarray(np.asarray(gate), jnp.float32) for name, gate in gates.items()}


def _drop_until_exact(
    env: Environment, counted: Sequence[Constraint], mask: np.ndarray, priorities: np.ndarray
) -> np.ndarray:
    """Drop the least important units until integer counts agree; float32 may sit on the limit."""
    kept = mask.copy()
    order = np.argsort(np.where(kept > 0, priorities, np.inf), axis=None)
    for flat in order[: int(kept.sum())]:
        if satisfies(counted, _gates(env, kept)):
            break
        group, unit = np.unravel_index(flat, kept.shape)
        count = int(kept[group].sum())
        if kept[group, unit] and count > env.min_keep[group]:
            fewer = (count - 1) // env.multiples[group] * env.multiples[group]
            inside = np.where(kept[group] > 0, priorities[group], -np.inf)
            kept[group] = rank(inside) < fewer
    return kept


def _fill(
    env: Environment,
    counted: Sequence[Constraint],
    kept: np.ndarray,
    priorities: np.ndarray,
) -> np.ndarray:
    """Add the next multiple of units to one group after the other, the best ones first.

    Where groups grow by many units at once, one that does not fit leaves room for others.
    """
    mask, full = kept, np.zeros(env.num_groups, bool)
    while True:
        counts = mask.sum(-1).astype(int)
        wider = np.minimum(counts + np.asarray(env.multiples), env.sizes)
        full |= wider == counts
        if full.all():
            return mask
        inside = np.where(np.asarray(env.alive), priorities + 2 * mask, -np.inf)
        added = (rank(inside) < wider[:, None]) & (mask == 0)
        worth = (added * priorities).sum(-1) / np.maximum(added.sum(-1), 1)
        group = int(np.argmax(np.where(full, -np.inf, worth)))
        grown = mask.copy()
        grown[group, added[group]] = 1
        if satisfies(counted, _gates(env, grown)):
            mask = grown
        else:
            full[group] = True


SHRINK_STEPS = 64


def _shrink(
    env: Environment,
    constraints: Sequence[Constraint],
    starts: Sequence[np.ndarray],
    priorities: np.ndarray,
) -> Gates | None:
    """Return gates within every budget, from a start or on the way down from the last; or None.

    Costs are asked for themselves, so few of them: the way is bisected, and what is returned has
    been found within the budgets even where a cost does not fall with the widths.
    """

    def shrunk(step: int) -> Gates:
        counts = np.floor(starts[-1].sum(-1) * (1 - step / SHRINK_STEPS)).astype(int)
        whole = counts == np.asarray(env.sizes)
        multiples = np.asarray(env.multiples)
        counts = np.where(whole, counts, counts // multiples * multiples)
        least = np.maximum(counts, np.asarray(env.min_keep))
        inside = np.where(np.asarray(env.alive), priorities, -np.inf)
        return _gates(env, rank(inside) < least[:, None])

    for start in starts:
        gates = _gates(env, start)
        if satisfies(constraints, gates):
            return gates
    low, high = 0, SHRINK_STEPS
    found = shrunk(high)
    if not satisfies(constraints, found):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        gates = shrunk(middle)
        if satisfies(constraints, gates):
            high, found = middle, gates
        else:
            low = middle
    return found


_project_ratios = jax.jit(project_ratios)
_project_priorities = jax.jit(project_priorities)


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
    """
    require_count("count", count)
    found: dict[bytes, Gates] = {}

    def add(mask: ArrayLike) -> None:
        gates = fit_to_budgets(env, constraints, jnp.asarray(mask), fill=fill)
        found.setdefault(b"".join(np.asarray(gates[name]).tobytes() for name in env.names), gates)

    for entries in jax.device_get((archive.feasible, archive.infeasible)):
        for mask in entries.masks[entries.valid]:
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
        max_abs_diff: the largest absolute difference.
        largest: the largest absolute output of the slim network, to compare with.
    """

    max_abs_diff: float
    largest: float


def equivalence(
    dense: Network, slim: Network, gates: Gates, inputs: tuple[PyTree, ...]
) -> Equivalence:
    """Compare the outputs of slim and masked network.

    Both compute in full float32: accelerators round contractions unless told otherwise, which says
    nothing about the cut.

    Args:
        dense: whose variables the slim network was cut from.
        slim: ``dense.slim(gates)``.
        gates: concrete.
        inputs: of the network.
    """
    with jax.default_matmul_precision("highest"):
        masked = dense.definition.jitted_masked(dense.variables, gates, *inputs)
        cut = slim.definition.jitted(slim.variables, *inputs)
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(cut), strict=True)
    ]
    # Where both are NaN, or the same infinity, there is no difference.
    differences = [
        np.abs(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, a - b)) for a, b in pairs
    ]
    return Equivalence(
        max_abs_diff=max(float(each.max(initial=0.0)) for each in differences),
        largest=max(float(np.abs(b).max(initial=0.0)) for _, b in pairs),
    )
