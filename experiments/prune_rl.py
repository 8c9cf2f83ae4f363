"""Prune a network to budgets by constrained reinforcement learning, beside baselines, and ship it.

Command:  python experiments/prune_rl.py --dataset digits --budget params=0.1 --budget macs=0.3

Stages: train the dense network; score its units; search with the agent and with each baseline, at
the same number of evaluations; bring the best of each under the budgets, re-rank them after a short
finetune on held-out images, finetune the winner on all training images; cut the agent's network to
the kept units, check that it equals its masked twin, and read the test accuracies once. The run
directory, printed last, holds result.json, metrics.jsonl, report.html and slim/. The same command
resumes an interrupted run, or says that it is finished.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from compile_clock import CompileClock
from deliver import Delivered, deliver_method, ship
from page import write_page
from problem import Images, Jobs, Problem, make_jobs, make_problem
from stages import run_stage

from rlprune_jax import data
from rlprune_jax.candidates import CandidateData
from rlprune_jax.costs.budget import (
    Budget,
    check_reachable,
    cost_function,
    limits,
    parse_budgets,
)
from rlprune_jax.costs.counts import count_macs, count_params
from rlprune_jax.graph.descriptors import layer_descriptors
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.provenance import describe_device, versions
from rlprune_jax.run_directory import RunDirectory, open_run
from rlprune_jax.scores import UNIT_SCORES, magnitude_scores, random_scores, taylor_scores
from rlprune_jax.search import (
    Archive,
    Environment,
    HParams,
    Searcher,
    archive_init,
    baselines,
    make_environment,
    masks_to_gates,
    ppo_lagrangian,
    run_search_host,
)
from rlprune_jax.search import Config as AgentConfig
from rlprune_jax.types import Gates, Variables

AGENT = "agent"
ARCHIVE_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; all but the directories decide the run's name."""

    budget: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Limit as NAME=FRACTION of the dense network, any number of times: params=0.1, macs=0.3."""
    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, cifar100."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else $TFDS_DATA_DIR. digits needs none."""
    model: str = "cnn"
    """mlp, cnn, vgg11, vgg13, vgg16, vgg19."""
    widths: tuple[int, ...] = ()
    """Units per layer of mlp and cnn; for digits 32 64 128 256 unless told."""
    width: float = 1.0
    """Multiplier of a VGG's widths."""
    seed: int = 0
    """Of data split, initialisation, training and search."""
    runs_dir: Path = Path("runs")
    """Where run directories go."""
    dense_steps: int | None = None
    """Steps of training the dense network; by default a few epochs, by data set."""
    dense_rate: float = 0.1
    """Peak learning rate of that (SGD with momentum, cosine)."""
    batch_size: int = 128
    """Images a step, in training and finetuning."""
    granularity: str = "coarse"
    """coarse: a keep ratio per group of channels; fine: every channel by itself."""
    constraint: str = "projection"
    """multiplier: Lagrangian; projection: every candidate is put on the budgets; both."""
    dual: str = "pid"
    """Update of the multipliers: pid, projected_gradient, adam_clip, softplus_adam."""
    evaluations: int = 1024
    """Candidates that the agent, and each baseline, may evaluate."""
    candidates: int = 32
    """Candidates an iteration."""
    baselines: tuple[str, ...] = ("uniform", "global_threshold", "random_search", "cross_entropy")
    """What to run beside the agent; also: random_search_coarse, cross_entropy_coarse."""
    score: str = "taylor"
    """What ranks the units of a group: taylor, magnitude, random."""
    reward: str = "accuracy"
    """accuracy or loss (negative), on held-out images after batch-norm recalibration."""
    reward_images: int = 512
    """Held-out images a candidate is rewarded on, and training images it is recalibrated on."""
    reward_finetune: tuple[int, ...] = (0,)
    """Finetuning steps before each reward: the staircase, one entry per equal part of the search."""
    min_keep: int = 2
    """Channels that every group keeps."""
    rerank: int = 4
    """Candidates of each method that get the short finetune."""
    rerank_steps: int | None = None
    """Steps of the short finetune."""
    finetune_steps: int | None = None
    """Steps of the last finetune."""
    finetune_rate: float = 1e-3
    """Its peak learning rate (Adam, cosine)."""
    chunk: int | None = None
    """Candidates evaluated at once; by default as memory allows."""
    save_seconds: float = 20.0
    """A kill loses at most so many seconds, and the step under way."""


DEFAULT_STEPS = {"digits": (400, 60, 360), "mnist": (1000, 100, 1000)}
"""Steps of the dense training, the short and the last finetune, where the data set is known."""


