"""Run a study: hundreds of settings and seeds in one program, resumable, with a page of results.

Commands: python experiments/run_study.py search --settings 64 --seeds 4
          python experiments/run_study.py budgets --limits 0.02 0.05 0.1 0.2 --seeds 4
          python experiments/run_study.py sap --p 0.2 0.5 1.0 --q 1.0 2.0 --seeds 4
          python experiments/run_study.py proxy --model cnn --candidates 32
          python experiments/run_study.py search --optuna study.journal --worker 0

``search`` varies the agent's hyper-parameters; ``budgets`` draws the front of accuracy and cost,
with baselines beside; ``sap`` varies adaptive pruning; ``proxy`` asks how well rewards foretell the
finetuned accuracy. The run directory, printed last, holds study/ (chunks and the tidy table),
summary.csv, result.json and report.html. The same command resumes an interrupted study, or says
that it is finished. Many hosts: add --coordinator HOST:PORT --num-processes N --process-id I, or
set RLPRUNE_DISTRIBUTED=1 where the cluster tells JAX by itself. Many independent workers: --optuna
FILE or DATABASE, each its --worker.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from command_line import run_resumable
from settings import Config as RunConfig
from study_page import write_page
from study_problem import (
    AGENT_FIELDS,
    STRUCTURE,
    Prepared,
    prepare,
    proxy_job,
    random_candidates,
    search_job,
    shared_arrays,
)

from rlprune_jax.costs import Constraint, check_reachable, parse_budgets
from rlprune_jax.devices import describe_device, versions
from rlprune_jax.runs.progress import progress
from rlprune_jax.runs.run_directory import COSMETIC, RunDirectory, config_hash, open_run
from rlprune_jax.search import Config as AgentConfig
from rlprune_jax.search import HParams
from rlprune_jax.study import (
    Choice,
    LogUniform,
    Settings,
    StudyResult,
    Uniform,
    grid,
    initialize,
    one_device_per_core,
    random,
    rank_correlation,
    run_study,
    table,
)
from rlprune_jax.study.results import write_table
from rlprune_jax.study.settings import Value

PLACE = (*COSMETIC, "coordinator", "num_processes", "process_id", "worker")

SPACE: dict[str, Uniform | LogUniform | Choice] = {
    "unit_learning_rate": LogUniform(0.02, 0.8),
    "table_learning_rate": LogUniform(0.005, 0.5),
    "learning_rate": LogUniform(1e-4, 1e-2),
    "clip_epsilon": Uniform(0.05, 1.0),
    "target_kl": LogUniform(0.005, 0.5),
    "sharpness": Uniform(1.0, 16.0),
    "entropy_coef": Uniform(0.0, 0.02),
    "initial_std": LogUniform(0.1, 2.0),
    "std_learning_rate": LogUniform(0.002, 0.2),
    "epochs": Choice((4, 8, 16)),
    "candidates": Choice((8, 16, 32)),
    "shaping": Choice(("standardise", "elite")),
}
"""Ranges of the agent's hyper-parameters, around its defaults; the last ones compile anew."""


@dataclasses.dataclass(frozen=True)
class Common:
    """Options of every study."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, cifar100."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else $TFDS_DATA_DIR. digits needs none."""
    model: str = "mlp"
    """Any of the zoo: mlp, cnn, vgg16, resnet20, mobilenet ...; an unknown name lists them all."""
    widths: tuple[int, ...] = ()
    """Units per layer of mlp and cnn; the model's own unless told."""
    seed: int = 0
    """Of data split and dense training; searches have seeds 0, 1, ..."""
    runs_dir: Path = Path("runs")
    """Where run directories go."""
    seeds: int = 4
    """S, seeds of every setting."""
    budget: str = "params=0.1"
    """Limit as NAME=FRACTION of the dense network."""
    dense_steps: int | None = None
    """Steps of training the dense network."""
    reward_images: int = 256
    """Held-out images a candidate is rewarded on."""
    granularity: str = "fine"
    """coarse: a keep ratio per group; fine: every unit by itself."""
    constraint: str = "projection"
    """multiplier, projection, both."""
    strategy: str = "auto"
    """vmap, map (one cell after the other), or auto: the faster, measured once."""
    chunk: int | None = None
    """Settings at once; by default as memory allows."""
    optuna: str | None = None
    """A file, or a database's address: take settings from Optuna, shared with other workers."""
    trials: int = 64
    """Settings of a study by Optuna."""
    batch: int = 8
    """Settings that a worker asks for at once."""
    worker: int = 0
    """Number of this worker on the same --optuna; each has a run directory."""
    coordinator: str | None = None
    """host:port of process 0 of a study over many hosts."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is."""


