"""Prune a network to budgets by constrained reinforcement learning, beside baselines, and ship it.

Command:  python experiments/prune_rl.py --dataset digits --budget params=0.1 --budget macs=0.3

Stages: train the dense network; score its units; search with the agent and with each baseline, at
the same number of evaluations; bring the best of each under the budgets, re-rank them after a short
finetune on held-out images, finetune the winner on all training images; cut the agent's network to
the kept units, check that it equals its masked twin, and read the test accuracies once. The run
directory, printed last, holds result.json, metrics.jsonl, report.html and slim/. The same command
resumes an interrupted run, or says that it is finished.
"""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from command_line import run_resumable
from deliver import BATCHES, Delivered, deliver_method, ship
from page import write_page
from problem import Jobs, Problem, make_jobs, make_problem
from searching import Search, make_search_environment, score_units, search
from settings import AGENT, Config, numbers_of, resolve, stage_key

from rlprune_jax.costs import (
    Constraint,
    CostOptions,
    Latency,
    Tile,
    check_reachable,
    constrain,
    count_macs,
    count_params,
    import_function,
    limits,
    parse_budgets,
    source_digest,
)
from rlprune_jax.devices import describe_device, versions
from rlprune_jax.files import to_json
from rlprune_jax.graph.groups import Graph
from rlprune_jax.models import ModelFunctions, create_model, model_functions
from rlprune_jax.runs.compile_clock import CompileClock
from rlprune_jax.runs.run_directory import RunDirectory, open_run
from rlprune_jax.runs.stages import run_stage
from rlprune_jax.training import data
from rlprune_jax.training.array_cache import default_cache_dir
from rlprune_jax.types import Apply, PyTree, Variables


def make_functions(config: Config, num_classes: int) -> ModelFunctions:
    """The network that the options name."""
    options: dict[str, Any] = {}
    if config.widths:
        options["widths"] = config.widths
    if config.width != 1.0:
        options["width"] = config.width
    if config.pools != 5:
        options["pools"] = config.pools
    return model_functions(create_model(config.model, num_classes, **options))


class Network(NamedTuple):
    """What costs read of the network."""

    apply: Apply
    graph: Graph
    variables: Variables
    example: tuple[PyTree, ...]


def build(config: Config) -> tuple[Problem, tuple[Constraint, ...]]:
    """Load the data, build and trace the network, and refuse budgets that cannot be met."""
    dataset = data.load(config.dataset, config.data_dir, seed=config.seed)
    functions = make_functions(config, dataset.num_classes)
    problem = make_problem(dataset, functions, stage_key(config, "init"))
    images = jnp.resize(
        problem.train.images, (config.latency_batch, *problem.train.images.shape[1:])
    )
    network = Network(functions.apply, problem.graph, problem.variables, (problem.prepare(images),))
    options = CostOptions(
        tile=Tile(*config.tile),
        cache=default_cache_dir() / "latency",
        steps=config.latency_steps,
        programs=config.latency_programs,
        time_limit=config.cost_seconds,
    )
    constraints = constrain(network, parse_budgets(config.budget, config.budget_fn), options)
    least, multiples = (
        # One number reads better in an error than the same one for every group.
        numbers_of(config, option, problem.graph.names)
        if getattr(config, f"{option}_of")
        else getattr(config, option)
        for option in ("min_keep", "round_to")
    )
    check_reachable(problem.graph, constraints, least, multiples)
    return problem, constraints


def train_dense(config: Config, run: RunDirectory, problem: Problem, jobs: Jobs) -> Variables:
    """Train the dense network on the training images; held-out ones stay unseen."""
    assert config.dense_steps is not None
    key = stage_key(config, "dense")

    def advance(state: Any, start: int, count: int) -> tuple[Any, list]:
        state, metrics = jobs.train_dense(state, problem.train, key, count)
        rows = {name: float(jnp.mean(values)) for name, values in metrics.items()}
        return state, [(start + count, rows)]

    state = run_stage(
        run,
        "dense",
        jobs.dense_state(problem.variables),
        config.dense_steps,
        advance,
        chunk=min(100, config.dense_steps),
        save_seconds=config.save_seconds,
        note=lambda values: f"loss {values['loss']:.3f} accuracy {values['accuracy']:.3f}",
    )
    return state.variables


