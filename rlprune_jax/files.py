"""Files that are written whole or not at all, and the JSON that goes into them."""

import contextlib
import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


class UnwritableError(OSError):
    """A file or directory cannot be written; the message names it, the reason and the way out."""


def to_json(value: Any) -> Any:
    """Plain JSON value of settings, numbers, arrays; NaN and infinity, unknown to JSON, are None.

    Raises:
        TypeError: a value has no JSON form; the message names its type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return to_json(value.value)
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return to_json(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that at every moment the old or the new content is there, never half of it.

    Raises:
        UnwritableError: the place cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def unwritable(path: str | os.PathLike, error: OSError) -> UnwritableError:
    """The error to raise where writing to a path failed with another one."""
    reason = error.strerror or str(error)
    return UnwritableError(
        f"cannot write {os.fspath(path)}: {reason}; choose a place that can be written "
        "(--runs-dir for experiments)"
    )
