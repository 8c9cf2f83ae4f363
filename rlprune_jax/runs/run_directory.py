"""One directory per configuration: settings, metrics, checkpoints, result; safe to interrupt."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlprune_jax.files import to_json, unwritable, write_atomically

COSMETIC = ("runs_dir", "data_dir", "quiet", "verbose", "progress")
"""Options that do not change what is computed: two runs that differ only here are the same run."""


class RunDirectoryError(RuntimeError):
    """Another process works in the run directory, or what it holds is not a run of ours."""


class RunDirectory:
    """The files of one run, locked for this process until `close`.

    ``config.json`` the configuration; ``metrics.jsonl`` one line per step; ``checkpoints/``;
    ``result.json``, whose presence means that the run is finished; ``report.html``; ``slim/``.
    Made by `open_run`; a context manager.
    """

    def __init__(self, path: Path, config: dict[str, Any], lock: int):
        self.path = path
        self.config = config
        self.checkpoints = path / "checkpoints"
        self.report = path / "report.html"
        self.slim = path / "slim"
        self._lock: int | None = lock
        self._metrics_path = path / "metrics.jsonl"
        _repair(self._metrics_path)
        self._metrics = open(self._metrics_path, "ab")  # noqa: SIM115

    @property
    def is_finished(self) -> bool:
        """Whether ``result.json`` is there and whole."""
        return self.result() is not None

    def result(self) -> dict[str, Any] | None:
        """Content of ``result.json``, or None where there is none or not a whole one."""
        try:
            content = json.loads((self.path / "result.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes ``result.json`` at once: it is either absent or whole, whenever one is killed."""
        text = json.dumps(to_json(result), indent=2, allow_nan=False)
        write_atomically(self.path / "result.json", text + "\n")

    def append_metrics(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line ``{"stage": stage, "step": step, **values}`` and flushes it.

        Args:
            stage: part of the run, such as ``"dense"`` or ``"search"``.
            step: number of the step within the stage.
            values: numbers, strings, arrays and nestings of them; NaN and infinity become null.
        """
        if taken := {"stage", "step"} & set(values):
            raise ValueError(f"values must not hold {sorted(taken)}: they are arguments")
        record = {"stage": stage, "step": int(step), **to_json(values)}
        self._metrics.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._metrics.flush()

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, of one stage or of all, oldest first."""
        records = [json.loads(line) for line in self._metrics_path.read_bytes().splitlines()]
        return [record for record in records if stage is None or record["stage"] == stage]

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drops the lines of a stage past a step; the lines of other stages stay.

        Every stage that resumes from a checkpoint calls this first, since it writes the later
        lines a second time. A ``step`` below the first drops the whole stage.
        """
        lines = self._metrics_path.read_bytes().splitlines(keepends=True)
        kept = [
            line
            for line, record in zip(lines, self.metrics(), strict=True)
            if record["stage"] != stage or record["step"] <= step
        ]
        if len(kept) < len(lines):
            self._metrics.close()
            write_atomically(self._metrics_path, b"".join(kept))
            self._metrics = open(self._metrics_path, "ab")  # noqa: SIM115

    def close(self) -> None:
        """Closes the metrics and lets another process open this run."""
        self._metrics.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_run(
    runs_dir: str | os.PathLike,
    experiment: str,
    config: Any,
    *,
    exclude: Collection[str] = COSMETIC,
) -> RunDirectory:
    """Opens ``runs_dir/<experiment>-<hash of the configuration>``, making it where needed.

    The same configuration always leads to the same directory, so a second start finds what the
    first has left: see `RunDirectory.is_finished`.

    Args:
        runs_dir: directory of all runs.
        experiment: name of the experiment: letters, digits, dot, dash, underscore.
        config: frozen dataclass or dict of settings.
        exclude: top-level settings that do not enter the hash.

    Raises:
        UnwritableError: the directory cannot be written.
        RunDirectoryError: another process works in it, or what it holds is not this run.
        ValueError: ``experiment`` is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", experiment):
        raise ValueError(
            f"experiment={experiment!r} must be letters, digits, dots, dashes and underscores"
        )
    settings = to_json(config)
    path = Path(runs_dir).expanduser() / f"{experiment}-{config_hash(config, exclude=exclude)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        config_path = path / "config.json"
        if config_path.exists():
            _check_same(config_path, settings, exclude)
        else:
            write_atomically(config_path, json.dumps(settings, indent=2) + "\n")
        return RunDirectory(path, settings, lock)
    except BaseException:
        os.close(lock)
        raise


def config_hash(config: Any, *, exclude: Collection[str] = COSMETIC) -> str:
    """Ten hexadecimal digits that name a configuration, the same in every process.

    Example:
        >>> config_hash({"seed": 0, "runs_dir": "a"}) == config_hash({"runs_dir": "b", "seed": 0})
        True
    """
    canonical = json.dumps(_identity(to_json(config), exclude), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def _identity(settings: Any, exclude: Collection[str]) -> Any:
    if not isinstance(settings, dict):
        raise TypeError(f"config must be a dataclass or a dict, not a {type(settings).__name__}")
    return {name: value for name, value in settings.items() if name not in exclude}


def _lock(path: Path) -> int:
    # The kernel drops the lock with its process, kill -9 included, so none is ever left behind.
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise RunDirectoryError(
            f"process {owner} is working on {path}; wait for it, end it, or choose another "
            "--runs-dir or --seed"
        ) from None
    except BaseException:
        os.close(handle)
        raise
    os.truncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


def _check_same(config_path: Path, settings: dict[str, Any], exclude: Collection[str]) -> None:
    try:
        stored = _identity(json.loads(config_path.read_text()), exclude)
    except (ValueError, TypeError):
        stored = None
    # Through JSON once more, so that a number reads back as what was written.
    if stored != json.loads(json.dumps(_identity(settings, exclude))):
        raise RunDirectoryError(
            f"{config_path} does not hold the configuration that names its directory; "
            f"delete {config_path.parent} or choose another --runs-dir"
        )


def _repair(path: Path) -> None:
    """Cuts a last line that a killed process left unfinished; refuses any other broken line."""
    whole = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not _is_record(line):
            if number < len(lines):
                raise RunDirectoryError(
                    f"line {number} of {path} is not a record of metrics; "
                    f"delete {path.parent} or choose another --runs-dir"
                )
            os.truncate(path, whole)
        whole += len(line)


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(record, dict) and {"stage", "step"} <= set(record)