def resolve(config: Config) -> Config:
    """Fill in the defaults that depend on the data set, and refuse what cannot be run.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    parse_budgets(config.budget)
    for option in ("evaluations", "candidates", "rerank", "reward_images", "batch_size"):
        if getattr(config, option) < 1:
            raise ValueError(f"{option}={getattr(config, option)} must be at least 1")
    if config.candidates > config.evaluations:
        raise ValueError(
            f"candidates={config.candidates} an iteration exceed evaluations={config.evaluations}"
        )
    for option, known in (
        ("score", UNIT_SCORES),
        ("reward", ("accuracy", "loss")),
        ("baselines", tuple(BASELINES)),
    ):
        given = getattr(config, option)
        for value in given if isinstance(given, tuple) else (given,):
            if value not in known:
                raise ValueError(f"{option}={value!r} is unknown; choose from {', '.join(known)}")
    if not config.reward_finetune or min(config.reward_finetune) < 0:
        raise ValueError(f"reward_finetune={config.reward_finetune} must be steps of at least 0")
    steps = DEFAULT_STEPS.get(config.dataset, (2000, 100, 1500))
    names = ("dense_steps", "rerank_steps", "finetune_steps")
    filled = {
        name: default if getattr(config, name) is None else getattr(config, name)
        for name, default in zip(names, steps, strict=True)
    }
    for name, value in filled.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    widths = config.widths
    if not widths and config.dataset == "digits" and config.model == "cnn":
        widths = (32, 64, 128, 256)
    agent_config(config)
    return dataclasses.replace(config, widths=widths, **filled)


def agent_config(config: Config) -> AgentConfig:
    """The static structure of the agent."""
    return AgentConfig(
        granularity=config.granularity,
        constraint=config.constraint,
        dual=config.dual,
        candidates=config.candidates,
        iterations=config.evaluations // config.candidates,
    )


BASELINES: dict[str, Callable[[Environment, Config], Searcher]] = {
    "uniform": lambda env, config: baselines.uniform(env, config.candidates),
    "global_threshold": lambda env, config: baselines.global_threshold(env, config.candidates),
    "random_search": lambda env, config: baselines.random_search(
        env, config.candidates, config.granularity
    ),
    "cross_entropy": lambda env, config: baselines.cross_entropy(
        env, config.candidates, granularity=config.granularity
    ),
    "random_search_coarse": lambda env, config: baselines.random_search(env, config.candidates),
    "cross_entropy_coarse": lambda env, config: baselines.cross_entropy(env, config.candidates),
}


def build(config: Config) -> tuple[Problem, tuple[Budget, ...]]:
    """Load the data, build and trace the network, and refuse budgets that cannot be met."""
    dataset = data.load(config.dataset, config.data_dir, seed=config.seed)
    options: dict[str, Any] = {}
    if config.widths:
        options["widths"] = config.widths
    if config.width != 1.0:
        options["width"] = config.width
    module = create_model(config.model, dataset.num_classes, **options)
    problem = make_problem(dataset, model_functions(module), stage_key(config, "init"))
    budgets = parse_budgets(config.budget)
    check_reachable(problem.graph, budgets, config.min_keep)
    return problem, budgets


def stage_key(config: Config, stage: str) -> jax.Array:
    """The random key of a stage: a function of the seed and the stage's name alone."""
    number = int.from_bytes(stage.encode()[-4:], "big") % 2**31
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), number), len(stage))


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


