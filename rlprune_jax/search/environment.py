"""The constrained Markov decision process: groups of units in depth order, budgets, projection.

Nothing here knows networks. A group is a number of units that are kept or pruned together with
a rank for each; a cost is any traceable function of the masks that grows with them.
Shapes: G groups, C units of the largest group (``Cmax``), F features, K budgets, N candidates.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from rlprune_jax.types import Gates

CostFunction = Callable[[jax.Array], jax.Array]
"""``masks f32[G, Cmax] -> costs f32[K]``, traceable, as ratios to the dense network."""

SHIFT_BOUND = 30.0  # sigmoid(logit(1e-6) + 30) is 1 and sigmoid(logit(1 - 1e-6) - 30) is 0
BISECTION_STEPS = 26  # 60 / 2**26 < 1e-6 in logit space, finer than one unit of 100,000


@struct.dataclass
class Environment:
    """One pruning problem, as a pytree whose numbers are leaves and whose structure is static.

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

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.sizes)

    @property
    def num_units(self) -> int:
        """Cmax, the units of the largest group."""
        return max(self.sizes)

    @property
    def num_budgets(self) -> int:
        """K."""
        return self.limits.shape[-1]

    @property
    def alive(self) -> jax.Array:
        """bool[G, Cmax], False on padding."""
        return jnp.arange(self.num_units) < jnp.asarray(self.sizes)[:, None]


def make_environment(
    sizes: Mapping[str, int] | Sequence[int],
    scores: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    descriptors: ArrayLike,
    limits: ArrayLike,
    min_keep: int | Mapping[str, int] | Sequence[int] = 1,
    cost_fn: CostFunction | None = None,
    initial_keep: ArrayLike | None = None,
) -> Environment:
    """Check a problem and pad it to rectangular arrays.

    Args:
        sizes: units per group in depth order, by name or as a sequence (named ``group0``, ...).
        scores: importance of each unit, f32[size] per group, higher is kept longer; equal scores
            are ranked by index.
        descriptors: f32[G, F], what a policy sees of each group.
        limits: f32[K], or a scalar for one budget.
        min_keep: least number of units kept, for all groups or per group.
        cost_fn: traceable ``masks f32[G, Cmax] -> f32[K]``, never falling when a unit is added.
        initial_keep: f32[G] or scalar in (0, 1]; by default the largest uniform ratio that meets
            every budget, or the square root of the tightest limit where costs are the host's.

    Returns:
        The environment. Budgets below ``minimum_costs`` are not refused here: see ``reachable``.

    Raises:
        ValueError: a wrong shape, a size below 1, a ``min_keep`` outside [0, size], a limit that
            is not above 0, a score or descriptor that is not finite.

    Example:
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.5,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> env.ranks.tolist()
        [[1, 0, 3], [0, 2, 1]]
    """
    if isinstance(sizes, Mapping):
        names, counts = tuple(sizes), tuple(int(size) for size in sizes.values())
    else:
        names, counts = tuple(f"group{i}" for i in range(len(sizes))), tuple(map(int, sizes))
    if not counts or min(counts) < 1:
        raise ValueError(
            f"sizes={dict(zip(names, counts, strict=True))}: "
            " needs at least one group, each of 1 unit or more"
        )
    kept = _per_group("min_keep", min_keep, names)
    for name, size, least in zip(names, counts, kept, strict=True):
        if not 0 <= least <= size:
            raise ValueError(
                f"min_keep={least} for group {name!r} of {size} units: choose 0 to {size}"
            )
    groups, width = len(counts), max(counts)
    ranks = np.full((groups, width), width, np.int32)
    padded = np.zeros((groups, width), np.float32)
    for index, values in enumerate(_scores_per_group(scores, names, counts)):
        order = np.argsort(-values, kind="stable")
        ranks[index, order] = np.arange(counts[index])
        padded[index, : counts[index]] = values
    shifted = padded - np.minimum(padded.min(1, keepdims=True), 0.0)
    shifted = np.where(ranks < width, shifted, 0.0)
    features = np.asarray(descriptors, np.float32)
    if features.ndim != 2 or features.shape[0] != groups:
        raise ValueError(
            f"descriptors has shape {features.shape}: needs [{groups} groups, features]"
        )
    if not np.isfinite(features).all():
        raise ValueError("descriptors holds NaN or infinity: normalise the features first")
    budget = np.atleast_1d(np.asarray(limits, np.float32))
    if (
        budget.ndim != 1
        or budget.size == 0
        or not (np.isfinite(budget).all() and (budget > 0).all())
    ):
        raise ValueError(f"limits={budget.tolist()}: needs one finite number above 0 per budget")
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
    )
    if cost_fn is not None:
        found = jax.eval_shape(cost_fn, jax.ShapeDtypeStruct((groups, width), jnp.float32))
        if found.shape != budget.shape:
            raise ValueError(f"cost_fn returns shape {found.shape}: needs {budget.shape} as limits")
    if initial_keep is not None:
        start = np.broadcast_to(np.asarray(initial_keep, np.float32), (groups,))
        if not ((start > 0) & (start <= 1)).all():
            raise ValueError(f"initial_keep={start.tolist()}: needs ratios in (0, 1]")
        return dataclasses.replace(env, initial_keep=jnp.asarray(start))
    if cost_fn is not None:
        start = jax.jit(project_ratios)(env, jnp.full(groups, 0.5))
        return dataclasses.replace(env, initial_keep=start)
    return env


