"""Prune a network to budgets: one call from a network and its task to a smaller one."""

import dataclasses
import difflib
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlprune_jax.checks import require, require_function, require_path, require_type
from rlprune_jax.costs import Budget, count_macs, count_params, limits, parse_budgets
from rlprune_jax.devices import describe_device, versions
from rlprune_jax.origin import Provenance, Stale, check_stale, code_origin
from rlprune_jax.pytree import tree_hash
from rlprune_jax.runs import Extension, MemoryRun, Run, open_run_at, read_config
from rlprune_jax.training.task import SPLITS, Task
from rlprune_jax.types import PyTree
from rlprune_jax.workflow.config import (
    AGENT,
    PruneConfig,
    check_methods,
    extendable_searches,
)
from rlprune_jax.workflow.controls import all_controls
from rlprune_jax.workflow.delivery import Delivered, confirm, deliver, evaluate_network
from rlprune_jax.workflow.fingerprints import fingerprint, functions_digest
from rlprune_jax.workflow.methods import METHODS
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.notes import notes
from rlprune_jax.workflow.pruning import Budgets, Problem, Pruning, check_problem, pose
from rlprune_jax.workflow.results import NetworkResult, PruneResult, of_latencies
from rlprune_jax.workflow.searches import Search, search, search_rows
from rlprune_jax.workflow.shipping import BATCHES, Shipped, ship
from rlprune_jax.workflow.tuning import Finetune


def prune(
    network: Network,
    task: Task,
    budgets: Budgets,
    *,
    finetune: Finetune | None = None,
    run_dir: str | os.PathLike | None = None,
    stale: Stale = "refuse",
    config: PruneConfig | None = None,
    **settings: PyTree,
) -> PruneResult:
    """Prune a trained network to budgets.

    What it can do is kept. The agent and its rivals search at the same number of evaluations; the
    best of each is brought within every budget, finetuned and evaluated once on the test data. A
    second call on the same network compiles nothing new. With ``finetune_steps=0`` nothing is
    trained: weights that remain are refitted to the dense network's activations, by least squares
    on ``repair_images`` training examples, and no label is read but in the search.

    Args:
        network: dense and trained; it is not trained again.
        task: what it is to do, and its data.
        budgets: as text (``"params=0.1"``, ``"macs=0.3"``, ``"weight_bytes=100kB"``,
            ``"latency=2ms"``) or ``Budget``; any number of them.
        finetune: training of your own in place of ours, see ``Finetune``; not called where
            ``finetune_steps=0``.
        run_dir: a folder that makes the run resumable; without one nothing is written. A finished
            run in it goes on where more ``evaluations`` are asked for.
        stale: what is done with a run there that other code or versions made: "refuse" it, "redo"
            it and keep the old one beside it, or "keep" it and go on.
        config: settings; ``PruneConfig()`` where None.
        **settings: fields of ``PruneConfig`` by name, such as ``seed=1`` or ``evaluations=256``.

    Returns:
        The result; ``result.network`` is the slim network, ``result.save(path)`` writes it.

    Raises:
        NetworkError: weights that are not finite.
        TaskError: the network's outputs do not fit the task.
        ValueError: a setting that cannot be, or a budget that cannot be met, with the least that
            can.
        EmptyArchiveError: every reward was NaN.
        DivergenceError: finetuning diverged.
        RunDirectoryError: ``run_dir`` holds another run, or one that other code made.
        TypeError: a setting that there is not, or what is no ``Network`` or ``Task``.

    Warns:
        UserWarning: a setting given by name that is cut to what there is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import Network, prune, regression
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> variables = {"a": jax.random.normal(keys[0], (3, 8)),
        ...              "b": jax.random.normal(keys[1], (8, 1))}
        >>> x = jax.random.normal(keys[2], (64, 3))
        >>> data = (x, apply(variables, x))
        >>> network, task = Network(apply, variables, x[:2]), regression(data, data, data)
        >>> result = prune(network, task, "params=0.5", evaluations=32, baselines=(),
        ...                rerank=1, finetune_steps=20)
        >>> result.is_within_budgets, result.network(x).shape
        (True, (64, 1))
    """
    config = with_settings(config, settings)
    check_stale(stale)
    if finetune is not None:
        require_function("finetune", finetune, "a function (apply, variables, steps, key)")
    if run_dir is not None:
        require_path("run_dir", run_dir)
    check_methods(config.baselines, METHODS)
    given = parse_budgets(budgets)
    # Before anything is written: a directory of a run that cannot be would refuse the right one.
    problem = check_problem(network, task, given, config)
    for name, note in notes(config, task, network).items():
        if name in settings:
            warnings.warn(note, stacklevel=2)
    if run_dir is None:
        return run_pruning(problem, MemoryRun(), finetune)
    settings_of_run = identity(network, task, given, config)
    functions = functions_digest(network, task, given, finetune)
    origin = Provenance(code_origin(functions=functions), stale)
    more = extension(run_dir, config)
    with open_run_at(run_dir, settings_of_run, extension=more, origin=origin) as run:
        if run.is_finished:
            return read_finished(network, run.path)
        result = run_pruning(problem, run, finetune, run.path)
        run.write_result(result.to_json())
        return result


