"""Our methods beside Torch-Pruning's criteria: same dense weights, budgets and later training.

Command:   python benchmarks/compare_torch_pruning.py --case digits_cnn --out rows.jsonl
Packages:  pip install -e ".[torch]"
Hardware:  2 CPU cores
Minutes:   10 with --quick, else an hour for each network

A dense network is trained here and its weights are carried into a twin in PyTorch, whose logits are
checked to be the same. Each criterion of Torch-Pruning prunes the twin as the library's example
does, in many small steps with importances found anew; the channels that it keeps are carried back
as gates, the slim outputs checked to be the same, and what its last step took too much is undone.
Then all masks, its and ours, are finetuned by one recipe on the same images and evaluated once on
the test images. Beside them stand the dense network trained on, and the best widths of either side
from fresh weights. Rows that are in ``--out`` already are not computed again. The last line is one
JSON object; ``lead`` is the agent's accuracy less that of the best criterion, in points of percent.
"""

import dataclasses
import importlib.util
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from rlprune_jax import (
    DenseRecipe,
    Network,
    PruneConfig,
    Task,
    deliver,
    make_pruning,
    train_dense,
)
from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.costs import count_params
from rlprune_jax.devices import describe_device
from rlprune_jax.models import create_model
from rlprune_jax.runs import MemoryRun
from rlprune_jax.study import paired_difference, wilson_interval
from rlprune_jax.training.task import count_examples
from rlprune_jax.types import Gates
from rlprune_jax.workflow.building import build_task, wanted_of
from rlprune_jax.workflow.controls import from_scratch, trained_on
from rlprune_jax.workflow.delivery import Delivered, evaluate_masked, evaluate_network
from rlprune_jax.workflow.pruning import Pruning
from rlprune_jax.workflow.searches import search
from rlprune_jax.workflow.sources import DataOptions
from rlprune_jax.workflow.tuning import Tuner

if TYPE_CHECKING:
    from torch import nn

Row = dict[str, object]
OURS, THEIRS, CONTROL = "ours", "torch-pruning", "control"
SAME = 1e-3
"""Largest relative difference of logits that counts as equal, of float32 in two libraries."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold a network and its data.

    Attributes:
        dataset: of the built-in ones.
        model: of the zoo.
        options: of the model.
        dense_steps: of the dense training.
        finetune_steps: of the last finetune.
        images: training images that are used; None for all.
    """

    dataset: str
    model: str
    options: dict[str, object]
    dense_steps: int
    finetune_steps: int
    images: int | None = None


