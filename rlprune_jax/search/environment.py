"""Describe a constrained decision process over groups of units.

Nothing here knows networks. A group is a number of units that are kept or pruned together with
a rank for each; a cost is any traceable function of the masks that grows with them.
Shapes: G groups, C units of the largest group (``Cmax``), F features, K budgets, N candidates.
"""

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlprune_jax.checks import require_type, shown
from rlprune_jax.kept import is_kept
from rlprune_jax.search.ranking import fill_while, largest
from rlprune_jax.types import Gates


class CostFunction(Protocol):
    """Price one mask, traceably."""

    def __call__(self, masks: jax.Array, /) -> jax.Array:
        """Return costs f32[K] of a mask f32[G, Cmax], such as ratios to the dense network."""


SHIFT_BOUND = 30.0  # sigmoid(logit(1e-6) + 30) is 1 and sigmoid(logit(1 - 1e-6) - 30) is 0
BISECTION_STEPS = 26  # 60 / 2**26 < 1e-6 in logit space, finer than one unit of 100,000


@struct.dataclass
class Environment:
    """Describe one pruning problem.

    A pytree whose numbers are leaves and whose structure is static, so that another problem of the
    same structure runs in the program that is compiled. Make it with `make_environment`.

    Attributes:
        descriptors: f32[G, F], features of each group, around [0, 1].
        ranks: i32[G, Cmax], 0 is the most important unit; padding is Cmax.
        scores: f32[G, Cmax], score over the largest of its group, in [0, 1]; padding is 0.
        raw_scores: f32[G, Cmax], the scores as given, comparable across groups; padding is 0.
        initial_keep: f32[G], keep ratio at which a policy starts.
        limits: f32[K], budgets, in the unit of ``cost_fn``.
        names: the groups, in depth order.
        sizes: units per group.
        min_keep: units that every mask keeps, per group.
        cost_fn: costs of one mask, or None where the host measures them.
        measured: per budget, whether the host is asked for the cost and ``cost_fn`` estimates it.
        round_to: every mask keeps a multiple of so many units of a group, or all; () for any.
    """

    descriptors: jax.Array
    ranks: jax.Array
    scores: jax.Array
    raw_scores: jax.Array
    initial_keep: jax.Array
    limits: jax.Array
    names: tuple[str, ...] = struct.field(pytree_node=False)
    sizes: tuple[int, ...] = struct.field(pytree_node=False)
    min_keep: tuple[int, ...] = struct.field(pytree_node=False)
    cost_fn: CostFunction | None = struct.field(pytree_node=False)
    measured: tuple[bool, ...] = struct.field(pytree_node=False, default=())
    round_to: tuple[int, ...] = struct.field(pytree_node=False, default=())

    @property
    def num_groups(self) -> int:
        """Return G, the number of groups."""
        return len(self.sizes)

    @property
    def num_units(self) -> int:
        """Return Cmax, the units of the largest group."""
        return max(self.sizes)

    @property
    def num_budgets(self) -> int:
        """Return K, the number of budgets."""
        return self.limits.shape[-1]

    @property
    def multiples(self) -> tuple[int, ...]:
        """Return ``round_to``, 1 where any number may be kept."""
        return self.round_to or (1,) * self.num_groups

    @property
    def alive(self) -> jax.Array:
        """Return bool[G, Cmax], False on padding."""
        return jnp.arange(self.num_units) < jnp.asarray(self.sizes)[:, None]


def check_environment(env: object) -> None:
    """Refuse what is no problem.

    Raises:
        TypeError: it is something else.
    """
    require_type("env", env, Environment, "make it by make_environment")


def masks_to_gates(env: Environment, masks: jax.Array) -> Gates:
    """Return masks as a dictionary of gates.

    Use it to evaluate candidates on a network. Padding of f32[..., G, Cmax] is dropped, and a group
    of ``size`` units becomes f32[..., size].

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> {name: gate.shape for name, gate in masks_to_gates(env, jnp.ones((4, 2, 3))).items()}
        {'group0': (4, 2), 'group1': (4, 3)}
    """
    _check_trailing("masks", masks, (env.num_groups, env.num_units))
    return {
        name: masks[..., index, :size]
        for index, (name, size) in enumerate(zip(env.names, env.sizes, strict=True))
    }


