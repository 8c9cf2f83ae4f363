"""Run a search, in one scan or from the host.

Ask for candidates, evaluate them, tell the searcher, remember the best.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from rlprune_jax.checks import require, require_count, require_function, require_key, require_type
from rlprune_jax.search.archive import (
    Archive,
    archive_init,
    archive_update,
    archive_with_rewards,
)
from rlprune_jax.search.environment import (
    CostFunction,
    Environment,
    candidate_costs,
    check_environment,
)
from rlprune_jax.search.searcher import Candidates, Metrics, Searcher
from rlprune_jax.types import PyTree

INIT_FOLD = 2**30  # beyond every iteration, whose keys are folds of the same key


class Evaluate(Protocol):
    """Reward candidates."""

    def __call__(self, masks: jax.Array, key: jax.Array, /) -> jax.Array:
        """Return rewards f32[N] of masks f32[N, G, Cmax], higher is better."""


class HostCosts(Protocol):
    """Measure candidates on the host."""

    def __call__(self, masks: np.ndarray, /) -> ArrayLike:
        """Return costs [N, K] of masks f32[N, G, Cmax]."""


MakeSearcher = Callable[..., Searcher]
"""``(env, **options) -> Searcher``, such as `ppo_lagrangian` or `random_search`."""


@struct.dataclass
class SearchMethod:
    """Hold a way to search without its problem.

    Call it with an environment for a `Searcher`. It is a pytree: ``make`` and ``options`` are
    static and found by equality, ``arrays`` are leaves. A program that takes method and
    environment as arguments is therefore compiled once for all problems of one structure. Make it
    with `search_method`.

    Attributes:
        make: ``(env, **options) -> Searcher``.
        options: keyword arguments that shape the program, sorted by name.
        arrays: keyword arguments that are arrays or pytrees of them.
    """

    make: MakeSearcher = struct.field(pytree_node=False)
    options: tuple[tuple[str, Hashable], ...] = struct.field(pytree_node=False)
    arrays: dict[str, PyTree]

    def __call__(self, env: Environment) -> Searcher:
        """Return the searcher for a problem."""
        return self.make(env, **dict(self.options), **self.arrays)


def search_method(make: MakeSearcher, **options: PyTree) -> SearchMethod:
    """Bind a searcher's options, but not its problem.

    Use it to run one method on many problems without compiling again.

    Args:
        make: `ppo_lagrangian`, a baseline, or your own ``(env, **options) -> Searcher``; a
            function of a module, since a new lambda is a new program.
        options: its other arguments by name. Arrays, and pytrees that hold any, become leaves;
            the rest must be hashable and shapes the program.

    Raises:
        ValueError: an option that is neither hashable nor made of arrays.

    Example:
        >>> from rlprune_jax.search import random_search
        >>> search_method(random_search, num_candidates=8).options
        (('num_candidates', 8),)
    """
    require_function("make", make, "a function (env, **options) -> Searcher")
    static, arrays = {}, {}
    for name, value in options.items():
        leaves = jax.tree.leaves(value)
        if leaves and any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
            arrays[name] = value
            continue
        try:
            hash(value)
        except TypeError:
            require(False, name, value, "hashable or made of arrays; give a tuple for a list")
        static[name] = value
    return SearchMethod(make=make, options=tuple(sorted(static.items())), arrays=arrays)


class History(NamedTuple):
    """Hold every candidate's numbers.

    Attributes:
        rewards: f32[T, N].
        costs: f32[T, N, K].
    """

    rewards: jax.Array
    costs: jax.Array


class SearchResult(NamedTuple):
    """Hold what a search leaves.

    Attributes:
        state: of the searcher, to go on from.
        archive: the best masks, to go on from; `check_archive` refuses one that is empty.
        metrics: of each iteration, stacked over T.
        history: rewards and costs of every candidate.
    """

    state: PyTree
    archive: Archive
    metrics: Metrics
    history: History


class SearchState(NamedTuple):
    """Hold where a search on the host stands, arrays only.

    Attributes:
        state: of the searcher.
        archive: the best masks so far.
        key: of the whole run.
        iteration: i32, iterations done.
    """

    state: PyTree
    archive: Archive
    key: jax.Array
    iteration: jax.Array


def iteration_keys(key: jax.Array, iteration: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return the keys of one iteration.

    One to ask with and one to evaluate with, the same however a run is cut into parts.
    """
    ask_key, evaluate_key = jax.random.split(jax.random.fold_in(key, iteration))
    return ask_key, evaluate_key


