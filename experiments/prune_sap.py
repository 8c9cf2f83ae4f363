"""Iterative pruning by the PQ Index (SAP) beside lottery ticket, one-shot and random pruning.

Command:  python experiments/prune_sap.py --dataset fashion_mnist --data-dir DIR --model mlp

Per method: train, measure, prune, rewind, T + 1 trainings with T prunings between them; all seeds
in one program, vmapped for dense networks and one after the other for convolutional ones. Recipe of
the paper but for the epochs: SGD 0.1, Nesterov momentum 0.9, weight decay 5e-4 on all parameters,
global norm clipped to 1, cosine to 0, batch 250, fresh at every iteration. The weights that are
pruned and measured are those after the last step. The run directory, printed last, holds
result.json (per iteration and layer), metrics.jsonl and report.html. The same command resumes an
interrupted run after the last whole iteration, or says that it is finished.

The released code needs 200 epochs an iteration; by default there are few, as CPU allows, and the
result says how many.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from command_line import run_resumable
from sap_page import matched_rows, write_page

from rlprune_jax.devices import describe_device, versions
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.runs import CompileClock, RunDirectory, StageOptions, open_run, run_stage
from rlprune_jax.sparsity.pruners import Pruner, lottery_ticket, one_shot, random_pruning, sap
from rlprune_jax.sparsity.scopes import check_scope
from rlprune_jax.training import data
from rlprune_jax.training.augmentation import make_prepare
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.workflow.iterative import (
    GRID_P,
    GRID_Q,
    IterativeData,
    IterativePruning,
    iterative_pruning,
    over_seeds,
)

METHODS = ("sap", "lottery_ticket", "one_shot", "random")
DENSE = ("linear", "mlp")
"""Networks whose seeds are vmapped."""
EPOCHS = {"digits": 20, "mnist": 3, "fashion_mnist": 3}
AUGMENTATION: dict[str, dict[str, Any]] = {
    "cifar10": {"pad": 4, "flip": True, "padding_mode": "reflect"},
    "cifar100": {"pad": 4, "flip": True, "padding_mode": "reflect"},
}
"""As in the paper: none for the others."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; all but the directories decide the run's name."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, cifar100."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else $TFDS_DATA_DIR. digits needs none."""
    model: str = "mlp"
    """linear, mlp, cnn and every other network of the zoo."""
    widths: tuple[int, ...] = ()
    """Units per layer of mlp and cnn, where not the paper's."""
    seed: int = 0
    """The first seed, of initialisation, order of images and random pruning."""
    seeds: int = 4
    """How many seeds, from that on."""
    runs_dir: Path = Path("runs")
    """Where run directories go."""
    method: tuple[str, ...] = ("sap", "lottery_ticket", "one_shot")
    """What to run and compare: sap, lottery_ticket, one_shot, random."""
    scope: str = "global"
    """What weights are compared with each other: global, layer, neuron."""
    iterations: int = 30
    """Prunings T; the paper has 30 for linear, mlp and cnn, 15 for larger networks."""
    p: tuple[float, ...] = (0.5, 1.0)
    """Norm above, of sap; several together with as many q give a curve each."""
    q: tuple[float, ...] = (1.0, 2.0)
    """Norm below, of sap."""
    eta_r: float = 0.0
    """Of sap: the larger, the more goes."""
    gamma: float = 1.0
    """Of sap: scaling of the share that goes."""
    beta: float = 0.9
    """Of sap: greatest share that one iteration prunes."""
    rate: float = 0.2
    """Of the others: share of the live weights that each iteration prunes."""
    epochs: int | None = None
    """Epochs a training; few unless told. The paper: 200."""
    train_images: int | None = None
    """Train on so many images, the same for all seeds; all unless told."""
    batch_size: int = 250
    """Images a step."""
    learning_rate: float = 0.1
    """At the start of the cosine."""
    decayed: str = "all"
    """What weight decay touches: all parameters, as in the paper, or kernels."""
    rewind_epoch: int = 0
    """Weights go back to those after so many epochs; 0, as in the paper, to the initial ones."""
    batch_statistics: str = "keep"
    """Running statistics of batch norm: keep them as trained, as the released code, or rewind."""