def gates_to_masks(env: Environment, gates: Gates) -> jax.Array:
    """Return a dictionary of gates as padded masks.

    Undoes `masks_to_gates`: each f32[..., size] becomes a row of f32[..., G, Cmax].

    Raises:
        ValueError: unknown or missing group, wrong size, or NaN where the values are known.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> gates_to_masks(env, {"group0": jnp.ones(2), "group1": jnp.ones(3)}).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    check_environment(env)
    if not isinstance(gates, Mapping):
        raise TypeError(f"gates={shown(gates)} must be a dictionary, group name -> f32[units]")
    if set(gates) != set(env.names):
        raise ValueError(f"gates names groups {sorted(gates)}: needs {sorted(env.names)}")
    rows = []
    for name, size in zip(env.names, env.sizes, strict=True):
        row = jnp.asarray(gates[name], jnp.float32)
        _check_trailing(f"gates[{name!r}]", row, (size,))
        if not isinstance(row, jax.core.Tracer) and np.isnan(np.asarray(row)).any():
            raise ValueError(f"gates[{name!r}] holds NaN: a gate is 1 (kept) or 0 (pruned)")
        rows.append(jnp.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, env.num_units - size)]))
    return jnp.stack(rows, axis=-2)


def ratios_to_masks(env: Environment, keep_ratio: jax.Array) -> jax.Array:
    """Keep the best units of each group by ratio.

    ``round(ratio * size)`` units stay, at least ``min_keep``.

    Where the environment rounds, the nearest allowed number of units.

    Args:
        env: the problem.
        keep_ratio: f32[..., G] in [0, 1].

    Returns:
        Masks f32[..., G, Cmax] with exactly that many ones per group, whatever ties in score.

    Raises:
        ValueError: a wrong shape, or known ratios outside [0, 1]. Where they are traced, what is
            outside is clipped and NaN keeps ``min_keep``.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> ratios_to_masks(env, jnp.array([0.5, 0.67])).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    _check_ratios(env, keep_ratio)
    return _counts_to_masks(env, _counts(env, keep_ratio))


def _counts(env: Environment, keep_ratio: jax.Array) -> jax.Array:
    sizes, least = jnp.asarray(env.sizes), jnp.asarray(env.min_keep)
    keep_ratio = jnp.clip(jnp.nan_to_num(keep_ratio, nan=0.0), 0.0, 1.0)
    counts = jnp.round(keep_ratio * sizes).astype(jnp.int32)
    if max(env.multiples) > 1:
        multiples = jnp.asarray(env.multiples)
        below = counts // multiples * multiples
        above = jnp.minimum(below + multiples, sizes)
        counts = jnp.where(counts - below <= above - counts, below, above)
    return jnp.clip(counts, least, sizes)


def _counts_to_masks(env: Environment, counts: jax.Array) -> jax.Array:
    return (env.ranks < counts[..., None]).astype(jnp.float32)


