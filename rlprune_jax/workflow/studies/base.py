"""What all studies share: options, their checks, and the methods that make a study."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from rlprune_jax.addresses import Address
from rlprune_jax.checks import refuse_unless, require_count, require_processes, require_seed
from rlprune_jax.workflow.config import check_choices
from rlprune_jax.workflow.sources import (
    DataOptions,
    DatasetOptions,
    NetworkOptions,
    check_dataset,
    check_network,
    check_pair,
    is_own,
)
from rlprune_jax.workflow.studies.storage import check_storage

if TYPE_CHECKING:
    from rlprune_jax.report.study_page import Drawing
    from rlprune_jax.runs import Run
    from rlprune_jax.study import Job, StudyResult, StudySettings
    from rlprune_jax.study.settings import Distribution
    from rlprune_jax.training.task import Task
    from rlprune_jax.types import PyTree

Strategy = Literal["auto", "vmap", "map"]

EXTENDS = ("num_settings", "trials")
"""Options of which more extend a study that is there: its directory does not depend on them."""

PLACE = ("coordinator", "num_processes", "process_id", "worker")
"""Options that say who works on a study, and change nothing in it."""

HOW = ("strategy", "chunk", "batch")
"""Options that decide how settings are run, but not what one of them gives."""

BY_CONTENT = ("pretrained",)
"""Options whose files count by their content, not by where they lie."""

SHOWN = {"num_settings": "settings"}
"""Names on the command line where they are others."""

OF_OPTUNA = ("trials", "batch", "worker")
"""Options that only a study by Optuna reads."""


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
        task_metric: name of the task's metric, which rewards and accuracies are in.
        notes: what is done otherwise than the options say.
    """

    job: "Job"
    shared: "PyTree"
    known: tuple[str, ...]
    static: tuple[str, ...] = ()
    cost: str = ""
    dense_accuracy: float = math.nan
    task_metric: str = "accuracy"
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study(NetworkOptions, DatasetOptions, abc.ABC):
    """Hold the options of every study.

    Each kind says what it does with them. Use a subclass; ``conduct`` runs it. The first lines of
    fields are the help of the command line.
    """

    kind: ClassVar[str]
    """Its name on the command line."""
    log_axes: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that are drawn on logarithmic axes."""
    drawn_by_optuna: ClassVar[tuple[str, ...]] = ()
    """Options that Optuna takes the place of."""

    model: str = "mlp"
    """Any of the zoo: mlp, cnn, vgg16, resnet20, mobilenet, ...; an unknown name lists them all. Or
    a network of yours as package.module:function, see rlprune prune --help. Apart from a Linen
    module alone, what it returns is taken for trained. The study is named by the code of the
    module, not by what it reads."""
    seed: int = 0
    """Of data split and dense training; searches have seeds 0, 1, ..."""
    runs_dir: str = "runs"
    """Where run directories go."""
    stale: Literal["refuse", "redo", "keep"] = "refuse"
    """What to do with results that are there and that other code, versions or data made: refuse
    them, redo them (the old ones are kept beside), or keep them and go on."""
    seeds: int = 4
    """S, seeds of every setting."""
    strategy: Strategy = "auto"
    """vmap, map (one cell after the other), or auto: the faster, measured once."""
    chunk: int | None = None
    """Settings at once; by default as memory allows. With --optuna give --batch."""
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

    def __post_init__(self) -> None:
        # Masked once, here: nothing else that holds or shows the options knows the password.
        if isinstance(self.optuna, str):
            object.__setattr__(self, "optuna", Address(self.optuna))

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
        check_network(self)
        check_dataset(self)
        check_pair(self.model, self.dataset)
        for option in ("seeds", "trials", "batch", "chunk"):
            self.at_least(option, 1)
        self.at_least("worker", 0)
        require_seed("seed", self.seed)
        refuse_unless("runs_dir", "''", bool(self.runs_dir), "is empty; name a directory")
        hosts = (self.coordinator, self.num_processes, self.process_id)
        if hosts != (None, None, None):
            require_processes(*hosts)
        if self.optuna is None:
            self.refuse_given(OF_OPTUNA, "is read with optuna alone; leave it out")
        else:
            check_storage(self.optuna)
            self.refuse_given(("chunk",), "is not read with optuna; give batch")
            text = "is not read with optuna, which draws settings itself; leave it out"
            self.refuse_given(self.drawn_by_optuna, text)

    def at_least(self, option: str, least: int) -> None:
        """Refuse an option below its least value.

        None is one that was not given.
        """
        value = getattr(self, option)
        if value is not None:
            require_count(option, value, least)

    def refuse_given(self, options: tuple[str, ...], wanted: str) -> None:
        """Refuse options that differ from their defaults."""
        for field in dataclasses.fields(self):
            if field.name in options:
                name, value = SHOWN.get(field.name, field.name), getattr(self, field.name)
                refuse_unless(name, value, value == field.default, wanted)

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

    def task(self) -> "Task":
        """Return what the network is to do.

        Built once for one object.
        """
        from rlprune_jax.costs.memo import remember
        from rlprune_jax.workflow.building import build_task

        options = DataOptions(dataset=self.dataset, data_dir=self.data_dir)
        return remember(self, "task", lambda: build_task(options, self.seed))

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

        Without a database's password (``Address``), and with digests of the user's code and
        weights.
        """
        return dataclasses.asdict(self) | self.digests()

    def digests(self) -> dict[str, object]:
        """Return digests of the user's code and weights."""
        own = {"model": self.model, "dataset": self.dataset}
        if self.pretrained is None and not any(map(is_own, own.values())):
            return {}
        from rlprune_jax.workflow.building import digest_of, own_code

        found: dict[str, object] = {}
        if code := own_code(own):
            found["code"] = code
        if self.pretrained is not None:
            found["pretrained_digest"] = digest_of(self.pretrained)
        return found

    def identity(self) -> dict[str, str]:
        """Return the options that decide what a setting gives."""
        places = ("optuna", "runs_dir", "data_dir", "stale")
        left_out = {*PLACE, *HOW, *EXTENDS, *BY_CONTENT, *places}
        return {name: str(value) for name, value in self.record().items() if name not in left_out}


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
