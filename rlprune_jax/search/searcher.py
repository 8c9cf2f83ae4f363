"""Define what every search is made of.

Three functions, init, ask and tell; and what they are told.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rlprune_jax.search.environment import CostFunction, feasible
from rlprune_jax.types import PyTree

Metrics = dict[str, jax.Array]
"""What one iteration reports: scalars, or f32[K] per budget."""


class Candidates(NamedTuple):
    """Hold what ``ask`` proposes.

    N masks, and what ``tell`` needs to learn from them.

    Attributes:
        masks: f32[N, G, Cmax], 1 kept and 0 pruned.
        trajectory: whatever pytree the searcher wants back.
    """

    masks: jax.Array
    trajectory: PyTree


class Init(Protocol):
    """Start a search."""

    def __call__(self, hparams: PyTree, key: jax.Array, /) -> PyTree:
        """Return the state of a search that has seen nothing."""


class Ask(Protocol):
    """Propose candidates."""

    def __call__(self, state: PyTree, key: jax.Array, /) -> tuple[Candidates, PyTree]:
        """Return N candidates and the state to tell with."""


class Tell(Protocol):
    """Learn from what candidates got."""

    def __call__(
        self, state: PyTree, candidates: Candidates, rewards: jax.Array, costs: jax.Array, /
    ) -> tuple[PyTree, Metrics]:
        """Return the next state and metrics, from rewards f32[N] and costs f32[N, K]."""


class Forget(Protocol):
    """Forget how large rewards were."""

    def __call__(self, state: PyTree, /) -> PyTree:
        """Return the state to go on with when rewards change their meaning."""


def forget_nothing(state: PyTree) -> PyTree:
    """Return the state as it is.

    Use it for searches that compare rewards within one batch only.
    """
    return state


class Searcher(NamedTuple):
    """Bundle a search as three pure functions.

    Their state holds arrays only, so that a search can be saved, vmapped and scanned.

    Attributes:
        init: ``(hparams, key) -> state``.
        ask: ``(state, key) -> (candidates, state)``.
        tell: ``(state, candidates, rewards f32[N], costs f32[N, K]) -> (state, metrics)``.
        cost_fn: the traceable costs of one mask that its environment has, or None.
        limits: f32[K], the budgets of its environment, or None.
        forget: ``state -> state``, without statistics of earlier rewards; for searches in which
            what is rewarded changes.
    """

    init: Init
    ask: Ask
    tell: Tell
    cost_fn: CostFunction | None = None
    limits: jax.Array | None = None
    forget: Forget = forget_nothing


def worst_for_missing(rewards: jax.Array) -> jax.Array:
    """Replace missing rewards by the worst of the batch.

    NaN and infinities of f32[N] count as the worst finite one, or 0 where there is none.

    Example:
        >>> worst_for_missing(jnp.array([jnp.nan, 3.0, -2.0])).tolist()
        [-2.0, 3.0, -2.0]
    """
    finite = jnp.isfinite(rewards)
    worst = jnp.min(jnp.where(finite, rewards, jnp.inf))
    return jnp.where(finite, rewards, jnp.where(jnp.isfinite(worst), worst, 0.0))


def worst_for_missing_costs(costs: jax.Array, limits: jax.Array) -> jax.Array:
    """Replace missing costs by far over budget.

    What is not finite in f32[N, K] counts as twice the limit f32[K], or as the worst of the batch.
    """
    finite = jnp.isfinite(costs)
    worst = jnp.max(jnp.where(finite, costs, -jnp.inf), axis=0)
    return jnp.where(finite, costs, jnp.maximum(worst, 2.0 * limits))


def violation(costs: jax.Array, limits: jax.Array) -> jax.Array:
    """Sum how far costs pass their limits.

    Of costs f32[..., K] over limits f32[K], relative to them; f32[...].

    Example:
        >>> violation(jnp.array([1.5, 1.0]), jnp.array([1.0, 2.0])).tolist()
        0.5
    """
    return jnp.sum(jnp.maximum(costs / limits - 1.0, 0.0), axis=-1)


def batch_metrics(rewards: jax.Array, costs: jax.Array, limits: jax.Array) -> Metrics:
    """Summarise the rewards and costs of a batch.

    What any searcher can say of rewards f32[N] and costs f32[N, K].

    Returns:
        ``reward_mean``, ``reward_best`` (over the feasible ones, -inf if none),
        ``cost_mean`` f32[K], ``feasible_fraction``, ``missing_fraction`` (rewards not finite).
    """
    finite = jnp.isfinite(rewards)
    good = feasible(costs, limits)
    return {
        "reward_mean": jnp.mean(worst_for_missing(rewards)),
        "reward_best": jnp.max(jnp.where(finite & good, rewards, -jnp.inf)),
        "cost_mean": jnp.mean(worst_for_missing_costs(costs, limits), axis=0),
        "feasible_fraction": jnp.mean(good.astype(jnp.float32)),
        "missing_fraction": jnp.mean(1.0 - finite.astype(jnp.float32)),
    }


def check_told(
    masks: jax.Array, rewards: ArrayLike, costs: ArrayLike, num_budgets: int
) -> tuple[jax.Array, jax.Array]:
    """Return rewards and costs as float32, checked.

    Numbers that are not finite are accepted: see `worst_for_missing`, `worst_for_missing_costs`.

    Raises:
        ValueError: a wrong shape, or no numbers; the message names which.
    """
    count = masks.shape[0]
    return (
        _numbers("rewards", rewards, (count,), "one per candidate"),
        _numbers("costs", costs, (count, num_budgets), "candidates by budgets"),
    )


def _numbers(argument: str, values: ArrayLike, shape: tuple[int, ...], meaning: str) -> jax.Array:
    try:
        array = jnp.asarray(values, jnp.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be numbers, f32{list(shape)}: {error}") from error
    if array.shape != shape:
        raise ValueError(f"{argument} has shape {array.shape} and must have {shape}, {meaning}")
    return array