def _per_group(argument: str, value: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    """One integer per group from a number, a mapping by name or a sequence."""
    if isinstance(value, Mapping):
        unknown = set(value) - set(names)
        if unknown:
            raise ValueError(
                f"{argument} names unknown groups {sorted(unknown)}: choose from {names}"
            )
        return tuple(int(value.get(name, 1)) for name in names)
    if isinstance(value, Sequence):
        if len(value) != len(names):
            raise ValueError(
                f"{argument} has {len(value)} entries: needs {len(names)}, one per group"
            )
        return tuple(map(int, value))
    return (int(value),) * len(names)


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
    arrays = [np.asarray(values, np.float32) for values in scores]
    for name, count, values in zip(names, counts, arrays, strict=True):
        if values.shape != (count,):
            raise ValueError(
                f"scores of group {name!r} have shape {values.shape}: needs ({count},)"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"scores of group {name!r} hold NaN or infinity")
    return arrays


def masks_to_gates(env: Environment, masks: jax.Array) -> Gates:
    """Masks f32[..., G, Cmax] as a dictionary of gates f32[..., size], padding dropped."""
    _check_trailing("masks", masks, (env.num_groups, env.num_units))
    return {
        name: masks[..., index, :size]
        for index, (name, size) in enumerate(zip(env.names, env.sizes, strict=True))
    }


def gates_to_masks(env: Environment, gates: Gates) -> jax.Array:
    """Gates, a dictionary of f32[..., size], as masks f32[..., G, Cmax] padded with zeros.

    Raises:
        ValueError: unknown or missing group, wrong size, or NaN where the values are known.
    """
    if set(gates) != set(env.names):
        raise ValueError(f"gates names groups {sorted(gates)}: needs {sorted(env.names)}")
    rows = []
    for name, size in zip(env.names, env.sizes, strict=True):
        row = jnp.asarray(gates[name], jnp.float32)
        _check_trailing(f"gates[{name!r}]", row, (size,))
        if not isinstance(row, jax.core.Tracer) and bool(jnp.isnan(row).any()):
            raise ValueError(f"gates[{name!r}] holds NaN: a gate is 1 (kept) or 0 (pruned)")
        rows.append(jnp.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, env.num_units - size)]))
    return jnp.stack(rows, axis=-2)


def ratios_to_masks(env: Environment, keep_ratio: jax.Array) -> jax.Array:
    """Keep the best ``round(ratio * size)`` units of each group, at least ``min_keep``.

    Args:
        env: the problem.
        keep_ratio: f32[..., G] in [0, 1].

    Returns:
        Masks f32[..., G, Cmax] with exactly that many ones per group, whatever ties in score.
    """
    _check_trailing("keep_ratio", keep_ratio, (env.num_groups,))
    sizes, least = jnp.asarray(env.sizes), jnp.asarray(env.min_keep)
    count = jnp.clip(jnp.round(keep_ratio * sizes).astype(jnp.int32), least, sizes)
    return (env.ranks < count[..., None]).astype(jnp.float32)


def masks_to_ratios(env: Environment, masks: jax.Array) -> jax.Array:
    """Kept fraction f32[..., G] of each group of masks f32[..., G, Cmax]."""
    _check_trailing("masks", masks, (env.num_groups, env.num_units))
    return masks.sum(-1) / jnp.asarray(env.sizes, jnp.float32)