def run_search(
    searcher: Searcher,
    evaluate: Evaluate,
    limits: jax.Array | None,
    state: PyTree,
    archive: Archive,
    num_iterations: int,
    key: jax.Array,
    start: ArrayLike = 0,
    cost_fn: CostFunction | None = None,
) -> SearchResult:
    """Run iterations of a search as one scan.

    Use it where rewards and costs are traceable. Two calls that share a key and follow each other
    by ``start`` equal one long call. Wrap it in a function under ``jax.jit`` that takes weights
    and images as arguments.

    Args:
        searcher: an agent or a baseline.
        evaluate: traceable rewards of N masks. A reward that is NaN counts as the batch's worst
            and never enters the archive.
        limits: f32[K]; None for those of the searcher's environment.
        state: from ``searcher.init`` or an earlier result.
        archive: from ``archive_init`` or an earlier result.
        num_iterations: T, static.
        key: of the whole run, not of this part.
        start: number of the first iteration.
        cost_fn: traceable costs of one mask, ``f32[G, Cmax] -> f32[K]``; by default those of the
            searcher's environment.

    Raises:
        ValueError: ``num_iterations`` below 1, no typed key, no costs or no limits at all.

    Example:
        >>> from rlprune_jax.search import archive_init, make_environment, random_search
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.5,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = random_search(env, num_candidates=4)
        >>> reward = lambda masks, key: masks[:, 1].sum(-1)
        >>> state, archive = searcher.init(None, jax.random.key(0)), archive_init(env, capacity=2)
        >>> found = run_search(searcher, reward, None, state, archive, 3, jax.random.key(1))
        >>> found.history.costs.shape, float(found.history.costs.max()) <= 0.5
        ((3, 4, 1), True)
    """
    require_type("searcher", searcher, Searcher, "make it by ppo_lagrangian or a baseline")
    require_function("evaluate", evaluate, "a function (masks, key) -> rewards")
    num_iterations = require_count("num_iterations", num_iterations)
    require_key("key", key)
    price = searcher.cost_fn if cost_fn is None else cost_fn
    if price is None:
        raise ValueError(
            "cost_fn=None must be a function where the environment has none; costs that only the "
            "host can measure go to run_search_host"
        )

    within = searcher.limits if limits is None else limits
    if within is None:
        raise ValueError("limits=None must be f32[K], one per cost, where the searcher has none")

    def step(carry: tuple[PyTree, Archive], iteration: jax.Array):
        state, archive = carry
        ask_key, evaluate_key = iteration_keys(key, iteration)
        candidates, state = searcher.ask(state, ask_key)
        rewards = evaluate(candidates.masks, evaluate_key)
        costs = jax.vmap(price)(candidates.masks)
        archive = archive_update(archive, candidates.masks, rewards, costs, within)
        state, metrics = searcher.tell(state, candidates, rewards, costs)
        return (state, archive), (metrics, History(rewards=rewards, costs=costs))

    iterations = jnp.asarray(start, jnp.int32) + jnp.arange(num_iterations, dtype=jnp.int32)
    (state, archive), (metrics, history) = jax.lax.scan(step, (state, archive), iterations)
    return SearchResult(state=state, archive=archive, metrics=metrics, history=history)


def start_search(
    method: SearchMethod, env: Environment, hparams: PyTree, capacity: int, key: jax.Array
) -> SearchState:
    """Start a search from the host.

    Args:
        method: from `search_method`.
        env: the problem.
        hparams: `HParams` of the agent; None for a baseline.
        capacity: masks that the archive keeps.
        key: of the whole run.

    Raises:
        ValueError: no typed key, a capacity below 1, or a number of ``hparams`` out of its range.
    """
    require_type("method", method, SearchMethod, "make it by search_method")
    check_environment(env)
    require_key("key", key)
    init_key = jax.random.fold_in(key, INIT_FOLD)
    # The agent's numbers are checked here: below they are traced, and their values not known.
    jax.eval_shape(lambda env, key: method(env).init(hparams, key), env, init_key)
    return SearchState(
        state=_init(method, env, hparams, init_key),
        archive=archive_init(env, capacity),
        key=key,
        iteration=jnp.int32(0),
    )


