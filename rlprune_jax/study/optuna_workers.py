"""Run workers that search settings on one Optuna storage.

Each asks for K trials, runs them in one vmapped call, and tells K.

The study begins with one waiting trial per setting that it is to have, each with the number of its
slot. A worker takes waiting trials, and Optuna's sampler picks their hyper-parameters from all that
is finished. A trial counts only if no earlier one of its slot is alive or finished, so that workers
that begin at the same moment, or take over the same dead worker's trials, cannot do a slot twice.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optuna
from filelock import BaseFileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

import rlprune_jax
from rlprune_jax.addresses import hide_password, secret_of, with_driver
from rlprune_jax.checks import require_count
from rlprune_jax.devices import available_cores
from rlprune_jax.files import Closing, try_lock
from rlprune_jax.origin import function_digest
from rlprune_jax.pytree import tree_hash
from rlprune_jax.sealed import digest_json
from rlprune_jax.study.blocks import Programs, StudyTick
from rlprune_jax.study.program import Job, job_name
from rlprune_jax.study.results import StudyResult
from rlprune_jax.study.run import check_seeds, run_study
from rlprune_jax.study.settings import Choice, Distribution, LogUniform, Value, table
from rlprune_jax.study.store import StudyError
from rlprune_jax.types import PyTree

HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 90
OPEN = (TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE)


def run_worker(
    fn: Job,
    space: Mapping[str, Distribution],
    seeds: Sequence[int],
    *,
    storage: str,
    study_name: str,
    trials: int,
    batch: int,
    metric: str,
    maximize: bool = True,
    limits: Mapping[str, float] | None = None,
    static: Collection[str] = (),
    shared: PyTree = None,
    known: Collection[str] | None = None,
    identity: object = None,
    strategy: str = "vmap",
    sampler_seed: int | None = None,
    tick: StudyTick | None = None,
) -> StudyResult:
    """Work on a shared study until its trials are done.

    Use it where a sampler is to choose the settings, or where workers come and go.

    Start as many workers as there are devices or hosts, at any time. Those of a killed worker are
    taken over by the others, or by the same command run again: at once with a journal file on this
    host's disk, after 90 seconds without a heartbeat in a database.

    Args:
        fn: the job, as for ``run_study``; its value is the mean of ``metric`` over the seeds.
        space: hyper-parameters to search.
        seeds: S seeds, the same for every trial.
        storage: a file (a journal, also on a network file system) or a database's address, such
            as ``sqlite:///study.db`` or ``postgresql://...``, which no message shows with its
            password.
        study_name: of the study in that storage.
        trials: settings that the study is to have, over all workers; more than it had before
            extend it.
        batch: K, trials that are asked for and run in one call.
        metric: what is optimised; a trial whose value is NaN counts as the worst.
        maximize: whether more is better.
        limits: per metric the largest value allowed, as Optuna's constraints.
        static: hyper-parameters that shape the program.
        shared: arrays that all trials read.
        known: hyper-parameters that ``fn`` has.
        identity: plain JSON of what else decides the numbers.
        strategy: of each batch, "vmap" or "map".
        sampler_seed: for a study by one worker that can be repeated.
        tick: called with the number of trials done and a note.

    Raises:
        StudyError: the storage holds another study, or one of another version of the code, or
            it is a damaged journal, or a database fails.
        ValueError: options as for ``run_study``; ``trials`` or ``batch`` below 1.
    """
    seeds = check_seeds(seeds)
    trials, batch = require_count("trials", trials), require_count("batch", batch)
    if not space:
        raise ValueError("space is empty: give at least one hyper-parameter")
    about = {
        "job": job_name(fn),
        "code": code_version(fn),
        "space": {name: repr(distribution) for name, distribution in space.items()},
        "seeds": list(seeds),
        "metric": metric,
        "maximize": maximize,
        "limits": dict(limits or {}),
        "static": sorted(static),
        "identity": identity,
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with Worker(storage) as worker, _naming_the_storage(storage):
        study = worker.open_study(study_name, maximize, sampler_seed)
        _check_same(study, about)
        _check_arrays(study, shared)
        _fill(study, trials)
        compiled: Programs = {}
        objective = StudyObjective(metric=metric, maximize=maximize, limits=limits or {})
        while True:
            _check_same(study, about)
            worker.take_over(study)
            taken = worker.ask(study, space, batch)
            if not taken:
                if _finished(study) >= trials:
                    break
                time.sleep(0.5)  # others are at the last ones, and may yet die
                continue
            rows: list[dict[str, Value]] = [dict(trial.params) for trial in taken]
            # Choices alone can repeat: what is the same is run once.
            different = [row for index, row in enumerate(rows) if row not in rows[:index]]
            with worker.alive(taken):
                result = run_study(
                    fn,
                    table(different),
                    seeds,
                    static=static,
                    shared=shared,
                    known=known,
                    strategy=strategy,
                    chunk=batch,
                    compiled=compiled,
                )
            for trial, row in zip(taken, rows, strict=True):
                place = different.index(row)
                _tell(study, trial, result, place, objective)
            if tick is not None:
                tick(len(taken), f"best {_best(study)}")
        return study_result(study, seeds)


class StudyObjective(NamedTuple):
    """Say what a study optimises.

    Attributes:
        metric: by name.
        maximize: whether more is better.
        limits: per metric the largest value allowed.
    """

    metric: str
    maximize: bool
    limits: Mapping[str, float]


class Worker(Closing):
    """Hold open what shows that a process lives.

    One process among those that work on one storage.
    """

    def __init__(self, storage: str):
        self.name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.storage: BaseStorage
        self._locks: Path | None = None
        self._lock: BaseFileLock | None = None
        secret = secret_of(storage)
        if "://" in secret:
            # Optuna says that heartbeats are experimental.
            with _naming_the_storage(storage), _without_warning():
                self.storage = RDBStorage(
                    with_driver(secret),
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=_again,
                )
            return
        path = Path(secret).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path))
        check_journal(path, lock)
        with _telling_damage(f"journal {path}"):
            self.storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        self._locks = path.with_name(path.name + ".workers")
        self._locks.mkdir(exist_ok=True)
        self._lock = try_lock(self._locks / self.name)

    def close(self) -> None:
        """Let others see that the process has ended."""
        if self._lock is not None and self._locks is not None:
            self._lock.release()
            self._lock = None
            with contextlib.suppress(OSError):
                (self._locks / self.name).unlink()

    def open_study(self, name: str, maximize: bool, seed: int | None = None) -> optuna.Study:
        """Return a study of the storage, old or new.

        Args:
            name: of it.
            maximize: whether more is better.
            seed: of the sampler.

        Raises:
            StudyError: what the storage says of it cannot be.
        """
        with _telling_damage(f"study {name!r}"):
            return optuna.create_study(
                storage=self.storage,
                study_name=name,
                direction="maximize" if maximize else "minimize",
                # Waiting trials of others are taken for bad ones, so that a batch spreads out.
                sampler=optuna.samplers.TPESampler(constant_liar=True, seed=seed),
                load_if_exists=True,
            )

    def take_over(self, study: optuna.Study) -> None:
        """Put what dead workers left back into the queue."""
        if self._locks is None:
            with _without_warning():
                optuna.storages.fail_stale_trials(study)
            _repair_lost(study)
            return
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("worker")
            if owner is None:
                began = trial.datetime_start
                # Killed between taking a trial and signing it: nothing that lives takes so long.
                if began is None or time.time() - began.timestamp() < GRACE_SECONDS:
                    continue
            elif owner == self.name or self._lives(owner):
                continue
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                study.tell(trial.number, state=TrialState.FAIL)
        _repair_lost(study)

    def _lives(self, owner: str) -> bool:
        assert self._locks is not None
        if not (self._locks / owner).exists():
            return False
        lock = try_lock(self._locks / owner)
        if lock is not None:
            lock.release()
        return lock is None

    def ask(
        self, study: optuna.Study, space: Mapping[str, Distribution], count: int
    ) -> list[optuna.Trial]:
        """Take waiting trials and give them hyper-parameters.

        At most ``count``.
        """
        taken: list[optuna.Trial] = []
        waiting = (TrialState.WAITING,)
        while len(taken) < count and study.get_trials(deepcopy=False, states=waiting):
            # Optuna says that heartbeats are for `optimize`; `alive` sends them here.
            with _without_warning():
                trial = study.ask()
            # Signed first: from here on a kill is seen by the others.
            trial.set_user_attr("worker", self.name)
            if self._locks is None:
                self.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
            if not _counts(study, trial.number):
                study.tell(trial, state=TrialState.FAIL)  # others were faster
                continue
            _suggest(study, trial, space)
            taken.append(trial)
        return taken

    @contextlib.contextmanager
    def alive(self, trials: Sequence[optuna.Trial]) -> Iterator[None]:
        """Send heartbeats for trials while their batch runs.

        Only to a database; a journal file has locks.
        """
        if self._locks is not None:
            yield
            return
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                # A server that is away for a moment is asked again at the next beat.
                with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                    for trial in trials:
                        self.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def open_storage(storage: str) -> None:
    """Open a storage once and close it.

    Use it before anything is trained for a study: a database that refuses to make its tables says
    so here.

    Args:
        storage: as for ``run_worker``.

    Raises:
        StudyError: it cannot be opened; the message names it without its password.
    """
    with Worker(storage):
        pass


@contextlib.contextmanager
def _naming_the_storage(storage: str) -> Iterator[None]:
    """Turn what a database raises into one line without its password."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason = hide_password(str(cause).strip().splitlines()[0])
        raise StudyError(
            f"storage {hide_password(storage)} fails: {reason}; look at the server and start the "
            "same command again, which goes on where it was"
        ) from None


