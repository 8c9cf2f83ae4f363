"""Run a searcher: ask for candidates, evaluate them, tell, and remember the best."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.search.archive import Archive, archive_update
from rlprune_jax.search.environment import CostFunction
from rlprune_jax.search.searcher import Metrics, Searcher, check_positive
from rlprune_jax.types import PyTree

Evaluate = Callable[[jax.Array, jax.Array], jax.Array]
"""``(masks f32[N, G, Cmax], key) -> rewards f32[N]``, higher is better."""


class History(NamedTuple):
    """Every candidate's numbers: ``rewards`` f32[T, N] and ``costs`` f32[T, N, K]."""

    rewards: jax.Array
    costs: jax.Array


class SearchResult(NamedTuple):
    """What a run leaves: state and archive to go on from, metrics stacked over T iterations."""

    state: PyTree
    archive: Archive
    metrics: Metrics
    history: History


def iteration_keys(key: jax.Array, iteration: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys for asking and for evaluating in one iteration, the same however a run is cut."""
    ask_key, evaluate_key = jax.random.split(jax.random.fold_in(key, iteration))
    return ask_key, evaluate_key


def run_search(
    searcher: Searcher,
    evaluate: Evaluate,
    limits: jax.Array,
    state: PyTree,
    archive: Archive,
    num_iterations: int,
    key: jax.Array,
    start: jax.Array | int = 0,
    cost_fn: CostFunction | None = None,
) -> SearchResult:
    """Iterations ``start`` to ``start + num_iterations`` as one ``lax.scan``.

    Two calls that share a key and follow each other by ``start`` equal one long call. Wrap it in
    a function under ``jax.jit`` that takes weights and images as arguments.

    Args:
        searcher: an agent or a baseline.
        evaluate: traceable rewards of N masks.
        limits: f32[K].
        state: from ``searcher.init`` or an earlier result.
        archive: from ``archive_init`` or an earlier result.
        num_iterations: T, static.
        key: of the whole run, not of this part.
        start: number of the first iteration.
        cost_fn: traceable costs of one mask, ``f32[G, Cmax] -> f32[K]``.

    Raises:
        ValueError: ``num_iterations`` below 1, or no ``cost_fn``.
    """
    check_positive("num_iterations", num_iterations)
    if cost_fn is None:
        raise ValueError("cost_fn=None: measure costs on the host with run_search_host")

    def step(carry: tuple[PyTree, Archive], iteration: jax.Array):
        state, archive = carry
        ask_key, evaluate_key = iteration_keys(key, iteration)
        candidates, state = searcher.ask(state, ask_key)
        rewards = evaluate(candidates.masks, evaluate_key)
        costs = jax.vmap(cost_fn)(candidates.masks)
        archive = archive_update(archive, candidates.masks, rewards, costs, limits)
        state, metrics = searcher.tell(state, candidates, rewards, costs)
        return (state, archive), (metrics, History(rewards, costs))

    iterations = jnp.asarray(start, jnp.int32) + jnp.arange(num_iterations, dtype=jnp.int32)
    (state, archive), (metrics, history) = jax.lax.scan(step, (state, archive), iterations)
    return SearchResult(state, archive, metrics, history)


def run_search_host(
    searcher: Searcher,
    evaluate: Evaluate,
    host_costs: Callable[[np.ndarray], Any],
    limits: jax.Array,
    state: PyTree,
    archive: Archive,
    num_iterations: int,
    key: jax.Array,
    start: int = 0,
    callback: Callable[[int, Metrics], None] | None = None,
) -> SearchResult:
    """The same loop in Python, for costs that only the host can know, such as measured latency.

    Args:
        searcher: an agent or a baseline.
        evaluate: rewards of N masks; called from Python, jit it yourself.
        host_costs: any function ``masks np[N, G, Cmax] -> costs [N, K]``.
        limits: f32[K].
        state: from ``searcher.init`` or an earlier result.
        archive: from ``archive_init`` or an earlier result.
        num_iterations: T.
        key: of the whole run.
        start: number of the first iteration.
        callback: called with the iteration's number and metrics.

    Raises:
        ValueError: ``num_iterations`` below 1, or costs of a wrong shape.
    """
    check_positive("num_iterations", num_iterations)
    ask, tell, enter = jax.jit(searcher.ask), jax.jit(searcher.tell), jax.jit(archive_update)
    rows = []
    for iteration in range(start, start + num_iterations):
        ask_key, evaluate_key = iteration_keys(key, iteration)
        candidates, state = ask(state, ask_key)
        rewards = jnp.asarray(evaluate(candidates.masks, evaluate_key), jnp.float32)
        costs = jnp.asarray(host_costs(np.asarray(candidates.masks)), jnp.float32)
        archive = enter(archive, candidates.masks, rewards, costs, limits)
        state, metrics = tell(state, candidates, rewards, costs)
        rows.append((metrics, History(rewards, costs)))
        if callback is not None:
            callback(iteration, metrics)
    metrics, history = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    return SearchResult(state, archive, metrics, history)