def score_units(config: Config, problem: Problem, variables: Variables) -> Gates:
    """Score every unit, on training images where the score looks at any."""
    if config.score == "random":
        return random_scores(problem.graph, stage_key(config, "scores"))
    if config.score == "magnitude":
        return magnitude_scores(problem.graph, variables)
    batch, batches = 64, max(1, min(1024, len(problem.train.labels)) // 64)

    @jax.jit
    def score(variables: Variables, images: Images) -> Gates:
        x = problem.prepare(images.images[: batch * batches])
        x = x.reshape(batches, batch, *x.shape[1:])
        labels = images.labels[: batch * batches].reshape(batches, batch)
        return taylor_scores(problem.functions.apply, problem.graph, variables, x, labels)

    return score(variables, problem.train)


def make_search_environment(
    config: Config, problem: Problem, budgets: Sequence[Budget], scores: Gates
) -> Environment:
    """The constrained decision process of this network and these budgets."""
    graph = problem.graph
    cost = cost_function(graph, budgets)

    def mask_cost(masks: jax.Array) -> jax.Array:
        return cost(
            {
                name: masks[i, :size]
                for i, (name, size) in enumerate(zip(graph.names, graph.sizes, strict=True))
            }
        )

    return make_environment(
        dict(zip(graph.names, graph.sizes, strict=True)),
        {name: np.asarray(score) for name, score in scores.items()},
        layer_descriptors(graph),
        limits(budgets),
        min_keep={
            name: min(config.min_keep, size)
            for name, size in zip(graph.names, graph.sizes, strict=True)
        },
        cost_fn=mask_cost,
    )


class Search(NamedTuple):
    """What a method found: its archive, and ``rewards`` [T, N] and ``costs`` [T, N, K] of all."""

    archive: Archive
    rewards: jax.Array
    costs: jax.Array


def search(
    config: Config,
    run: RunDirectory,
    problem: Problem,
    jobs: Jobs,
    variables: Variables,
    env: Environment,
    method: str,
    clock: CompileClock,
) -> Search:
    """Run one method for ``evaluations`` candidates."""
    iterations = config.evaluations // config.candidates
    searcher = (
        ppo_lagrangian(env, agent_config(config))
        if method == AGENT
        else BASELINES[method](env, config)
    )
    key = stage_key(config, "search")
    held_out, train = problem.held_out, problem.train
    count = min(config.reward_images, len(held_out.labels))
    sample = CandidateData(
        problem.prepare(train.images[: min(config.reward_images, len(train.labels))]),
        problem.prepare(held_out.images[:count]),
        held_out.labels[:count],
    )
    costs = jax.jit(jax.vmap(env.cost_fn))

    def evaluate_with(steps: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def evaluate(masks: jax.Array, key: jax.Array) -> jax.Array:
            judged = jobs.judge(
                variables, masks_to_gates(env, masks), sample, key, finetune_steps=steps
            )
            return judged.accuracy if config.reward == "accuracy" else -judged.loss

        return evaluate

    def advance(state: Any, start: int, count: int) -> tuple[Any, list]:
        inner, found = state
        rows = []
        for iteration in range(start, start + count):
            began, compiled = time.perf_counter(), clock.seconds
            stair = config.reward_finetune[iteration * len(config.reward_finetune) // iterations]
            result = run_search_host(
                searcher,
                evaluate_with(stair),
                costs,
                env.limits,
                inner,
                found.archive,
                1,
                key,
                iteration,
            )
            inner = result.state
            found = Search(
                result.archive,
                found.rewards.at[iteration].set(result.history.rewards[0]),
                found.costs.at[iteration].set(result.history.costs[0]),
            )
            values = {name: np.asarray(value[0]) for name, value in result.metrics.items()}
            best = np.asarray(result.archive.feasible.rewards[0])
            values |= {
                "best": best,
                "seconds": time.perf_counter() - began,
                "compile_seconds": clock.seconds - compiled,
            }
            rows.append((iteration + 1, values))
        return (inner, found), rows

    empty = Search(
        archive_init(env, ARCHIVE_SIZE),
        jnp.full((iterations, config.candidates), jnp.nan),
        jnp.full((iterations, config.candidates, env.num_budgets), jnp.nan),
    )
    inner = searcher.init(HParams(), jax.random.fold_in(key, 2**30))
    _, found = run_stage(
        run,
        f"search-{method}",
        (inner, empty),
        iterations,
        advance,
        chunk=1,
        save_seconds=config.save_seconds,
        note=lambda values: f"best {float(values['best']):.4f}",
    )
    return found


def execute(config: Config, run: RunDirectory) -> dict[str, Any]:
    """Do the whole run and return what goes into ``result.json``."""
    clock = CompileClock()
    problem, budgets = build(config)
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
    env = make_search_environment(config, problem, budgets, score_units(config, problem, variables))
    searches: dict[str, Search] = {}
    delivered: dict[str, Delivered] = {}
    for method in (AGENT, *config.baselines):
        searches[method] = search(config, run, problem, jobs, variables, env, method, clock)
        delivered[method] = deliver_method(
            run,
            problem,
            jobs,
            variables,
            env,
            budgets,
            method,
            searches[method].archive,
            rerank=config.rerank,
            rerank_steps=config.rerank_steps,
            finetune_steps=config.finetune_steps,
            key=stage_key(config, "deploy"),
            save_seconds=config.save_seconds,
        )
    shipped = ship(run, problem, delivered[AGENT])
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
            "latency_ms": shipped.dense_latency._asdict(),
        },
        "pruned": {
            "accuracy": shipped.accuracy,
            "params": chosen.params,
            "macs": chosen.macs,
            "latency_ms": shipped.slim_latency._asdict(),
            "kept": chosen.kept(graph),
        },
        "budgets": chosen.budget_rows(graph, budgets),
        "search": {
            "evaluations": evaluations,
            "seconds": seconds,
            "compile_seconds": compile_seconds,
            "candidates_per_second": evaluations / max(seconds - compile_seconds, 1e-9),
            "feasible_fraction": float(
                np.mean(np.all(np.asarray(searches[AGENT].costs) <= limits(budgets), axis=-1))
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


def prune(config: Config) -> Path:
    """Run ``config``, or find it finished; return the run directory.

    Raises:
        ValueError: an option is wrong or a budget cannot be met.
        OSError: data are missing or the run directory cannot be written.
    """
    config = resolve(config)
    with open_run(config.runs_dir, "prune_rl", config) as run:
        if run.is_finished:
            print(f"finished before; delete {run.path} to run again", file=sys.stderr)
            return run.path
        began = time.perf_counter()
        result = execute(config, run)
        result["seconds"] = time.perf_counter() - began
        history = result.pop("history")
        write_page(run, config, result, history)
        run.write_result(result)
        return run.path


def main() -> None:
    """Command line."""
    cache = Path.home() / ".cache" / "rlprune_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    config = tyro.cli(Config, description=__doc__)
    try:
        path = prune(config)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(path)


if __name__ == "__main__":
    main()
