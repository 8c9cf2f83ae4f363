"""Prune language models and vision networks end to end: what is lost before and after finetuning.

Command:  python benchmarks/prune_language_models.py [--models gpt llama] [--seeds 0 1] [--quick]
          python benchmarks/prune_language_models.py --models vit_tiny convnext_tiny
              [--dataset fashion_mnist --data-dir DIR]

Each network is trained, pruned to all its budgets at once by the agent and by every rival at the
same number of evaluations, and finetuned. A language model predicts the next character of the text
that comes with Python, under parameters, MACs and bytes of keys and values a token; it is told by
its loss per token in nats, lower is better. Networks for images are told by their accuracy, under
parameters and MACs. ``global_threshold`` is the first-order Taylor importance of Molchanov et al.
over all groups, ``uniform`` the same fraction of every group by that importance.

Per network and seed a table is printed with the loss (or accuracy) on the test data: of the dense
network; of each method's network as pruned, repaired by least squares without labels, and finetuned
(from the pruned one); what each budget came to, and the widths that are left. Last comes JSON:
means and deviations over seeds, and every run.

Measured on 2 cores of an AMD EPYC that four others used (2026-11-28), 768 evaluations, seeds 0 and
1, some 600 s each; every budget was respected. Loss per token, mean +- deviation of two seeds:

    ======= =============== ================ ============== ============== ==============
    network dense           method           pruned         repaired       finetuned
    ======= =============== ================ ============== ============== ==============
    gpt     1.535 +- 0.004  agent            2.572 +- 0.125 2.469 +- 0.048 1.860 +- 0.017
                            global_threshold 2.925 +- 0.061 2.783 +- 0.024 2.017 +- 0.056
                            uniform          4.527 +- 0.442 3.107 +- 0.155 2.215 +- 0.047
    llama   1.397 +- 0.012  agent            3.346 +- 0.054 2.948 +- 0.094 2.030 +- 0.019
                            global_threshold 3.534 +- 0.090 2.830 +- 0.039 1.815 +- 0.074
                            uniform          4.322 +- 0.063 3.113 +- 0.062 2.058 +- 0.046
    ======= =============== ================ ============== ============== ==============

With residual branches as units too (``--models gpt --depth-groups``, both cores, 211 and 272 s):
agent 2.642 +- 0.093, 2.685 +- 0.061 and 1.918 +- 0.030, global_threshold as above, uniform 4.125 +-
0.287, 2.924 +- 0.072 and 2.102 +- 0.059. The agent keeps two of the six branches, nearly all of the
embedding, and more of what is left; after the finetune that is a little worse than without.

The agent is ahead on gpt and behind on llama: there it keeps half of the embedding's width, which
the loss right after the cut rewards and the loss after the finetune does not.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rlprune_jax as rp
from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.devices import describe_device
from rlprune_jax.models import create_model
from rlprune_jax.training import data, load_text, text_task
from rlprune_jax.training.image_task import image_task
from rlprune_jax.types import PyTree
from rlprune_jax.units import repair
from rlprune_jax.wording import metric_text, metric_title
from rlprune_jax.workflow.config import Granularity, MethodName
from rlprune_jax.workflow.delivery import Delivered, evaluate_masked
from rlprune_jax.workflow.keys import stage_key

ModelName = Literal["gpt", "llama", "vit_tiny", "convnext_tiny"]
TEXT_MODELS = ("gpt", "llama")

OPTIONS: dict[str, dict[str, PyTree]] = {
    "gpt": {"depth": 3, "width": 0.5},
    "llama": {"depth": 3, "width": 0.5},
    "vit_tiny": {"depth": 4, "width": 0.5, "patch": 2},
    "convnext_tiny": {"depths": (2, 2), "widths": (32, 64), "patch": 2},
}
"""Networks of some 150,000 parameters (the ViT has 450,000), an embedding of 64 for text."""

QUICK: dict[str, dict[str, PyTree]] = {
    "gpt": {"depth": 2, "width": 0.25},
    "llama": {"depth": 2, "width": 0.25},
    "vit_tiny": {"depth": 1, "width": 0.25, "patch": 4},
    "convnext_tiny": {"depths": (1, 1), "widths": (24, 48), "patch": 2},
}


SINGLE = ("query(#2)?$=1",)
"""Of key-value heads and of the queries of each a single one may be left; of all else two."""


STAGES = ("pruned", "repaired", "finetuned")
"""What a method's network is evaluated as."""