def resolve(config: Config) -> Config:
    """Fill in the epochs, and refuse what cannot be run.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    for option, least in (("iterations", 1), ("seeds", 1), ("batch_size", 1), ("rewind_epoch", 0)):
        if getattr(config, option) < least:
            raise ValueError(f"{option}={getattr(config, option)} must be at least {least}")
    if config.train_images is not None and config.train_images < 1:
        raise ValueError(f"train_images={config.train_images} must be at least 1")
    if not config.method or len(set(config.method)) < len(config.method):
        raise ValueError(f"method={config.method} must be one or more, each once")
    for method in config.method:
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown; choose from {', '.join(METHODS)}")
    if len(config.p) != len(config.q) or not config.p:
        raise ValueError(f"p={config.p} and q={config.q} must be as many; they go in pairs")
    check_scope(config.scope)
    if config.decayed not in ("kernels", "all"):
        raise ValueError(f"decayed={config.decayed!r} is unknown; choose from kernels, all")
    epochs = EPOCHS.get(config.dataset, 2) if config.epochs is None else config.epochs
    if epochs <= config.rewind_epoch:
        raise ValueError(f"epochs={epochs} must be above rewind_epoch={config.rewind_epoch}")
    config = dataclasses.replace(config, epochs=epochs)
    pruners(config)
    return config


def pruners(config: Config) -> dict[str, Pruner]:
    """The curves of a run by name.

    Raises:
        ValueError: a number out of its range.
    """
    rate, scope = config.rate, config.scope
    found: dict[str, Pruner] = {}
    for method in config.method:
        if method == "sap":
            for p, q in zip(config.p, config.q, strict=True):
                name = f"SAP ({p:g}, {q:g})"
                found[name] = sap(p, q, config.eta_r, config.gamma, config.beta, scope)
        elif method == "lottery_ticket":
            found["lottery ticket"] = lottery_ticket(rate, scope)
        elif method == "one_shot":
            found["one-shot"] = one_shot(rate, scope)
        else:
            # One mask for all seeds; weights and batches differ.
            key = jax.random.key(config.seed)
            found["random"] = random_pruning(rate, scope, key=key)
    return found


def load(config: Config) -> tuple[IterativeData, data.Dataset]:
    """All training images, held-out ones too, since nothing is chosen by them; and the test.

    Raises:
        ValueError: more training images wanted than there are.
    """
    dataset = data.load(config.dataset, config.data_dir, seed=config.seed)
    images, labels = (
        np.concatenate([getattr(dataset.train, name), getattr(dataset.held_out, name)])
        for name in ("images", "labels")
    )
    if config.train_images is not None:
        if config.train_images > len(labels):
            raise ValueError(f"train_images={config.train_images} is above the {len(labels)} there")
        chosen = np.random.default_rng(config.seed).permutation(len(labels))[: config.train_images]
        images, labels = images[chosen], labels[chosen]
    arrays = (images, labels, dataset.test.images, dataset.test.labels)
    return IterativeData(*map(jnp.asarray, arrays)), dataset


def make_loop(
    config: Config, dataset: data.Dataset, pruner: Pruner, count: int
) -> IterativePruning:
    """The loop over all seeds of one method."""
    assert config.epochs is not None
    if config.batch_size > count:
        raise ValueError(f"batch_size={config.batch_size} is above the {count} training images")
    options: dict[str, Any] = {"widths": config.widths} if config.widths else {}
    functions = model_functions(create_model(config.model, dataset.num_classes, **options))
    prepare = make_prepare(
        jnp.array(dataset.mean), jnp.array(dataset.std), **AUGMENTATION.get(dataset.name, {})
    )
    per_epoch = count // config.batch_size
    optimizer = make_optimizer(
        "sgd",
        learning_rate=config.learning_rate,
        num_steps=config.epochs * per_epoch,
        schedule="cosine",
        weight_decay=5e-4,
        decayed=config.decayed,  # type: ignore[arg-type]
        clip_norm=1.0,
    )
    loop = iterative_pruning(
        functions,
        optimizer,
        pruner,
        batch_size=config.batch_size,
        num_steps=config.epochs * per_epoch,
        rewind_step=config.rewind_epoch * per_epoch,
        prepare=prepare,
        batch_statistics=config.batch_statistics,  # type: ignore[arg-type]
    )
    return over_seeds(loop, "vmap" if config.model in DENSE else "map")


def run_curve(
    config: Config,
    run: RunDirectory,
    images: IterativeData,
    dataset: data.Dataset,
    name: str,
    pruner: Pruner,
) -> list[dict[str, Any]]:
    """One method for all seeds, from its last checkpoint on; the rows of its iterations."""
    loop = make_loop(config, dataset, pruner, len(images.labels))
    step = jax.jit(loop.step)
    seeds = jnp.arange(config.seed, config.seed + config.seeds)
    state = jax.jit(loop.init)(images, jax.vmap(jax.random.key)(seeds))
    stage = name.lower().replace(" ", "-").translate(str.maketrans("", "", "(),"))

    def advance(state: Any, start: int, count: int) -> tuple[Any, list]:
        rows = []
        for number in range(start, start + count):
            began = time.perf_counter()
            state, measured = jax.block_until_ready(step(state, images))
            seconds = time.perf_counter() - began
            rows.append((number + 1, {**_to_host(measured._asdict()), "seconds": seconds}))
        return state, rows

    run_stage(
        run,
        stage,
        state,
        config.iterations + 1,
        advance,
        # A seed that fails shows in its curve; the others go on.
        StageOptions(save_seconds=0, note=_note, check=None),
    )
    return run.metrics(stage)


def _note(row: Mapping[str, Any]) -> str:
    return f"left {100 * np.mean(row['density']):.3g} % accuracy {np.mean(row['accuracy']):.4f}"


def _to_host(measured: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(np.asarray, measured)


def execute(config: Config, run: RunDirectory, clock: CompileClock) -> dict[str, Any]:
    """Do the whole run and return what goes into ``result.json``."""
    images, dataset = load(config)
    curves: dict[str, Any] = {}
    for name, pruner in pruners(config).items():
        rows = run_curve(config, run, images, dataset, name, pruner)
        curves[name] = {
            "iterations": [_iteration(row) for row in rows],
            "seconds": sum(row["seconds"] for row in rows),
        }
    return {
        "dataset": config.dataset,
        "model": config.model,
        "scope": config.scope,
        "epochs": config.epochs,
        "train_images": len(images.labels),
        "pruned_before": "last step",
        "batch_statistics": config.batch_statistics,
        "curves": curves,
        "matched": matched_rows(curves, "lottery ticket"),
        "grid": {"p": GRID_P, "q": GRID_Q},
        "seeds": list(range(config.seed, config.seed + config.seeds)),
        "compile_seconds": clock.seconds,
        "versions": versions(),
        "device": describe_device(),
    }


def _iteration(row: dict[str, Any]) -> dict[str, Any]:
    """One iteration of ``result.json``: lists are over seeds; accuracies are fractions."""
    layers = {
        path: {
            "live": row["layer_live"][path],
            "pq_index": row["layer_pq_index"][path],
            "gini": row["layer_gini"][path],
        }
        for path in row["layer_live"]
    }
    scalars = ("density", "live", "accuracy", "accuracy_pruned", "pq_index", "pq_index_pruned")
    return {
        "iteration": row["step"] - 1,
        **{key: row[key] for key in (*scalars, "gini", "train_loss", "pq_grid")},
        "layers": layers,
    }


def prune(config: Config) -> Path:
    """Run ``config``, or find it finished; return the run directory.

    Raises:
        ValueError: an option is wrong.
        OSError: data are missing or the run directory cannot be written.
    """
    config = resolve(config)
    with open_run(config.runs_dir, "prune_sap", config) as run:
        if run.is_finished:
            print(f"finished before; delete {run.path} to run again", file=sys.stderr)
            return run.path
        began = time.perf_counter()
        with CompileClock() as clock:
            result = execute(config, run, clock)
        result["seconds"] = time.perf_counter() - began
        write_page(run, config, result)
        run.write_result(result)
        return run.path


if __name__ == "__main__":
    run_resumable(prune, Config, __doc__)
