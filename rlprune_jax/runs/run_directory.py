"""Keep one run per directory, safe to interrupt and to start again."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
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
from rlprune_jax.runs.run import Json, Values, is_past, metrics_line

COSMETIC = ("runs_dir", "data_dir", "quiet", "verbose", "progress")
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
    Made by `open_run` and `open_run_at`; a context manager. `MemoryRun` does the same without a
    directory.

    Attributes:
        path: the directory.
        config: the settings, as plain JSON.
        checkpoints: directory with one folder per stage.
        report: where the page goes.
        slim: directory where the smaller network goes.
    """

    def __init__(self, path: Path, config: Json, lock: BaseFileLock | None):
        self.path = path
        self.config = config
        self.checkpoints = path / "checkpoints"
        self.report = path / "report.html"
        self.slim = path / "slim"
        self._lock = lock
        self._metrics_path = path / "metrics.jsonl"
        if lock is None:  # to be read alone
            self._metrics: BinaryIO = open(os.devnull, "wb")  # noqa: SIM115
            return
        _repair(self._metrics_path)
        self._metrics = open(self._metrics_path, "ab")  # noqa: SIM115

    @property
    def is_finished(self) -> bool:
        """Return whether ``result.json`` is there and whole."""
        return self.result() is not None

    def result(self) -> Json | None:
        """Return ``result.json``, or None without a whole one."""
        return _read_object(self.path / "result.json")

    def write_result(self, result: Values) -> None:
        """Write ``result.json``, which ends the run.

        Whenever the process is killed, the file is absent or whole.

        Args:
            result: numbers, text, arrays and nestings; NaN and infinity become null.
        """
        text = json.dumps(to_json(result), indent=2, allow_nan=False)
        write_atomically(self.path / "result.json", text + "\n")

    def append_metrics(self, stage: str, step: int, values: Values) -> None:
        """Append one line to ``metrics.jsonl`` and flush it.

        Args:
            stage: part of the run, such as ``"dense"`` or ``"search"``.
            step: number of the step within the stage.
            values: numbers, text, arrays and nestings; NaN and infinity become null.

        Raises:
            ValueError: ``values`` holds the name "stage" or "step".
        """
        self._metrics.write(metrics_line(stage, step, values).encode() + b"\n")
        self._metrics.flush()

    def metrics(self, stage: str | None = None) -> list[Json]:
        """Return the records of one stage, or all, oldest first.

        Args:
            stage: which; None for all.

        Returns:
            Objects with "stage", "step" and the values.
        """
        records = [json.loads(line) for line in self._metrics_path.read_bytes().splitlines()]
        return [record for record in records if stage is None or record["stage"] == stage]

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drop the records of a stage past a step.

        A stage that goes on from a checkpoint calls this first, since it appends the later records
        a second time.

        Args:
            stage: the one whose records go; those of other stages stay.
            step: the last to keep; below the first it drops the whole stage.
        """
        lines = self._metrics_path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not is_past(json.loads(line), stage, step)]
        if len(kept) < len(lines):
            self._metrics.close()
            write_atomically(self._metrics_path, b"".join(kept))
            self._metrics = open(self._metrics_path, "ab")  # noqa: SIM115

    def reopen(self, stages: Collection[str] = ()) -> None:
        """Make a finished run go on, keeping its old result.

        ``result.json`` becomes ``result-1.json``, or the next free number. `open_run_at` calls this
        where an `Extension` allows it. A kill in between loses nothing: calling it again completes
        what it has begun.

        Args:
            stages: those that go on from their checkpoints; checkpoints and records of all others
                are deleted.
        """
        result = self.path / "result.json"
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

    Raises:
        UnwritableError: the directory cannot be written, and holds no finished run to be read.
        RunDirectoryError: another process works in it, or what it holds is not this run.
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
    return _open(_path("runs_dir", runs_dir) / name, config, exclude, extension)


def open_run_at(
    path: str | os.PathLike,
    config: object,
    *,
    exclude: Collection[str] = COSMETIC,
    extension: Extension = _NOTHING_MORE,
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

    Raises:
        UnwritableError: the directory cannot be written.
        RunDirectoryError: another process works in it, or it holds a run of other settings or
            files that are no run. The message names the first setting that differs.
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
    return _open(own, config, exclude, extension)


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


def _open(
    path: Path, config: object, exclude: Collection[str], extension: Extension
) -> RunDirectory:
    settings = _settings(config)
    try:
        lock = _lock(path)
    except UnwritableError:
        if (finished := _read_only(path, settings, exclude)) is None:
            raise
        return finished
    with contextlib.ExitStack() as undo:
        undo.callback(_free, path, lock)
        differing = _compare(path, settings, exclude, extension)
        _delete_leftovers(path)
        run = undo.enter_context(RunDirectory(path, settings, lock))
        # Reopened first: a kill before the next line leaves what the next start reopens again.
        if differing:
            run.reopen(extension.stages)
        if differing or not (path / "config.json").exists():
            write_atomically(path / "config.json", json.dumps(settings, indent=2) + "\n")
        undo.pop_all()
        return run


def _read_only(path: Path, settings: Json, exclude: Collection[str]) -> RunDirectory | None:
    """Return a finished run of these settings that cannot be written, or None."""
    if not path.is_dir() or _read_object(path / "config.json") is None:
        return None
    _compare(path, settings, exclude, _NOTHING_MORE)
    run = RunDirectory(path, settings, lock=None)
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
    path: Path, settings: Json, exclude: Collection[str], extension: Extension
) -> list[str]:
    """Return the settings that differ from the stored ones as an extension allows.

    Raises:
        RunDirectoryError: others differ.
    """
    config_path = path / "config.json"
    if not config_path.exists():
        return []
    stored = _read_object(config_path)
    if stored is None:
        raise RunDirectoryError(
            f"{config_path} is no JSON object; delete {path} or choose another directory "
            "(--runs-dir for experiments)"
        )
    before, now = _flat(_identity(stored, exclude)), _flat(_identity(settings, exclude))
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


def _read_object(path: Path) -> Json | None:
    """Return a file's JSON object, or None without a whole one."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _delete_leftovers(path: Path) -> None:
    """Delete temporary files that a killed process left behind."""
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def _repair(path: Path) -> None:
    """Cut an unfinished last line, and refuse any other broken one."""
    whole = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not _is_record(line):
            if number < len(lines):
                raise RunDirectoryError(
                    f"line {number} of {path} is not a record of metrics; "
                    f"delete {path.parent} or choose another directory (--runs-dir for experiments)"
                )
            os.truncate(path, whole)
        whole += len(line)


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(record, dict) and {"stage", "step"} <= set(record)
