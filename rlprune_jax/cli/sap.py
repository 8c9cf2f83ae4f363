"""Prune single weights by the PQ Index (SAP), beside lottery ticket, one-shot and random pruning.

Example: rlprune sap --dataset fashion_mnist --data-dir DIR --model mlp

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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rlprune_jax.cli.common import run_command
from rlprune_jax.cli.options import Flat, PlaceOptions, check_place
from rlprune_jax.workflow.sap_config import (
    PrunersConfig,
    RetrainingConfig,
    SapConfig,
    SapNetworkOptions,
    SeedsConfig,
    check_batch,
    resolve_sap,
)
from rlprune_jax.workflow.sources import (
    DataOptions,
    check_data_options,
    check_network,
    check_pair,
    is_own,
)

if TYPE_CHECKING:
    from rlprune_jax.runs import RunDirectory
    from rlprune_jax.training.task import Task

EXPERIMENT = "prune_sap"
"""What run directories are called."""

UNNAMED = ("runs_dir", "data_dir", "pretrained", "stale")
"""Options that do not name the run; of pretrained weights the content does."""

EPOCHS = {"digits": 20, "mnist": 3, "fashion_mnist": 3}
"""Epochs of a training unless told, by data set; 2 for all others."""

EXAMPLES = {
    "digits": 1437,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
}
"""Training images of the built-in data sets, held-out ones among them."""


@dataclasses.dataclass(frozen=True)
class SapOptions:
    """Hold the options of a run.

    All but the directories decide its name.
    """

    network: Annotated[SapNetworkOptions, Flat] = dataclasses.field(
        default_factory=SapNetworkOptions
    )
    data: Annotated[DataOptions, Flat] = dataclasses.field(default_factory=DataOptions)
    pruners: Annotated[PrunersConfig, Flat] = dataclasses.field(default_factory=PrunersConfig)
    training: Annotated[RetrainingConfig, Flat] = dataclasses.field(
        default_factory=RetrainingConfig
    )
    run: Annotated[SeedsConfig, Flat] = dataclasses.field(default_factory=SeedsConfig)
    place: Annotated[PlaceOptions, Flat] = dataclasses.field(default_factory=PlaceOptions)

    @property
    def settings(self) -> dict[str, object]:
        """All options by name, without their groups."""
        groups = (getattr(self, field.name) for field in dataclasses.fields(self))
        return {name: value for group in groups for name, value in vars(group).items()}

    @property
    def config(self) -> SapConfig:
        """Pruners, recipe and seeds."""
        return SapConfig(**vars(self.pruners), **vars(self.training), **vars(self.run))

    def replace(self, **changed: object) -> "SapOptions":
        """Return the options with some changed by their names.

        Example:
            >>> SapOptions().replace(seed=3, rate=0.5).pruners.rate
            0.5
        """
        unknown = set(changed) - set(self.settings)
        if unknown:
            raise TypeError(f"{min(unknown)}= is no option; options are {', '.join(self.settings)}")
        groups = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for title, group in groups.items():
            own = {name: changed[name] for name in vars(group) if name in changed}
            groups[title] = dataclasses.replace(group, **own)
        return SapOptions(**groups)


def main(prog: str, args: list[str]) -> None:
    """Run the command."""
    run_command(prune_weights, SapOptions, __doc__, prog=prog, args=args, saved="whole iteration")


def prune_weights(options: SapOptions) -> Path:
    """Run the options and return the run directory.

    A run that is finished is found, and not done again.

    Raises:
        ValueError: an option is wrong.
        OSError: data are missing or the run directory cannot be written.
        RuntimeError: another process works in the directory.
    """
    options = resolved(options)
    # After the options, which are answered before JAX is imported.
    from rlprune_jax.runs import open_run
    from rlprune_jax.workflow.building import origin_of

    place, settings = options.place, identity(options)
    task = paper_task(options, options.config.seed)
    origin = origin_of(task, place.stale)
    with open_run(place.runs_dir, EXPERIMENT, settings, exclude=UNNAMED, origin=origin) as run:
        if run.is_finished:
            print(f"finished before; delete {run.path} to run again", file=sys.stderr)
            return run.path
        execute(run, options, task)
        return run.path


def resolved(options: SapOptions) -> SapOptions:
    """Fill in the epochs, and refuse what cannot be run.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_network(options.network)
    check_data_options(options.data)
    check_pair(options.network.model, options.data.dataset)
    check_place(options.place)
    config = resolve_sap(options.config, EPOCHS.get(options.data.dataset, 2))
    if (there := EXAMPLES.get(options.data.dataset)) is not None:
        if config.train_images is not None and config.train_images > there:
            raise ValueError(
                f"train_images={config.train_images} is above the {there} there are; lower it"
            )
        check_batch(config.batch_size, config.train_images or there)
    return options.replace(epochs=config.epochs)


def identity(options: SapOptions) -> dict[str, object]:
    """Return what names a run.

    Its options, and the code and weights of the user's.
    """
    from rlprune_jax.workflow.building import digest_of, own_code

    paths = {
        "model": options.network.model,
        "dataset": options.data.dataset,
        "metric": options.data.metric,
    }
    found = dict(options.settings)
    if code := own_code(paths):
        found["code"] = code
    if options.network.pretrained is not None:
        found["pretrained_digest"] = digest_of(options.network.pretrained)
    return found


def execute(run: "RunDirectory", options: SapOptions, task: "Task") -> None:
    """Do the whole run in its directory.

    The result is written last, since it ends the run.
    """
    from rlprune_jax.files import to_json
    from rlprune_jax.report.sap_page import write_sap_page
    from rlprune_jax.workflow.building import build_network, wanted_of
    from rlprune_jax.workflow.curves import count_training
    from rlprune_jax.workflow.sap import compare_pruners, prunable_of

    began = time.perf_counter()
    config = options.config
    built = build_network(options.network, wanted_of(task, config.seed))
    result = compare_pruners(
        built.network, task, config, run, built.init, prunable_of(options.network.ignore)
    )
    content = {
        "dataset": options.data.dataset,
        "model": options.network.model,
        "scope": config.scope,
        "epochs": config.epochs,
        "train_images": count_training(task, config.train_images),
        "pruned_before": "last step",
        "batch_statistics": config.batch_statistics,
        **result.to_json(),
        "seconds": time.perf_counter() - began,
    }
    write_sap_page(run.report, content, to_json(options.settings))
    run.write_result(content)
    print(result, file=sys.stderr)


def paper_task(options: SapOptions, seed: int) -> "Task":
    """Return the task, built-in data with the paper's augmentation."""
    from rlprune_jax.workflow.building import build_task
    from rlprune_jax.workflow.sap import PAPER_AUGMENTATION

    task = build_task(options.data, seed)
    if is_own(options.data.dataset):
        return task
    return dataclasses.replace(task, augment=PAPER_AUGMENTATION.get(options.data.dataset))
