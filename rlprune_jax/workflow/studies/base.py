"""What all studies share: options, their checks, and the methods that make a study."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from rlprune_jax.checks import refuse_unless
from rlprune_jax.workflow.config import (
    ConstraintHandling,
    Granularity,
    PruneConfig,
    check_choices,
)
from rlprune_jax.workflow.studies.storage import check_storage, hide_password

if TYPE_CHECKING:
    from rlprune_jax.report.study_page import Drawing
    from rlprune_jax.runs import Run
    from rlprune_jax.study import Job, StudyResult, StudySettings
    from rlprune_jax.study.settings import Distribution
    from rlprune_jax.types import PyTree

Strategy = Literal["auto", "vmap", "map"]

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
"""The built-in data sets."""

EXTENDS = ("num_settings", "trials")
"""Options of which more extend a study that is there: its directory does not depend on them."""

PLACE = ("coordinator", "num_processes", "process_id", "worker")
"""Options that say who works on a study, and change nothing in it."""

HOW = ("strategy", "chunk", "batch")
"""Options that decide how settings are run, but not what one of them gives."""


class StudyJob(NamedTuple):
    """A job with what all of its settings share.

    Attributes:
        job: ``(hparams, key, shared, **static) -> metrics``, see ``run_study``.
        shared: arrays that all settings read; they are arguments of the program, since constants
            would be folded for minutes.
        known: names of its hyper-parameters.
        static: those of them that shape the program.
        cost: name of the budget, "" where there is none.
        dense_accuracy: of the dense network on the test data, NaN where it is not known before.
    """

    job: "Job"
    shared: "PyTree"
    known: tuple[str, ...]
    static: tuple[str, ...] = ()
    cost: str = ""
    dense_accuracy: float = math.nan


@dataclasses.dataclass(frozen=True)
class Study(abc.ABC):
    """Hold the options of every study.

    Each kind says what it does with them. Use a subclass; ``conduct`` runs it. The first lines of
    fields are the help of the command line.
    """

    kind: ClassVar[str]
    """Its name on the command line."""
    log_axes: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that are drawn on logarithmic axes."""

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
    """Limit as NAME=FRACTION of the dense network. Measured latency and functions are not
    traceable, so a study cannot have them."""
    dense_steps: int | None = None
    """Steps of training the dense network; by default a few epochs, by data set."""
    reward_images: int = 256
    """Held-out images a candidate is rewarded on."""
    granularity: Granularity = "fine"
    """coarse: a keep ratio per group; fine: every unit by itself."""
    constraint: ConstraintHandling = "projection"
    """multiplier, projection, both."""
    strategy: Strategy = "auto"
    """vmap, map (one cell after the other), or auto: the faster, measured once."""
    chunk: int | None = None
    """Settings at once; by default as memory allows."""
    optuna: str | None = None
    """A file, or a database's address: take settings from Optuna, shared with other workers."""
    trials: int = 64
    """Settings of a study by Optuna; with more of them, more trials go on in the study."""
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

    @property
    def metric_name(self) -> str:
        """Return the metric that ranks settings.

        More is better.
        """
        return str(getattr(self, "metric", "reward"))

    def check(self) -> None:
        """Refuse options that cannot be.

        Before JAX is imported and anything is trained.

        Raises:
            ValueError: naming the option, its value and the way out.
        """
        check_choices(self)
        refuse_unless(
            "dataset", self.dataset, self.dataset in DATASETS, f"must be one of {names(DATASETS)}"
        )
        for option in ("seeds", "trials", "batch", "reward_images"):
            self.at_least(option, 1)
        for option in ("dense_steps", "chunk"):
            if getattr(self, option) is not None:
                self.at_least(option, 1)
        self.at_least("worker", 0)
        refuse_unless(
            "widths", self.widths, min(self.widths, default=1) >= 1, "must be at least 1 each"
        )
        refuse_unless("seed", self.seed, 0 <= self.seed < 2**32, "must be from 0 to 4294967295")
        check_budget(self.budget)
        if self.optuna is not None:
            check_storage(self.optuna)

    def at_least(self, option: str, least: int) -> None:
        """Refuse an option below its least value."""
        value = getattr(self, option)
        refuse_unless(option, value, value >= least, f"must be at least {least}")

    @abc.abstractmethod
    def settings(self, cost: str) -> "StudySettings":
        """Return all settings of a study without Optuna.

        Args:
            cost: name of the budget.
        """

    @abc.abstractmethod
    def space(self, cost: str) -> "Mapping[str, Distribution]":
        """Return what Optuna chooses from.

        Args:
            cost: name of the budget.
        """

    @abc.abstractmethod
    def job(self, run: "Run | None" = None) -> StudyJob:
        """Load data, train, and make the job.

        What is trained once is trained here.

        Args:
            run: where checkpoints of the training go; None keeps them in memory.

        Raises:
            ValueError: a budget that cannot be met, or an option that does not fit the data.
        """

    def conclude(self, found: "StudyResult", dense_accuracy: float) -> dict[str, object]:
        """Return what goes into ``result.json``.

        Args:
            found: the study's result.
            dense_accuracy: of the dense network.
        """
        from rlprune_jax.devices import describe_device, versions

        summary, best = found.summary(self.metric_name), found.best(self.metric_name)
        return {
            "study": self.kind,
            "dataset": self.dataset,
            "model": self.model,
            "metric": self.metric_name,
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

    def draw(
        self, found: "StudyResult", result: Mapping[str, object], cost: str
    ) -> "list[Drawing]":
        """Draw the figures of the page.

        They show the effect of each hyper-parameter.

        Args:
            found: the study's result.
            result: what ``conclude`` returned.
            cost: name of the budget.
        """
        from rlprune_jax.report.study_page import effects

        mean = found.metrics[self.metric_name].mean(1)
        return [effects(found.settings.columns, mean, self.metric_name, self.log_axes)]

    def record(self) -> dict[str, object]:
        """Return the options as kept on disk.

        Without a database's password.
        """
        options = dataclasses.asdict(self)
        return options | {"optuna": self.optuna and hide_password(self.optuna)}

    def identity(self) -> dict[str, str]:
        """Return the options that decide what a setting gives."""
        left_out = {*PLACE, *HOW, *EXTENDS, "optuna", "runs_dir", "data_dir"}
        return {name: str(value) for name, value in self.record().items() if name not in left_out}

    def prune_config(self, **others: int) -> PruneConfig:
        """Return the options as settings of a pruning."""
        few = min(self.reward_images, 256) if self.dataset == "digits" else self.reward_images
        return PruneConfig(
            seed=self.seed,
            granularity=self.granularity,
            constraint=self.constraint,
            reward_images=self.reward_images,
            calibration_images=few,
            **others,  # type: ignore[arg-type]
        )


def check_budget(text: str) -> None:
    """Refuse a budget that a study cannot take.

    It has a limit, and its cost is not measured on the host. Whether the name is known and the
    limit can be met is asked once JAX is there.

    Raises:
        ValueError: naming the budget and the way out.
    """
    name, found, limit = text.rpartition("=")
    refuse_unless("budget", repr(text), bool(found and name and limit), "must be NAME=LIMIT")
    refuse_unless(
        "budget",
        repr(text),
        name != "latency" and ":" not in name,
        "is measured on the host, which one program of many searches cannot do; use latency_table, "
        "params, macs or another traceable cost, or rlprune prune",
    )


def names(choices: Mapping | tuple[object, ...]) -> str:
    """Return choices as text."""
    return ", ".join(map(str, choices))


def require_each(
    option: str, values: tuple[object, ...], holds: Callable[[object], bool], wanted: str
) -> None:
    """Refuse a list with wrong or repeated values.

    An empty one too.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    refuse_unless(option, values, bool(values), "is empty; give at least one")
    refuse_unless(
        option, values, len(set(values)) == len(values), "repeats a value; give each once"
    )
    refuse_unless(option, values, all(map(holds, values)), wanted)