@dataclasses.dataclass(frozen=True)
class Search(Common):
    """Hyper-parameters of the agent; setting 0 is the defaults."""

    settings: int = 64
    """H, of which all but the first are drawn at random."""
    evaluations: int = 256
    """Candidates of each search."""
    candidates: int = 16
    """Candidates an iteration."""
    vary: tuple[str, ...] = ("unit_learning_rate", "clip_epsilon", "target_kl", "sharpness")
    """What is varied; of the agent's numbers, those with a range."""
    around: float | None = None
    """Draw each number within this factor of its default; the whole range where that is 0."""
    metric: str = "area"
    """What is optimised: area (under the best-so-far curve) or reward (at the end)."""


@dataclasses.dataclass(frozen=True)
class Budgets(Common):
    """The front of accuracy against cost, the agent beside baselines."""

    limits: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35)
    """B budgets, fractions of the dense network; the name is that of --budget."""
    methods: tuple[str, ...] = ("agent", "random_search", "cross_entropy")
    """What searches."""
    evaluations: int = 256
    """Candidates of each search."""
    candidates: int = 16
    """Candidates an iteration."""
    finetune_steps: int = 0
    """Finetune the best candidate of each search so long and read its test accuracy."""
    metric: str = "reward"
    """What is drawn: reward, or accuracy where there is finetuning."""


@dataclasses.dataclass(frozen=True)
class Proxy(Common):
    """Rank correlation of rewards with the finetuned accuracy of random candidates."""

    model: str = "cnn"
    """A network with batch norm, or recalibration has nothing to do."""
    candidates: int = 32
    """How many; at least 30 for an interval worth reading."""
    finetune_steps: int = 300
    """Of the long finetune."""
    seeds: int = 1
    """Of finetuning."""
    metric: str = "accuracy"
    """What settings are ranked by."""


@dataclasses.dataclass(frozen=True)
class Sap(Common):
    """Numbers of sparsity-informed adaptive pruning: a grid, or ranges with --optuna."""

    p: tuple[float, ...] = (0.5, 1.0)
    """Norms above; combinations with p >= q are left out."""
    q: tuple[float, ...] = (1.0, 2.0)
    """Norms below."""
    eta_r: tuple[float, ...] = (0.0,)
    """The larger, the more goes."""
    gamma: tuple[float, ...] = (1.0,)
    """Scaling of the share that goes."""
    beta: tuple[float, ...] = (0.9,)
    """Greatest share that one iteration prunes."""
    scope: tuple[str, ...] = ("global",)
    """global, layer, neuron."""
    iterations: int = 10
    """Prunings."""
    epochs: int = 3
    """Of each training."""
    batch_size: int = 250
    """Images a step."""
    metric: str = "kept_sparsity"
    """kept_sparsity: largest sparsity within a point of dense accuracy; accuracy: the last."""


Study = Annotated[
    Annotated[Search, tyro.conf.subcommand("search")]
    | Annotated[Budgets, tyro.conf.subcommand("budgets")]
    | Annotated[Sap, tyro.conf.subcommand("sap")]
    | Annotated[Proxy, tyro.conf.subcommand("proxy")],
    tyro.conf.OmitSubcommandPrefixes,
]
PROXIES = ("no_recalibration", "recalibration", "finetune_32", "finetune_128")


