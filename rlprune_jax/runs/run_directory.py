"""Keep one run per directory, safe to interrupt and to start again."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import BaseFileLock

from rlprune_jax.checks import require, require_path, require_type
from rlprune_jax.files import (
    Closing,
    UnwritableError,
    to_json,
    try_lock,
    unwritable,
    write_atomically,
)
from rlprune_jax.origin import Provenance, StaleWarning, differences
from rlprune_jax.runs.run import Json, Values, is_past, metrics_record
from rlprune_jax.sealed import (
    SEAL,
    DamagedFileError,
    DamageWarning,
    file_digest,
    open_line,
    parse_json,
    read_regular,
    read_sealed,
    seal_line,
    seal_of,
    unseal,
    write_sealed,
)

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"

EXTENDS = "extends"
"""Stage of the record that names the run whose stages were taken."""

_LIVES = re.compile(r"\..*|.*\.tmp|config\.json|metrics.*\.jsonl|result(-\d+)?\.json")
"""Files whose checksum the result does not hold: they have their own, or none."""

COSMETIC = ("runs_dir", "data_dir", "quiet", "verbose", "progress", "stale")
"""Options that do not change what is computed: two runs that differ only here are the same run."""


class RunDirectoryError(RuntimeError):
    """Refuse a directory in use or of another run."""


class Extension(NamedTuple):
    """Say how a finished run may be extended.

    Attributes:
        settings: names of the settings that may differ from the stored ones, such as
            ``("evaluations",)``; nested ones as ``"search.iterations"``.
        stages: the stages that go on from their checkpoints. All others begin anew.
    """

    settings: tuple[str, ...]
    stages: tuple[str, ...] = ()


_NOTHING_MORE = Extension(settings=())


class RunDirectory(Closing):
    """Hold the files of one run, locked until `close`.

    ``config.json`` the configuration; ``metrics.jsonl`` one line per step; ``checkpoints/``;
    ``result.json``, whose presence means that the run is finished; ``report.html``; ``slim/``.
    Each carries a checksum; that of the result covers all files beside it. Made by `open_run` and
    `open_run_at`; a context manager. `MemoryRun` does the same without a directory.

    Attributes:
        path: the directory.
        config: the settings, as plain JSON.
        identity: hash of the settings that tell the run from others.
        checkpoints: directory with one folder per stage.
        report: where the page goes.
        slim: directory where the smaller network goes.
    """

    def __init__(self, path: Path, config: Json, lock: BaseFileLock | None, identity: str = ""):
        self.path = path
        self.config = config
        self.identity = identity
        self.checkpoints = path / "checkpoints"
        self.report = path / "report.html"
        self.slim = path / "slim"
        self._lock = lock
        self._metrics_path = path / METRICS
        if lock is None:  # to be read alone
            self._metrics: BinaryIO = open(os.devnull, "wb")  # noqa: SIM115
            self._seals = _seals(self._metrics_path)
            return
        self._seals = _repair(self._metrics_path)
        self._metrics = open(self._metrics_path, "ab")  # noqa: SIM115

    @property
    def is_finished(self) -> bool:
        """Return whether ``result.json`` is there and whole."""
        return self.result() is not None

    def result(self) -> Json | None:
        """Return ``result.json``, or None without a whole one."""
        try:
            return read_sealed(self.path / RESULT, "result", self.identity)
        except (OSError, DamagedFileError):
            return None

    def write_result(self, result: Values) -> None:
        """Write ``result.json``, which ends the run.

        Whenever the process is killed, the file is absent or whole. Its seal holds the checksums
        of all files that are there by now.

        Args:
            result: numbers, text, arrays and nestings; NaN and infinity become null.
        """
        write_sealed(
            self.path / RESULT,
            result,
            "result",
            self.identity,
            files=self._files(),
            rows={stage: self.mark_of(stage) for stage in self._seals},
        )

    def damaged(self) -> list[str]:
        """Return what of a finished run was changed.

        Returns:
            Names of files that were changed or are gone, in the order of their names.
        """
        said = seal_of(parse_json(read_regular(self.path / RESULT), RESULT)) or {}
        stored, files = said.get("files", {}), self._files()
        found = [name for name in sorted(stored) if files.get(name) != stored[name]]
        rows = said.get("rows", {})
        if not all(self.has_rows(stage, rows[stage]) for stage in rows):
            found.append(METRICS)
        return found

    def _files(self) -> dict[str, str]:
        """Return the checksums of all files that are written once, by name."""
        plain = [file for file in self.path.iterdir() if not _LIVES.fullmatch(file.name)]
        files = [file for file in (*plain, *self.slim.rglob("*")) if file.is_file()]
        return {file.relative_to(self.path).as_posix(): file_digest(file) for file in files}

    def append_metrics(self, stage: str, step: int, values: Values) -> None:
        """Append one line to ``metrics.jsonl`` and flush it.

        Args:
            stage: part of the run, such as ``"dense"`` or ``"search"``.
            step: number of the step within the stage.
            values: numbers, text, arrays and nestings; NaN and infinity become null.

        Raises:
            ValueError: ``values`` holds the name "stage", "step" or "seal".
        """
        record = metrics_record(stage, step, values)
        self._metrics.write(_next_line(self._seals, record))
        self._metrics.flush()

    def metrics(self, stage: str | None = None) -> list[Json]:
        """Return the records of one stage, or all, oldest first.

        Args:
            stage: which; None for all.

        Returns:
            Objects with "stage", "step" and the values.
        """
        lines = self._metrics_path.read_bytes().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            record.pop(SEAL, None)
        return [record for record in records if stage is None or record["stage"] == stage]

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drop the records of a stage past a step.

        A stage that goes on from a checkpoint calls this first, since it appends the later records
        a second time.

        Args:
            stage: the one whose records go; those of other stages stay.
            step: the last to keep; below the first it drops the whole stage.
        """
        records = self.metrics()
        kept = [record for record in records if not is_past(record, stage, step)]
        if len(kept) < len(records):
            self._metrics.close()
            self._seals = {}
            lines = [_next_line(self._seals, record) for record in kept]
            write_atomically(self._metrics_path, lines)
            self._metrics = open(self._metrics_path, "ab")  # noqa: SIM115

    def mark_of(self, stage: str) -> Json:
        """Return what tells the rows of a stage from others."""
        seals = self._seals.get(stage, [])
        return {"count": len(seals), "last": seals[-1] if seals else ""}

    def has_rows(self, stage: str, mark: object) -> bool:
        """Return whether a stage begins with marked rows."""
        match mark:
            case {"count": int(count), "last": str(last)} if count >= 0:
                seals = self._seals.get(stage, [])[:count]
                return len(seals) == count and (seals[-1] if seals else "") == last
        return False

    def owners(self, stage: str) -> tuple[str, ...]:
        """Return whom checkpoints of a stage may belong to."""
        records = self.metrics(EXTENDS) if EXTENDS in self._seals else []
        taken = (record.get("owners", {}) for record in records)
        others = [name for each in taken for name in each.get(stage, ())]
        return (f"{self.identity}/{stage}", *others)

    def reopen(self, stages: Collection[str] = ()) -> None:
        """Make a finished run go on, keeping its old result.

        ``result.json`` becomes ``result-1.json``, or the next free number. `open_run_at` calls this
        where an `Extension` allows it. A kill in between loses nothing: calling it again completes
        what it has begun.

        Args:
            stages: those that go on from their checkpoints; checkpoints and records of all others
                are deleted.
        """
        result = self.path / RESULT
        if result.exists():
            names = (self.path / f"result-{number}.json" for number in itertools.count(1))
            result.rename(next(name for name in names if not name.exists()))
        folders = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        for folder in [folder for folder in folders if folder.name not in stages]:
            shutil.rmtree(folder)
        for stage in {record["stage"] for record in self.metrics()} - set(stages):
            self.rewind_metrics(stage, -1)

    def close(self) -> None:
        """Close the metrics and let another process in."""
        self._metrics.close()
        if self._lock is not None and self._lock.is_locked:
            _free(self.path, self._lock)