def round_masks(env: Environment, masks: jax.Array, priorities: jax.Array) -> jax.Array:
    """Keep the next lower multiple of units per group.

    The multiple is ``round_to``; at least ``min_keep`` units stay.

    Units go in the order of rising priority and come back in that of falling priority, as in
    ``units.round_gates``; a group that is whole stays so.

    Args:
        env: the problem.
        masks: f32[..., G, Cmax]; padding is ignored.
        priorities: f32[..., G, Cmax]; of equal ones the first stays.

    Returns:
        Masks f32[..., G, Cmax]; those given where the environment does not round.
    """
    _check_trailing("masks", masks, (env.num_groups, env.num_units))
    if max(env.multiples) == 1:
        return masks
    kept = is_kept(masks) & env.alive
    priorities = jnp.nan_to_num(priorities, nan=-1e30)  # above the -inf of what is left out
    counts = kept.sum(-1, dtype=jnp.int32)
    sizes, multiples = jnp.asarray(env.sizes), jnp.asarray(env.multiples)
    fewer = jnp.maximum(counts // multiples * multiples, jnp.asarray(env.min_keep))
    wanted = jnp.where(counts == sizes, counts, fewer)
    stay = kept & largest(jnp.where(kept, priorities, -jnp.inf), jnp.minimum(wanted, counts))
    others = env.alive & ~kept
    more = jnp.maximum(wanted - counts, 0)
    back = others & largest(jnp.where(others, priorities, -jnp.inf), more)
    return (stay | back).astype(jnp.float32)


def masks_to_ratios(env: Environment, masks: jax.Array) -> jax.Array:
    """Return the kept fraction of each group.

    f32[..., G] of masks f32[..., G, Cmax].
    """
    _check_trailing("masks", masks, (env.num_groups, env.num_units))
    return is_kept(masks).sum(-1) / jnp.asarray(env.sizes, jnp.float32)


def candidate_costs(env: Environment, masks: jax.Array) -> jax.Array:
    """Return the costs of masks by the environment's function.

    f32[..., K] of masks f32[..., G, Cmax].

    Raises:
        ValueError: the environment has no traceable costs.
    """
    if env.cost_fn is None:
        raise ValueError("cost_fn=None: costs of the host reach the search through tell only")
    _check_trailing("masks", masks, (env.num_groups, env.num_units))
    return jnp.vectorize(env.cost_fn, signature="(g,c)->(k)")(masks)


def feasible(costs: jax.Array, limits: jax.Array) -> jax.Array:
    """Return whether every cost is within its limit.

    Costs are f32[..., K], limits f32[K]; a cost that is not finite is not within.

    Raises:
        ValueError: not one limit per cost.

    Example:
        >>> feasible(jnp.array([[0.1, 0.2], [0.1, jnp.nan]]), jnp.array([0.3, 0.3])).tolist()
        [True, False]
    """
    if jnp.shape(costs)[-1:] != jnp.shape(limits):
        raise ValueError(
            f"costs have shape {jnp.shape(costs)} and limits {jnp.shape(limits)}; give one limit "
            "per cost"
        )
    return jnp.all(jnp.isfinite(costs) & (costs <= limits), axis=-1)


def minimum_costs(env: Environment) -> jax.Array:
    """Return the least costs that can be reached.

    f32[K], those of a mask that keeps ``min_keep`` units of every group.
    """
    return candidate_costs(env, ratios_to_masks(env, jnp.zeros(env.num_groups)))


def reachable(env: Environment) -> jax.Array:
    """Return which budgets some mask can meet.

    bool[K]. Use it before a search, which cannot meet the others.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> reachable(env).tolist(), round(float(minimum_costs(env)[0]), 3)
        ([True], 0.4)
    """
    return minimum_costs(env) <= env.limits


def project_ratios(env: Environment, keep_ratio: jax.Array) -> jax.Array:
    """Shift all keep ratios together onto the budgets.

    The shift is in logit space.

    A candidate below its budgets grows and one above shrinks; small ratios scale alike and none
    passes 1. Where no shift is enough, every group falls back to ``min_keep``.

    Args:
        env: the problem, with traceable costs.
        keep_ratio: f32[..., G] in [0, 1].

    Returns:
        Ratios f32[..., G] of whole units, so that no rounding can undo the projection:
        their ``ratios_to_masks`` meets every reachable budget.

    Raises:
        ValueError: a wrong shape, known ratios outside [0, 1], or no traceable costs. Where ratios
            are traced, what is outside is clipped and NaN counts as a half.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> masks = ratios_to_masks(env, project_ratios(env, jnp.array([0.9, 0.9])))
        >>> masks.sum(-1).tolist()  # three of five units
        [1.0, 2.0]
    """
    _check_ratios(env, keep_ratio)
    return masks_to_ratios(env, project_logits(env, logit(jnp.nan_to_num(keep_ratio, nan=0.5)))[0])


def project_logits(env: Environment, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the largest shift of logits within the budgets.

    By bisection; `project_ratios` is the same on ratios.

    Args:
        env: the problem, with traceable costs.
        logits: f32[..., G].

    Returns:
        Masks f32[..., G, Cmax] that were found feasible, and the shift f32[...].
    """
    _check_trailing("logits", logits, (env.num_groups,))

    def narrow(_: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, counts = carry
        middle = 0.5 * (low + high)
        tried = _counts(env, jax.nn.sigmoid(logits + middle[..., None]))
        good = feasible(candidate_costs(env, _counts_to_masks(env, tried)), env.limits)
        # The counts themselves are kept: the bisection ends where one unit is about to flip.
        counts = jnp.where(good[..., None], tried, counts)
        return jnp.where(good, middle, low), jnp.where(good, high, middle), counts

    low = jnp.full(logits.shape[:-1], -SHIFT_BOUND)
    counts = jnp.broadcast_to(jnp.asarray(env.min_keep, jnp.int32), logits.shape)
    carry = (low, low + 2 * SHIFT_BOUND, counts)
    low, _, counts = jax.lax.fori_loop(0, BISECTION_STEPS, narrow, carry)
    return _counts_to_masks(env, counts), low


def logit(ratio: jax.Array) -> jax.Array:
    """Return the inverse of the sigmoid, finite on [0, 1]."""
    ratio = jnp.clip(ratio, 1e-6, 1.0 - 1e-6)
    return jnp.log(ratio) - jnp.log1p(-ratio)


def starting_logits(env: Environment) -> jax.Array:
    """Return logits of ``initial_keep`` that can explore.

    f32[G], held off 0 and 1 so that a Gaussian there moves both ways.
    """
    return logit(jnp.clip(env.initial_keep, 0.02, 0.98))


def project_priorities(env: Environment, priorities: jax.Array) -> jax.Array:
    """Keep the units of highest priority that budgets allow.

    The fine counterpart of `project_ratios`: units of all groups compete. The best ``min_keep``
    units of every group are always kept. Equal priorities go by index and NaN comes last. Where
    the environment rounds, each group then drops to a multiple. No sort: the threshold is found
    bit by bit (``ranking``).

    Args:
        env: the problem, with traceable costs.
        priorities: f32[..., G, Cmax], comparable across groups; padding is ignored.

    Returns:
        Masks f32[..., G, Cmax] that meet every reachable budget.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> project_priorities(env, jnp.array([[9.0, 8.0, 0.0], [1.0, 7.0, 2.0]])).tolist()
        [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    _check_trailing("priorities", priorities, (env.num_groups, env.num_units))
    return jnp.vectorize(lambda row: _project_one(env, row), signature="(g,c)->(g,c)")(priorities)


def best_units(env: Environment, priorities: jax.Array) -> jax.Array:
    """Return the ``min_keep`` best units of each group.

    bool[..., G, Cmax] of priorities f32[..., G, Cmax].
    """
    return largest(jnp.where(env.alive, priorities, -jnp.inf), jnp.asarray(env.min_keep))


def _project_one(env: Environment, priorities: jax.Array) -> jax.Array:
    def rounded(kept: jax.Array) -> jax.Array:
        return round_masks(env, kept.astype(jnp.float32), priorities)

    def within(kept: jax.Array) -> jax.Array:
        return feasible(candidate_costs(env, rounded(kept)), env.limits)

    kept = fill_while(priorities, env.alive, best_units(env, priorities), within)
    return rounded(kept)


def _check_ratios(env: Environment, keep_ratio: jax.Array) -> None:
    _check_trailing("keep_ratio", keep_ratio, (env.num_groups,))
    if isinstance(keep_ratio, jax.core.Tracer):
        return
    known = np.asarray(keep_ratio)
    if not ((known >= 0) & (known <= 1)).all():  # so that NaN fails too
        raise ValueError(f"keep_ratio={known.tolist()} must be ratios from 0 to 1")


def _check_trailing(argument: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if not hasattr(array, "dtype"):
        raise ValueError(
            f"{argument}={shown(array)} must be an array [..., {shape}]; jnp.asarray makes one"
        )
    found = jnp.shape(array)[-len(shape) :]
    if found != shape:
        raise ValueError(f"{argument} has shape {jnp.shape(array)}: needs [..., {shape}]")