def execute(config: Config, run: RunDirectory) -> dict[str, Any]:
    """Do the whole run and return what goes into ``result.json``."""
    clock = CompileClock()
    problem, constraints = build(config)
    print(problem.graph, file=sys.stderr)
    assert config.dense_steps and config.rerank_steps and config.finetune_steps
    jobs = make_jobs(
        problem,
        batch_size=config.batch_size,
        dense_rate=config.dense_rate,
        dense_steps=config.dense_steps,
        finetune_rate=config.finetune_rate,
        chunk=config.chunk,
    )
    variables = train_dense(config, run, problem, jobs)
    scores = score_units(config, problem, variables)
    env = make_search_environment(config, problem, constraints, scores, variables)
    searches: dict[str, Search] = {}
    delivered: dict[str, Delivered] = {}
    for method in (AGENT, *config.baselines):
        searches[method] = search(
            config, run, problem, jobs, variables, env, constraints, method, clock
        )
        delivered[method] = deliver_method(
            run,
            problem,
            jobs,
            variables,
            env,
            constraints,
            method,
            searches[method].archive,
            rerank=config.rerank,
            rerank_steps=config.rerank_steps,
            finetune_steps=config.finetune_steps,
            key=stage_key(config, "deploy"),
            save_seconds=config.save_seconds,
        )
    batches = sorted({*BATCHES, config.latency_batch})
    shipped = ship(run, problem, delivered[AGENT], batches)
    graph = problem.graph
    rows = run.metrics(f"search-{AGENT}")
    seconds = sum(row["seconds"] for row in rows)
    compile_seconds = sum(row["compile_seconds"] for row in rows)
    evaluations = int(searches[AGENT].rewards.size)
    chosen = delivered[AGENT]
    return {
        "dataset": config.dataset,
        "model": config.model,
        "dense": {
            "accuracy": float(jobs.dense_accuracy(variables, problem.test)),
            "params": count_params(graph),
            "macs": count_macs(graph),
            "latency_ms": shipped.dense_latency[max(BATCHES)]._asdict(),
            "latency_ms_by_batch": by_batch(shipped.dense_latency),
            "file_bytes": shipped.dense_bytes,
        },
        "pruned": {
            "accuracy": shipped.accuracy,
            "params": chosen.params,
            "macs": chosen.macs,
            "latency_ms": shipped.slim_latency[max(BATCHES)]._asdict(),
            "latency_ms_by_batch": by_batch(shipped.slim_latency),
            "file_bytes": shipped.slim_bytes,
            "kept": chosen.kept(graph),
        },
        "budgets": with_remeasured(
            chosen.budget_rows(constraints), shipped.slim_latency[config.latency_batch]
        ),
        "search": {
            "evaluations": evaluations,
            "seconds": seconds,
            "compile_seconds": compile_seconds,
            "candidates_per_second": evaluations / max(seconds - compile_seconds, 1e-9),
            "feasible_fraction": float(
                np.mean(np.all(np.asarray(searches[AGENT].costs) <= limits(constraints), axis=-1))
            ),
            "best_held_out_reward": float(searches[AGENT].archive.feasible.rewards[0]),
        },
        "baselines": {
            method: {
                "accuracy": delivered[method].accuracy,
                "params": delivered[method].params,
                "macs": delivered[method].macs,
                "kept": delivered[method].kept(graph),
                "evaluations": int(searches[method].rewards.size),
                "best_held_out_reward": float(searches[method].archive.feasible.rewards[0]),
            }
            for method in config.baselines
        },
        "equivalence": {"max_abs_diff": shipped.max_abs_diff},
        "groups": dict(zip(graph.names, graph.sizes, strict=True)),
        "seed": config.seed,
        "versions": versions(),
        "device": describe_device(),
        "history": {
            method: {
                "rewards": np.asarray(found.rewards).reshape(-1),
                "costs": np.asarray(found.costs).reshape(-1, env.num_budgets),
            }
            for method, found in searches.items()
        },
    }


def by_batch(latencies: dict[int, Latency]) -> dict[str, Any]:
    """Latencies by number of images, as JSON."""
    return {str(batch): latency._asdict() for batch, latency in latencies.items()}


def with_remeasured(rows: list[dict[str, Any]], latency: Latency) -> list[dict[str, Any]]:
    """Add to a budget on latency what the shipped network took, measured once more at the end."""
    return [
        row | {"remeasured_ms": latency._asdict()} if row["name"] == "latency" else row
        for row in rows
    ]


def identity(config: Config) -> dict[str, Any]:
    """What names the run: the options, and the code of the user's functions among the budgets."""
    budgets = parse_budgets(config.budget, config.budget_fn)
    names = [budget.name for budget in budgets if budget.is_function]
    code = {name: source_digest(import_function(name)) for name in names}
    return to_json(config) | ({"budget_fn_code": code} if code else {})


def prune(config: Config) -> Path:
    """Run ``config``, or find it finished; return the run directory.

    Raises:
        ValueError: an option is wrong or a budget cannot be met.
        OSError: data are missing or the run directory cannot be written.
    """
    config = resolve(config)
    with open_run(config.runs_dir, "prune_rl", identity(config)) as run:
        if run.is_finished:
            print(f"finished before; delete {run.path} to run again", file=sys.stderr)
            return run.path
        began = time.perf_counter()
        result = execute(config, run)
        result["seconds"] = time.perf_counter() - began
        history = result.pop("history")
        np.savez_compressed(
            run.path / "history.npz",
            **{
                f"{method}/{name}": rows
                for method, found in history.items()
                for name, rows in found.items()
            },
        )
        write_page(run, config, result, history)
        run.write_result(result)
        return run.path


if __name__ == "__main__":
    run_resumable(prune, Config, __doc__)