def check_journal(path: Path, lock: JournalFileOpenLock) -> None:
    """Refuse a journal with a line that is cut off.

    A full disk or a kill in the middle of a write leaves one, and Optuna then fails at whatever is
    written after it.

    Raises:
        StudyError: the message names the file, the line and the way out.
    """
    if not path.exists():
        return
    lock.acquire()  # so that no other worker is in the middle of a line
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    finally:
        lock.release()
    for number, line in enumerate(lines, 1):
        try:
            whole = isinstance(json.loads(line), dict) and line.endswith(b"\n")
        except ValueError:
            whole = False
        if not whole:
            raise StudyError(
                f"journal {path} is cut off in line {number} of {len(lines)}, as by a full disk or "
                f"a kill in the middle of a write; stop its workers, delete that line (sed -i "
                f"{number}d {path}) and start again, which repeats what it told, or choose another "
                "file"
            )


def study_result(study: optuna.Study, seeds: Sequence[int]) -> StudyResult:
    """Return what is finished in a study.

    By slot, as ``run_study`` returns it; repeats count once.
    """
    by_params: dict[str, FrozenTrial] = {}
    for trial in sorted(
        study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)),
        key=lambda trial: trial.user_attrs["slot"],
    ):
        by_params.setdefault(json.dumps(trial.params, sort_keys=True), trial)
    trials = list(by_params.values())
    for trial in trials:
        if trial.user_attrs.get("sha256") != _digest(trial.params, trial.user_attrs):
            raise StudyError(
                f"trial {trial.number} of study {study.study_name!r} was changed after it was "
                "told: its checksum differs; choose another study name, or another storage"
            )
    if not trials:
        raise StudyError(f"study {study.study_name!r} has no finished trial")
    metrics = {
        name: np.asarray(
            [
                [np.nan if value is None else value for value in trial.user_attrs["metrics"][name]]
                for trial in trials
            ]
        )
        for name in trials[0].user_attrs["metrics"]
    }
    seconds = np.asarray([trial.user_attrs["seconds"] for trial in trials])
    settings = table([dict(trial.params) for trial in trials])
    return StudyResult(settings=settings, seeds=tuple(seeds), metrics=metrics, seconds=seconds)


