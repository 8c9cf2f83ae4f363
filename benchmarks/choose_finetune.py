"""How a pruned network is best finetuned: rules and rates on held-out data.

Command:   python benchmarks/choose_finetune.py --data-dir DATA
Hardware:  2 CPU cores
Minutes:   30

Masks of the agent, of a uniform ratio and of a random draw at 10 and 30 % of the parameters are
finetuned by every recipe from the same dense weights, on training data alone, and evaluated on
held-out data; test data are never read. A row is one network, recipe and length: the mean held-out
metric over masks and seeds, and the mean of what it is below the best recipe of each mask (regret).
From these rows the defaults of ``finetune_rule`` and ``finetune_rate`` were chosen. The last line
is JSON.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from rlprune_jax import DenseRecipe, Network, PruneConfig, make_pruning, train_dense
from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.devices import describe_device
from rlprune_jax.models import create_model
from rlprune_jax.runs import DivergenceError
from rlprune_jax.training.task import Task
from rlprune_jax.types import Gates
from rlprune_jax.workflow.building import build_task, wanted_of
from rlprune_jax.workflow.delivery import evaluate_masked
from rlprune_jax.workflow.fitting import deliverable
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.learning import Training, run_training
from rlprune_jax.workflow.pruning import Pruning
from rlprune_jax.workflow.recipes import FinetuneRecipe
from rlprune_jax.workflow.searches import search
from rlprune_jax.workflow.sources import DataOptions
from rlprune_jax.workflow.tuning import training_data

Row = dict[str, object]

RECIPES = {
    "adam 0.001, bare": ("adam", 1e-3, None, 0.0),
    **{f"adam {rate:g} clip": ("adam", rate, 1.0, 5e-4) for rate in (1e-3, 3e-3, 1e-2)},
    **{f"sgd {rate:g}": ("sgd", rate, None, 5e-4) for rate in (0.03, 0.1, 0.3)},
    **{f"sgd {rate:g} clip": ("sgd", rate, 1.0, 5e-4) for rate in (0.03, 0.1, 0.3)},
}
"""Rule, peak rate, greatest norm of the gradient, weight decay."""

MASKS = {"agent": 256, "uniform": 2, "random_search": 2}
"""Methods that give the masks, and their evaluations."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold one network and how it is trained.

    Attributes:
        dataset: of the built-in ones.
        model: of the zoo, or "plain" for an MLP without any norm.
        options: of the model.
        dense: steps, rule and rate of the dense training.
        lengths: of the finetune, in steps.
    """

    dataset: str
    model: str
    options: dict[str, object]
    dense: DenseRecipe
    lengths: tuple[int, ...] = (60, 240)


CASES = {
    "digits cnn": Case("digits", "cnn", {"widths": (8, 16, 32, 64)}, DenseRecipe(300), (60, 300)),
    "digits plain mlp": Case("digits", "plain", {}, DenseRecipe(600, 3e-3, rule="adam")),
    "digits vit": Case(
        "digits",
        "vit_tiny",
        {"depth": 2, "width": 0.25, "patch": 2},
        DenseRecipe(600, 2e-3, rule="adam"),
    ),
    "text gpt": Case(
        "text", "gpt", {"depth": 2, "width": 0.25}, DenseRecipe(400, 2e-3, rule="adam"), (60, 180)
    ),
    "fashion cnn": Case(
        "fashion_mnist", "cnn", {"widths": (8, 16, 32, 64)}, DenseRecipe(600), (60, 300)
    ),
}
"""Convolutional networks with batch norm, transformers, and one network without any norm."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the choice."""

    data_dir: str | None = None
    """Folder of prepared TFDS data sets, for Fashion-MNIST."""
    cases: tuple[str, ...] = tuple(CASES)
    """Networks to try."""
    budgets: tuple[str, ...] = ("params=0.1", "params=0.3")
    """Of the masks."""
    seeds: int = 2
    """Dense networks, masks and finetunes with seeds one after the other."""
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Recipes to try."""
    lengths: tuple[int, ...] = ()
    """Of the finetune, in steps; each case's own unless told."""
    quick: bool = False
    """One seed, one budget and the digits' cnn, for two minutes."""
    out: str = ""
    """File that every finetune is written to, as lines of JSON."""