def open_run(
    runs_dir: str | os.PathLike,
    experiment: str,
    config: object,
    *,
    exclude: Collection[str] = COSMETIC,
    extension: Extension = _NOTHING_MORE,
    origin: Provenance | None = None,
) -> RunDirectory:
    """Open the directory that a configuration names.

    Use it for experiments: the path is ``runs_dir/<experiment>-<hash of the configuration>``, so a
    second start with the same configuration finds what the first has left. See
    `RunDirectory.is_finished`.

    Args:
        runs_dir: directory of all runs, made where needed.
        experiment: name of the experiment: letters, digits, dot, dash, underscore.
        config: frozen dataclass or dict of settings.
        exclude: top-level settings that do not enter the hash.
        extension: settings that may differ because the run is then extended; they do not enter the
            hash either.
        origin: code, versions and data that make the run, and what is done where others have; None
            does not ask.

    Raises:
        UnwritableError: the directory cannot be written, and holds no finished run to be read.
        RunDirectoryError: another process works in it, or what it holds is not this run, or made
            by other code.
        ValueError: ``experiment`` is no plain file name, ``runs_dir`` is empty, or a setting is NaN
            or infinite.
        TypeError: ``runs_dir`` is no path, or ``config`` no dataclass or dict.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with open_run(folder.name, "prune", {"seed": 0}) as run:
        ...     run.write_result({"accuracy": 0.5})
        >>> with open_run(folder.name, "prune", {"seed": 0}) as run:
        ...     run.is_finished
        True
        >>> folder.cleanup()
    """
    require_type("extension", extension, Extension, "make it by Extension(settings, stages)")
    known = isinstance(exclude, Collection) and not isinstance(exclude, str)
    require(known, "exclude", exclude, "a collection of names, such as ('data_dir',)")
    plain = isinstance(experiment, str)
    if not plain or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", experiment):
        raise ValueError(
            f"experiment={experiment!r} must be letters, digits, dots, dashes and underscores"
        )
    name = f"{experiment}-{config_hash(config, exclude=(*exclude, *extension.settings))}"
    return _open(_path("runs_dir", runs_dir) / name, config, exclude, extension, origin)