def code_version(fn: Job) -> str:
    """Return the version of the package and the job.

    With a digest of the package's sources, of the job's own file and of its body.
    """
    digest = hashlib.sha256(function_digest(fn).code.encode())
    root = Path(rlprune_jax.__file__).parent
    files = sorted(root.rglob("*.py"))
    code = getattr(fn, "__code__", None)
    if code is not None and Path(code.co_filename).is_file():
        files.append(Path(code.co_filename))
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    try:
        version = importlib.metadata.version("rlprune_jax")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return f"{version}-{digest.hexdigest()[:12]}"


def _check_same(study: optuna.Study, about: Mapping[str, object]) -> None:
    mine = json.loads(json.dumps(about))
    if "about" not in study.user_attrs:
        study.set_user_attr("about", mine)
    stored = {name: it for name, it in study.user_attrs["about"].items() if name in mine}
    differing = sorted(name for name in {*stored, *mine} if stored.get(name) != mine.get(name))
    if "code" in differing:
        raise StudyError(
            f"study {study.study_name!r} belongs to version {stored.get('code')} of the code and "
            f"this worker runs {mine['code']}: start all workers from one version, or choose "
            "another study name"
        )
    if differing:
        raise StudyError(
            f"study {study.study_name!r} is another one: they differ in {', '.join(differing)}; "
            "choose another study name"
        )