REPAIR_EXAMPLES = 256
"""Training examples, without their labels, that a network is repaired on."""


@dataclasses.dataclass(frozen=True)
class EndToEndOptions:
    """Options of the benchmark."""

    models: tuple[ModelName, ...] = ("gpt", "llama")
    """Networks of the zoo."""
    seeds: tuple[int, ...] = (0, 1)
    """Of data split, initialisation, training and search."""
    dataset: str = "digits"
    """Images, for networks that read them."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; digits need none."""
    params: float = 0.3
    """Budget on parameters, a fraction of dense."""
    macs: float = 0.35
    """Budget on MACs, a fraction of dense."""
    kv_cache_bytes: float = 0.5
    """Budget on bytes of keys and values a token, a fraction of dense; of text only."""
    baselines: tuple[MethodName, ...] = ("uniform", "global_threshold")
    """What to run beside the agent."""
    evaluations: int = 768
    """Candidates that every method may evaluate."""
    dense_steps: int = 1000
    """Steps of the dense training."""
    finetune_steps: int = 400
    """Steps of the last finetune."""
    batch_size: int = 32
    """Examples a step."""
    examples: int = 128
    """Held-out examples that a candidate is evaluated on."""
    granularity: Granularity = "fine"
    """fine: every unit by itself; coarse: a keep ratio per group of units."""
    reward_finetune: tuple[int, ...] = (0,)
    """Finetuning steps before each reward: a staircase, one entry per equal part of the search."""
    scan: bool = False
    """Run the layers of llama as one program, so that all have the same widths."""
    depth_groups: bool = False
    """Residual branches, of a scan its layers, are units too."""
    quick: bool = False
    """Tiny networks and few steps, one seed; a minute in all. Shows that it runs, no more."""


class Case(NamedTuple):
    """Hold one network and one seed."""

    model: str
    seed: int
    options: EndToEndOptions

    @property
    def budgets(self) -> list[str]:
        """Limits as text."""
        names = ["params", "macs"]
        names += ["kv_cache_bytes"] if self.model in TEXT_MODELS else []
        return [f"{name}={getattr(self.options, name)}" for name in names]

    @property
    def module_options(self) -> dict[str, PyTree]:
        """Fields of the network."""
        chosen = dict((QUICK if self.options.quick else OPTIONS)[self.model])
        if self.model == "llama":
            chosen["scan"] = self.options.scan
        if "patch" in chosen and self.options.dataset != "digits":
            chosen["patch"] = 4  # those are for images of 8x8
        return chosen


def quickened(options: EndToEndOptions) -> EndToEndOptions:
    """Return the options of a run that only shows that all of it works."""
    return dataclasses.replace(
        options,
        seeds=options.seeds[:1],
        evaluations=32,
        dense_steps=60,
        finetune_steps=30,
        examples=32,
    )


def make_task(case: Case) -> rp.Task:
    """Return what the network is to do, with its data."""
    if case.model in TEXT_MODELS:
        return text_task(load_text(seed=case.seed))
    return image_task(data.load(case.options.dataset, case.options.data_dir, seed=case.seed))


def make_network(case: Case, task: rp.Task) -> rp.Network:
    """Return the network as initialised."""
    classes = task.description.get("vocabulary", 10)
    module = create_model(case.model, classes, **case.module_options)
    inputs = task.objective.network_inputs(task.sample("train", 2))
    example = jax.tree.map(jnp.asarray, inputs)
    variables = jax.jit(module.init)(stage_key(case.seed, "init"), *example)
    network = rp.Network.from_linen(module, variables, example)
    return network.with_depth_groups() if case.options.depth_groups else network