def open_run_at(
    path: str | os.PathLike,
    config: object,
    *,
    exclude: Collection[str] = COSMETIC,
    extension: Extension = _NOTHING_MORE,
    origin: Provenance | None = None,
) -> RunDirectory:
    """Open a directory of the caller's choice as a run.

    Use it in a library call, where the user names the directory. A second call with the same
    configuration goes on where the first was, and one with another configuration is refused.

    Args:
        path: of the run, made where needed.
        config: frozen dataclass or dict of settings.
        exclude: top-level settings that may differ without being another run.
        extension: settings that may differ because the run is then extended. The old result is
            kept beside the new one.
        origin: code, versions and data that make the run, and what is done where others have; None
            does not ask.

    Raises:
        UnwritableError: the directory cannot be written.
        RunDirectoryError: another process works in it, or it holds a run of other settings or
            code, or files that are no run. The message names what differs.
        ValueError: ``path`` is empty, or a setting is NaN or infinite.
        TypeError: ``path`` is no path, or ``config`` no dataclass or dict.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with open_run_at(folder.name, {"evaluations": 64}) as run:
        ...     run.write_result({"accuracy": 0.5})
        >>> more = Extension(settings=("evaluations",), stages=("dense", "search"))
        >>> with open_run_at(folder.name, {"evaluations": 128}, extension=more) as run:
        ...     run.is_finished
        False
        >>> folder.cleanup()
    """
    own = _path("path", path)
    _refuse_foreign(own)
    return _open(own, config, exclude, extension, origin)