SMALL_CNN: dict[str, object] = {"widths": (8, 16, 32, 64)}
CASES = {
    "digits_cnn": Case("digits", "cnn", SMALL_CNN, 300, 300),
    "fashion_cnn": Case("fashion_mnist", "cnn", SMALL_CNN, 2000, 1500),
    "cifar_resnet20": Case(
        "cifar10", "resnet20", {"width": 0.5, "shortcut": "projection"}, 3000, 2000, 20000
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    case: Literal["digits_cnn", "fashion_cnn", "cifar_resnet20"] = "digits_cnn"
    """Network and data."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; digits needs none."""
    budgets: tuple[float, ...] = (0.3, 0.1, 0.03)
    """Fractions of the parameters."""
    seeds: int = 5
    """Dense networks, masks and finetunes with seeds one after the other."""
    methods: tuple[str, ...] = ("agent", "uniform", "random_search", "cross_entropy")
    """Of ours."""
    criteria: tuple[str, ...] = ("all",)
    """Of Torch-Pruning, "all" for every one."""
    evaluations: int = 768
    """That each of our methods may use."""
    iterative_steps: int = 75
    """Of Torch-Pruning, from the dense network to none."""
    dense_steps: int | None = None
    """Of the dense training; the case's own unless told."""
    finetune_steps: int | None = None
    """Of the last finetune; the case's own unless told."""
    test_images: int | None = None
    """Test images that are used; all unless told."""
    controls: bool = True
    """Whether dense is trained on, and the best widths are trained from fresh weights."""
    quick: bool = False
    """One seed, one budget and three criteria, with short training."""
    out: str = ""
    """File that rows are added to, as lines of JSON, and read from."""


def shortened(options: Options) -> Options:
    """Return the options of a quick look."""
    return dataclasses.replace(
        options,
        seeds=1,
        budgets=(0.1,),
        methods=("agent", "uniform"),
        criteria=("magnitude_global", "taylor_global", "hessian_summed_global"),
        evaluations=64,
        iterative_steps=25,
        dense_steps=100,
        finetune_steps=60,
        controls=False,
    )


def load(options: Options, seed: int) -> Task:
    """Return the task, on as many images as were asked for."""
    case = CASES[options.case]
    task = build_task(DataOptions(dataset=case.dataset, data_dir=options.data_dir), seed)

    def first(data: object, count: int | None) -> object:
        return jax.tree.map(lambda leaf: leaf[:count], data)

    train, test = first(task.train, case.images), first(task.test, options.test_images)
    return dataclasses.replace(task, train=train, test=test)


def fresh_network(options: Options, task: Task, seed: int) -> Network:
    """Return the network of a case, as initialised."""
    case = CASES[options.case]
    wanted = wanted_of(task, seed)
    assert wanted.num_classes is not None
    module = create_model(case.model, wanted.num_classes, **case.options)
    variables = jax.jit(module.init)(jax.random.key(seed), *wanted.example)
    return Network.from_linen(module, variables, wanted.example)


def twin_of(options: Options, network: Network, images: np.ndarray) -> "nn.Module":
    """Return the network in PyTorch.

    Raises:
        RuntimeError: its logits are others.
    """
    from torch_rival import twins

    case, channels, classes = CASES[options.case], images.shape[-1], network(images[:2]).shape[-1]
    if case.model == "cnn":
        twin: nn.Module = twins.CNN(channels, classes=classes, **case.options)  # type: ignore[arg-type]
    else:
        width = float(str(case.options["width"]))
        twin = twins.ThinResNet(channels, depth=20, width=width, classes=classes)
    twins.carry(network.variables, twin)
    check_same("dense", twins.largest_difference(twin, images, network(images)))
    return twin


def check_same(name: str, difference: float) -> None:
    """Refuse networks whose logits differ.

    Raises:
        RuntimeError: they do.
    """
    if not difference <= SAME:
        raise RuntimeError(f"{name}: the logits differ by {difference:g} between the libraries")


def delivered_of(pruning: Pruning, method: str, gates: Gates) -> Delivered:
    """Finetune given gates as ours are, and evaluate."""
    tuned = Tuner(pruning, method, None, MemoryRun()).last(gates)
    task = pruning.task
    found = evaluate_masked(pruning.network, task.objective, tuned, gates, task.test)
    metric, loss = float(found.metric), float(found.loss)
    return Delivered(pruning, method, gates, tuned, metric, loss, [])


Solver = Callable[[Pruning], tuple[Delivered, float]]
"""From a problem to what is delivered, and the seconds that finding the mask took."""


def by_ours(method: str, budget: float) -> Solver:
    """Return one of our methods as a solver, of whatever budget."""

    def solve(pruning: Pruning) -> tuple[Delivered, float]:
        began = time.perf_counter()
        found = search(pruning, method)
        seconds = time.perf_counter() - began
        return deliver(pruning, found), seconds

    return solve


def solvers(
    options: Options, dense: Network, task: Task, seed: int
) -> Iterator[tuple[str, str, Callable[[float], Solver]]]:
    """Yield side, name and, by budget, the solver of every method."""
    for method in options.methods:
        yield OURS, method, partial(by_ours, method)
    from torch_rival import criteria

    sample = task.objective.network_inputs(task.sample("train", 1024))[0]
    labels = np.asarray(task.sample("train", 1024)[1])
    examples = criteria.Examples(np.asarray(sample), labels)
    twin = twin_of(options, dense, examples.images[:64])
    names = criteria.CRITERIA if options.criteria == ("all",) else options.criteria
    for name in names:
        limits = sorted((int(b * count_params(dense.graph)) for b in options.budgets), reverse=True)
        run = criteria.cuts(
            twin,
            dense.graph,
            criteria.CRITERIA[name],
            limits,
            examples,
            steps=options.iterative_steps,
            seed=seed,
        )
        made: dict[int, criteria.Cut] = {}

        def solver(budget: float, name=name, run=run, limits=limits, made=made) -> Solver:
            def solve(pruning: Pruning) -> tuple[Delivered, float]:
                limit = int(budget * count_params(dense.graph))
                while limit not in made:
                    made[limits[len(made)]] = next(run)
                check_slim(dense, made[limit], examples.images[:64])
                return delivered_of(pruning, name, made[limit].gates), made[limit].seconds

            return solve

        yield THEIRS, name, solver


def check_slim(dense: Network, cut: "object", images: np.ndarray) -> None:
    """Compare the library's slim network with ours of the same gates."""
    from torch_rival import criteria, twins

    assert isinstance(cut, criteria.Cut)
    ours = dense.slim(cut.exact)(images)
    check_same("slim", twins.largest_difference(cut.slim, images, ours))


def problem_of(options: Options, dense: Network, task: Task, budget: float, seed: int) -> Pruning:
    """Return the problem of one budget."""
    case = CASES[options.case]
    config = PruneConfig(
        seed=seed,
        evaluations=options.evaluations,
        reward_images=min(512, count_examples(task.held_out)),
        finetune_steps=options.finetune_steps or case.finetune_steps,
        rerank_steps=60 if case.dataset == "digits" else 100,
    )
    return make_pruning(dense, task, f"params={budget:g}", config)


def rows_of_seed(options: Options, seed: int, known: Mapping[tuple, Row]) -> Iterator[Row]:
    """Yield the rows of one dense network that are not known."""
    case, task = CASES[options.case], load(options, seed)
    steps = options.dense_steps or case.dense_steps
    network = fresh_network(options, task, seed)
    dense = train_dense(network, task, DenseRecipe(steps), seed)
    task = task.on_device()
    problems = {b: problem_of(options, dense, task, b, seed) for b in options.budgets}
    rows = [known_row for known_row in known.values() if known_row["seed"] == seed]

    def row(side: str, method: str, budget: float, **found: object) -> Row:
        return {"seed": seed, "side": side, "method": method, "budget": budget, **found}

    base = dense_accuracy(problems[options.budgets[0]])
    yield row(CONTROL, "dense", 1.0, accuracy=base, params=1.0, seconds=0.0)
    for side, method, solver in solvers(options, dense, task, seed):
        for budget in sorted(options.budgets, reverse=True):
            if (seed, side, method, budget) in known:
                continue
            delivered, seconds = solver(budget)(problems[budget])
            fraction = delivered.params / count_params(dense.graph)
            found = {"accuracy": delivered.metric, "params": fraction, "seconds": seconds}
            rows.append(row(side, method, budget, **found, kept=kept_of(delivered.gates)))
            yield rows[-1]
    if not options.controls:
        return
    if (seed, CONTROL, "trained_on", 1.0) not in known:
        control = trained_on(problems[options.budgets[0]])
        yield row(CONTROL, "trained_on", 1.0, accuracy=control.metric, params=1.0, seconds=0.0)
    for side, budget in itertools.product((OURS, THEIRS), options.budgets):
        mine = [r for r in rows if (r["side"], r["budget"]) == (side, budget) and "kept" in r]
        name = f"best of {side}, from scratch"
        if not mine or (seed, CONTROL, name, budget) in known:
            continue
        best = max(mine, key=lambda r: float(str(r["accuracy"])))
        pruning = problems[budget]
        gates = gates_of(pruning, best["kept"])
        widths = Delivered(pruning, str(best["method"]), gates, dense.variables, 0.0, 0.0, [])
        accuracy = from_scratch(widths).metric
        yield row(CONTROL, name, budget, accuracy=accuracy, params=best["params"], seconds=0.0)


def kept_of(gates: Gates) -> dict[str, list[int]]:
    """Return the units that gates keep, as JSON holds them."""
    return {name: np.flatnonzero(np.asarray(gate)).tolist() for name, gate in gates.items()}


def gates_of(pruning: Pruning, kept: object) -> Gates:
    """Return the gates of what ``kept_of`` returned."""
    assert isinstance(kept, dict)
    graph = pruning.graph
    sizes = dict(zip(graph.names, graph.sizes, strict=True))
    return {name: jnp.zeros(sizes[name]).at[jnp.array(kept[name])].set(1.0) for name in graph.names}


def dense_accuracy(pruning: Pruning) -> float:
    """Evaluate the dense network on the test images."""
    task = pruning.task
    return float(evaluate_network(pruning.network, task.objective, task.test).metric)


def values_of(rows: Sequence[Row], side: str, budget: float) -> dict[str, dict[int, float]]:
    """Return accuracy by method and seed."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["side"] == side and row["budget"] == budget:
            accuracy, seed = float(str(row["accuracy"])), int(str(row["seed"]))
            found.setdefault(str(row["method"]), {})[seed] = accuracy
    return found


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float | None]:
    """Return mean, low and high of the difference over common seeds, in points of percent.

    The ends are None of a single seed.
    """
    seeds = sorted(one.keys() & other.keys())
    found = paired_difference([one[s] for s in seeds], [other[s] for s in seeds])
    return [100 * value if np.isfinite(value) else None for value in found]


def lead_text(lead: Sequence[float | None]) -> str:
    """Write a difference in points, with its interval where it is known."""
    mean, *ends = (f"{value:+.2f}" for value in lead if value is not None)
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def show(rows: Sequence[Row], options: Options, test_images: int) -> dict[str, object]:
    """Print a table of each budget; return the agent's lead by budget."""
    leads: dict[str, object] = {}
    for row in {str(r["method"]): r for r in rows if r["budget"] == 1.0}.values():
        whole = list(values_of(rows, CONTROL, 1.0)[str(row["method"])].values())
        print(f"{str(row['method']).replace('_', ' ')}: {100 * np.mean(whole):.2f} %")
    for budget in options.budgets:
        theirs = values_of(rows, THEIRS, budget)
        best = max(theirs, key=lambda name: np.mean(list(theirs[name].values())), default="")
        print(f"\n{budget:.0%} of the parameters, {test_images} test images\n")
        print(
            "| | method | test accuracy | [Wilson] | to Torch-Pruning's best | params | seconds |"
        )
        print("|---|---|---|---|---|---|---|")
        for side in (OURS, THEIRS, CONTROL):
            for method, values in values_of(rows, side, budget).items():
                seen = np.array(list(values.values()))
                mine = [r for r in rows if (r["method"], r["budget"]) == (method, budget)]
                ends = wilson_interval(float(seen.mean()), test_images)
                lead = paired(values, theirs[best]) if best else []
                if method == "agent" and lead:
                    leads[f"{budget:g}"] = dict(zip(("mean", "low", "high"), lead, strict=True))
                spread = 100 * seen.std(ddof=1) if len(seen) > 1 else 0.0
                cells = (
                    side,
                    method.replace("_", " "),
                    f"{100 * seen.mean():.2f} ± {spread:.2f}",
                    f"[{100 * ends.low:.1f}, {100 * ends.high:.1f}]",
                    "best" if method == best else lead_text(lead) if lead else "–",
                    f"{np.mean([float(str(r['params'])) for r in mine]):.1%}",
                    f"{np.mean([float(str(r['seconds'])) for r in mine]):.1f}",
                )
                print("| " + " | ".join(cells) + " |")
    return leads


def read_rows(path: str) -> list[Row]:
    """Return the rows of an earlier call."""
    if not path or not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def main(options: Options) -> None:
    """Compute what is missing, print tables and the line of JSON."""
    for name in ("torch", "torch_pruning"):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(
                f'{name} is not installed; pip install -e ".[torch]" brings what is compared with'
            )
    options = shortened(options) if options.quick else options
    began, rows = time.perf_counter(), read_rows(options.out)

    def identity(row: Row) -> tuple:
        return row["seed"], row["side"], row["method"], row["budget"]

    known = {identity(row): row for row in rows}
    for seed in range(options.seeds):
        for row in rows_of_seed(options, seed, known):
            if identity(row) in known:
                continue
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.out:
                with open(options.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
        jax.clear_caches()
    test_images = count_examples(load(options, 0).test)
    leads = show(rows, options, test_images)
    about = {"case": options.case, "seeds": options.seeds, "test_images": test_images}
    seconds = time.perf_counter() - began
    print(json.dumps({"lead": leads, **about, "seconds": seconds, "device": describe_device()}))


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    enable_compilation_cache()
    main(chosen)