def run_search_host(
    method: SearchMethod,
    env: Environment,
    evaluate: Evaluate,
    search: SearchState,
    num_iterations: int,
    host_costs: HostCosts | None = None,
) -> tuple[SearchState, Metrics, History]:
    """Run iterations of a search from Python.

    Use it for costs that only the host can know, such as measured latency, and for runs that are
    saved on the way. What it compiles depends on the structure of method and environment alone:
    other scores, limits or numbers of the agent run in the same programs.

    Args:
        method: from `search_method`.
        env: the problem.
        evaluate: rewards of N masks; called from Python, jit it yourself.
        search: from `start_search` or an earlier call.
        num_iterations: T.
        host_costs: costs ``[N, K]`` of masks on the host; by default the environment's own.

    Returns:
        Where the search stands now, metrics stacked over T, and every candidate's numbers.

    Raises:
        ValueError: ``num_iterations`` below 1, costs or rewards of a wrong shape, or no costs.

    Example:
        >>> from rlprune_jax.search import make_environment, random_search
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.5,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> method = search_method(random_search, num_candidates=4)
        >>> search = start_search(method, env, None, capacity=2, key=jax.random.key(0))
        >>> reward = lambda masks, key: masks[:, 1].sum(-1)
        >>> search, metrics, history = run_search_host(method, env, reward, search, 3)
        >>> int(search.iteration), history.rewards.shape
        (3, (3, 4))
    """
    require_type("method", method, SearchMethod, "make it by search_method")
    require_function("evaluate", evaluate, "a function (masks, key) -> rewards")
    num_iterations = require_count("num_iterations", num_iterations)
    if host_costs is None and env.cost_fn is None:
        raise ValueError("host_costs=None must be a function where env.cost_fn is None")
    rows = []
    for _ in range(num_iterations):
        candidates, state, evaluate_key = _ask(method, env, search)
        masks = candidates.masks
        rewards = evaluate(masks, evaluate_key)
        costs = _costs(env, masks) if host_costs is None else host_costs(np.asarray(masks))
        search, metrics, history = _tell(
            method, env, search._replace(state=state), candidates, (rewards, costs)
        )
        rows.append((metrics, history))
    # Stacked on the host: on the device every number of iterations would be one more program.
    metrics, history = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))
    return search, metrics, history


def renew_rewards(
    method: SearchMethod, env: Environment, evaluate: Evaluate, search: SearchState
) -> SearchState:
    """Replace all rewards that a search remembers.

    Use it between iterations when rewards change their meaning, as where candidates are finetuned
    longer from now on. The feasible masks of the archive are evaluated anew, and the searcher
    forgets how large rewards were. The key of the evaluation is that of no iteration.

    Args:
        method: from `search_method`.
        env: the problem.
        evaluate: rewards as they are from now on.
        search: from `start_search` or `run_search_host`.
    """
    masks = search.archive.feasible.masks.astype(jnp.float32)
    key = jax.random.fold_in(jax.random.fold_in(search.key, INIT_FOLD + 1), search.iteration)
    return _renew(method, env, search, jnp.asarray(evaluate(masks, key), jnp.float32))


@jax.jit
def _renew(
    method: SearchMethod, env: Environment, search: SearchState, rewards: jax.Array
) -> SearchState:
    archive = archive_with_rewards(search.archive, rewards)
    return search._replace(state=method(env).forget(search.state), archive=archive)


@jax.jit
def _init(method: SearchMethod, env: Environment, hparams: PyTree, key: jax.Array) -> PyTree:
    return method(env).init(hparams, key)


@jax.jit
def _ask(
    method: SearchMethod, env: Environment, search: SearchState
) -> tuple[Candidates, PyTree, jax.Array]:
    ask_key, evaluate_key = iteration_keys(search.key, search.iteration)
    candidates, state = method(env).ask(search.state, ask_key)
    return candidates, state, evaluate_key


@jax.jit
def _costs(env: Environment, masks: jax.Array) -> jax.Array:
    return candidate_costs(env, masks)


@jax.jit
def _tell(
    method: SearchMethod,
    env: Environment,
    search: SearchState,
    candidates: Candidates,
    told: tuple[jax.Array, jax.Array],
) -> tuple[SearchState, Metrics, History]:
    rewards, costs = told
    state, metrics = method(env).tell(search.state, candidates, rewards, costs)
    archive = archive_update(search.archive, candidates.masks, rewards, costs, env.limits)
    search = search._replace(state=state, archive=archive, iteration=search.iteration + 1)
    numbers = History(
        rewards=jnp.asarray(rewards, jnp.float32), costs=jnp.asarray(costs, jnp.float32)
    )
    return search, metrics, numbers