def run(case: Case) -> dict[str, PyTree]:
    """Train, prune and finetune a network, and return what came of it."""
    options, began = case.options, time.perf_counter()
    task = make_task(case)
    network = make_network(case, task)
    recipe = rp.DenseRecipe(
        steps=options.dense_steps, rate=3e-3, batch_size=options.batch_size, rule="adam"
    )
    network = rp.train_dense(network, task, recipe, case.seed)
    trained = time.perf_counter() - began
    result = rp.prune(
        network,
        task,
        case.budgets,
        seed=case.seed,
        baselines=options.baselines,
        evaluations=options.evaluations,
        reward_images=options.examples,
        granularity=options.granularity,
        reward_finetune=options.reward_finetune,
        rerank_steps=max(options.finetune_steps // 10, 1),
        finetune_steps=options.finetune_steps,
        batch_size=options.batch_size,
        min_keep_of=() if case.model == "convnext_tiny" else SINGLE,
    )
    dense = network.graph.sizes
    rows = {
        method: row_of(network, task, delivered) for method, delivered in result.delivered.items()
    }
    return {
        "model": case.model,
        "seed": case.seed,
        "metric": result.metric_name,
        "dense": result.dense.metric,
        "params": result.dense.params,
        "macs": result.dense.macs,
        "units": dict(zip(network.graph.names, dense, strict=True)),
        "methods": rows,
        "dense_seconds": round(trained),
        "seconds": round(time.perf_counter() - began),
    }


def row_of(network: rp.Network, task: rp.Task, delivered: Delivered) -> dict[str, PyTree]:
    """Return what a method delivered, as pruned, repaired and finetuned."""
    gates, objective = delivered.gates, task.objective
    examples = objective.network_inputs(task.sample("train", REPAIR_EXAMPLES))
    repaired = repair(network.apply, network.graph, network.variables, gates, examples)
    before = evaluate_masked(network, objective, network.variables, gates, task.test)
    after = evaluate_masked(network, objective, repaired, gates, task.test)
    return {
        "pruned": float(before.metric),
        "repaired": float(after.metric),
        "finetuned": delivered.metric,
        "kept": delivered.kept,
        **{row["name"]: row["achieved"] for row in delivered.budget_rows()},
    }


def text_of(found: Mapping[str, PyTree]) -> str:
    """Return a run as text."""
    metric, budgets = found["metric"], [*map(str, budget_names(found))]
    title = f"test {metric_title(metric)}"
    lines = [
        f"{found['model']}, seed {found['seed']}: {found['params']:,} parameters, "
        f"{found['macs']:,} MACs, {title} {metric_text(found['dense'], metric)} "
        f"({found['seconds']} s)",
        f"  {'':<18}" + "".join(f"{name:>16}" for name in (*STAGES, *budgets)),
    ]
    for method, row in found["methods"].items():
        values = "".join(f"{row[name]:>16.3f}" for name in budgets)
        stages = "".join(f"{metric_text(row[stage], metric):>16}" for stage in STAGES)
        lines.append(f"  {method:<18}{stages}{values}")
    lines.append("  units left of each group, in that order of methods:")
    for group, units in found["units"].items():
        left = " ".join(f"{row['kept'][group]:>5}" for row in found["methods"].values())
        lines.append(f"    {group:<26}{units:>5} ->{left}")
    return "\n".join(lines)


def budget_names(found: Mapping[str, PyTree]) -> list[str]:
    """Return the names of the budgets of a run."""
    told = (*STAGES, "kept")
    return [name for name in next(iter(found["methods"].values())) if name not in told]


def means_of(runs: Sequence[Mapping[str, PyTree]]) -> dict[str, PyTree]:
    """Return means and deviations over seeds by network and method."""
    table: dict[str, PyTree] = {}
    for model in dict.fromkeys(each["model"] for each in runs):
        own = [each for each in runs if each["model"] == model]
        table[model] = {
            "metric": own[0]["metric"],
            "dense": spread([each["dense"] for each in own]),
        }
        for method in own[0]["methods"]:
            table[model][method] = {
                stage: spread([each["methods"][method][stage] for each in own]) for stage in STAGES
            }
    return table


def spread(values: Sequence[float]) -> list[float]:
    """Return mean and standard deviation, rounded."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return [round(float(np.mean(values)), 4), round(float(deviation), 4)]


def main(options: EndToEndOptions) -> dict[str, PyTree]:
    """Run every network and seed, and print a table of each."""
    enable_compilation_cache()
    options = quickened(options) if options.quick else options
    runs = []
    for model in options.models:
        for seed in options.seeds:
            runs.append(run(Case(model=model, seed=seed, options=options)))
            print(text_of(runs[-1]), flush=True)
            print(f"done: {model}, seed {seed}", file=sys.stderr)
    line = {
        "means": means_of(runs),
        "runs": runs,
        "options": dataclasses.asdict(options),
        "device": describe_device(),
    }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(EndToEndOptions, description=__doc__))