def plain_mlp(task: Task, seed: int) -> Network:
    """Return an MLP of bare arrays, without any norm."""
    (example,) = wanted_of(task, seed).example
    sizes = (int(np.prod(example.shape[1:])), 64, 64, 64, 10)
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    variables = {
        f"layer{number}": {
            "w": jax.random.normal(key, (one, two)) * (2 / one) ** 0.5,
            "b": jnp.zeros(two),
        }
        for number, (key, one, two) in enumerate(zip(keys, sizes, sizes[1:], strict=False))
    }

    def apply(variables: dict, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        *hidden, last = variables.values()
        for layer in hidden:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ last["w"] + last["b"]

    return Network(apply, variables, example)


def zoo_network(case: Case, task: Task, seed: int) -> Network:
    """Return a network of the zoo, as initialised."""
    wanted = wanted_of(task, seed)
    assert wanted.num_classes is not None
    module = create_model(case.model, wanted.num_classes, **case.options)
    variables = jax.jit(module.init)(jax.random.key(seed), *wanted.example)
    return Network.from_linen(module, variables, wanted.example)


def masks_of(pruning: Pruning) -> Iterator[tuple[str, Gates]]:
    """Yield the mask of each method."""
    for method, evaluations in MASKS.items():
        count = min(16, evaluations)
        config = dataclasses.replace(pruning.config, evaluations=evaluations, candidates=count)
        posed = dataclasses.replace(pruning, config=config)
        found = search(posed, method)
        gates, *_ = deliverable(pruning.env, pruning.constraints, found.archive, 1, fill=found.fill)
        yield method, gates


def tuned_metric(pruning: Pruning, gates: Gates, recipe: FinetuneRecipe, steps: int) -> float:
    """Return the held-out metric after a finetune, NaN of one that diverged."""
    network, task = pruning.network, pruning.task
    training = Training(
        name="finetune",
        network=network,
        objective=task.objective,
        data=training_data(task, False),
        recipe=recipe,
        steps=steps,
        gates=gates,
    )
    try:
        tuned = run_training(training, stage_key(pruning.config.seed, "deploy"))
    except DivergenceError:
        return float("nan")
    return float(evaluate_masked(network, task.objective, tuned, gates, task.held_out).metric)


def problems(case: Case, options: Options) -> Iterator[tuple[int, str, Pruning]]:
    """Yield seed, budget and problem; those of one seed share the dense network."""
    network = None
    for seed in range(options.seeds):
        data = DataOptions(dataset=case.dataset, data_dir=options.data_dir)
        task = build_task(data, seed)
        made = plain_mlp(task, seed) if case.model == "plain" else zoo_network(case, task, seed)
        # One definition for all seeds, so that nothing is compiled twice.
        network = made if network is None else network.replace(made.variables)
        dense = train_dense(network, task, case.dense, seed)
        for budget in options.budgets:
            images = min(512, 128 if case.dataset == "digits" else 512)
            config = PruneConfig(seed=seed, reward_images=images)
            yield seed, budget, make_pruning(dense, task, budget, config)


def finetunes(name: str, options: Options, note: Callable[[Row], None]) -> list[Row]:
    """Finetune every mask of a case by every recipe; return a row for each."""
    case, rows = CASES[name], []
    for seed, budget, pruning in problems(case, options):
        for method, gates in masks_of(pruning):
            for title in options.recipes:
                rule, rate, clip, decay = RECIPES[title]
                recipe = FinetuneRecipe(rate, 128, rule, decay, clip)  # type: ignore[arg-type]
                for steps in options.lengths or case.lengths:
                    metric = tuned_metric(pruning, gates, recipe, steps)
                    row: Row = {"case": name, "seed": seed, "budget": budget, "mask": method}
                    row |= {"recipe": title, "steps": steps, "metric": metric}
                    rows.append(row)
                    note(row)
    return rows


def table_of(rows: list[Row]) -> list[Row]:
    """Return mean metric and regret by case, length and recipe."""
    table = []
    keys = sorted({(str(row["case"]), int(str(row["steps"]))) for row in rows})
    for case, steps in keys:
        mine = [row for row in rows if (row["case"], row["steps"]) == (case, steps)]
        titles = list(dict.fromkeys(str(row["recipe"]) for row in mine))
        metric = np.array(
            [[row["metric"] for row in mine if row["recipe"] == title] for title in titles], float
        )
        best = np.nanmax(metric, axis=0)
        # What diverged counts as the worst that any recipe made of the mask.
        filled = np.where(np.isnan(metric), np.nanmin(metric, axis=0), metric)
        for title, values, seen in zip(titles, filled, metric, strict=True):
            table.append(
                {
                    "case": case,
                    "steps": steps,
                    "recipe": title,
                    "metric": float(values.mean()),
                    "regret": float((best - values).mean()),
                    "diverged": int(np.isnan(seen).sum()),
                    "masks": len(values),
                }
            )
    return table


def show(table: list[Row]) -> None:
    """Print a table, recipes by rows and the networks with their lengths by columns."""
    columns = list(dict.fromkeys((row["case"], row["steps"]) for row in table))
    print("| recipe | " + " | ".join(f"{case}, {steps} steps" for case, steps in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for title in dict.fromkeys(str(row["recipe"]) for row in table):
        found = {(row["case"], row["steps"]): row for row in table if row["recipe"] == title}
        cells = [
            f"{found[column]['metric']:.4f} (−{found[column]['regret']:.4f})"
            + (f", {found[column]['diverged']} diverged" if found[column]["diverged"] else "")
            for column in columns
        ]
        print(f"| {title} | " + " | ".join(cells) + " |")


def main(options: Options) -> None:
    """Try every recipe on every case and print the tables."""
    if options.quick:
        options = dataclasses.replace(
            options, seeds=1, budgets=("params=0.1",), cases=("digits cnn",)
        )
    began, rows = time.perf_counter(), list[Row]()

    def note(row: Row) -> None:
        if options.out:
            with open(options.out, "a") as file:
                file.write(json.dumps(row) + "\n")

    table = []
    for name in options.cases:
        rows = finetunes(name, options, note)
        found = table_of(rows)
        show(found)
        table += found
        jax.clear_caches()
    seconds = time.perf_counter() - began
    print(json.dumps({"rows": table, "seconds": seconds, "device": describe_device()}))


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    enable_compilation_cache()
    main(chosen)
