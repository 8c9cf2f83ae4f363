"""Search by swapping levels between groups."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require_count
from rlprune_jax.search.environment import Environment, feasible
from rlprune_jax.search.levels import group_levels, kept_counts, put_on_budgets
from rlprune_jax.search.measuring import require_costs
from rlprune_jax.search.searcher import Candidates, Metrics, Searcher, batch_metrics, check_told
from rlprune_jax.types import PyTree

SWAP_LEVELS = 24
"""Levels of a group; a mutation moves one group to the next of them."""

MOST_SWAPS = 3
"""Swaps of a mutation are the smaller of two draws from 1 to this."""


class Parent(NamedTuple):
    """Hold the best widths so far.

    Attributes:
        iteration: i32, tells seen.
        counts: i32[G], units kept.
        reward: f32[], -inf before it is evaluated.
    """

    iteration: jax.Array
    counts: jax.Array
    reward: jax.Array


def evopress(env: Environment, num_candidates: int) -> Searcher:
    """Swap levels between groups and keep what is better.

    An offspring has, one to three times, a group one level narrower and another one level wider,
    and is put back on the budgets. The best of parent and offspring is the next parent; the first
    keeps the same ratio of every group.

    EvoPress evaluates many offspring on few data and the best of them on more. Here a candidate is
    evaluated once, on all data of the reward, so that there is no such selection.

    Args:
        env: the problem, with traceable costs.
        num_candidates: N, offspring of an iteration; the first iteration evaluates the parent too.

    Raises:
        ValueError: no traceable costs, or ``num_candidates`` below 1.

    Reference:
        EvoPress (Sieberling et al. 2024, arXiv 2410.14649).

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([4, 6], [range(4), range(6)], [[0.], [1.]], limits=0.5,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 10)
        >>> searcher = evopress(env, num_candidates=8)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> candidates, state = searcher.ask(state, jax.random.key(1))
        >>> candidates.masks[0].sum(-1).tolist(), float(candidates.masks.sum((1, 2)).max())
        ([2.0, 3.0], 5.0)
    """
    require_costs(env, "evopress")
    require_count("num_candidates", num_candidates)
    table = jnp.asarray(group_levels(env, SWAP_LEVELS))

    def init(hparams: PyTree, key: jax.Array) -> Parent:
        even = put_on_budgets(env, 0.5 * jnp.asarray(env.sizes, jnp.float32))
        return Parent(
            iteration=jnp.int32(0),
            counts=kept_counts(env, even),
            reward=jnp.float32(-jnp.inf),
        )

    def mutate(counts: jax.Array, key: jax.Array) -> jax.Array:
        number_key, swap_key = jax.random.split(key)
        number = jnp.min(jax.random.randint(number_key, (2,), 1, MOST_SWAPS + 1))

        def swap(index: jax.Array, counts: jax.Array) -> jax.Array:
            swapped = swap_levels(table, counts, jax.random.fold_in(swap_key, index))
            return jnp.where(index < number, swapped, counts)

        return jax.lax.fori_loop(0, MOST_SWAPS, swap, counts)

    def ask(state: Parent, key: jax.Array) -> tuple[Candidates, Parent]:
        keys = jax.random.split(key, num_candidates)
        offspring = jax.vmap(mutate, (None, 0))(state.counts, keys)
        unknown = (state.iteration == 0) & (jnp.arange(num_candidates) == 0)
        offspring = jnp.where(unknown[:, None], state.counts, offspring)
        return Candidates(masks=put_on_budgets(env, offspring), trajectory=()), state

    def tell(
        state: Parent, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[Parent, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        usable = jnp.isfinite(rewards) & feasible(costs, env.limits)
        value = jnp.where(usable, rewards, -jnp.inf)
        top = jnp.argmax(value)
        better = value[top] > state.reward
        counts = kept_counts(env, candidates.masks[top])
        return Parent(
            iteration=state.iteration + 1,
            counts=jnp.where(better, counts, state.counts),
            reward=jnp.where(better, value[top], state.reward),
        ), metrics

    return Searcher(init=init, ask=ask, tell=tell, cost_fn=env.cost_fn, limits=env.limits)


def swap_levels(table: jax.Array, counts: jax.Array, key: jax.Array) -> jax.Array:
    """Move one group to its next narrower level, another wider.

    Groups are drawn among those that can go that way; where none can, nothing moves.

    Args:
        table: i32[G, S], levels.
        counts: i32[G], which may lie between levels.
        key: of the draw.
    """
    narrower = jnp.max(jnp.where(table < counts[:, None], table, -1), axis=1)
    wider = jnp.min(jnp.where(table > counts[:, None], table, jnp.iinfo(jnp.int32).max), axis=1)
    can_narrow, can_widen = narrower >= 0, wider < jnp.iinfo(jnp.int32).max
    first_key, second_key = jax.random.split(key)
    groups = jnp.arange(len(counts))
    first = _draw(can_narrow, first_key)
    possible = can_widen & (groups != first)
    second = _draw(possible, second_key)
    moves = can_narrow.any() & possible.any()
    swapped = jnp.where(groups == first, narrower, jnp.where(groups == second, wider, counts))
    return jnp.where(moves, swapped, counts)


def _draw(possible: jax.Array, key: jax.Array) -> jax.Array:
    """The number of a true entry, each as likely."""
    noise = jax.random.uniform(key, possible.shape)
    return jnp.argmax(jnp.where(possible, noise, -1.0))