def extension(run_dir: str | os.PathLike, config: PruneConfig) -> Extension:
    """Return how a finished run goes on with more evaluations.

    Its searches go on from their archives, but for those that plan all of their evaluations at
    once; what they deliver is finetuned anew.

    Raises:
        ValueError: the run has had more evaluations than are asked for now.
    """
    try:
        stored = read_config(run_dir).get("evaluations", 0)
    except (OSError, ValueError):
        stored = 0  # no run there, or none of ours, which opening it will say
    require(
        config.evaluations >= stored,
        "evaluations",
        config.evaluations,
        f"at least {stored}, as many as the run in {os.fspath(run_dir)} has had; or choose another "
        "run_dir",
    )
    stages = tuple(f"search-{method}" for method in extendable_searches(config))
    return Extension(settings=("evaluations",), stages=stages)


def with_settings(config: PruneConfig | None, settings: dict[str, PyTree]) -> PruneConfig:
    """Return a configuration with some fields set by name.

    Raises:
        TypeError: there is no such field; the message lists them.
    """
    config = PruneConfig() if config is None else config
    require_type("config", config, PruneConfig, "make it by PruneConfig(...)")
    known = [field.name for field in dataclasses.fields(config)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}=? " if near else ""
            raise TypeError(f"{name}= is no setting of prune; {hint}settings: {', '.join(known)}")
    tupled: dict[str, PyTree] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return dataclasses.replace(config, **tupled)


def identity(
    network: Network, task: Task, budgets: Sequence[Budget], config: PruneConfig
) -> dict[str, PyTree]:
    """Return what tells a run from others, as JSON.

    It holds settings, budgets and the metric's name, and fingerprints of the weights and of each
    split. Functions and versions are told apart by the run's origin.
    """
    settings = dataclasses.asdict(config)
    # How often checkpoints are written changes no result.
    del settings["save_seconds"]
    return {
        **settings,
        "budgets": [str(budget) for budget in budgets],
        "metric": task.objective.metric_name,
        "variables": tree_hash(network.variables),
        "data": {split: fingerprint(task, split) for split in SPLITS},
    }


def read_finished(network: Network, path: os.PathLike) -> PruneResult:
    """Return a finished run's result and slim network."""
    result = PruneResult.read(path)
    slim = network.load_slim(os.path.join(path, "slim"))
    return dataclasses.replace(result, network=slim)


def run_pruning(
    problem: Problem,
    run: Run,
    finetune: Finetune | None = None,
    path: os.PathLike | None = None,
) -> PruneResult:
    """Search, deliver and ship in an open run.

    See ``prune``.

    Args:
        problem: checked, its network trained.
        run: where checkpoints and metrics go.
        finetune: training of the user's own.
        path: of the run's folder; None writes nothing.
    """
    began = time.perf_counter()
    pruning = pose(problem)
    searches: dict[str, Search] = {}
    delivered: dict[str, Delivered] = {}
    for method in (AGENT, *pruning.config.baselines):
        searches[method] = search(pruning, method, run)
        delivered[method] = deliver(pruning, searches[method], finetune, run)
    # The agent's first, and all the others' searches came after it: the machine may have changed.
    delivered[AGENT] = confirm(delivered[AGENT], finetune, run)
    wanted = pruning.config.controls
    beside = all_controls(delivered[AGENT], finetune, run) if wanted else {}
    batches = sorted({*BATCHES, pruning.config.latency_batch})
    slim = None if path is None else os.path.join(path, "slim")
    shipped = ship(delivered[AGENT], slim, batches)
    result = conclude(pruning, searches, delivered, shipped, run, time.perf_counter() - began)
    result = dataclasses.replace(
        result, controls={name: each._asdict() for name, each in beside.items()}
    )
    return result if path is None else dataclasses.replace(result, run_dir=Path(path))