def _check_arrays(study: optuna.Study, shared: PyTree) -> None:
    """Refuse other shared arrays than this machine has had in this study.

    Another kind of machine rounds otherwise where it trains them, and so may an accelerator.
    """
    if jax.default_backend() != "cpu":
        return
    name, mine = f"arrays on {platform.node()}, {available_cores()} cores", tree_hash(shared)
    if study.user_attrs.get(name, mine) != mine:
        raise StudyError(
            f"study {study.study_name!r} was computed with other shared arrays on this machine; "
            "choose another study name"
        )
    study.set_user_attr(name, mine)


def _fill(study: optuna.Study, trials: int) -> None:
    """One waiting trial for each slot that has none."""
    open_slots = {
        trial.user_attrs.get("slot") for trial in study.get_trials(deepcopy=False, states=OPEN)
    }
    for slot in range(trials):
        if slot not in open_slots:
            study.enqueue_trial({}, user_attrs={"slot": slot})


def _again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the slot of a trial that died, with what it had been given."""
    if "slot" in trial.user_attrs:
        study.enqueue_trial(dict(trial.params), user_attrs={"slot": trial.user_attrs["slot"]})


def _repair_lost(study: optuna.Study) -> None:
    """Queue slots that nobody holds: their worker died, perhaps while handing them on."""
    held: set[int] = set()
    last: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        slot = trial.user_attrs.get("slot")
        if slot is not None:
            last[slot] = trial
            if trial.state in OPEN:
                held.add(slot)
    for slot, trial in last.items():
        if slot not in held:
            _again(study, trial)


def _counts(study: optuna.Study, number: int) -> bool:
    """Whether a trial is the first of its slot that is alive or finished."""
    trials = study.get_trials(deepcopy=False)
    slot = next(trial.user_attrs.get("slot") for trial in trials if trial.number == number)
    if slot is None:
        return False
    return not any(
        trial.number < number and trial.state in OPEN and trial.user_attrs.get("slot") == slot
        for trial in trials
    )


def _suggest(study: optuna.Study, trial: optuna.Trial, space: Mapping[str, Distribution]) -> None:
    for name, distribution in space.items():
        if isinstance(distribution, Choice):
            trial.suggest_categorical(name, list(distribution.values))
        else:
            log = isinstance(distribution, LogUniform)
            trial.suggest_float(name, distribution.low, distribution.high, log=log)


def _tell(
    study: optuna.Study,
    trial: optuna.Trial,
    result: StudyResult,
    index: int,
    objective: StudyObjective,
) -> None:
    metric, maximize, limits = objective
    if unknown := sorted({metric, *limits} - set(result.metrics)):
        raise ValueError(f"the job has no metric {unknown}; it has {', '.join(result.metrics)}")
    rows = {
        name: [None if np.isnan(value) else float(value) for value in values[index]]
        for name, values in result.metrics.items()
    }
    value = float(result.metrics[metric][index].mean())
    if np.isnan(value):
        value = -np.inf if maximize else np.inf  # Optuna has no place for NaN
    # A worker that was taken for dead, and is not, must not tell twice.
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
        trial.set_user_attr("metrics", rows)
        trial.set_user_attr("seconds", [float(seconds) for seconds in result.seconds[index]])
        trial.set_user_attr("sha256", _digest(trial.params, trial.user_attrs))
        for name, limit in limits.items():
            over = float(result.metrics[name][index].mean()) - limit
            trial.set_constraint(name, np.inf if np.isnan(over) else over)
        study.tell(trial, value)


def _digest(params: Mapping[str, object], told: Mapping[str, object]) -> str:
    """Return the digest of what a trial was given and told."""
    return digest_json([dict(params), *(told.get(name) for name in ("slot", "metrics", "seconds"))])


def _finished(study: optuna.Study) -> int:
    return len(
        {
            trial.user_attrs["slot"]
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        }
    )


def _best(study: optuna.Study) -> str:
    try:
        return f"{study.best_value:.4g}"
    except ValueError:
        return "none within the limits"


@contextlib.contextmanager
def _telling_damage(what: str) -> Iterator[None]:
    """Turn whatever Optuna raises on records that cannot be into one error that says so."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise StudyError(
            f"{what} cannot be read: it was changed by others than its workers "
            f"({type(error).__name__}: {error}); choose another storage or study name"
        ) from error


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