def config_hash(config: object, *, exclude: Collection[str] = COSMETIC) -> str:
    """Return ten hexadecimal digits that name a configuration.

    They are the same in every process and for every order of the settings.

    Args:
        config: frozen dataclass or dict of settings.
        exclude: top-level settings that do not count.

    Raises:
        ValueError: a setting is NaN or infinite.
        TypeError: ``config`` is no dataclass or dict, or a setting has no JSON form.

    Example:
        >>> config_hash({"seed": 0, "runs_dir": "a"}) == config_hash({"runs_dir": "b", "seed": 0})
        True
    """
    canonical = json.dumps(_identity(_settings(config), exclude), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def read_config(path: str | os.PathLike) -> Json:
    """Read the settings of a run from its directory.

    Args:
        path: of the directory.

    Raises:
        OSError: there is no ``config.json``, or it cannot be read.
        DamagedFileError: it was changed.
    """
    return read_sealed(Path(path) / CONFIG, "config")


def read_made_with(path: str | os.PathLike) -> list[dict[str, str]]:
    """Return what a run was made with, oldest first.

    Args:
        path: of the directory.

    Raises:
        RunDirectoryError: there is no ``config.json``, or it was changed.
    """
    stored = _stored(Path(path))
    if stored is None:
        raise RunDirectoryError(f"{path} holds no {CONFIG}, so it is no run; name that of a run")
    return stored.made_with


def read_of_run(path: str | os.PathLike, name: str) -> bytes:
    """Read a file of a finished run, checked.

    Args:
        path: directory of the run.
        name: of the file in it, such as ``"history.npz"``.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it, or the result, was changed after the run had ended.
    """
    folder = Path(path)
    content = parse_json(read_regular(folder / RESULT), folder / RESULT)
    unseal(content, folder / RESULT, "result")
    found = read_regular(folder / name)
    listed = (seal_of(content) or {}).get("files", {})
    if listed.get(name) != hashlib.sha256(found).hexdigest():
        raise DamagedFileError(f"{folder / name} was changed after the run had ended")
    return found


class _Stored(NamedTuple):
    """Hold what ``config.json`` says.

    The settings, whom files of the run belong to, and what made them: several where results of
    other code were kept.
    """

    settings: Json
    identity: str
    made_with: list[dict[str, str]]


def _open(
    path: Path,
    config: object,
    exclude: Collection[str],
    extension: Extension,
    origin: Provenance | None,
) -> RunDirectory:
    settings = _settings(config)
    if origin is not None and origin.stale == "redo":
        _set_aside(path, origin)
    try:
        lock = _lock(path)
    except UnwritableError:
        if (finished := _read_only(path, settings, exclude)) is None:
            raise
        return finished
    with contextlib.ExitStack() as undo:
        undo.callback(_free, path, lock)
        stored = _stored(path)
        differing = _compare(path, stored, settings, exclude, extension)
        made_with = _made_with(path, stored, origin)
        _delete_leftovers(path)
        # A run that is extended stays the one that its files belong to.
        identity = config_hash(settings, exclude=(*exclude, *extension.settings))
        identity = identity if stored is None else stored.identity
        run = undo.enter_context(RunDirectory(path, settings, lock, identity))
        _tell_damage(run)
        # Reopened first: a kill before the next line leaves what the next start reopens again.
        if differing:
            run.reopen(extension.stages)
        kept = stored is not None and made_with == stored.made_with
        if differing or not kept:
            write_sealed(path / CONFIG, settings, "config", identity, made_with=made_with)
        undo.pop_all()
        return run


def _stored(path: Path) -> _Stored | None:
    """Return what a directory's ``config.json`` says, or None without one.

    Raises:
        RunDirectoryError: it was changed.
    """
    try:
        content = parse_json(read_regular(path / CONFIG), path / CONFIG)
        settings = unseal(content, path / CONFIG, "config")
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        raise RunDirectoryError(
            f"{error}; delete {path} or choose another directory (--runs-dir for experiments)"
        ) from error
    said = seal_of(content) or {}
    return _Stored(
        settings=settings, identity=str(said.get("of")), made_with=said.get("made_with", [])
    )


def _made_with(
    path: Path, stored: _Stored | None, origin: Provenance | None
) -> list[dict[str, str]]:
    """Return what a run was made with, now too.

    Raises:
        RunDirectoryError: something else made what is there, and it is not to be kept.
    """
    now = [] if origin is None else [dict(origin.made_with)]
    if stored is None:
        return now
    if origin is None or not (found := _staleness(stored, origin)):
        return stored.made_with
    if origin.stale == "keep":
        warnings.warn(f"{path} is kept, though other code made it: {found}", StaleWarning, 5)
        finished = (path / RESULT).exists()
        return stored.made_with if finished else [*stored.made_with, *now]
    raise RunDirectoryError(
        f"{path} was made by other code: {found}; stale='redo' (--stale redo) makes it again and "
        "keeps the old one beside it, stale='keep' goes on with it as it is"
    )


def _staleness(stored: _Stored, origin: Provenance) -> str:
    """Return in what a stored run's origins differ from one, or ""."""
    now = origin.made_with
    if not stored.made_with:
        return "it does not say which"
    return next((text for each in stored.made_with if (text := differences(each, now))), "")


def _set_aside(path: Path, origin: Provenance) -> None:
    """Rename a directory whose run other code made, or which cannot be read."""
    if not (path / CONFIG).exists():
        return
    lock = _lock(path)
    try:
        stored = _stored(path)
        found = "" if stored is None else _staleness(stored, origin)
    except RunDirectoryError as error:
        found = str(error)
    finally:
        _free(path, lock)
    if found:
        names = (path.with_name(f"{path.name}.stale-{number}") for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        text = f"{path} is made again, since other code made it ({found}); the old one is {aside}"
        warnings.warn(text, StaleWarning, 5)


def _tell_damage(run: RunDirectory) -> None:
    """Warn of files that are not as they were written."""
    if run.is_finished:
        for name in run.damaged():
            warnings.warn(
                f"{run.path / name} was changed or lost after the run had ended; delete "
                f"{run.path / RESULT} and run again to have it made anew",
                DamageWarning,
                stacklevel=5,
            )
    elif (run.path / RESULT).exists():
        warnings.warn(
            f"{run.path / RESULT} was changed or is of another run, so it does not count; it is "
            "made anew from the checkpoints",
            DamageWarning,
            stacklevel=5,
        )


def _read_only(path: Path, settings: Json, exclude: Collection[str]) -> RunDirectory | None:
    """Return a finished run of these settings that cannot be written, or None."""
    stored = _stored(path) if path.is_dir() else None
    if stored is None:
        return None
    _compare(path, stored, settings, exclude, _NOTHING_MORE)
    run = RunDirectory(path, settings, lock=None, identity=stored.identity)
    if run.is_finished:
        return run
    run.close()
    return None


def _path(argument: str, value: str | os.PathLike) -> Path:
    require_path(argument, value)
    return Path(value).expanduser()


def _settings(config: object) -> Json:
    """Return a configuration as plain JSON, refusing NaN and infinity."""
    try:
        settings = to_json(config, keep_nonfinite=True)
    except TypeError as error:
        raise TypeError(f"config cannot be stored: {error}; give numbers, text and paths") from None
    if not isinstance(settings, dict):
        raise TypeError(f"config must be a dataclass or a dict, not a {type(settings).__name__}")
    for name, value in _flat(settings).items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(
                f"config {name}={value} is not finite, so it cannot be stored; "
                "give a finite number or None"
            ) from None
    return settings


def _identity(settings: Json, exclude: Collection[str]) -> Json:
    return {name: value for name, value in settings.items() if name not in exclude}


def _flat(settings: Json, prefix: str = "") -> Json:
    """Return nested settings by dotted name, such as "search.iterations"."""
    flat: Json = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _lock(path: Path) -> BaseFileLock:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = try_lock(path / ".lock")
        if lock is not None:
            # Beside the lock, which Windows lets nobody else read.
            (path / ".owner").write_text(f"{os.getpid()}\n")
            return lock
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        owner = (path / ".owner").read_text().strip() or "unknown"
    except OSError:
        owner = "unknown"
    raise RunDirectoryError(
        f"process {owner} is working on {path}; wait for it, end it, or choose another "
        "directory (--runs-dir or --seed for experiments)"
    )


def _free(path: Path, lock: BaseFileLock) -> None:
    with contextlib.suppress(OSError):
        (path / ".owner").unlink()
    lock.release()


def _compare(
    path: Path,
    stored: _Stored | None,
    settings: Json,
    exclude: Collection[str],
    extension: Extension,
) -> list[str]:
    """Return the settings that differ from the stored ones as an extension allows.

    Raises:
        RunDirectoryError: others differ.
    """
    if stored is None:
        return []
    before, now = _flat(_identity(stored.settings, exclude)), _flat(_identity(settings, exclude))
    # Through JSON once more, so that a number reads back as what was written.
    now = json.loads(json.dumps(now))
    missing = object()
    differing = [
        name for name in {**now, **before} if before.get(name, missing) != now.get(name, missing)
    ]
    for name in differing:
        if name not in extension.settings:
            was, is_now = (
                json.dumps(values[name]) if name in values else "absent" for values in (before, now)
            )
            raise RunDirectoryError(
                f"{path} holds a run of other settings: {name} is {was} in its config.json and "
                f"{is_now} now; delete {path}, choose another directory, or restore the setting"
            )
    return differing


def _refuse_foreign(path: Path) -> None:
    """Refuse a directory that holds files but no run."""
    if not path.is_dir() or (path / "config.json").exists():
        return
    foreign = sorted(item.name for item in path.iterdir() if not item.name.startswith("."))
    if foreign:
        raise RunDirectoryError(
            f"{path} holds {foreign[0]!r} but no config.json, so it is no run; "
            "choose an empty or new directory"
        )


def _delete_leftovers(path: Path) -> None:
    """Delete temporary files that a killed process left behind."""
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def _next_line(seals: dict[str, list[str]], record: Json) -> bytes:
    """Return a record as a line, sealed behind the last of its stage, which ``seals`` remembers."""
    own = seals.setdefault(record["stage"], [])
    line, mark = seal_line(record, own[-1] if own else "")
    own.append(mark)
    return line.encode() + b"\n"


def _seals(path: Path) -> dict[str, list[str]]:
    """Return the seals of each stage, of the rows that are whole."""
    seals: dict[str, list[str]] = {}
    for line in read_regular(path).splitlines(keepends=True):
        _is_next(seals, line)
    return seals


def _repair(path: Path) -> dict[str, list[str]]:
    """Cut an unfinished last line and drop damaged rows; return the seals of each stage."""
    try:
        lines = read_regular(path).splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    seals: dict[str, list[str]] = {}
    bad = [number for number, line in enumerate(lines) if not _is_next(seals, line)]
    if bad == [len(lines) - 1] and not lines[-1].endswith(b"\n"):
        os.truncate(path, sum(map(len, lines[:-1])))
    elif bad:
        aside = path.with_name("metrics-damaged.jsonl")
        write_atomically(aside, lines)
        write_atomically(path, [line for number, line in enumerate(lines) if number not in bad])
        warnings.warn(
            f"line {bad[0] + 1} of {path} was changed or comes after one that was; {len(bad)} "
            f"lines do not count (the file as it was is {aside.name})",
            DamageWarning,
            stacklevel=6,
        )
    return seals


def _is_next(seals: dict[str, list[str]], line: bytes) -> bool:
    """Return whether a line is the next record of its stage, which is then remembered."""
    opened = open_line(line, None) if line.endswith(b"\n") else None
    if opened is None or not isinstance(opened[0].get("stage"), str):
        return False
    own = seals.setdefault(opened[0]["stage"], [])
    whole = type(opened[0].get("step")) is int and open_line(line, own[-1] if own else "")
    if whole:
        own.append(opened[1])
    return bool(whole)