def conclude(
    pruning: Pruning,
    searches: dict[str, Search],
    delivered: dict[str, Delivered],
    shipped: Shipped,
    run: Run,
    seconds: float,
) -> PruneResult:
    """Return the result of a run whose stages are done."""
    graph, task = pruning.graph, pruning.task
    dense = evaluate_network(pruning.network, task.objective, task.test)
    return PruneResult(
        metric_name=task.objective.metric_name,
        dense=NetworkResult(
            metric=float(dense.metric),
            params=count_params(graph),
            macs=count_macs(graph),
            latency_ms=of_latencies(shipped.dense_latency),
            file_bytes=shipped.dense_bytes,
        ),
        pruned=dataclasses.replace(
            network_result(delivered[AGENT], searches[AGENT]),
            metric=shipped.metric,
            latency_ms=of_latencies(shipped.slim_latency),
            file_bytes=shipped.slim_bytes,
        ),
        baselines={
            method: network_result(found, searches[method])
            for method, found in delivered.items()
            if method != AGENT
        },
        budgets=with_times(delivered[AGENT], shipped),
        search=search_numbers(searches[AGENT], run, limits(pruning.constraints)),
        max_abs_diff=shipped.max_abs_diff,
        default_max_abs_diff=shipped.equivalence.default_max_abs_diff,
        is_equal=shipped.equivalence.holds,
        groups=dict(zip(graph.names, graph.sizes, strict=True)),
        seed=pruning.config.seed,
        seconds=seconds,
        versions=versions(),
        device=describe_device(),
        test_examples=task.size("test"),
        network=shipped.network,
        delivered=delivered,
        searches=searches,
    )


def with_times(delivered: Delivered, shipped: Shipped) -> list[dict[str, PyTree]]:
    """Return the budgets with what the shipped network took.

    Beside a latency that was measured stands ``remeasured_ms``, of the finetuned network. Beside
    one that a table predicted stand ``measured_ms``, and ``measured``, its median in the unit of
    the limit: as a fraction, of the dense network measured likewise.
    """
    count = delivered.pruning.config.latency_batch
    slim, dense = shipped.slim_latency[count], shipped.dense_latency[count]
    rows = delivered.budget_rows()
    for row, each in zip(rows, delivered.pruning.constraints, strict=True):
        if row["name"] == "latency":
            row["remeasured_ms"] = slim._asdict()
        if row["name"] == "latency_table":
            row["measured_ms"] = slim._asdict()
            row["measured"] = slim.median / (dense.median if each.budget.relative else 1.0)
    return rows


def network_result(delivered: Delivered, found: Search) -> NetworkResult:
    """Return what is known of a method's network."""
    return NetworkResult(
        metric=delivered.metric,
        params=delivered.params,
        macs=delivered.macs,
        kept=delivered.kept,
        evaluations=found.evaluations,
        best_held_out_reward=found.best_reward,
    )


def search_numbers(found: Search, run: Run, limit: np.ndarray) -> dict[str, float]:
    """Return how the agent's search went."""
    rows = search_rows(run, found.method)
    seconds = sum(row["seconds"] for row in rows)
    compiling = sum(row["compile_seconds"] for row in rows)
    return {
        "evaluations": found.evaluations,
        "seconds": seconds,
        "compile_seconds": compiling,
        "candidates_per_second": found.evaluations / max(seconds - compiling, 1e-9),
        "feasible_fraction": found.feasible_fraction(limit),
        "best_held_out_reward": found.best_reward,
    }