def check(config: Common) -> None:
    """Refuse what cannot be studied, before anything is trained.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    for option in ("seeds", "settings", "trials", "batch", "evaluations", "candidates"):
        if getattr(config, option, 1) < 1:
            raise ValueError(f"{option}={getattr(config, option)} must be at least 1")
    if len(parse_budgets([config.budget])) != 1:
        raise ValueError(f"budget={config.budget!r}: a study has one budget")
    if isinstance(config, Search):
        if unknown := sorted(set(config.vary) - set(SPACE)):
            raise ValueError(f"vary={unknown}: choose from {', '.join(SPACE)}")
        if not config.vary:
            raise ValueError("vary is empty: name at least one hyper-parameter")
        if config.around is not None and not config.around > 1:
            raise ValueError(f"around={config.around}: a factor above 1")
    if isinstance(config, Budgets):
        (budget,) = parse_budgets([config.budget])
        for limit in config.limits:
            (other,) = parse_budgets([f"{budget.name}={limit}"])
            if other.relative != budget.relative:
                wanted = "a fraction of dense" if budget.relative else "in the unit of the cost"
                raise ValueError(
                    f"limits: {limit} must be {wanted}, as budget={config.budget!r} is"
                )
        known = ("agent", "random_search", "cross_entropy")
        if unknown := sorted(set(config.methods) - set(known)):
            raise ValueError(f"methods={unknown}: choose from {', '.join(known)}")
        if config.metric == "accuracy" and not config.finetune_steps:
            raise ValueError("metric='accuracy' needs finetune_steps of at least 1")
    if isinstance(config, Sap) and not any(p < q for p in config.p for q in config.q):
        raise ValueError(f"p={config.p}, q={config.q}: some p must be below some q")
    if isinstance(config, Proxy) and config.optuna:
        raise ValueError("optuna has nothing to choose in a proxy study: leave it out")
    if isinstance(config, Proxy) and config.candidates < 3:
        raise ValueError(f"candidates={config.candidates}: a correlation needs at least 3")


def study_settings(config: Common, cost: str) -> Settings:
    """The settings of a study that does not come from Optuna."""
    if isinstance(config, Search):
        rows = [default_setting(config)]
        if config.settings > 1:
            space = search_space(config, cost)
            rows += list(random(space, config.settings - 1, jax.random.key(config.seed)))
        return table(rows)
    if isinstance(config, Budgets):
        return grid({cost: list(config.limits), "method": list(config.methods)})
    if isinstance(config, Sap):
        names = ("p", "q", "eta_r", "gamma", "beta", "scope")
        rows = list(grid({name: list(getattr(config, name)) for name in names}))
        return table([row for row in rows if float(row["p"]) < float(row["q"])])
    assert isinstance(config, Proxy)
    return grid({"candidate": list(range(config.candidates))})


def range_of(config: Search, name: str) -> Uniform | LogUniform | Choice:
    """What one hyper-parameter is drawn from."""
    default = default_setting(config)[name]
    if config.around is None or name in STRUCTURE or not default:
        return SPACE[name]
    return LogUniform(float(default) / config.around, float(default) * config.around)


def default_setting(config: Search) -> dict[str, Value]:
    """What is varied, as a search has it unless told otherwise."""
    structure = AgentConfig(candidates=config.candidates)
    return {
        name: getattr(structure, name) if name in STRUCTURE else float(getattr(HParams(), name))
        for name in config.vary
    }


class Task(NamedTuple):
    """A job with what it shares, the names of its hyper-parameters and which are static."""

    job: Callable[..., Any]
    shared: Any
    known: tuple[str, ...]
    static: tuple[str, ...] = ()
    cost: str = ""
    dense_accuracy: float = float("nan")


def make_task(config: Common, run_directory: RunDirectory) -> Task:
    """Load, train what is to be trained once, and make the job."""
    if isinstance(config, Sap):
        from study_sap import NAMES, sap_job

        job, shared = sap_job(config)
        return Task(job, shared, NAMES, ("scope",))
    prepared = prepare(run_config(config), run_directory)
    if isinstance(config, Budgets):
        for limit in config.limits:
            (budget,) = parse_budgets([f"{prepared.constraint.budget.name}={limit}"])
            constraint = Constraint(budget=budget, cost=prepared.constraint.cost)
            check_reachable(prepared.problem.graph, [constraint], prepared.config.min_keep)
    dense = float(prepared.jobs.dense_accuracy(prepared.variables, prepared.problem.test))
    task = make_job(config, prepared)
    return task._replace(dense_accuracy=dense)


def make_job(config: Common, prepared: Prepared) -> Task:
    """The job on a network that is trained."""
    shared, cost = shared_arrays(prepared), prepared.constraint.budget.name
    if isinstance(config, Proxy):
        shared["masks"] = random_candidates(prepared, config.candidates)
        return Task(proxy_job(prepared, config.finetune_steps), shared, ("candidate",), cost=cost)
    assert isinstance(config, Search | Budgets)
    steps = config.finetune_steps if isinstance(config, Budgets) else 0
    job = search_job(prepared, config.evaluations, config.candidates, steps)
    varied = ("method",) if isinstance(config, Budgets) else config.vary
    static = tuple(name for name in varied if name in STRUCTURE)
    return Task(job, shared, (*AGENT_FIELDS, *STRUCTURE, cost), static, cost)


def search_space(config: Common, cost: str) -> dict[str, Uniform | LogUniform | Choice]:
    """What Optuna chooses from."""
    if isinstance(config, Search):
        return {name: range_of(config, name) for name in config.vary}
    if isinstance(config, Budgets):
        span = LogUniform(min(config.limits), max(config.limits))
        return {cost: span, "method": Choice(config.methods)}
    assert isinstance(config, Sap)
    return {
        "p": Uniform(0.1, 1.0),
        "q": Uniform(1.05, 2.0),
        "eta_r": Uniform(0.0, 1.0),
        "gamma": Uniform(0.5, 2.0),
        "beta": Uniform(0.5, 0.95),
        "scope": Choice(config.scope),
    }


def run(config: Common, task: Task, directory: Path) -> StudyResult:
    """All settings times seeds, by ourselves or by Optuna."""
    options: dict[str, Any] = {"static": task.static, "shared": task.shared, "known": task.known}
    options["identity"] = {
        name: str(value)
        for name, value in dataclasses.asdict(config).items()
        if name not in (*PLACE, "strategy", "chunk", "optuna", "trials", "batch")
    }
    if config.optuna:
        from rlprune_jax.study.optuna_workers import run_worker

        with progress("trials", config.trials) as advance:
            return run_worker(
                task.job,
                search_space(config, task.cost),
                range(config.seeds),
                storage=config.optuna,
                study_name=f"{type(config).__name__.lower()}-{config_hash(options['identity'])}",
                trials=config.trials,
                batch=config.batch,
                metric=metric_of(config),
                strategy="vmap" if config.strategy == "auto" else config.strategy,
                tick=advance,
                **options,
            )
    settings = study_settings(config, task.cost)
    with progress("cells", len(settings) * config.seeds) as advance:
        return run_study(
            task.job,
            settings,
            range(config.seeds),
            directory=directory,
            strategy=config.strategy,
            chunk=config.chunk,
            tick=advance,
            **options,
        )


def metric_of(config: Common) -> str:
    """What settings are ranked by."""
    return str(getattr(config, "metric", "reward"))


def conclude(config: Common, found: StudyResult, dense_accuracy: float) -> dict[str, Any]:
    """What goes into ``result.json``."""
    metric = metric_of(config)
    summary = found.summary(metric)
    best = found.best(metric)
    result: dict[str, Any] = {
        "study": type(config).__name__.lower(),
        "dataset": config.dataset,
        "model": config.model,
        "metric": metric,
        "settings": len(found.settings),
        "seeds": list(found.seeds),
        "best": found.settings[best] | {"mean": float(summary["mean"][best])},
        "interval": [float(summary["low"][best]), float(summary["high"][best])],
        "dense_accuracy": dense_accuracy,
        "compile_seconds": found.compile_seconds,
        "strategies": dict(found.strategies),
        "cells_run": found.cells_run,
        "corrupt": list(found.corrupt),
        "versions": versions(),
        "device": describe_device(),
    }
    if isinstance(config, Search) and not config.optuna:
        gain = found.metrics[metric][best] - found.metrics[metric][0]
        result["gain_over_defaults"] = {"mean": float(gain.mean()), "by_seed": gain.tolist()}
    if isinstance(config, Proxy):
        accuracy = found.metrics["accuracy"].mean(1)
        result["correlations"] = {
            name: rank_correlation(found.metrics[name].mean(1), accuracy)._asdict()
            for name in PROXIES
        }
    return result


def study(config: Common) -> Path:
    """Run ``config``, or find it finished; return the run directory.

    Raises:
        ValueError: an option is wrong or a budget cannot be met.
        OSError: data are missing or a directory cannot be written.
    """
    check(config)
    initialize(config.coordinator, config.num_processes, config.process_id)
    process = jax.process_index()
    name = f"study-{type(config).__name__.lower()}"
    # Processes of one study share its directory; all but the first train in one of their own.
    own = Path(config.runs_dir) / f"process-{process}" if process else Path(config.runs_dir)
    home = Path(config.runs_dir) / f"{name}-{config_hash(config, exclude=PLACE)}"
    if config.optuna:
        own = own / f"worker-{config.worker}"
    with open_run(own, name, config, exclude=PLACE) as run_directory:
        if run_directory.is_finished:
            print(f"finished before; delete {run_directory.path} to run again", file=sys.stderr)
            return run_directory.path
        began = time.perf_counter()
        task = make_task(config, run_directory)
        found = run(config, task, home / "study")
        if process:
            return home
        path = run_directory.path
        found.write(path)
        metric = metric_of(config)
        write_table(path, "summary", found.summary(metric))
        result = conclude(config, found, task.dense_accuracy)
        result["seconds"] = time.perf_counter() - began
        write_page(run_directory, config, found, result, task.cost, log_axes())
        run_directory.write_result(result)
        return path


def run_config(config: Common) -> RunConfig:
    """The settings of the network, its environment and its budget."""
    options: Mapping[str, Any] = {
        name: getattr(config, name)
        for name in (
            *("dataset", "data_dir", "model", "widths", "seed", "runs_dir", "dense_steps"),
            *("reward_images", "granularity", "constraint"),
        )
    }
    return RunConfig(budget=(config.budget,), **options)


def log_axes() -> list[str]:
    """Hyper-parameters that are drawn on logarithmic axes."""
    return [name for name, kind in SPACE.items() if isinstance(kind, LogUniform)]


if __name__ == "__main__":
    one_device_per_core()
    run_resumable(study, Study, __doc__, saved="chunk")
