"""Files written whole or not at all, locks, and JSON of settings."""

import contextlib
import dataclasses
import enum
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from rlprune_jax.checks import require_path


class UnwritableError(OSError):
    """Say why a path cannot be written."""


class Closing:
    """Close something at the end of a ``with`` block.

    Use it as the base of what holds a file, a lock or a library's manager open.

    Example:
        >>> class Door(Closing):
        ...     def close(self):
        ...         print("closed")
        >>> with Door():
        ...     print("open")
        open
        closed
    """

    def close(self) -> None:
        """Free what is held open."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def to_json(value: Any, *, keep_nonfinite: bool = False) -> Any:
    """Return settings, numbers and arrays as plain JSON values.

    Use it before `json.dumps` for whatever a configuration, a line of metrics or a result holds.

    Args:
        value: dataclasses, mappings, sequences, enums, paths, arrays, numbers, and nestings.
        keep_nonfinite: whether NaN and infinity, which JSON does not know, stay floats. Otherwise
            they become None.

    Raises:
        TypeError: a value has no JSON form; the message names its type.

    Example:
        >>> to_json({"sizes": (1, 2), "loss": np.float32("nan")})
        {'sizes': [1, 2], 'loss': None}
    """
    convert = functools.partial(to_json, keep_nonfinite=keep_nonfinite)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: convert(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): convert(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return convert(value.value)
    if isinstance(value, list | tuple):
        return [convert(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return convert(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if keep_nonfinite or math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


def write_atomically(
    path: str | os.PathLike, content: str | bytes | Sequence[bytes | memoryview]
) -> None:
    """Write a file whole or not at all.

    At every moment, also after a kill, either the old or the new content is there.

    Args:
        path: of the file; its directory must exist.
        content: text, written as UTF-8, bytes, or parts of them.

    Raises:
        UnwritableError: the place cannot be written.
    """
    require_path("path", path)
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    parts = [data] if isinstance(data, bytes) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def try_lock(path: str | os.PathLike) -> BaseFileLock | None:
    """Lock a file unless it is locked already.

    Use it to keep two processes out of one directory. The operating system frees the lock when its
    process ends, also after kill -9; the file itself may stay.

    Args:
        path: of the lock file, made where needed; it holds nothing to read.

    Returns:
        The lock, to be freed by its ``release``; None where another process or object holds it.

    Raises:
        OSError: the file cannot be made or opened.
    """
    # Not bound to the thread, so that whoever closes the owner frees it.
    lock = FileLock(os.fspath(path), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def unwritable(path: str | os.PathLike, error: OSError) -> UnwritableError:
    """Make the error of a path that cannot be written.

    Args:
        path: that was to be written.
        error: of the operating system.
    """
    reason = error.strerror or str(error)
    return UnwritableError(
        f"cannot write {os.fspath(path)}: {reason}; choose a place that can be written "
        "(--runs-dir for experiments)"
    )


def _sync_directory(path: Path) -> None:
    # Windows can neither open a directory nor needs to: its rename reaches the disk by itself.
    if not hasattr(os, "O_DIRECTORY"):
        return
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