def candidate_costs(env: Environment, masks: jax.Array) -> jax.Array:
    """Costs f32[..., K] of masks f32[..., G, Cmax] by the environment's own function.

    Raises:
        ValueError: the environment has no traceable costs.
    """
    if env.cost_fn is None:
        raise ValueError("cost_fn=None: costs of the host reach the search through tell only")
    _check_trailing("masks", masks, (env.num_groups, env.num_units))
    return jnp.vectorize(env.cost_fn, signature="(g,c)->(k)")(masks)


def feasible(costs: jax.Array, limits: jax.Array) -> jax.Array:
    """bool[...]: every cost of f32[..., K] finite and within its limit f32[K]."""
    return jnp.all(jnp.isfinite(costs) & (costs <= limits), axis=-1)


def minimum_costs(env: Environment) -> jax.Array:
    """Costs f32[K] when every group keeps ``min_keep`` units: the least that can be reached."""
    return candidate_costs(env, ratios_to_masks(env, jnp.zeros(env.num_groups)))


def reachable(env: Environment) -> jax.Array:
    """bool[K]: which budgets some mask can meet."""
    return minimum_costs(env) <= env.limits


def project_ratios(env: Environment, keep_ratio: jax.Array) -> jax.Array:
    """Shift all keep ratios together, in logit space, until the budgets are just met.

    The largest shift is found by bisection, so a candidate below its budgets grows and one above
    shrinks; small ratios scale alike and none passes 1. Where no shift is enough, every group
    falls back to ``min_keep``.

    Args:
        env: the problem, with traceable costs.
        keep_ratio: f32[..., G] in [0, 1].

    Returns:
        Ratios f32[..., G] whose ``ratios_to_masks`` meets every reachable budget.
    """
    _check_trailing("keep_ratio", keep_ratio, (env.num_groups,))
    keep_ratio = jnp.clip(jnp.nan_to_num(keep_ratio, nan=0.5), 1e-6, 1.0 - 1e-6)
    logits = jnp.log(keep_ratio) - jnp.log1p(-keep_ratio)

    def narrow(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        masks = ratios_to_masks(env, jax.nn.sigmoid(logits + middle[..., None]))
        good = feasible(candidate_costs(env, masks), env.limits)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    low = jnp.full(logits.shape[:-1], -SHIFT_BOUND)
    low, _ = jax.lax.fori_loop(0, BISECTION_STEPS, narrow, (low, low + 2 * SHIFT_BOUND))
    return jax.nn.sigmoid(logits + low[..., None])


def project_priorities(env: Environment, priorities: jax.Array) -> jax.Array:
    """Keep the units of highest priority, over all groups, that the budgets allow.

    The best ``min_keep`` units of every group are always kept. The number of units is found by
    bisection over the sorted order, so ties are exact: equal priorities go by index.

    Args:
        env: the problem, with traceable costs.
        priorities: f32[..., G, Cmax], comparable across groups; padding is ignored.

    Returns:
        Masks f32[..., G, Cmax] that meet every reachable budget.
    """
    _check_trailing("priorities", priorities, (env.num_groups, env.num_units))
    return jnp.vectorize(lambda row: _project_one(env, row), signature="(g,c)->(g,c)")(priorities)


def _project_one(env: Environment, priorities: jax.Array) -> jax.Array:
    priorities = jnp.where(env.alive, jnp.nan_to_num(priorities, nan=-1e30), -jnp.inf)
    best = jnp.argsort(jnp.argsort(-priorities, axis=-1), axis=-1)
    protected = best < jnp.asarray(env.min_keep)[:, None]
    order = jnp.argsort(-jnp.where(protected, jnp.inf, priorities).reshape(-1))
    position = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size))
    position = position.reshape(priorities.shape)

    def narrow(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high + 1) // 2
        costs = candidate_costs(env, (position < middle).astype(jnp.float32))
        good = feasible(costs, env.limits)
        return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

    total = sum(env.sizes)
    bounds = (jnp.int32(sum(env.min_keep)), jnp.int32(total))
    count, _ = jax.lax.fori_loop(0, int(np.ceil(np.log2(total + 1))), narrow, bounds)
    return (position < count).astype(jnp.float32)


def _check_trailing(argument: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    found = jnp.shape(array)[-len(shape) :]
    if found != shape:
        raise ValueError(f"{argument} has shape {jnp.shape(array)}: needs [..., {shape}]")
